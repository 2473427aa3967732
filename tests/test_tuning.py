"""Searches: stopped by kill -9 they go on, shared they never repeat a trial; the sweep leaves its rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import optuna
import pytest
from conftest import git
from optuna.trial import TrialState

from Day08_SC_Tuning import search
from tools.__main__ import main
from utils import days, tuning
from utils.logger import read_table

ROOT = Path(__file__).resolve().parent.parent
WORKER = """
    import sys, time
    from pathlib import Path
    from utils import tuning

    path, log, trials, pause = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        with open(log, "a") as f:
            f.write(f"{trial.number} {x}\\n")
        time.sleep(pause)
        return -(x - 0.3) ** 2

    tuning.search(path, objective, trials, "tpe")
"""


def worker(tmp_path, trials, pause):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    command = [sys.executable, str(script), str(tmp_path / "s.journal"), str(tmp_path / "log")]
    return subprocess.Popen([*command, str(trials), str(pause)], env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_for(path, lines, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.02)
    raise AssertionError("the worker did not begin its trials")


@pytest.mark.slow
def test_a_killed_search_goes_on_and_loses_only_the_running_trial(tmp_path):
    first = worker(tmp_path, 6, 0.4)
    wait_for(tmp_path / "log", 3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = tuning.open_study(tmp_path / "s.journal").get_trials()
    kept = [t.number for t in before if t.state == TrialState.COMPLETE]
    lost = [t for t in before if t.state == TrialState.RUNNING]
    assert len(kept) == 2
    assert len(lost) == 1
    assert worker(tmp_path, 6, 0.0).wait(60) == 0
    after = tuning.open_study(tmp_path / "s.journal").get_trials()
    assert [t.number for t in after if t.state == TrialState.COMPLETE][:2] == kept
    assert sum(t.state == TrialState.COMPLETE for t in after) == 6
    again = [t for t in after if t.user_attrs.get("again") == lost[0].number]
    assert len(again) == 1
    assert again[0].params == lost[0].params
    assert after[lost[0].number].state == TrialState.FAIL


@pytest.mark.slow
def test_two_workers_share_a_study_and_repeat_nothing(tmp_path):
    crew = [worker(tmp_path, 12, 0.1) for _ in range(2)]
    assert [w.wait(90) for w in crew] == [0, 0]
    trials = tuning.open_study(tmp_path / "s.journal").get_trials()
    assert len(trials) == 12
    assert all(t.state == TrialState.COMPLETE for t in trials)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(int(line.split()[0]) for line in lines) == list(range(12))
    assert len({t.params["x"] for t in trials}) == 12
    assert len({t.user_attrs["worker"] for t in trials}) == 2


def test_a_search_repeats_itself_with_its_seed(tmp_path):
    def run(name, seed):
        study = tuning.search(
            tmp_path / f"{name}.journal", lambda t: -((t.suggest_float("x", 0, 1) - 0.3) ** 2), 12, seed=seed
        )
        return [t.params["x"] for t in search.finished(study)]

    assert run("a", 0) == run("b", 0) != run("c", 1)


def test_a_diverged_trial_counts_and_the_search_goes_on(tmp_path):
    def objective(trial):
        if trial.number == 1:
            raise FloatingPointError("the loss is nan")
        if trial.number == 2:
            raise optuna.TrialPruned
        return trial.suggest_float("x", 0, 1)

    study = tuning.search(tmp_path / "s.journal", objective, 5)
    states = [t.state for t in study.get_trials()]
    assert len(states) == 5
    assert states[1:3] == [TrialState.FAIL, TrialState.PRUNED]
    assert len(search.finished(study)) == 4


def test_an_unknown_error_ends_the_worker(tmp_path):
    def objective(trial):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        tuning.search(tmp_path / "s.journal", objective, 2)


def test_a_study_of_other_code_is_not_joined(tmp_path):
    def run(code):
        return tuning.search(tmp_path / "s.journal", lambda t: t.suggest_float("x", 0, 1), 2, code=code)

    assert len(run("aaaa").get_trials()) == 2
    run("aaaa")
    with pytest.raises(ValueError, match=r"other code \(commit .*delete s\.journal"):
        run("bbbb")


def test_only_code_that_the_day_imports_stops_a_search(tmp_path, repository):
    """A commit to README, another day's notes or a module that the search never imports changes nothing."""
    path, folder = tmp_path / "s.journal", repository / "Day08_SC_Tuning"

    def run(trials):
        code = days.code_version(folder, notebooks=False)
        study = tuning.search(path, lambda t: 0.0, trials, code=code)
        return len(study.get_trials())

    assert run(1) == 1
    for file in ("README.md", "Day02_Training_Loop/notes.md", "utils/c.py"):
        (repository / file).write_text("# changed\n")
        git(repository, "commit", "-qam", file)
    (folder / "Day08_SC_Tuning.ipynb").write_text('{"cells": []}')
    assert run(2) == 2
    (repository / "utils" / "b.py").write_text("b = 2\n")
    git(repository, "commit", "-qam", "code")
    with pytest.raises(ValueError, match="other code"):
        run(3)


def test_a_rehearsal_that_other_code_began_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    path = tmp_path / "quick" / "Day08_SC_Tuning" / "s.journal"
    for code, numbers in (("aaaa", [0, 1]), ("bbbb", [0, 1]), ("bbbb", [])):
        drawn = []

        def objective(trial, drawn=drawn):
            drawn.append(trial.number)
            return trial.suggest_float("x", 0, 1)

        tuning.search(path, objective, 2, code=code)
        assert drawn == numbers


def test_an_unknown_sampler_is_named(tmp_path):
    with pytest.raises(ValueError, match="write one of random, tpe"):
        tuning.search(tmp_path / "s.journal", lambda t: 0.0, 1, "grid")


def test_workers_of_other_machines_are_never_declared_dead():
    assert not tuning.is_dead("elsewhere:1:5")
    assert not tuning.is_dead("")
    assert not tuning.is_dead(tuning.worker_name())
    host, pid, _ = tuning.worker_name().split(":")
    assert tuning.is_dead(f"{host}:{pid}:1")  # another process had this number before


def test_best_so_far_never_falls():
    assert search.best_so_far([1, 3, 2, 5, 4]) == [1, 3, 3, 5, 5]
    assert search.best_so_far([]) == []


@pytest.mark.slow
def test_a_sweep_leaves_a_row_for_each_trial_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    command = ["sweep", "--day", "8", "--profile", "quick", "--trials"]
    assert main([*command, "2"]) == 0
    table = tmp_path / "quick" / days.get(8).name / f"{days.get(8).name}_params.csv"
    rows = read_table(table)
    assert len(rows) == 4
    assert {(r["sampler"], r["trial"]) for r in rows} == {
        (s, t) for s in ("random", "tpe") for t in ("0", "1")
    }
    rates = [{r["lr"] for r in rows if r["sampler"] == s} for s in ("random", "tpe")]
    assert not rates[0] & rates[1]  # each search draws for itself
    for row in rows:
        assert row["state"] in ("complete", "pruned")
        assert float(row["grad_norm"]) > 0
        assert 0 <= float(row["val_accuracy"]) <= 1
    assert main([*command, "3"]) == 0
    assert len(read_table(table)) == 6
    assert main([*command, "3"]) == 0
    assert len(read_table(table)) == 6


def test_a_day_without_a_search_says_which_have_one(capsys):
    assert main(["sweep", "--day", "3"]) == 2
    assert "has no search" in capsys.readouterr().err
