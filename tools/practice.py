"""`python -m tools practice`: a copy of a day's notebook in which the learner writes the core cells."""

from __future__ import annotations

import ast

import nbformat

from utils import days

TODO = 'raise NotImplementedError("TODO: write this function")'
HEAD = """> **Practice copy.** Where it says TODO, write the code yourself: the docstring says what is needed,
> the cell below checks it. It runs in the quick profile; results go below `runs/`. git ignores this file.

"""


def practice(number: int) -> int:
    """Write `DayNN_Name_practice.ipynb` beside the day's notebook.

    Raises ValueError where the day has no core cells, FileExistsError where the copy is there already.
    """
    day = days.get(number)
    path = day.folder / f"{day.name}_practice.ipynb"
    if path.exists():
        raise FileExistsError(
            f"{path.name} is there already, with your work in it: rename or delete it first."
        )
    notebook = practice_copy(day)
    with days.atomic(path) as scratch:
        nbformat.write(notebook, scratch)
    print(f"{path.relative_to(days.ROOT)}: open it in `make lab` and write the code where it says TODO.")
    return 0


def practice_copy(day: days.Day) -> nbformat.NotebookNode:
    """The day's notebook without outputs, in the quick profile, its core cells `blanked`.

    Raises ValueError where the day has no core cells.
    """
    notebook = nbformat.read(day.notebook, as_version=4)
    core = [c for c in notebook.cells if "core" in c.metadata.get("tags", [])]
    if not core:
        raise ValueError(f"{day.name} has no cells to practise yet.")
    for cell in core:
        cell.source = blanked(cell.source)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = 'PROFILE = "quick"'
    notebook.cells[0].source = HEAD + notebook.cells[0].source
    return notebook


def blanked(source: str) -> str:
    """Code whose functions and methods keep their signature and docstring and raise NotImplementedError."""
    lines = source.splitlines()
    scopes = [ast.parse(source)]
    scopes += (node for node in scopes[0].body if isinstance(node, ast.ClassDef))
    functions = [node for scope in scopes for node in scope.body if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda n: n.lineno, reverse=True):
        documented = ast.get_docstring(node) is not None
        first = node.body[0].end_lineno if documented else node.body[0].lineno - 1
        lines[first : node.end_lineno] = [" " * node.body[0].col_offset + TODO]
    return "\n".join(lines)
