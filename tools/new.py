"""`python -m tools new`: a project of one's own from one of Day 15's templates."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from utils import days

from .run import quiet_jupyter, run_notebook

NOTEBOOK = "notebook.ipynb"
LITTER = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints", ".*.lock")


def shelf() -> Path:
    """Where the templates lie."""
    return days.get(15).folder / "templates" / "project_fasttrack"


def names() -> list[str]:
    """The templates that there are."""
    return sorted(p.parent.name for p in shelf().glob(f"*/{NOTEBOOK}"))


def new(name: str, to: str, run: bool = False) -> int:
    """Copy template `name` to the folder `to`, with `utils` beside it; with `run`, execute it there (quick).

    `utils` is copied, so that the project runs anywhere with this environment and later changes here do not
    reach it. Raises ValueError for an unknown name and for a folder that is not empty: nothing is overwritten.
    """
    known = names()
    if not known:
        raise ValueError(
            "There are no templates here: call this in the repository, not in a copied project."
        )
    if name not in known:
        raise ValueError(f"There is no template {name!r}. There are: {', '.join(known)}.")
    folder = Path(to).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{to} is there already, and nothing is overwritten: name a folder that is new or empty."
        )
    shutil.copytree(shelf() / name, folder, dirs_exist_ok=True, ignore=LITTER)
    shutil.copytree(days.ROOT / "utils", folder / "utils", ignore=LITTER)
    print(f"{name} is in {folder}, with its own copy of utils. Go on with\n")
    print(f"  cd {folder}\n  {sys.executable} -m jupyter lab {NOTEBOOK}\n")
    print("It runs in the quick profile, on the bundled sample. For the real data:")
    print(f'  PROFILE = "study" in its second code cell, and STUDY_DATA={data_folder()}')
    if run:
        execute(folder)
        print(f"Executed: {folder / NOTEBOOK}")
    return 0


def data_folder() -> str:
    """The data that this repository uses, for a project that lies elsewhere."""
    return os.environ.get("STUDY_DATA") or str(days.ROOT / "data")


def execute(folder: Path) -> None:
    """Execute a project's notebook in its folder, in place; it keeps its old form when a cell fails."""
    quiet_jupyter()
    notebook, done = folder / NOTEBOOK, folder / f".running.{NOTEBOOK}"
    try:
        run_notebook(notebook, done)
        os.replace(done, notebook)
    finally:
        done.unlink(missing_ok=True)
