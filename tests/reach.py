"""Who reaches what, read from the code's imports: definitions of modules, from each day's notebook and modules.

A user is a day (its notebook and its own modules) or a template of Day 15. References are followed through
imports and names, from definition to definition; nothing is imported or run.
"""

from __future__ import annotations

import ast
import json
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Definition = tuple[str, str]
"""(module, name), e.g. ("utils.metrics", "accuracy")."""


@cache
def listed() -> tuple[str, ...]:
    """The files that git knows, and new ones that it does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return tuple(f for f in files if f and (ROOT / f).is_file())


def module_name(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def notebook_code(file: str) -> str:
    """All code cells of a notebook, without magics and shell lines."""
    cells = json.loads((ROOT / file).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return "\n".join(x for x in code.split("\n") if not x.lstrip().startswith(("%", "!")))


@cache
def modules() -> dict[str, tuple[str, ast.Module]]:
    """The repository's modules without tests: name -> (file, syntax tree)."""
    files = [f for f in listed() if f.endswith(".py") and not f.startswith("tests/")]
    return {module_name(f): (f, ast.parse((ROOT / f).read_text(encoding="utf-8"))) for f in files}


def names_of(statement: ast.stmt) -> list[str]:
    """What a top-level statement defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    if isinstance(statement, ast.Assign):
        targets = [n for t in statement.targets for n in ast.walk(t)]
        return [n.id for n in targets if isinstance(n, ast.Name)]
    return []


@cache
def definitions() -> dict[str, dict[str, ast.stmt]]:
    return {m: {n: s for s in tree.body for n in names_of(s)} for m, (_, tree) in modules().items()}


def imported_from(node: ast.ImportFrom, module: str, package: bool) -> str:
    """The absolute name of the module that `from ... import` names."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")[: None if package else -1]
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def imports(tree: ast.Module, module: str = "", package: bool = False) -> dict[str, Definition]:
    """Local name -> (module, name), or (module, "") where a module itself is imported."""
    out: dict[str, Definition] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = imported_from(node, module, package)
            for a in node.names:
                if f"{base}.{a.name}" in modules():
                    out[a.asname or a.name] = (f"{base}.{a.name}", "")
                elif base in modules():
                    out[a.asname or a.name] = (base, a.name)
        elif isinstance(node, ast.Import):
            for a in node.names:
                if a.name in modules():
                    out[a.asname or a.name.split(".")[0]] = (
                        (a.asname and a.name) or a.name.split(".")[0],
                        "",
                    )
    return out


def references(node: ast.AST, local: dict[str, Definition], module: str = "") -> set[Definition]:
    """The definitions that a piece of code names."""
    out: set[Definition] = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Name):
            if local.get(n.id, ("", ""))[1]:
                out.add(local[n.id])
            elif n.id in definitions().get(module, {}):
                out.add((module, n.id))
        elif isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
            where, name = local.get(n.value.id, ("", "x"))
            if where and not name and n.attr in definitions().get(where, {}):
                out.add((where, n.attr))
    return out


@cache
def graph() -> dict[Definition, set[Definition]]:
    """Definition -> the definitions that its code names."""
    out = {}
    for m, (file, tree) in modules().items():
        local = imports(tree, m, file.endswith("__init__.py"))
        out |= {(m, n): references(s, local, m) for n, s in definitions()[m].items()}
    return out


def closure(start: set[Definition]) -> set[Definition]:
    seen, left = set(), list(start)
    while left:
        one = left.pop()
        if one not in seen:
            seen.add(one)
            left += graph().get(one, ())
    return seen


@cache
def reached() -> dict[str, set[Definition]]:
    """User -> every definition that it reaches: `Day07_...`, or `template day3_...`."""
    start: dict[str, set[Definition]] = {}
    for file in listed():
        if file.endswith(".ipynb"):
            tree = ast.parse(notebook_code(file))
            parts = Path(file).parts
            user = f"template {parts[-2]}" if "templates" in parts else parts[0]
            local = imports(tree)
            named = references(tree, local) | {d for d in local.values() if d[1]}
            start.setdefault(user, set()).update(named)
    for m, (_, tree) in modules().items():
        if m.startswith("Day"):  # all of it, with what runs under `if __name__ == "__main__"`
            start.setdefault(m.split(".")[0], set()).update(references(tree, imports(tree, m), m))
    return {user: closure(named) for user, named in start.items()}
