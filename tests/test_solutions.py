"""What learners write: core cells can be practised, and every folded solution passes its own check."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest
from conftest import offline

from tools import __main__
from tools.practice import TODO, blanked, practice_copy
from tools.run import quiet_jupyter, run_notebook
from utils import days

CHECK = "# --- check ---\n"
SOLUTION = re.compile(r"<details><summary>Solution (\d+)</summary>(.*?)</details>", re.S)
TABLE = """import os as _os, pathlib as _pathlib
print([p.read_text() for p in sorted(_pathlib.Path(_os.environ["STUDY_RUNS"]).rglob("*_params.csv"))])"""


def tagged(cells, tag):
    return [c for c in cells if tag in c.metadata.get("tags", [])]


def cells_of(day):
    return nbformat.read(day.notebook, as_version=4).cells


TAUGHT = [day for day in days.existing() if tagged(cells_of(day), "core")]
by_day = pytest.mark.parametrize("day", TAUGHT, ids=lambda d: d.name)


def solutions(cells):
    """The code of each folded solution, by number."""
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return {
        int(n): "\n".join(re.findall(r"```python\n(.*?)```", body, re.S))
        for n, body in SOLUTION.findall(text)
    }


def filled(day):
    """The practice copy with the original core cells and the solutions in it, and the exercises' indices.

    Before the first exercise and after the last one stands a cell that prints the day's tables.
    """
    cells, copy = cells_of(day), practice_copy(day)
    for original, cell in zip(cells, copy.cells, strict=True):
        if "core" in cell.metadata.get("tags", []):
            assert TODO in cell.source
            cell.source = original.source
    answers = solutions(cells)
    exercises = tagged(copy.cells, "exercise")
    assert len(exercises) == len(answers) >= 3
    for number, cell in enumerate(exercises, 1):
        answer, check = cell.source.split(CHECK)
        assert "None" in answer
        cell.source = answers[number] + CHECK + check
    at = [i for i, c in enumerate(copy.cells) if c in exercises]
    for place in (at[-1] + 1, at[0]):
        copy.cells.insert(place, nbformat.v4.new_code_cell(TABLE))
    return copy, [i + 1 for i in at]


def test_the_first_days_can_be_practised():
    assert {1, 2, 3, 4, 5, 6} <= {day.number for day in TAUGHT}


@by_day
def test_core_cells_are_documented_definitions_with_a_check_below(day):
    cells = cells_of(day)
    code = [c for c in cells if c.cell_type == "code"]
    core = tagged(code, "core")
    assert len(core) >= 2
    for cell in core:
        body = ast.parse(cell.source).body
        assert any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body)
        for node in body:
            assert isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom), cell.source
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                assert ast.get_docstring(node) or not _public(node, body), f"{node.name} has no docstring"
        following = code[code.index(cell) + 1]
        assert following not in tagged(code, "exercise")


def _public(node, body):
    """Whether a function stands at the top of the cell or in a class there (not inside another function)."""
    return node in body or any(node in c.body for c in body if isinstance(c, ast.ClassDef))


@by_day
def test_exercises_are_not_answered_in_the_notebook_itself(day):
    for cell in tagged(cells_of(day), "exercise"):
        assert CHECK in cell.source
        assert "log.run(" not in cell.source
        assert "".join(o.get("text", "") for o in cell.outputs).startswith("not answered yet")


@pytest.mark.notebook
@by_day
def test_solutions_reach_their_goals_and_touch_no_row(day, tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path)
    quiet_jupyter()
    notebook, exercises = filled(day)
    nbformat.write(notebook, tmp_path / "solved.ipynb")
    cells = run_notebook(tmp_path / "solved.ipynb", tmp_path / "done.ipynb", folder=day.folder).cells
    for number, place in enumerate(exercises, 1):
        said = "".join(o.get("text", "") for o in cells[place].outputs)
        assert re.search(r"^(right|reached)", said, re.M), f"solution {number}: {said}"
        assert not re.search(r"^not yet", said, re.M), f"solution {number}: {said}"
    before, after = cells[exercises[0] - 1], cells[exercises[-1] + 1]
    assert before.outputs[0].text == after.outputs[0].text


@pytest.mark.notebook
def test_an_unanswered_practice_copy_stops_at_its_first_check(tmp_path, monkeypatch):
    from papermill.exceptions import PapermillExecutionError

    offline(monkeypatch, tmp_path)
    quiet_jupyter()
    day = days.get(1)
    nbformat.write(practice_copy(day), tmp_path / "empty.ipynb")
    with pytest.raises(PapermillExecutionError, match="TODO"):
        run_notebook(tmp_path / "empty.ipynb", tmp_path / "done.ipynb", folder=day.folder)


def test_functions_keep_signature_and_docstring_only():
    source = '''import torch


@torch.no_grad()
def mean(x):  # (n,)
    """The mean of `(n,)`."""
    total = x.sum()
    return total / len(x)


class Net(torch.nn.Module):
    """A layer."""

    def forward(self, x):
        y = x + 1
        return y
'''
    out = blanked(source)
    assert "@torch.no_grad()\ndef mean(x):  # (n,)\n" in out
    assert '"""The mean of `(n,)`."""\n    raise NotImplementedError' in out
    assert "    def forward(self, x):\n        raise NotImplementedError" in out
    for gone in ("total", "y = x + 1"):
        assert gone not in out
    scope = {}
    exec(out, scope)
    with pytest.raises(NotImplementedError):
        scope["Net"]()(1)


def test_practice_writes_a_copy_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    day = days.get(3)
    day.folder.mkdir()
    cells = [
        nbformat.v4.new_markdown_cell("# Day 3"),
        nbformat.v4.new_code_cell('PROFILE = "study"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("def f(x):\n    return x"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, day.notebook)
    assert __main__.main(["practice", "3"]) == 2
    assert "no cells to practise" in capsys.readouterr().err
    notebook.cells[2].metadata["tags"] = ["core"]
    nbformat.write(notebook, day.notebook)
    version = days.code_version(day.folder)
    assert __main__.main(["practice", "3"]) == 0
    made = nbformat.read(day.folder / f"{day.name}_practice.ipynb", as_version=4).cells
    assert made[0].source.startswith("> **Practice copy.**")
    assert made[1].source == 'PROFILE = "quick"'
    assert made[2].source == f"def f(x):\n    {TODO}"
    assert days.code_version(day.folder) == version
    assert __main__.main(["practice", "3"]) == 2
    assert "is there already" in capsys.readouterr().err
