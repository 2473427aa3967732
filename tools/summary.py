"""`python -m tools summary`: Day 15's table, the days' pages, figures in README and notes, the picture.

All of them come from the CSVs. README and notes hold their figures in blocks of cog.
"""

from __future__ import annotations

import contextlib
import io

from cogapp import Cog

from Day15_Summary import summary as day15_summary
from utils import days

from .picture import PICTURE, picture
from .readme_tables import page

FIX = ": run `make summary`"
PROLOGUE = (
    "import cog; from utils import days; from tools import readme_tables, results; "
    "from Day15_Summary import summary"
)


def texts() -> list[str]:
    """The files with cog blocks, relative to the root."""
    names = ["README.md", "README.zh-CN.md", *(f"{d.name}/{d.name}_notes.md" for d in days.ALL)]
    names += [f"docs/{p.name}" for p in sorted((days.ROOT / "docs").glob("*.md"))]
    return [n for n in names if (days.ROOT / n).exists()]


def cogged(name: str, check: bool) -> str:
    """Renew the blocks of a file, or with `check` compare them; what was found."""
    said = io.StringIO()
    arguments = ["cog", "-U", "-p", PROLOGUE, "--check" if check else "-r", str(days.ROOT / name)]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = Cog().main(arguments)
    if status:
        return "differs from the tables" if check else f"differs, {said.getvalue()}"
    return "agrees with the tables" if check else "renewed"


def paged(day: days.Day, check: bool) -> str:
    """Write a day's README.md, or with `check` compare it; what was found."""
    path, text = day.folder / "README.md", page(day) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return "agrees with the tables"
    if check:
        return "differs from the tables"
    path.write_text(text, encoding="utf-8")
    return "written"


def summary(check: bool = False) -> int:
    """Renew them all, or with `check` only say which differ (1 when any does)."""
    found = {days.get(15).table().name: day15_summary.renew(check)}  # first: the others read it
    found |= {f"{d.name}/README.md": paged(d, check) for d in days.existing()}
    found |= {name: cogged(name, check) for name in texts()}
    found[PICTURE] = picture(check)
    bad = [name for name, state in found.items() if state.startswith("differs")]
    for name, state in found.items():
        print(f"{name}: {state}{FIX if check and name in bad else ''}")
    if unrun := day15_summary.missing():
        print(f"Days without a headline row yet: {', '.join(map(str, unrun))}")
    return 1 if bad else 0
