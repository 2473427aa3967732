"""The layout of the code: who may import whom, how large the shared part may be, and that it is shared."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import reach

ROOT = Path(__file__).resolve().parent.parent
FLAT, MODEL, ALL = 1250, 450, 9500
"""Most lines of code: of utils/*.py together, of a file in utils/models, of all Python without tests."""
EXCEPTIONS = {
    "utils.days.existing": "the tools and the tests list the days",
    "utils.device.cores": "Day 11 and `tools run` share the cores between processes",
}
"""Public definitions of utils that fewer than two users reach, each with its reason."""


def lines_of_code(file: Path) -> int:
    """Lines without blank ones, comments and docstrings."""
    source = file.read_text(encoding="utf-8")
    docs: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Expr) and isinstance(getattr(value, "value", None), str):
            docs |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(x.strip()) and not x.lstrip().startswith("#") and n not in docs for n, x in lines)


def code() -> list[Path]:
    files = [f for f in reach.listed() if f.endswith(".py")]
    return [ROOT / f for f in files if not f.startswith("tests/") and "/templates/" not in f]


def sources() -> list[tuple[str, ast.Module]]:
    """Modules and notebooks of the repository (templates are projects of their own)."""
    found = [(file, tree) for file, tree in reach.modules().values()]
    notebooks = [f for f in reach.listed() if f.endswith(".ipynb")]
    return found + [(f, ast.parse(reach.notebook_code(f))) for f in notebooks]


@pytest.mark.parametrize(("file", "tree"), sources(), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_point_downwards(file, tree):
    """utils imports neither tools, bench nor a day; a day no other day; nothing imports tools or bench."""
    own = file.split("/")[0]
    package = reach.module_name(file) if file.endswith(".py") else own
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [reach.imported_from(node, package, file.endswith("__init__.py"))]
        else:
            continue
        for target in targets:
            top = target.split(".")[0]
            if re.fullmatch(r"tools|bench|Day\d\d_\w+", top) and own not in ("tools", "bench"):
                assert top == own, f"{file} imports {target}"


def test_the_shared_part_is_small():
    flat = sum(lines_of_code(f) for f in code() if f.parent == ROOT / "utils")
    assert flat <= FLAT
    for file in code():
        if file.parent == ROOT / "utils" / "models":
            assert lines_of_code(file) <= MODEL, file.name
    assert sum(map(lines_of_code, code())) <= ALL


def test_what_is_in_utils_is_shared():
    """Each public function or class of utils is reached by two days or templates at least."""
    alone = set()
    for module, names in reach.definitions().items():
        for name, statement in names.items():
            is_code = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
            if module.split(".")[0] != "utils" or not is_code or name.startswith("_"):
                continue
            users = [user for user, found in reach.reached().items() if (module, name) in found]
            if len(users) < 2:
                alone.add(f"{module}.{name}")
    assert alone == set(EXCEPTIONS)
    assert len(EXCEPTIONS) <= 10
