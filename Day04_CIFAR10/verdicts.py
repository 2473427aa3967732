"""Which changes of Day 4's search are beyond the noise: the tables and numbers of the notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from utils.logger import read_table

Table = tuple[list[str], list[list[str]]]
BASE = {"model": "CNN+BatchNorm", "batch_size": "128", "lr": "0.01", "dropout": "0", "augment": "flip+shift"}


def ruler(runs: Sequence[float], new: int = 1, alarms: float = 0.05) -> float:
    """Half width of Student's interval for the mean of `new` further runs of the configuration of `runs`.

    A difference of equal configurations is larger with the probability `alarms`.
    """
    n = len(runs)
    return float(student_t.ppf(1 - alarms / 2, n - 1) * np.std(runs, ddof=1) * (1 / new + 1 / n) ** 0.5)


def short_runs() -> list[dict[str, str]]:
    """The study rows of the search: two epochs each."""
    rows = read_table(Path(__file__).with_name("Day04_CIFAR10_params.csv"))
    return [r for r in rows if r["profile"] == "study" and r["epochs"] == "2"]


def percent(**changes: str) -> list[float]:
    """Validation accuracies in percent of BASE with these changes, by seed."""
    wish = BASE | changes
    found = [r for r in short_runs() if all(r[k] == v for k, v in wish.items())]
    return [100 * float(r["val_accuracy"]) for r in sorted(found, key=lambda r: int(r["seed"]))]


def gains() -> list[tuple[str, float]]:
    """Every change of one factor with its gain over the mean of BASE in points, best first."""
    options = {(k, r[k]) for r in short_runs() for k in BASE if k != "model" and r[k] != BASE[k]}
    mean = float(np.mean(percent()))
    found = [(f"{k} {v}", percent(**{k: v})[0] - mean) for k, v in options if percent(**{k: v})]
    plain = [percent(model="CNN", lr=lr)[0] for lr in ("0.001", "0.003", "0.01", "0.03")]
    found.append(("no batch norm, at the best of four learning rates", max(plain) - mean))
    return sorted(found, key=lambda item: (-item[1], item[0]))


def base() -> str:
    """The base with its deviation and ruler, and how many false alarms to expect."""
    runs, found = percent(), gains()
    shown = sum(abs(gain) > ruler(runs) for _, gain in found)
    return (
        f"Base: {np.mean(runs):.2f} %, deviation {np.std(runs, ddof=1):.2f} over {len(runs)} seeds; the ruler "
        f"for one run is ±{ruler(runs):.2f} points. {shown} of {len(found)} changes are beyond it; by chance "
        f"alone expect about {0.05 * len(found):.1f}."
    )


def changes() -> Table:
    """Head and body: the changes with their gains, one line for each verdict."""
    limit = ruler(percent())
    groups: dict[str, list[str]] = {"better": [], "not shown": [], "worse": []}
    for name, gain in gains():
        word = "not shown" if abs(gain) <= limit else "better" if gain > 0 else "worse"
        groups[word].append(f"{name} ({gain:+.2f})")
    return ["verdict", "change (points)"], [
        [word, "; ".join(found) or "none"] for word, found in groups.items()
    ]


def grid() -> Table:
    """Head and body: validation accuracy by batch size and learning rate, one run each."""
    rates, body = ("0.003", "0.01", "0.03"), []
    for size in ("64", "256", "1024"):
        body.append([size, *(f"{percent(batch_size=size, lr=lr)[0]:.1f} %" for lr in rates)])
    return ["batch size", *(f"learning rate {lr}" for lr in rates)], body
