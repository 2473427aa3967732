"""What is installed is used: each line of requirements.txt is imported, or is a command with a reason."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import reach
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
IMPORT_NAMES = {"scikit-learn": "sklearn", "websocket-client": "websocket"}
"""Where a package is imported under another name than it is installed by."""
COMMANDS = {
    "jupyterlab": "`make lab`",
    "ipykernel": "the kernel of the notebooks",
    "ruff": "`make check`",
    "pytest-xdist": "`make test` on both cores",
    "datasets": "Day 9 will read one corpus with it",
    "flashlight-text": "torchaudio's lexicon decoder is built on it",
    "pystoi": "torchmetrics calls it for STOI",
}
"""Packages that no line imports, and what they are for."""


def lines(name: str) -> list[Requirement]:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = [line.split("#")[0].strip() for line in text.splitlines()]
    return [Requirement(line) for line in found if line]


@cache
def imported() -> set[str]:
    """The top-level packages that modules, tests and notebooks import, also inside functions."""
    codes = [(ROOT / f).read_text(encoding="utf-8") for f in reach.listed() if f.endswith(".py")]
    for file in (f for f in reach.listed() if f.endswith(".ipynb")):
        codes.append(reach.notebook_code(file))
    found = set()
    for node in (n for code in codes for n in ast.walk(ast.parse(code))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("wanted", lines("requirements.txt"), ids=lambda r: r.name)
def test_what_is_required_is_imported(wanted):
    used = IMPORT_NAMES.get(wanted.name, wanted.name.replace("-", "_")) in imported()
    assert used != (wanted.name in COMMANDS)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-extras.txt"])
def test_versions_that_were_tested_are_in_the_ranges(name):
    pinned = {r.name.lower().replace("_", "-"): r for r in lines("constraints.txt")}
    for wanted in lines(name):
        if name == "requirements.txt" or wanted.name in pinned:
            (version,) = (s.version for s in pinned[wanted.name].specifier)
            assert wanted.specifier.contains(version), wanted
