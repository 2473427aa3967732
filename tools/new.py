"""`python -m tools new`: a project of your own from one of Day 15's templates."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path

from utils import days

from .run import quiet_jupyter, run_notebook

NOTEBOOK = "notebook.ipynb"
LITTER = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints", ".*.lock")


def shelf() -> Path:
    """The folder of the templates."""
    return days.get(15).folder / "templates" / "project_fasttrack"


def names() -> list[str]:
    """The templates that there are."""
    return sorted(p.parent.name for p in shelf().glob(f"*/{NOTEBOOK}"))


def new(name: str, to: str, run: bool = False) -> int:
    """Copy template `name` and the files of `utils` that it needs to `to`; with `run`, execute it there (quick).

    Raises ValueError for an unknown name, and for a folder that is not empty or lies in this repository.
    """
    known = names()
    if not known:
        raise ValueError("There are no templates here: call this in the repository, not in a copy.")
    if name not in known:
        raise ValueError(f"There is no template {name!r}. There are: {', '.join(known)}.")
    folder = Path(to).expanduser()
    if folder.resolve().is_relative_to(days.ROOT.resolve()):
        raise ValueError(f"{to} lies in this repository: name a folder outside it.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{to} is not empty, and nothing is overwritten: name a new folder.")
    shutil.copytree(shelf() / name, folder, dirs_exist_ok=True, ignore=LITTER)
    for file in needed(shelf() / name):
        target = folder / file.relative_to(days.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    print(f"{name} is in {folder}, with its own copy of what it needs from utils. Continue with\n")
    print(f"  cd {folder}\n  {sys.executable} -m jupyter lab {NOTEBOOK}\n")
    print("It runs in the quick profile, on the bundled sample. For the real data:")
    data = os.environ.get("STUDY_DATA") or days.ROOT / "data"
    print(f'  PROFILE = "study" in its second code cell, and STUDY_DATA={data}')
    if run:
        execute(folder)
        print(f"Executed: {folder / NOTEBOOK}")
    return 0


def needed(folder: Path) -> list[Path]:
    """The modules of `utils` that a template's notebook reaches through imports, and the data that these name."""
    found = [p for p in days.code_files(folder) if p.suffix == ".py" and folder not in p.parents]
    nodes = (n for p in found for n in ast.walk(ast.parse(p.read_text(encoding="utf-8"))))
    strings = {n.value for n in nodes if isinstance(n, ast.Constant)}
    others = [p for p in (days.ROOT / "utils").rglob("*") if p.is_file() and p.suffix != ".py"]
    data = [p for p in others if "__pycache__" not in p.parts and {p.name, p.parent.name} & strings]
    return [*found, *data]


def execute(folder: Path) -> None:
    """Execute a project's notebook in its folder, in place; it keeps its old form when a cell fails."""
    quiet_jupyter()
    notebook, done = folder / NOTEBOOK, folder / f".running.{NOTEBOOK}"
    try:
        run_notebook(notebook, done)
        os.replace(done, notebook)
    finally:
        done.unlink(missing_ok=True)
