"""The data sets that the days use: where they come from, and which files a copy on disk consists of."""

from __future__ import annotations

import os
import pickle
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..days import ROOT
from .download import DataError, Remote

SPLITS = ROOT / "utils" / "splits"


@dataclass(frozen=True)
class Source:
    """A data set: what to fetch, where to unpack it, how a copy is recognised (fields: `sources.toml`)."""

    name: str
    licence: str
    folder: str = ""
    files: tuple[Remote, ...] = ()
    unpacked_bytes: int = 0
    checksums: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    expected_path: str = ""
    manual_download: str = ""


def _read_sources() -> dict[str, Source]:
    """The table `sources.toml`, each file with its addresses on all mirrors."""
    table = tomllib.loads((Path(__file__).parent / "sources.toml").read_text(encoding="utf-8"))
    found = {}
    for key, entry in table.items():
        mirrors, files = entry.pop("mirrors", ()), entry.pop("files", {})
        remotes = tuple(Remote(tuple(m + f for m in mirrors), *of) for f, of in files.items())
        found[key] = Source(files=remotes, **entry)
    return found


SOURCES = _read_sources()


def source(name: str) -> Source:
    """The entry of this name. Raises DataError for a name that is not in the list."""
    if name not in SOURCES:
        raise DataError(f"No data set is called {name!r}; there are: {', '.join(SOURCES)}.")
    return SOURCES[name]


def read_lines(path: Path) -> list[str]:
    """The lines of a list on disk, without empty ones and those that begin with `#`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


CIFAR10_BATCHES = tuple(SOURCES["cifar10"].checksums)


class _ArraysOnly(pickle.Unpickler):
    """Opens what CIFAR-10's batches consist of, dicts and arrays, and refuses anything else.

    torchvision's reader opens any pickle, and only files with the original checksums.
    """

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy.core", "numpy._core")
        if f"{module}.{name}" not in (
            "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode",
        ):  # fmt: skip
            raise DataError(
                f"A CIFAR-10 batch wants to call {module}.{name} and was not opened: it is not the "
                "file that it should be. Delete cifar-10-batches-py and run make fetch DAY=4."
            )
        return super().find_class(module, name)


def read_cifar10_batch(path: Path) -> tuple[np.ndarray, list[int]]:
    """One batch file: images `(10000, 3072)` uint8, channels first, and labels 0..9.

    Raises DataError for a file that is damaged or contains more than arrays.
    """
    try:
        with open(path, "rb") as f:
            batch = _ArraysOnly(f, encoding="latin1").load()
        return np.asarray(batch["data"], np.uint8), list(batch["labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, ValueError) as e:
        raise DataError(
            f"{path.name} is damaged ({type(e).__name__}). Delete {path.parent.name} and run "
            "make fetch DAY=4."
        ) from e


def speech_commands_folder(root: Path) -> Path | None:
    """torchaudio's folder of Speech Commands under the root: v0.02, else v0.01, else None."""
    folders = [root / "SpeechCommands" / f"speech_commands_{v}" for v in ("v0.02", "v0.01")]
    return next((f for f in folders if (f / "testing_list.txt").is_file()), None)


def speech_commands_names(root: Path) -> list[str]:
    """The clips on disk, `bed/00176480_nohash_0.wav`, sorted."""
    folder = speech_commands_folder(root)
    return sorted(
        f"{word.name}/{clip.name}"
        for word in (os.scandir(folder) if folder else ())
        if word.is_dir() and not word.name.startswith("_")
        for clip in os.scandir(word)
    )


def librispeech_names(root: Path, part: str) -> list[str]:
    """The utterances of a part (`dev-clean`) on disk in torchaudio's layout, `1272-128104-0000`, sorted."""
    folder = root / "LibriSpeech" / part
    return sorted(path.stem for path in folder.glob("*/*/*.flac"))


def kathleen_files(root: Path) -> dict[str, tuple[str, Path]]:
    """`{name: (text, file)}` of the Kathleen recordings under the root, sorted; empty where there are none.

    Two layouts are read: LJSpeech's (`metadata.csv` with `name|text`, `wavs/`), and that of the
    original repository (`data/NAME.wav` with `NAME.txt` beside it).
    """
    folder = root / "kathleen"
    if (folder / "metadata.csv").is_file():
        lines = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
        texts = dict(line.split("|")[:2] for line in lines if "|" in line)
        found = {n: (t, folder / "wavs" / f"{n}.wav") for n, t in texts.items()}
    else:
        found = {
            p.stem: (p.read_text(encoding="utf-8").strip(), p.with_suffix(".wav"))
            for p in folder.glob("data/*.txt")
        }
    return {name: found[name] for name in sorted(found) if found[name][1].is_file()}


def noise_files(root: Path) -> dict[str, Path]:
    """`{"rain/1-17367-A": file}` of the environmental sounds under `noise/CLASS/`, sorted.

    `001 - Dog bark`, as the original repository calls its folder, is `dog_bark` here.
    """
    found = {}
    for path in (root / "noise").glob("*/*"):
        if path.suffix in (".wav", ".ogg", ".flac"):
            kind = path.parent.name.split(" - ")[-1].strip().lower().replace(" ", "_")
            found[f"{kind}/{path.stem}"] = path
    return dict(sorted(found.items()))


NAMES: dict[str, Callable[[Path], list[str]]] = {
    "speech_commands": speech_commands_names,
    "librispeech_dev": lambda root: librispeech_names(root, "dev-clean"),
    "librispeech_test": lambda root: librispeech_names(root, "test-clean"),
    "kathleen": lambda root: list(kathleen_files(root)),
    "noise": lambda root: list(noise_files(root)),
}
"""The names of the files of each set that is recognised by them, under a root."""
