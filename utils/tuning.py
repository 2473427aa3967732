"""Searches that can be stopped and shared: a thin layer over Optuna, one journal file per study.

A study is a file `runs/<profile>/<day>/<name>.journal`. Any number of workers, on all nodes that share this file,
can join it. If one is killed, only its running trial is lost, and the next worker on that machine queues it again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import Trial, TrialState
from torch import nn

from . import days
from .logger import RunLogger, git
from .training import History, count_parameters

DONE = (TrialState.COMPLETE, TrialState.PRUNED)

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=8, multivariate=True, constant_liar=True
    ),
}
"""How the next trial is chosen: at random, or by densities of good and bad trials (TPE; Bergstra et al., 2011)."""


def open_study(path: Path) -> optuna.Study:
    """The study in this journal file, which is created if necessary; the file's stem is its name.

    From its fifth epoch on a trial is pruned if its value is among the worst 40 % of earlier trials at that epoch.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=path.stem,
        storage=JournalStorage(JournalFileBackend(str(path))),
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.PercentilePruner(60.0, n_startup_trials=8, n_warmup_steps=5),
    )


def study_path(day: int, profile: str, name: str = "tpe") -> Path:
    """The journal file of one study of a day."""
    return days.runs(profile, days.get(day).name, f"{name}.journal")


def suggest(trial: Trial, space: Mapping[str, BaseDistribution], sgd_factor: float = 1.0) -> dict[str, Any]:
    """What a trial draws from the space; floats have four significant digits, so that a row is exact.

    `sgd_factor` multiplies the learning rates (`lr`, `..._lr`) of trials whose optimizer is SGD.
    """
    drawn = {
        name: trial.suggest_float(name, d.low, d.high, log=d.log)
        if isinstance(d, FloatDistribution)
        else trial.suggest_categorical(name, d.choices)
        for name, d in space.items()
    }
    if drawn.get("optimizer") == "SGD":
        drawn |= {k: sgd_factor * v for k, v in drawn.items() if k.endswith("lr")}
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in drawn.items()}


def run_trial(
    trial: Trial,
    log: RunLogger,
    settings: Mapping[str, Any],
    train: Callable[..., tuple[nn.Module, History]],
    score: Callable[[Mapping[str, float]], float],
    *,
    epochs: int,
    curves: Mapping[str, str],
    measure: Callable[[nn.Module, History], Mapping[str, Any]] | None = None,
    **config: Any,
) -> float:
    """Train once by `settings`, write the row of the trial, and return its score.

    `train(settings, run=..., stop=...)` returns the model and its history. `score(numbers)` of each epoch is
    reported; a trial that the pruner stops before `epochs` gets a row, too. The row has the last epoch's
    numbers that the table has a column for, `curves` (column: name in the history), what `measure` returns,
    and `config`, which like `settings` names the run. Raises `optuna.TrialPruned`.
    """
    pruned = False

    def stop(numbers: Mapping[str, float]) -> bool:
        nonlocal pruned
        trial.report(score(numbers), numbers["epoch"])
        pruned = numbers["epoch"] < epochs and trial.should_prune()
        return pruned

    with log.run(role="sweep", trial=trial.number, **config, **settings) as run:
        model, history = train(settings, run=run, stop=stop)
        last = history.epochs[-1]
        row = {k: v for k, v in last.items() if k in log.columns and k not in settings}
        row |= {"final_loss": last["train_loss"], "epochs": last["epoch"]}
        row |= {"state": "pruned" if pruned else "complete", "n_params": count_parameters(model)}
        for column, name in curves.items():
            row[column] = " ".join(f"{v:.4f}" for v in history.column(name))
        run.log_metrics(**row | dict(measure(model, history) if measure else {}))
    if pruned:
        raise optuna.TrialPruned
    return score(last)


def worker_name() -> str:
    """`host:pid:start`: identifies a process, also after a reboot."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """When the process began, in clock ticks since boot; empty if there is no such process or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def is_dead(worker: str) -> bool:
    """Whether this worker ran on this machine and has ended; False for a worker of another machine."""
    host, pid, started = (*worker.split(":"), "", "")[:3]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(started) and _started(int(pid)) != started


def put_back(study: optuna.Study) -> list[int]:
    """Fail the trials whose worker was killed and queue each again, once; returns their numbers."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    lost = [trial for trial in running if is_dead(trial.user_attrs.get("worker", ""))]
    for trial in lost:
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
    return [trial.number for trial in lost]


def search(
    path: Path,
    objective: Callable[[Trial], float],
    trials: int,
    sampler: str = "tpe",
    seed: int = 0,
    code: str = "",
) -> optuna.Study:
    """Work on the study until it has `trials` finished (complete, pruned or diverged) or running trials.

    Trial k is drawn by a sampler seeded with `seed + k`, so a search that was stopped continues as it would have,
    and two workers draw different trials. `objective(trial)` returns the value or raises `optuna.TrialPruned`. A
    FloatingPointError (a diverged run) makes a failed trial; any other exception ends the worker. `code` names the
    code of the training (`days.code_version`). Raises ValueError for an unknown sampler, and for a study that was
    begun by other code, whose scores cannot be compared; in the quick profile such a study is begun anew.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r}: write one of {', '.join(SAMPLERS)}")
    study = open_study(path)
    lock = FileLock(str(path.with_name(f".{path.name}.draw.lock")))
    with lock:
        if study.user_attrs.get("code", code) != code:
            if days.runs("quick") not in path.parents:
                raise ValueError(
                    f"the study {path.name} was begun by other code (commit {study.user_attrs['commit']}): "
                    f"delete {path.name} to begin anew, or check that commit out to continue"
                )
            path.unlink()
            study = open_study(path)
        if "code" not in study.user_attrs:
            study.set_user_attr("code", code)
            study.set_user_attr("commit", git("rev-parse", "--short=10", "HEAD") or "none")
    while True:
        with lock:  # count and draw at once, so that two workers never take the same trial
            for number in put_back(study):
                print(f"{path.stem}: trial {number} was lost with its worker; queued again")
            every = study.get_trials(deepcopy=False)
            taken = sum(t.state in (*DONE, TrialState.RUNNING) for t in every)
            taken += sum(t.state == TrialState.FAIL and "diverged" in t.user_attrs for t in every)
            if taken >= trials:
                return study
            study.sampler = SAMPLERS[sampler](seed + len(every))
            trial = study.ask()
            trial.set_user_attr("worker", worker_name())
        print(f"{path.stem}: trial {trial.number} begins ({taken} of {trials} taken)")
        try:
            study.tell(trial, objective(trial))
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except FloatingPointError as error:
            trial.set_user_attr("diverged", str(error)[:200])
            study.tell(trial, state=TrialState.FAIL)
