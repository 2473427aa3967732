"""Where data lies, how it gets there, what it is, and how it reaches the model.

The root is `$STUDY_DATA`, by default `data/` in the repository. Each set has the layout of torchvision,
torchaudio or Hugging Face, so a copy that you already have is used as it is.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .days import ROOT, check_profile, using
from .download import (
    DataError,
    Remote,
    check_space,
    digest,
    download,
    unpack,
    verify,
)

SPLITS = Path(__file__).parent / "splits"


@dataclass(frozen=True)
class Source:
    """A data set on the network: what to fetch, where to unpack it, and how it is recognised.

    `prints` are checksums (`algorithm:hexdigest`) of unpacked files, relative to the root: they name
    the set. `variants` are known copies with another content, by the digest of `content(root)`. A set
    of many files has `recognise(root)` instead: what is there, or None where nothing is. `holds` is
    what to look for under the root where `folder` does not say it; `by_hand` says how to get a set
    that has no archive with a published checksum.
    """

    name: str
    files: tuple[Remote, ...]
    folder: str
    unpacked_bytes: int
    prints: dict[str, str]
    licence: str
    content: Callable[[Path], bytes] | None = None
    variants: dict[str, str] = field(default_factory=dict)
    recognise: Callable[[Path], str | None] | None = None
    holds: str = ""
    by_hand: str = ""


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
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        AttributeError,
        ValueError,
    ) as e:
        raise DataError(
            f"{path.name} is damaged ({type(e).__name__}). Delete {path.parent.name} and run "
            "make fetch DAY=4."
        ) from e


def _cifar10_content(root: Path) -> bytes:
    """The pixels of all batches: what a copy is known by, however it was packed."""
    return b"".join(
        read_cifar10_batch(root / name)[0].tobytes() for name in CIFAR10_BATCHES
    )


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
    known = {("2", 105_829): "v2-35w", ("1", 64_727): "v1-30w"}.get(
        (version, len(names))
    )
    if mark == SPEECH_COMMANDS_V1_9W:
        known = "v1-9w"
    return f"speech_commands_{known or f'v{version}-other-{mark[:8]}'}"


SPEECH_COMMANDS_V1_9W = (
    "374e96c6bb170b61c32c496c5a836eecb81fb736c98995038778cd4cc48bfb7e"
)
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
    mirrors = (
        "https://www.openslr.org/resources/12/",
        "https://us.openslr.org/resources/12/",
    )
    return Source(
        name=f"librispeech-{part}",
        files=(
            Remote(tuple(f"{m}{part}.tar.gz" for m in mirrors), size, f"md5:{md5}"),
        ),
        folder="",
        unpacked_bytes=unpacked,
        prints={},
        licence="CC BY 4.0 (V. Panayotov et al., 2015)",
        recognise=lambda root: recognise_librispeech(root, part),
        holds=f"LibriSpeech/{part}",
    )


SOURCES = {
    "mnist": Source(
        name="mnist",
        files=(
            _mnist(
                "train-images-idx3-ubyte.gz",
                9912422,
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            ),
            _mnist(
                "train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432"
            ),
            _mnist(
                "t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3"
            ),
            _mnist(
                "t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c"
            ),
        ),
        folder="MNIST/raw",
        unpacked_bytes=54_950_048,
        prints={
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
        prints={
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
        prints={},
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
        prints={},
        licence="CC0 1.0 (the voice Kathleen, of the Rhasspy project)",
        recognise=recognise_kathleen,
        by_hand="git clone https://github.com/rhasspy/dataset-voice-kathleen {folder}",
    ),
    "noise": Source(
        name="esc10",
        files=(),
        folder="noise",
        unpacked_bytes=0,
        prints={},
        licence="CC BY 3.0, the clips CC0 or CC BY (K. J. Piczak, 2015)",
        recognise=recognise_noise,
        by_hand="git clone https://github.com/karoldvl/ESC-10 {folder}",
    ),
}


def data_root() -> Path:
    """`$STUDY_DATA`, by default `data/` in the repository."""
    return Path(os.environ.get("STUDY_DATA") or ROOT / "data").expanduser()


def source(name: str) -> Source:
    """The entry of this name. Raises DataError for a name that is not in the list."""
    if name not in SOURCES:
        raise DataError(
            f"No data set is called {name!r}; there are: {', '.join(SOURCES)}."
        )
    return SOURCES[name]


def is_here(name: str, root: Path | None = None) -> bool:
    """Whether the files of the set are on disk, whatever they hold."""
    root, entry = root or data_root(), source(name)
    if entry.recognise:
        return entry.recognise(root) is not None
    return all((root / file).is_file() for file in entry.prints)


def identify(name: str, root: Path | None = None) -> str:
    """What the set on disk is, by the digests of its files: its name, or `name-other-1a2b3c4d`.

    A result is called after this, never after what the folder was meant to hold.
    """
    root, entry = root or data_root(), source(name)
    if entry.recognise:
        return entry.recognise(root) or f"{entry.name}-missing"
    if all(verify(root / file, wanted) for file, wanted in entry.prints.items()):
        return entry.name
    if entry.content:
        mark = hashlib.sha256(entry.content(root)).hexdigest()
    else:
        digests = "".join(digest(root / file) for file in sorted(entry.prints))
        mark = hashlib.sha256(digests.encode()).hexdigest()
    return entry.variants.get(mark, f"{entry.name}-other-{mark[:8]}")


def fetch(name: str, root: Path | None = None, bar: bool = True) -> Path:
    """Fetch, verify and unpack a set; does nothing when it is there. Returns the root.

    Raises DataError in one sentence: no network, wrong checksum, full disk, refused archive.
    """
    root, entry = root or data_root(), source(name)
    if is_here(name, root):
        return root
    if not entry.files:
        command = entry.by_hand.format(folder=_shown(root / entry.folder))
        raise DataError(
            f"{name} has no archive with a published checksum, so it is fetched by hand: {command}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        check_space(root, sum(f.size for f in entry.files) + entry.unpacked_bytes)
        downloads = root / ".downloads"
        archives = [download(remote, downloads, bar=bar) for remote in entry.files]
    except PermissionError as e:
        raise DataError(
            f"{e.filename} cannot be written. Choose another place with STUDY_DATA=/path."
        ) from e
    for archive in archives:
        unpack(archive, root / entry.folder, limit=entry.unpacked_bytes)
    for archive in archives:
        archive.unlink()
    if identify(name, root) != entry.name:
        raise DataError(
            f"{name} was unpacked into {_shown(root / entry.folder)}, but its files are not the known "
            "ones. Delete the folder and fetch again."
        )
    return root


def require(name: str, root: Path | None = None) -> str:
    """Make sure that a set is on disk, fetching it where there is network; return what it is.

    Raises DataError with the three ways on when it is not there and cannot be fetched.
    """
    root, entry = root or data_root(), source(name)
    if not is_here(name, root):
        try:
            fetch(name, root)
        except DataError as e:
            day, held = using(name)[0], entry.holds or entry.folder
            raise DataError(
                f"The data set {name} is not in {_shown(root)} and could not be fetched. Three ways on:\n"
                f"  1. where there is network:    make fetch DAY={day}\n"
                f"  2. a copy that you have:      STUDY_DATA=/path  (a folder that holds {held})\n"
                f'  3. the bundled sample:        PROFILE = "quick"\n'
                f"Why: {e}"
            ) from e
    return identify(name, root)


def _shown(path: Path) -> str:
    """A path as a reader of the notebook may see it: without this machine's folders."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


@dataclass
class Part:
    """Examples in memory: `x` `(items, ...)` and `y` `(items,)` of class numbers, on one device."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Part:
        return Part(self.x.to(device), self.y.to(device))

    def take(self, index: torch.Tensor | slice) -> Part:
        return Part(self.x[index], self.y[index])


@dataclass
class Images:
    """An image set in three parts. `name` goes into the results table."""

    name: str
    train: Part
    validation: Part
    test: Part
    classes: list[str]

    def to(self, device: torch.device) -> Images:
        parts = (
            self.train.to(device),
            self.validation.to(device),
            self.test.to(device),
        )
        return Images(self.name, *parts, self.classes)


MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
"""Mean and standard deviation of MNIST's training pixels, scaled to 0..1."""


def mnist(profile: str) -> Images:
    """Handwritten digits, `x` `(items, 1, 28, 28)` with mean 0 and deviation 1 over the set.

    quick: the bundled sample `sample-digits` (1,797 digits, UCI via scikit-learn). study, full: MNIST
    (LeCun et al., 1998), whose 60,000 training images are parted into 55,000 and the 5,000 of the
    committed list `splits/mnist_validation.txt`. Raises DataError when MNIST cannot be had.
    """
    classes = [str(digit) for digit in range(10)]
    if check_profile(profile) == "quick":
        from .sample import digits

        x, y = digits()
        parts = [
            Part(x[a:b], y[a:b]) for a, b in ((0, 1197), (1197, 1497), (1497, 1797))
        ]
        return Images("sample-digits", *parts, classes)
    name = require("mnist")
    from torchvision import datasets

    parts = []
    for train in (True, False):
        raw = datasets.MNIST(data_root(), train=train)
        x = raw.data.unsqueeze(1).float().div_(255).sub_(MNIST_MEAN).div_(MNIST_STD)
        parts.append(Part(x, raw.targets))
    train, validation = hold_out(parts[0], read_split("mnist_validation"))
    return Images(name, train, validation, parts[1], classes)


CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of CIFAR-10's training pixels per channel, scaled to 0..1."""


def cifar10(profile: str) -> Images:
    """Small colour images in ten classes, `x` `(items, 3, 32, 32)`, normalised per channel.

    quick: generated shapes, `sample-shapes`. study, full: CIFAR-10 (Krizhevsky, 2009) from the batch
    files, its 50,000 training images parted into 45,000 and the 5,000 of the committed list
    `splits/cifar10_validation.txt`. Raises DataError when it cannot be had.
    """
    if check_profile(profile) == "quick":
        from .sample import SHAPES, shapes

        x, y = shapes(1600)
        parts = [
            Part(x[a:b], y[a:b]) for a, b in ((0, 1000), (1000, 1300), (1300, 1600))
        ]
        return Images("sample-shapes", *parts, list(SHAPES))
    name = require("cifar10")
    batches = [read_cifar10_batch(data_root() / file) for file in CIFAR10_BATCHES]
    mean = torch.tensor(CIFAR10_MEAN).view(3, 1, 1)
    std = torch.tensor(CIFAR10_STD).view(3, 1, 1)
    whole = []
    for some in (batches[:5], batches[5:]):
        pixels = torch.from_numpy(np.concatenate([images for images, _ in some]))
        x = pixels.view(-1, 3, 32, 32).float().div_(255).sub_(mean).div_(std)
        whole.append(
            Part(x, torch.tensor([label for _, labels in some for label in labels]))
        )
    train, validation = hold_out(whole[0], read_split("cifar10_validation"))
    return Images(name, train, validation, whole[1], list(CIFAR10_CLASSES))


CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def hold_out(part: Part, numbers: list[int]) -> tuple[Part, Part]:
    """The part without the items of these numbers, and those items."""
    held_out = torch.tensor(numbers)
    keep = torch.ones(len(part), dtype=torch.bool)
    keep[held_out] = False
    return part.take(keep), part.take(held_out)


def read_split(name: str) -> list[int]:
    """The numbers of a committed list `utils/splits/NAME.txt` (one a line, `#` begins a comment)."""
    return [int(line) for line in read_lines(SPLITS / f"{name}.txt")]


def read_lines(path: Path) -> list[str]:
    """The lines of a list on disk, without empty ones and those that begin with `#`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class Batches:
    """Mini-batches of a part that is wholly in memory: no workers, no copies, no Python per item.

    The order of epoch `e` depends on `seed` and `e` alone, so a run that was killed goes on with
    the very batches that it would have had. `augment(x, generator)` changes a whole batch at once.
    The last, smaller batch is left out in training (`drop_last`), as batch norm wants.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    ) -> None:
        if not 0 < batch_size <= len(part):
            raise ValueError(
                f"batch_size {batch_size} does not fit {len(part)} examples"
            )
        self.part, self.batch_size, self.seed = part, batch_size, seed
        self.shuffle, self.drop_last, self.augment = shuffle, drop_last, augment
        self._next_epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.part), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of epoch `number` (from 0), each `(x, y)`."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        n, device = len(self.part), self.part.y.device
        order = (
            torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        )
        order = order.to(device)
        for i in range(len(self)):
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            x, y = self.part.x[index], self.part.y[index]
            yield (x if self.augment is None else self.augment(x, generator)), y

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._next_epoch += 1
        return self.epoch(self._next_epoch - 1)


def random_shift(
    x: torch.Tensor, generator: torch.Generator, pixels: int = 2
) -> torch.Tensor:
    """Shift each image of `(batch, channels, height, width)` by up to `pixels`, all at once.

    What comes in at the border repeats the border. The draws come from the CPU `generator` on every
    device, so that runs can be compared.
    """
    n, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (pixels,) * 4, mode="replicate").permute(
        0, 2, 3, 1
    )
    by = torch.randint(0, 2 * pixels + 1, (2, n), generator=generator).to(x.device)
    rows = (by[0, :, None] + torch.arange(height, device=x.device))[:, :, None]
    columns = (by[1, :, None] + torch.arange(width, device=x.device))[:, None, :]
    item = torch.arange(n, device=x.device)[:, None, None]
    return padded[item, rows, columns].permute(0, 3, 1, 2)


def random_flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image of `(batch, channels, height, width)` left to right with probability 1/2."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def cutout(x: torch.Tensor, generator: torch.Generator, size: int = 8) -> torch.Tensor:
    """Set a square of `size` pixels at a random place of each image to 0, the mean.

    `(batch, channels, height, width)`; DeVries & Taylor, 2017, arXiv:1708.04552.
    """
    n, _, height, width = x.shape
    draw = torch.rand(2, n, generator=generator).to(x.device)
    top = (draw[0] * (height - size + 1)).long()[:, None]
    left = (draw[1] * (width - size + 1)).long()[:, None]
    rows, columns = (torch.arange(k, device=x.device)[None] for k in (height, width))
    inside_rows = (rows >= top) & (rows < top + size)
    inside_columns = (columns >= left) & (columns < left + size)
    return x.masked_fill(
        (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0
    )
