"""`python -m utils summary`: the figures in README and notes come from the CSVs, by cog; the picture too."""

from __future__ import annotations

import contextlib
import io

from cogapp import Cog

from .. import days
from .picture import PICTURE, picture

PROLOGUE = "import cog; from utils import front, tables, days"


def texts() -> list[str]:
    """The files with cog blocks, relative to the root."""
    names = [
        "README.md",
        "README.zh-CN.md",
        *(f"{d.name}/{d.name}_notes.md" for d in days.ALL),
    ]
    return [n for n in names if (days.ROOT / n).exists()]


def summary(check: bool = False) -> int:
    """Renew the blocks, or with `check` only say which differ (1 when any does)."""
    bad = 0
    for name in texts():
        path = str(days.ROOT / name)
        said = io.StringIO()
        arguments = [
            "cog",
            "-U",
            "-p",
            PROLOGUE,
            *(["--check"] if check else ["-r"]),
            path,
        ]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = Cog().main(arguments)
        if status:
            bad += 1
            print(
                f"{name}: {'differs from the tables: run `make summary`' if check else said.getvalue()}"
            )
        else:
            print(f"{name}: {'agrees with the tables' if check else 'renewed'}")
    state = picture(check)
    if state.startswith("differs"):
        bad += 1
        state += ": run `make summary`"
    print(f"{PICTURE}: {state}")
    missing = [str(d.number) for d in days.ALL if not d.notebook.exists()]
    if missing:
        print(f"Days not in this repository yet: {', '.join(missing)}")
    return 1 if bad else 0
