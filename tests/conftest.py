"""What several tests use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("WANDB_MODE", None)


def git(folder, *args):
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *name, *args], check=True, capture_output=True)


def offline(patch, place):
    """No network and no data for notebooks; what they write goes below `place`."""
    patch.setenv("STUDY_RUNS", str(place / "runs"))
    patch.setenv("STUDY_DATA", str(place / "no data"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        patch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        patch.delenv(name, raising=False)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository in git, in the place of this one: Day 8 imports `utils.a`, and through it `utils.b`."""
    from utils import days

    root = tmp_path / "repository"
    files = {
        "README.md": "Read me.",
        "Day02_Training_Loop/notes.md": "Notes.",
        "Day08_SC_Tuning/search.py": "from utils import a",
        "Day08_SC_Tuning/Day08_SC_Tuning.ipynb": '{"cells": [{"cell_type": "code",'
        ' "source": ["%matplotlib inline\\n", "from Day08_SC_Tuning import search"]}]}',
        "utils/__init__.py": "",
        "utils/a.py": "def late():\n    from .b import b",
        "utils/b.py": "b = 1",
        "utils/c.py": "c = 1",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    monkeypatch.setattr(days, "ROOT", root)
    return root
