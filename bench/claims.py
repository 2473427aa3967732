"""`python -m bench`: each claim of speed as a ratio against the stock way, in one process."""

from __future__ import annotations

import importlib
import traceback
from dataclasses import dataclass

import pandas as pd

TASKS = ("mnist", "cifar10", "speech", "asr", "tts", "speaker")


@dataclass
class Claim:
    """A measured pair. For `higher` numbers (per second) more is better, else less (seconds)."""

    what: str
    stock: float
    ours: float
    unit: str
    goal: float
    higher: bool = False
    capped: bool = False

    @property
    def ratio(self) -> float:
        return self.ours / self.stock if self.higher else self.stock / self.ours

    def row(self) -> tuple[str, ...]:
        least = "at least " if self.capped else ""
        form = "{:,.0f}" if self.higher else "{:,.1f}"
        verdict = "reached" if self.ratio >= self.goal else "MISSED"
        stock, ours = least + form.format(self.stock), form.format(self.ours)
        return self.what, stock, ours, self.unit, f"{least}{self.ratio:.1f}", f"{self.goal:g}", verdict


def bench(tasks: list[str]) -> int:
    """Measure and print the table; 1 when a claim misses its ratio or a task fails.

    A task that fails is reported at the end, with its traceback; the others' figures stay.
    """
    from utils.device import describe_machine

    names = list(TASKS) if "all" in tasks else tasks
    unknown = set(names) - set(TASKS)
    if unknown:
        raise ValueError(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(TASKS)}")
    print(describe_machine(), "\n", flush=True)
    claims: list[Claim] = []
    failed = {}
    for name in names:
        try:
            claims += importlib.import_module(f"bench.{name}").run()
        except Exception:
            failed[name] = traceback.format_exc()
    head = ("claim", "stock", "ours", "unit", "ratio", "goal", "")
    print("\n" + pd.DataFrame([c.row() for c in claims], columns=head).to_string(index=False))
    for name, error in failed.items():
        print(f"\n{name} failed:\n{error}")
    return 1 if failed or any(c.ratio < c.goal for c in claims) else 0
