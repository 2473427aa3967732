"""All projects in one table: what Day 15 publishes, derived from the other days' tables and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils import days
from utils.logger import format_cell, read_table, write_table
from utils.metrics import spread

Row = dict[str, str]

COLUMNS = (
    "day", "project", "role", "dataset", "best_config", "metric", "value", "spread", "runs",
    "trained_in", "device", "seconds", "commit",
)  # fmt: skip
"""`role`: headline, also (another metric of the headline runs), baseline (the best one) or sweep (the best
trial). `spread` is the standard deviation over `runs` runs; of a sweep, `runs` counts the trials it is the
best of. `trained_in` is the profile, `seconds` the mean of one run (of the test alone, where it loads weights)."""

SETTINGS = (
    "model", "system", "features", "task", "init", "labels", "container_engine", "image",
    "torch_version", "optimizer", "loss_fn", "loss", "scheduler", "lr", "encoder_lr",
    "batch_size", "activation", "hidden", "width", "dropout", "augment", "augmentation", "strength",
    "encoder", "decoder", "encoder_dim", "decoder_dim", "r", "guided", "margin", "snr_db",
    "enrolment", "scores", "epochs", "steps",
)  # fmt: skip
"""Columns that say what was chosen, in the order of `best_config`. A number under `loss` is a result."""

METRICS = (
    "test_loss", "accuracy", "wer", "cer", "eer", "min_dcf", "identification", "similarity",
    "audio_quality", "pesq_after", "stoi_after", "si_sdr_after", "final_loss",
)  # fmt: skip
"""Columns that say how it went, and are worth a row besides the headline."""

CHOSEN_BY = (
    "val_score", "val_wer", "val_eer", "val_si_sdr", "val_stoi", "val_accuracy", "val_mel",
    "val_loss",
)  # fmt: skip
"""What a search goes by, where not by `val_` and the day's metric."""


def lower_is_better(metric: str, rows: Sequence[Row] = ()) -> bool:
    """Of losses, error rates and costs, and of an `audio_quality` whose rows say so; else more is better."""
    if metric == "audio_quality":
        return any("lower is better" in r.get("quality_metric", "") for r in rows)
    return metric.endswith(("loss", "wer", "cer", "eer", "dcf", "mel"))


def published(day: days.Day) -> list[Row]:
    """All rows that a day published, failed ones left out; none where its table is not there."""
    rows = read_table(day.table())
    return [r for r in rows if r.get("role") != "failed"]


def projects() -> list[days.Day]:
    """Days 1 to 14."""
    return [day for day in days.ALL if day.name != "Day15_Summary"]


def missing() -> list[int]:
    """The projects without a headline row in their table."""
    return [day.number for day in projects() if not any(r["role"] == "headline" for r in published(day))]


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    """The numbers of a column; cells that are empty or text are left out."""
    found = (_number(r.get(column)) for r in rows)
    return [x for x in found if x is not None]


def selection(rows: Sequence[Row], metric: str) -> str:
    """The column of the validation part that most of a search's trials share; "" when no two share one.

    Rows of test items (other subsets, other noise levels) are no trials to choose among.
    """
    names = (f"val_{metric}", *(c for c in CHOSEN_BY if c != f"val_{metric}"))
    shared = {name: len(numbers(rows, name)) for name in names}
    name = max(names, key=shared.get)  # the first of equals
    return name if shared[name] > 1 else ""


def best(rows: Sequence[Row], metric: str) -> Row:
    """The row with the best value of a metric."""
    found = [r for r in rows if _number(r.get(metric)) is not None]
    sign = -1 if lower_is_better(metric, found) else 1
    return max(found, key=lambda r: sign * float(r[metric]))


def configuration(rows: Sequence[Row]) -> str:
    """`optimizer=AdamW; lr=0.002`: the settings of these rows; where they differ, all values."""
    said = []
    for name in SETTINGS:
        values = dict.fromkeys(r[name] for r in rows if r.get(name))
        if not values or (name == "loss" and numbers(rows, name)):
            continue
        if len(values) <= 4:
            said.append(f"{name}={' / '.join(values)}")
    return "; ".join(said)


def _row(day: days.Day, role: str, metric: str, rows: Sequence[Row], runs: int) -> Row:
    values = spread(numbers(rows, metric))
    deviation = values.std if values.n > 1 else None
    if deviation is not None and deviation < 1e-12 * abs(values.mean):
        deviation = 0.0  # rounding, where all runs gave the same

    def kinds(column: str) -> str:
        return ", ".join(dict.fromkeys(r[column] for r in rows if r[column]))

    row = {
        "day": day.number, "project": day.title.replace("_", " "), "role": role,
        "dataset": kinds("dataset"), "best_config": configuration(rows), "metric": metric,
        "value": values.mean, "spread": deviation, "runs": runs,
        "trained_in": kinds("profile"), "device": kinds("device"), "commit": kinds("commit"),
        "seconds": spread(numbers(rows, "seconds")).mean,
    }  # fmt: skip
    return {name: format_cell(row[name]) for name in COLUMNS}


def of_day(day: days.Day, rows: Sequence[Row]) -> list[Row]:
    """The lines of one project, by profile and data set: headline, other metrics, best baseline, best trial."""
    out = []
    heads: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        if r["role"] == "headline" and _number(r.get(day.metric)) is not None:
            heads.setdefault((r["profile"], r["dataset"]), []).append(r)
    for some in heads.values():
        out.append(_row(day, "headline", day.metric, some, len(some)))
        for metric in METRICS:
            found = [r for r in some if _number(r.get(metric)) is not None]
            if found and metric != day.metric:
                out.append(_row(day, "also", metric, found, len(found)))
    for dataset in dict.fromkeys(dataset for _, dataset in heads):
        alike = [r for r in rows if r["dataset"] == dataset]
        for role in ("baseline", "sweep"):
            others = [r for r in alike if r["role"] == role]
            metric = selection(others, day.metric) if role == "sweep" else day.metric
            if count := len(numbers(others, metric)):
                out.append(_row(day, role, metric, [best(others, metric)], count))
    return out


def derive() -> list[Row]:
    """Day 15's table, from what is published now; days that are not there have no line."""
    return [row for day in projects() for row in of_day(day, published(day))]


def write(folder: Path) -> Path:
    """Write the table into a folder, whole or not at all; returns the file."""
    path = folder / days.get(15).table().name
    folder.mkdir(parents=True, exist_ok=True)
    write_table(path, COLUMNS, derive())
    return path


def renew(check: bool = False) -> str:
    """Write the published table where it is older than the others; with `check` only look. The word for it."""
    day = days.get(15)
    path = day.table()
    if not day.notebook.exists():
        return "not written, its day is not here"
    if read_table(path) == derive():
        return "agrees with the tables"
    if not check:
        write(day.folder)
        return "written"
    return "differs from the tables"
