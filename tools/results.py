"""Figures for README and notes, straight from the CSVs: what the cog blocks call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from utils import days
from utils.logger import read_table
from utils.metrics import Spread, spread

from .inside import TABLE

Row = dict[str, str]
RATES = ("accuracy", "wer", "eer")
"""Headline metrics that are shown in percent."""


def rows(day: int, role: str | None = None, profile: str = "study", **where: object) -> list[Row]:
    """Rows of a day's params CSV that fit. Raises ValueError when there are none: no empty claims."""
    entry = days.get(day)
    found = [
        r
        for r in read_table(entry.table())
        if r["profile"] == profile
        and (role is None or r["role"] == role)
        and all(r[k] == str(v) for k, v in where.items())
    ]
    if not found:
        raise ValueError(f"{entry.table().name} has no row with role={role}, {profile}, {where}")
    return found


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table as GitHub renders it."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in body)])


def table(found: Sequence[Row], *columns: str, sort: str | None = None, largest: bool = True) -> str:
    """Rows as a Markdown table of these columns; accuracies as percentages."""
    if sort:
        found = sorted(found, key=lambda r: float(r[sort] or "nan"), reverse=largest)
    return markdown(columns, [[show(c, r[c]) for c in columns] for r in found])


def seeds(found: Sequence[Row], by: Sequence[str], *metrics: str) -> str:
    """Mean and standard deviation over the rows that agree in the columns `by`, a line for each."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for r in found:
        groups.setdefault(tuple(r[c] for c in by), []).append(r)
    body = [
        [*key, *(show_spread(m, spread([float(r[m]) for r in part])) for m in metrics)]
        for key, part in groups.items()
    ]
    return markdown([*by, *metrics], body)


def show(column: str, text: str) -> str:
    """`0.99213` in a column of shares becomes `99.21 %`; long decimals are cut; text stays."""
    try:
        value = float(text)
    except ValueError:
        return text
    if column.endswith("accuracy"):
        return f"{100 * value:.2f} %"
    return f"{value:.4g}" if "." in text else text


def show_spread(column: str, s: Spread) -> str:
    """`99.21 ± 0.04 % (n=3)` for accuracies; else as many digits as the deviation can bear."""
    if column.endswith("accuracy"):
        return percent(s)
    if s.n < 2 or not s.std:
        return f"{s:.4g}"
    digits = max(0, 1 - math.floor(math.log10(s.std)))
    return f"{s:.{digits}f}"


def percent(s: Spread) -> str:
    """`99.21 ± 0.04 % (n=3)`, or `99.21 %` of one run."""
    text = f"{Spread(100 * s.mean, 100 * s.std, s.n):.2f}"
    return text.replace(" (", " % (") if s.n > 1 else f"{text} %"


def headline(day: int, profile: str = "study") -> str:
    """The day's headline metric with its spread, e.g. `99.51 ± 0.03 % (n=3)`."""
    entry = days.get(day)
    found = rows(day, "headline", profile)  # a training run may have no such metric
    values = [float(r[entry.metric]) for r in found if r[entry.metric]]
    show = percent if entry.metric in RATES else partial(show_spread, entry.metric)
    return show(spread(values))


def container_line(day: int) -> str:
    """A sentence for the notes: what the day took in the image, or that it did not run there."""
    image = "the image of [Day 6](../containers/README.md)"
    for row in read_table(days.ROOT / TABLE):
        if row["run"] == days.get(day).name:
            took = f"{float(row['seconds']):.0f} s and {int(row['peak_mb']) / 1000:.1f} GB of memory"
            return f"Runs in {image}: the quick profile took {took} ({row['engine']}, threads: {row['threads']})."
    return f"Not run in {image} yet."


def origin(day: int, profile: str = "study") -> str:
    """Where the figures come from: data set, device, commit, rows and seconds of all of them."""
    found = rows(day, profile=profile)

    def kinds(column: str, of: Callable[[str], str] = str) -> str:
        return ", ".join(dict.fromkeys(of(r[column]) for r in found))

    seconds = sum(float(r["seconds"]) for r in found)
    return (
        f"{len(found)} rows, {profile} profile, data `{kinds('dataset')}`, device "
        f"{kinds('device')}, commit {kinds('commit')}, {seconds:.0f} s in these runs."
    )
