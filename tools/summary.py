"""`python -m tools summary`: Day 15's table, figures in README and notes (by cog), the picture, from the CSVs."""

from __future__ import annotations

import contextlib
import io

from cogapp import Cog

from Day15_Summary import summary as day15_summary
from utils import days

from .picture import PICTURE, picture

MEND = ": run `make summary`"
PROLOGUE = (
    "import cog; from utils import days; from tools import readme_tables, results; "
    "from Day15_Summary import summary"
)


def texts() -> list[str]:
    """The files with cog blocks, relative to the root."""
    names = ["README.md", "README.zh-CN.md", *(f"{d.name}/{d.name}_notes.md" for d in days.ALL)]
    return [n for n in names if (days.ROOT / n).exists()]


def summary(check: bool = False) -> int:
    """Renew table, blocks and picture, or with `check` only say which differ (1 when any does)."""
    state = day15_summary.renew(check)  # first: the blocks read it
    bad = int(state.startswith("differs"))
    print(f"{days.get(15).table().name}: {state}{MEND if bad else ''}")
    for name in texts():
        path = str(days.ROOT / name)
        said = io.StringIO()
        arguments = ["cog", "-U", "-p", PROLOGUE, *(["--check"] if check else ["-r"]), path]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = Cog().main(arguments)
        if status:
            bad += 1
            print(f"{name}: {f'differs from the tables{MEND}' if check else said.getvalue()}")
        else:
            print(f"{name}: {'agrees with the tables' if check else 'renewed'}")
    state = picture(check)
    if state.startswith("differs"):
        bad += 1
        state += MEND
    print(f"{PICTURE}: {state}")
    missing = [str(d.number) for d in days.ALL if not d.notebook.exists()]
    if missing:
        print(f"Days not in this repository yet: {', '.join(missing)}")
    unrun = [n for n in day15_summary.missing() if str(n) not in missing]
    if unrun:
        print(f"Days without a headline row yet: {', '.join(map(str, unrun))}")
    return 1 if bad else 0
