"""`python -m tools checkin`: what a day's folder still lacks, and the git commands; it never pushes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import nbformat
from PIL import Image

from Day15_Summary import summary
from utils import days
from utils.logger import git, read_table

SECTIONS = (
    "In one minute|Goal", "Concepts", "What we did|What we ran", "Results",
    "What surprised us|Problems and solutions", "Container", "Links", "What we do not know|Open questions",
)  # fmt: skip
"""The headings of a day's notes; one of each pair."""
LEAST_WIDTH = 1200


@dataclass
class Item:
    """One line of the list: done or not, what, and how to get it."""

    done: bool
    what: str
    fix: str = ""


def checkin(number: int) -> int:
    """Show what is there and what is missing in a day's folder; 0 when nothing is."""
    day = days.get(number)
    items = [*notebook(day), *rows(day), *curve(day), *notes(day)]
    print(f"Check-in, {day.name}\n")
    for item in items:
        print(f"  {'ok     ' if item.done else 'MISSING'}  {item.what}")
        if not item.done and item.fix:
            print(f"           {item.fix}")
    left = sum(not item.done for item in items)
    print("\nNothing is missing." if not left else f"\n{left} of {len(items)} missing.")
    print(f"{'Commit it' if not left else 'When it is there'}:\n")
    print(f"  git add {day.name}")
    print(f'  git commit -m "Add Day {day.number} study files"')
    print(f"  git push origin {git('branch', '--show-current') or 'main'}")
    print("\n(Nothing was committed or pushed: these are yours to type.)")
    return 1 if left else 0


def again(day: days.Day) -> str:
    return f"make day DAY={day.number} PROFILE=study"


def notebook(day: days.Day) -> Iterator[Item]:
    """Is it there, run once from top to bottom in the study profile, without an error?"""
    try:
        cells = nbformat.read(day.notebook, as_version=4).cells
    except Exception as e:  # whatever it is, it cannot be opened
        yield Item(False, f"{day.notebook.name} cannot be read ({type(e).__name__})")
        return
    code = [c for c in cells if c.cell_type == "code" and c.source.strip()]
    counts = [c.execution_count for c in code]
    clean = bool(code) and counts == list(range(1, len(code) + 1))
    yield Item(clean, "notebook executed once, from top to bottom", again(day))
    errors = any(o.output_type == "error" for c in code for o in c.outputs)
    yield Item(not errors, "no error among its outputs", f"fix the cell, then: {again(day)}")
    study = any(re.search(r"^PROFILE *= *['\"]study", c.source, re.M) for c in code)
    injected = any("injected-parameters" in c.metadata.get("tags", []) for c in code)
    yield Item(study and not injected, 'PROFILE = "study" as published', again(day))


def rows(day: days.Day) -> Iterator[Item]:
    """Is there a table with a headline, and more in it than in the last commit?"""
    name, found = day.table().name, read_table(day.table())
    headline = any(r.get("role") == "headline" for r in found)
    yield Item(headline, f"{name} with a headline row", again(day))
    if day == days.get(15):
        yield Item(found == summary.derive(), "the table agrees with the others", "make summary")
        return
    before = csv.DictReader(io.StringIO(git("show", f"HEAD:{day.name}/{name}")))
    known = {(r.get("run"), r.get("finished")) for r in before}
    new = sum((r.get("run"), r.get("finished")) not in known for r in found)
    what = f"{new} new rows since the last commit" if new else "a new row"
    yield Item(bool(new), what, f"change a setting, or run again: {again(day)}")


def curve(day: days.Day) -> Iterator[Item]:
    """Is the curve there, wide enough to be read?"""
    path, width = day.folder / f"{day.name}_loss_curve.png", 0
    if path.exists():
        with Image.open(path) as image:
            width = image.width
    what = f"{path.name}, at least {LEAST_WIDTH} px wide"
    yield Item(width >= LEAST_WIDTH, what, "plots.show(figure, caption, save=...)")


def notes(day: days.Day) -> Iterator[Item]:
    """Does the notes file have every section, with something in it?"""
    path = day.folder / f"{day.name}_notes.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    sections = dict(re.findall(r"^## +(.+)\n((?:(?!## ).*\n?)*)", text, re.M))
    filled = [k.lower() for k, v in sections.items() if re.sub(r"^#.*", "", v, flags=re.M).strip()]
    empty = [s for s in SECTIONS if not any(re.match(s.lower(), title) for title in filled)]
    what = f"{path.name}: all {len(SECTIONS)} sections filled"
    yield Item(not empty, what, f"still empty: {', '.join(s.split('|')[0] for s in empty)}")
