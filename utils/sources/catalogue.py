"""The data sets that the days use: where they come from, and how a copy on disk is recognised."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..days import ROOT
from .download import DataError, Remote

SPLITS = ROOT / "utils" / "splits"


@dataclass(frozen=True)
class Source:
    """A data set on the network: what to fetch, where to unpack it, and how it is recognised.

    `checksums` are checksums (`algorithm:hexdigest`) of unpacked files, relative to the root: they name
    the set. `variants` are known copies with another content, by the digest of `content(root)`. A set
    of many files has `recognise(root)` instead: what is there, or None where nothing is. `expected_path` is
    what to look for under the root where `folder` does not say it; `manual_download` says how to get a set
    that has no archive with a published checksum.
    """

    name: str
    files: tuple[Remote, ...]
    folder: str
    unpacked_bytes: int
    checksums: dict[str, str]
    licence: str
    content: Callable[[Path], bytes] | None = None
    variants: dict[str, str] = field(default_factory=dict)
    recognise: Callable[[Path], str | None] | None = None
    expected_path: str = ""
    manual_download: str = ""


def _mnist(filename: str, size: int, md5: str) -> Remote:
    mirrors = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    return Remote(tuple(m + filename for m in mirrors), size, f"md5:{md5}")


CIFAR10_BATCHES = tuple(
    f"cifar-10-batches-py/{name}"
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
)


class _ArraysOnly(pickle.Unpickler):
    """Opens what CIFAR-10's batches are made of, dicts and arrays, and refuses anything else."""

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise DataError(
                f"A CIFAR-10 batch wants to call {module}.{name} and was not opened: it is not the "
                "file that it should be. Delete cifar-10-batches-py and run make fetch DAY=4."
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_cifar10_batch(path: Path) -> tuple[np.ndarray, list[int]]:
    """One batch file: images `(10000, 3072)` uint8, channels first, and labels 0..9.

    Raises DataError for a file that is damaged or holds more than arrays.
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


def _cifar10_content(root: Path) -> bytes:
    """The pixels of all batches: what a copy is known by, however it was packed."""
    return b"".join(read_cifar10_batch(root / name)[0].tobytes() for name in CIFAR10_BATCHES)


def speech_commands_folder(root: Path) -> Path | None:
    """torchaudio's folder of Speech Commands under the root: v0.02, else v0.01, else None."""
    for version in ("v0.02", "v0.01"):
        folder = root / "SpeechCommands" / f"speech_commands_{version}"
        if (folder / "testing_list.txt").is_file():
            return folder
    return None


def recognise_speech_commands(root: Path) -> str | None:
    """`speech_commands_v2-35w`, `_v1-30w` (complete), `_v1-9w` (the copy used here), or `...-other-1a2b3c4d`.

    By the names of all clips: 105,829 in version 0.02, 64,727 in version 0.01 (its README).
    """
    folder = speech_commands_folder(root)
    if not folder:
        return None
    names = sorted(
        f"{word.name}/{clip.name}"
        for word in os.scandir(folder)
        if word.is_dir() and not word.name.startswith("_")
        for clip in os.scandir(word)
    )
    version = folder.name[-1]
    mark = hashlib.sha256("\n".join(names).encode()).hexdigest()
    known = {("2", 105_829): "v2-35w", ("1", 64_727): "v1-30w"}.get((version, len(names)))
    if mark == SPEECH_COMMANDS_V1_9W:
        known = "v1-9w"
    return f"speech_commands_{known or f'v{version}-other-{mark[:8]}'}"


SPEECH_COMMANDS_V1_9W = "374e96c6bb170b61c32c496c5a836eecb81fb736c98995038778cd4cc48bfb7e"
"""Digest of the clip names of the copy with nine well-filled words, on which the published rows were made."""


def librispeech_names(root: Path, part: str) -> list[str]:
    """The utterances of a part (`dev-clean`) on disk in torchaudio's layout, `1272-128104-0000`, sorted."""
    folder = root / "LibriSpeech" / part
    return sorted(path.stem for path in folder.glob("*/*/*.flac"))


def recognise_librispeech(root: Path, part: str) -> str | None:
    """`librispeech-dev-clean` when complete (2,703 utterances; test-clean has 2,620), else the copy's name."""
    names = librispeech_names(root, part)
    complete = {"dev-clean": 2703, "test-clean": 2620}[part]
    known = {} if len(names) != complete else {_names_mark(names): ""}
    return _by_names(names, f"librispeech-{part}", known | LIBRISPEECH_COPIES)


LIBRISPEECH_COPIES = {
    "ab0e4fcb0784cea107b586742192a3fb678773cdf689c5f2dbbc931879652f0b": "-half",
    "080e577051c0f8c55c44b465278cb71bcb6dbfe82071f7b99fafa865149ff6a8": "-30spk",
}
"""Copies on which the published rows were made, by the digest of their utterances' names."""


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


def recognise_kathleen(root: Path) -> str | None:
    """`kathleen` for the 1,620 recordings that the lists were made from, else `kathleen-other-1a2b3c4d`."""
    return _by_names(list(kathleen_files(root)), "kathleen", {KATHLEEN: ""})


KATHLEEN = "064d71769caeff4d407db9faef23266ca076be7d172e6ca1fd9a2e506bf38613"


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


def recognise_noise(root: Path) -> str | None:
    """`esc10` for the 400 clips of ESC-10, else `esc10-other-1a2b3c4d`."""
    return _by_names(list(noise_files(root)), "esc10", {ESC10: ""})


ESC10 = "93a6de6a6e0af740a03c176f0c66804128e17238dd0b22af2cb8a5073d5b3755"


def _names_mark(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _by_names(names: list[str], set_name: str, known: dict[str, str]) -> str | None:
    """The set's name with what `known` says of these file names, `-other-1a2b3c4d` when nothing."""
    if not names:
        return None
    mark = _names_mark(names)
    return set_name + known.get(mark, f"-other-{mark[:8]}")


def _librispeech(part: str, size: int, md5: str, unpacked: int) -> Source:
    mirrors = ("https://www.openslr.org/resources/12/", "https://us.openslr.org/resources/12/")
    return Source(
        name=f"librispeech-{part}",
        files=(Remote(tuple(f"{m}{part}.tar.gz" for m in mirrors), size, f"md5:{md5}"),),
        folder="",
        unpacked_bytes=unpacked,
        checksums={},
        licence="CC BY 4.0 (V. Panayotov et al., 2015)",
        recognise=lambda root: recognise_librispeech(root, part),
        expected_path=f"LibriSpeech/{part}",
    )


SOURCES = {
    "mnist": Source(
        name="mnist",
        files=(
            _mnist("train-images-idx3-ubyte.gz", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            _mnist("train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
            _mnist("t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3"),
            _mnist("t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        folder="MNIST/raw",
        unpacked_bytes=54_950_048,
        checksums={
            "MNIST/raw/train-images-idx3-ubyte": "sha256:ba891046e6505d7aadcbbe25680a0738"
            "ad16aec93bde7f9b65e87a2fc25776db",
            "MNIST/raw/train-labels-idx1-ubyte": "sha256:65a50cbbf4e906d70832878ad85ccda5"
            "333a97f0f4c3dd2ef09a8a9eef7101c5",
            "MNIST/raw/t10k-images-idx3-ubyte": "sha256:0fa7898d509279e482958e8ce81c8e77"
            "db3f2f8254e26661ceb7762c4d494ce7",
            "MNIST/raw/t10k-labels-idx1-ubyte": "sha256:ff7bcfd416de33731a308c3f266cc351"
            "222c34898ecbeaf847f06e48f7ec33f2",
        },
        licence="CC BY-SA 3.0 (Y. LeCun, C. Cortes)",
    ),
    "cifar10": Source(
        name="cifar10",
        files=(
            Remote(
                ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
                170_498_071,
                "md5:c58f30108f718f92721af3b95e74349a",
            ),
        ),
        folder="",
        unpacked_bytes=190_000_000,
        checksums={
            "cifar-10-batches-py/data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
            "cifar-10-batches-py/data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
            "cifar-10-batches-py/data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
            "cifar-10-batches-py/data_batch_4": "md5:634d18415352ddfa80567beed471001a",
            "cifar-10-batches-py/data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
            "cifar-10-batches-py/test_batch": "md5:40351d587109b95175f43aff81a1287e",
        },
        licence="no formal licence; for research, A. Krizhevsky 2009",
        content=_cifar10_content,
        variants={
            "6b5acaaa32327ca2756d10f0b7f7f2f566518a28fb0a1b6ae0ae4d40fb9f1e3e": "cifar10-jpeg"
        },
    ),
    "speech_commands": Source(
        name="speech_commands_v2-35w",
        files=(
            Remote(
                tuple(
                    f"{host}/speech_commands_v0.02.tar.gz"
                    for host in (
                        "https://storage.googleapis.com/download.tensorflow.org/data",
                        "http://download.tensorflow.org/data",
                    )
                ),
                2_428_923_189,
                "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
            ),
        ),
        folder="SpeechCommands/speech_commands_v0.02",
        unpacked_bytes=3_500_000_000,
        checksums={},
        licence="CC BY 4.0 (P. Warden, 2018)",
        recognise=recognise_speech_commands,
    ),
    # sizes and checksums: openslr.org/resources/12/md5sum.txt
    "librispeech_dev": _librispeech(
        "dev-clean", 337_926_286, "42e2234ba48799c1f50f24a7926300a1", 400_000_000
    ),
    "librispeech_test": _librispeech(
        "test-clean", 346_663_984, "32fa31d27d2e1cad72775fee3f4849a9", 400_000_000
    ),
    "kathleen": Source(
        name="kathleen",
        files=(),
        folder="kathleen",
        unpacked_bytes=0,
        checksums={},
        licence="CC0 1.0 (the voice Kathleen, of the Rhasspy project)",
        recognise=recognise_kathleen,
        manual_download="git clone https://github.com/rhasspy/dataset-voice-kathleen {folder}",
    ),
    "noise": Source(
        name="esc10",
        files=(),
        folder="noise",
        unpacked_bytes=0,
        checksums={},
        licence="CC BY 3.0, the clips CC0 or CC BY (K. J. Piczak, 2015)",
        recognise=recognise_noise,
        manual_download="git clone https://github.com/karoldvl/ESC-10 {folder}",
    ),
}


def source(name: str) -> Source:
    """The entry of this name. Raises DataError for a name that is not in the list."""
    if name not in SOURCES:
        raise DataError(f"No data set is called {name!r}; there are: {', '.join(SOURCES)}.")
    return SOURCES[name]


def read_lines(path: Path) -> list[str]:
    """The lines of a list on disk, without empty ones and those that begin with `#`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
