"""The fifteen days, their folders, and where each profile writes. Standard library only."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("quick", "study", "full")


@dataclass(frozen=True)
class Day:
    """One day: its number, the name of its folder after `DayNN_`, its headline column, its data sets.

    `reads` are the days whose files of the same profile its notebook reads if they exist.
    """

    number: int
    title: str
    metric: str
    sets: tuple[str, ...] = ()
    reads: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """`Day03_MNIST_CNN`: the folder's name and the stem of every file in it."""
        return f"Day{self.number:02d}_{self.title}"

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def notebook(self) -> Path:
        return self.folder / f"{self.name}.ipynb"

    def output(self, profile: str) -> Path:
        """Where a profile writes: `runs/quick/DayNN_Name` for quick, else the day folder itself."""
        return self.folder if check_profile(profile) != "quick" else runs("quick") / self.name

    def table(self, profile: str = "study") -> Path:
        """The path of the CSV of a profile's runs."""
        return self.output(profile) / f"{self.name}_params.csv"


LIBRISPEECH = ("librispeech_dev", "librispeech_test")
ALL = (
    Day(1, "PyTorch_Basics", "test_loss"),
    Day(2, "Training_Loop", "accuracy", ("mnist",)),
    Day(3, "MNIST_CNN", "accuracy", ("mnist",)),
    Day(4, "CIFAR10", "accuracy", ("cifar10",)),
    Day(5, "Visualization", "accuracy", ("cifar10",)),
    Day(6, "Containers", "accuracy", ("mnist",)),
    Day(7, "Speech_Commands", "accuracy", ("speech_commands",)),
    Day(8, "SC_Tuning", "accuracy", ("speech_commands",), reads=(7,)),
    Day(9, "Wav2Vec2", "wer", (*LIBRISPEECH, "speech_commands")),
    Day(10, "ASR_Tuning", "wer", (*LIBRISPEECH, "speech_commands", "noise")),
    Day(11, "Voice_Cloning", "similarity", ("kathleen", *LIBRISPEECH)),
    Day(12, "VC_Tuning", "audio_quality", ("kathleen", *LIBRISPEECH)),
    Day(13, "Speaker_Verification", "eer", (*LIBRISPEECH, "speech_commands", "noise")),
    Day(14, "Enhancement", "pesq_after", (*LIBRISPEECH, "kathleen", "speech_commands", "noise")),
    Day(15, "Summary", "value"),
)


def using(data_set: str) -> tuple[int, ...]:
    """Numbers of the days whose study profile needs a data set (a key of `sources.toml`)."""
    return tuple(day.number for day in ALL if data_set in day.sets)


def get(key: int | str) -> Day:
    """The day with this number (`3`), name or title. Raises ValueError where there is none."""
    for day in ALL:
        if key in (day.number, day.name, day.title) or str(key) == str(day.number):
            return day
    raise ValueError(f"There is no day {key!r}: give a number from 1 to {len(ALL)}.")


def existing() -> list[Day]:
    """The days whose notebook exists in this repository, in order."""
    return [day for day in ALL if day.notebook.exists()]


def check_profile(profile: str) -> str:
    """The profile itself. Raises ValueError if it is not quick, study or full."""
    if profile not in PROFILES:
        raise ValueError(f"PROFILE = {profile!r} is unknown: write one of {', '.join(PROFILES)}.")
    return profile


def runs(*parts: str) -> Path:
    """A path under `runs/` (git-ignored; `$STUDY_RUNS` moves it, e.g. off a read-only mount)."""
    return Path(os.environ.get("STUDY_RUNS") or ROOT / "runs").joinpath(*parts)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A scratch file beside `path` to write to; it replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def code_files(folder: Path, notebooks: bool = True) -> list[Path]:
    """The code that runs in a folder: its modules and notebooks, and what they import from `utils`.

    Found by reading the import statements (also those inside functions), directly or through other modules.
    """
    waiting = list(folder.glob("*.py"))
    if notebooks:
        waiting += (path for path in folder.glob("*.ipynb") if not path.stem.endswith("_practice"))
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return sorted(found)


def code_version(folder: Path, notebooks: bool = True) -> str:
    """Ten hex digits that name the text of `code_files`: the same digits, the same code.

    Of a notebook only the code cells count, so executing it or editing its text changes nothing. Works
    without git, and tells two uncommitted states apart.
    """
    files = code_files(folder, notebooks)
    text = json.dumps([(path.name, _code(path)) for path in files])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _code(path: Path) -> list[str]:
    """The text of a module, or the code cells of a notebook without their `%` and `!` lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [text]
    cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return [re.sub(r"^(\s*)[%!].*", r"\1pass", cell, flags=re.MULTILINE) for cell in cells]


def _imported(path: Path) -> Iterator[Path]:
    """The modules of `utils` that one file imports; a cell that is not Python imports nothing."""
    package = ".".join(path.parent.relative_to(ROOT).parts)
    for text in _code(path):
        nodes: list[ast.AST] = []
        with contextlib.suppress(SyntaxError):
            nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(base, package) if node.level else base
                names = [f"{base}.{a.name}" for a in node.names]
            for parts in (name.split(".") for name in names if name.startswith("utils.")):
                for n in range(1, len(parts) + 1):
                    stem = ROOT.joinpath(*parts[:n])
                    yield from filter(Path.is_file, (stem.with_suffix(".py"), stem / "__init__.py"))
