"""What each day's search tries: a space, and the training of one trial. `python -m utils sweep` runs it."""

from __future__ import annotations

import importlib
from types import ModuleType

DAYS = (8, 9, 10, 12, 14)
"""The days that have a search."""


def sweep_of(day: int) -> ModuleType:
    """The module of a day's search. Raises ValueError where there is none."""
    if day not in DAYS:
        raise ValueError(f"Day {day} has no search; days that have one: {DAYS}")
    return importlib.import_module(f".day{day:02d}", __name__)
