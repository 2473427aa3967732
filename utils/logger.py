"""The record of every run: one row in the day's CSV, its curves in TensorBoard and, on request, in wandb.

`RunLogger` is the only writer of `DayNN_Name_params.csv` and `DayNN_Name_train_log.csv`. A row is written when its
run ends, also when the run fails. Writes are locked and atomic: neither two notebooks at once nor a kill at any
moment loses a finished row.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from . import days
from .device import device_name

LEADING_COLUMNS = ("run", "role", "profile", "dataset", "device", "seed")
TRAILING_COLUMNS = ("seconds", "finished", "commit", "note")
ROLES = ("headline", "sweep", "baseline", "failed")


class LogError(RuntimeError):
    """The record could not be written; the message says why and what to do next."""


def run_id(profile: str, dataset: str, seed: int, config: Mapping[str, Any]) -> str:
    """Ten hex digits that name a run: equal for equal profile, data set, seed and configuration."""
    text = json.dumps([profile, dataset, seed, dict(config)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def git(*arguments: str) -> str:
    """The stripped output of a git command in this repository; empty when it fails or git is missing."""
    command = ["git", "-C", str(days.ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode().strip()


def code_commit(folder: Path) -> str:
    """Short hash of the current commit, with `-dirty` when the code of a day's folder differs from it.

    The code is what `days.code_files` finds; tables and pictures that a run writes do not count. Empty where there
    is no git or no repository.
    """
    commit = git("rev-parse", "--short=10", "HEAD")
    dirty = commit and git("status", "--porcelain", "--", *map(str, days.code_files(folder)))
    return f"{commit}-dirty" if dirty else commit


def format_cell(value: Any) -> str:
    """A value as text for the CSV: six significant digits, one line, no spreadsheet formula."""
    if value is None:
        return ""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split())
    return f"'{text}" if text[:1] in ("=", "+", "@") else text


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV as text; an empty list where there is no file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8-sig", newline="") as f:
        return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(f)]


def update_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str], replace: str) -> None:
    """Replace the rows of the run `replace` by `rows` (appended if there are none); the others stay in order.

    Locked against other processes, and atomic. Columns that are only in the file stay. Raises LogError when the
    folder or file cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path.with_name(f".{path.name}.lock")), timeout=60):
            for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
                stale.unlink()
            old = read_table(path)
            if old and "run" not in old[0]:
                raise LogError(
                    f"{path.name} has no column `run`, so it is not a table that RunLogger wrote: "
                    "move it away and run the cell again."
                )
            header = list(columns)
            at = -len(TRAILING_COLUMNS) if header[-1] == TRAILING_COLUMNS[-1] else len(header)
            header[at:at] = [c for c in (old[0] if old else ()) if c not in header]
            new = [{c: format_cell(row.get(c)) for c in header} for row in rows]
            names = [row["run"] for row in old]
            place = names.index(replace) if replace in names else len(old)
            kept = [row for row in old if row["run"] != replace]
            write_table(path, header, [*kept[:place], *new, *kept[place:]])
    except Timeout as e:
        raise LogError(
            f"{path.name} has been locked by another process for a minute. Close the other notebook "
            "that writes it, then run the cell again."
        ) from e
    except OSError as e:
        raise LogError(
            f"{path.parent.name}/{path.name} could not be written ({e.strerror}); the rows that it had are "
            "untouched. Make the folder writable, or make room on the disk, and run the cell again."
        ) from e


def write_table(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a CSV of text, whole or not at all."""
    with days.atomic(path) as scratch, open(scratch, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        f.flush()
        os.fsync(f.fileno())


def add_row(
    path: Path, profile: str, dataset: str, seed: int, config: Mapping[str, Any], **results: Any
) -> None:
    """Write one run as a row of a project's own table; the same run again replaces its row.

    Its columns are `config` and `results`, after those that name the run. Raises LogError as `update_table` does.
    """
    run = run_id(profile, dataset, seed, config)
    row = {"run": run, "profile": profile, "dataset": dataset, "seed": seed}
    row |= {**config, **results}
    update_table(path, [row], row, replace=run)


class RunLogger:
    """The table of one day.

        log = RunLogger("Day02_Training_Loop", PROFILE, data.name, device,
                        columns=("optimizer", "lr", "final_loss", "accuracy", "epochs"))
        with log.run(role="headline", seed=0, optimizer="Adam", lr=1e-3) as run:
            run.log_epoch(1, train_loss=0.3, val_accuracy=0.97)
            run.log_metrics(final_loss=0.1, accuracy=0.98)

    quick writes under `runs/quick/`, study and full into the day folder (`days.Day.output`). In the table results
    come before settings: what a run was configured with is a setting, what it logged is a result.
    """

    def __init__(
        self,
        day: int | str,
        profile: str,
        dataset: str,
        device: torch.device,
        columns: Sequence[str],
        folder: Path | None = None,
    ) -> None:
        self.day, self.profile = days.get(day), days.check_profile(profile)
        self.dataset, self.device = dataset, device
        self.columns = [c for c in columns if c not in LEADING_COLUMNS + TRAILING_COLUMNS]
        self.folder = folder or self.day.output(profile)
        if profile != "quick" and dataset.startswith("sample"):
            raise LogError("Results of the bundled sample are never published: use PROFILE = 'quick'.")
        self.commit = code_commit(self.day.folder)
        self.headlines: set[str] = set()

    @property
    def path(self) -> Path:
        return self.folder / self.day.table().name

    @property
    def train_log(self) -> Path:
        return self.folder / f"{self.day.name}_train_log.csv"

    @property
    def header(self) -> list[str]:
        """Leading columns, the day's own in the order that the table has, trailing columns."""
        places = {name: i for i, name in enumerate(next(iter(read_table(self.path)), ()))}
        own = sorted(self.columns, key=lambda name: places.get(name, 0))
        return [*LEADING_COLUMNS, *own, *TRAILING_COLUMNS]

    def demote_old_headlines(self) -> None:
        """Make all headline rows of this profile that this session did not run `sweep` rows.

        Call it after the headline runs. The epochs of other runs leave the train log, so that no mean over
        headline runs mixes two configurations.
        """
        for row in self.rows():
            if row["role"] == "headline" and row["run"] not in self.headlines:
                update_table(self.path, [{**row, "role": "sweep"}], self.header, row["run"])
        log = read_table(self.train_log)
        logged = {e["run"] for e in log if e["profile"] == self.profile}
        for run in logged - self.headlines:
            update_table(self.train_log, [], list(log[0]), replace=run)

    def rows(self) -> list[dict[str, str]]:
        """This profile's rows as text."""
        return [r for r in read_table(self.path) if r.get("profile") == self.profile]

    def run(self, *, role: str = "sweep", seed: int = 0, note: str = "", **config: Any) -> Run:
        """A run with this configuration, for a `with` statement."""
        if role not in ROLES:
            raise ValueError(f"role {role!r}: write one of {', '.join(ROLES)}")
        return Run(self, role, seed, note, config)

    def table(self, *columns: str, role: str | None = None):
        """This profile's rows as a pandas DataFrame, numbers as numbers; by default all columns."""
        import pandas as pd

        rows = self.rows()
        frame = pd.DataFrame(rows, columns=self.header if not rows else None)
        for name in frame.columns:
            if name not in ("run", "commit"):
                with contextlib.suppress(ValueError, TypeError):
                    frame[name] = pd.to_numeric(frame[name])
        if role:
            frame = frame[frame["role"] == role].reset_index(drop=True)
        return frame[list(columns)] if columns else frame

    def show(self, *columns: str, role: str | None = None):
        """The same rows as text, as in the CSV, indexed by their run."""
        import pandas as pd

        rows = [r for r in self.rows() if role in (None, r["role"])]
        return pd.DataFrame(rows).set_index("run")[list(columns or self.header[1:])]


class Run:
    """One run. Leaving its `with` block writes its row."""

    def __init__(self, log: RunLogger, role: str, seed: int, note: str, config: dict[str, Any]) -> None:
        self.log, self.role, self.seed, self.note, self.config = (log, role, seed, note, config)
        self.id = run_id(log.profile, log.dataset, seed, config)
        self.folder = days.runs(log.profile, log.day.name, self.id)
        self.results: dict[str, Any] = {}
        self.epochs: list[dict[str, Any]] = []
        self.earlier_seconds = 0.0
        self._writer = self._wandb = None

    @property
    def checkpoint(self) -> Path:
        """Where `training.fit` saves this run's state, so that a killed run can continue."""
        return self.folder / "checkpoint.pt"

    @property
    def keeps_checkpoint(self) -> bool:
        """Whether a finished run's state stays until the whole notebook has finished (`run --resume`)."""
        return bool(os.environ.get("STUDY_RESUME"))

    def __enter__(self) -> Run:
        from torch.utils.tensorboard import SummaryWriter

        if self.folder.exists() and not self.checkpoint.exists():
            shutil.rmtree(self.folder)  # of an earlier run of this configuration: one curve, not two
        self._writer = SummaryWriter(str(self.folder))
        self._wandb = self._start_wandb()
        self._start = time.perf_counter()
        return self

    def _start_wandb(self):
        mode = os.environ.get("WANDB_MODE", "disabled")
        if mode not in ("online", "offline"):
            return None
        import wandb  # takes seconds: only where it is used

        day, config = self.log.day.name, {"seed": self.seed, "dataset": self.log.dataset}
        return wandb.init(
            project="ml_speech_learning", group=day, name=f"{day}-{self.id}",
            config=config | self.config, dir=str(self.folder), mode=mode,
        )  # fmt: skip

    def log_scalars(self, step: int, **values: float) -> None:
        """Write numbers of one step to TensorBoard (and wandb): `run.log_scalars(120, loss=0.3)`."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)
        if self._wandb:
            self._wandb.log({k: float(v) for k, v in values.items()}, step=step)

    def image(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """Write a grey image `(height, width)`, 0 to 1, first row on top, to TensorBoard."""
        self._writer.add_image(name, pixels.clamp(0, 1), step, dataformats="HW")

    def log_steps(self, first: int, curves: Mapping[str, Sequence[float]]) -> None:
        """Write the numbers of many steps from step `first` on; `training.fit` calls it once an epoch."""
        length = max((len(v) for v in curves.values()), default=0)
        for i in range(length):
            self.log_scalars(first + i, **{k: v[i] for k, v in curves.items() if i < len(v)})

    def log_epoch(self, number: int, **values: float) -> None:
        """Write the numbers of one epoch; those of headline runs also go to the day's `_train_log.csv`."""
        self.epochs.append({"epoch": number, **values})
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"epoch/{name}", value, number)
        if self._wandb:
            self._wandb.log({f"epoch/{k}": v for k, v in values.items()} | {"epoch": number})

    def log_metrics(self, **values: Any) -> None:
        """Set result columns of the run's row. Raises ValueError for a column that the table does not have."""
        if unknown := ", ".join(sorted(set(values) - set(self.log.columns))):
            raise ValueError(f"no such column in {self.log.path.name}: {unknown}")
        self.results.update(values)

    def _log_hparams(self) -> None:
        """Configuration and results for TensorBoard's HParams page, in the run's own folder."""
        numbers = {
            f"hparam/{k}": float(v)
            for k, v in self.results.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)
        }
        plain = (bool, int, float, str)
        config = {k: v if isinstance(v, plain) else str(v) for k, v in self.config.items()}
        self._writer.add_hparams({**config, "seed": self.seed}, numbers, run_name=".")

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        seconds = self.earlier_seconds + time.perf_counter() - self._start
        self._log_hparams()
        self._writer.close()
        if self._wandb:
            self._wandb.finish(exit_code=0 if kind is None else 1)
        role, note = self.role, self.note
        if kind is not None:
            role, reason = "failed", f"{kind.__name__}: {error}".rstrip(": ")
            note = f"{note} ({reason[:200]})" if note else reason[:200]
        log = self.log
        finished = {row["run"] for row in log.rows() if row["role"] != "failed"}
        if kind is KeyboardInterrupt and self.id in finished:
            return  # the reader stopped a repetition: keep the finished row
        about = {"run": self.id, "profile": log.profile, "seed": self.seed}
        row = about | {
            "role": role, "dataset": log.dataset,
            "device": f"{log.device.type} ({device_name(log.device)})",
            **{k: v for k, v in self.config.items() if k in log.columns}, **self.results,
            "seconds": round(seconds, 2),
            "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "commit": log.commit, "note": note,
        }  # fmt: skip
        first, last = len(LEADING_COLUMNS), -len(TRAILING_COLUMNS)
        header = log.header  # results before settings
        header[first:last] = sorted(header[first:last], key=lambda name: name in self.config)
        update_table(log.path, [row], header, replace=self.id)
        if role == "headline":
            log.headlines.add(self.id)
        if role == "headline" and self.epochs:
            rows = [about | epoch for epoch in self.epochs]
            header = list(dict.fromkeys(name for row in rows for name in row))
            update_table(log.train_log, rows, header, replace=self.id)
        if kind is None and not self.keeps_checkpoint:
            self.checkpoint.unlink(missing_ok=True)


def progress(total: int, label: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """A progress bar in plain text that clears itself, so that it leaves nothing in a committed notebook."""
    return tqdm(
        total=total, initial=initial, desc=label, disable=not enabled, leave=False, mininterval=0.5,
        file=sys.stdout,
    )  # fmt: skip
