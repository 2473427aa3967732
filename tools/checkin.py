"""`python -m tools checkin`: what a day's folder still lacks, and the git commands; it never pushes."""

from __future__ import annotations

import csv
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import nbformat

from Day15_Summary import summary
from utils import days
from utils.logger import git, read_table

SECTIONS = (
    "Goal", "Concepts", "What we ran", "Results", "Problems and solutions", "Container", "Links",
    "Open questions",
)  # fmt: skip
"""The headings of a day's notes."""

LEAST_WIDTH = 1200


@dataclass
class Item:
    """One line of the list: done or not, what, and how to mend it."""

    done: bool
    what: str
    mend: str = ""


def checkin(number: int) -> int:
    """Show what is there and what is missing in a day's folder; 0 when nothing is."""
    day = days.get(number)
    items = [*notebook(day), *rows(day), *curve(day), *notes(day)]
    print(f"Check-in, {day.name}\n")
    for item in items:
        print(f"  {'ok     ' if item.done else 'MISSING'}  {item.what}")
        if not item.done and item.mend:
            print(f"           {item.mend}")
    left = sum(not item.done for item in items)
    print("\nNothing is missing." if not left else f"\n{left} of {len(items)} missing.")
    print(f"{'Commit it' if not left else 'When it is there'}:\n")
    print(f"  git add {day.name}")
    print(f'  git commit -m "Add Day {day.number} study files"')
    print(f"  git push origin {git('branch', '--show-current') or 'main'}")
    print("\n(Nothing was committed or pushed: these are yours to type.)")
    return 1 if left else 0


def notebook(day: days.Day) -> Iterator[Item]:
    """Is it there, run once from top to bottom in the study profile, without an error?"""
    run = f"make day DAY={day.number} PROFILE=study"
    if not day.notebook.exists():
        yield Item(False, f"{day.notebook.name}", "write it: see another day's")
        return
    try:
        cells = nbformat.read(day.notebook, as_version=4).cells
    except Exception as e:  # whatever it is, it cannot be opened
        yield Item(False, f"{day.notebook.name} cannot be read ({type(e).__name__})")
        return
    code = [c for c in cells if c.cell_type == "code" and c.source.strip()]
    counts = [c.execution_count for c in code]
    clean = bool(code) and counts == list(range(1, len(code) + 1))
    errors = any(o.output_type == "error" for c in code for o in c.outputs)
    yield Item(clean, "notebook executed once, from top to bottom", run)
    yield Item(not errors, "no error among its outputs", "mend the cell, then: " + run)
    study = any(re.search(r"^PROFILE *= *['\"]study", c.source, re.M) for c in code)
    injected = any("injected-parameters" in c.metadata.get("tags", []) for c in code)
    yield Item(study and not injected, 'PROFILE = "study" as published', run)


def rows(day: days.Day) -> Iterator[Item]:
    """Is there a table with a headline, and more in it than in the last commit?"""
    name = day.table().name
    found = read_table(day.folder / name)
    mend = f"make day DAY={day.number} PROFILE=study"
    headline = any(r.get("role") == "headline" for r in found)
    yield Item(headline, f"{name} with a headline row", mend)
    if day.name == days.get(15).name:
        fresh = found == summary.derive()
        yield Item(fresh, "the table agrees with the other days'", "make summary")
        return
    before = csv.DictReader(io.StringIO(git("show", f"HEAD:{day.name}/{name}")))
    known = {(r.get("run"), r.get("finished")) for r in before}
    new = [r for r in found if (r.get("run"), r.get("finished")) not in known]
    what = f"{len(new)} new rows since the last commit" if new else "a new row"
    yield Item(bool(new), what, f"change a setting, or run again: {mend}")


def curve(day: days.Day) -> Iterator[Item]:
    """Is the curve there, wide enough to be read?"""
    path = day.folder / f"{day.name}_loss_curve.png"
    head = path.read_bytes()[:24] if path.exists() else b""
    width = struct.unpack(">I", head[16:20])[0] if head[:4] == b"\x89PNG" else 0
    what = f"{path.name}, at least {LEAST_WIDTH} px wide"
    yield Item(width >= LEAST_WIDTH, what, "plots.show(figure, caption, save=...)")


def notes(day: days.Day) -> Iterator[Item]:
    """Has the notes file every section, with something in it?"""
    path = day.folder / f"{day.name}_notes.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    parts = re.split(r"^(#+) *(.+?) *$", text, flags=re.M)
    filled: set[str] = set()
    above: list[tuple[int, str]] = []  # the headings that a text stands under
    for marks, title, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        above = [(n, t) for n, t in above if n < len(marks)]
        above.append((len(marks), title))
        if body.strip():
            filled |= {t.lower() for _, t in above}
    empty = [s for s in SECTIONS if not any(s.lower() in t for t in filled)]
    what = f"{path.name}: all {len(SECTIONS)} sections filled"
    yield Item(not empty, what, f"still empty: {', '.join(empty)}")
