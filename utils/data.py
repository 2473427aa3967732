"""Where data lies, how it gets there, what it is, and how it reaches the model.

The root is `$STUDY_DATA`, by default `data/` in the repository. Each set has the layout of torchvision,
torchaudio or Hugging Face, so a copy that you already have is used as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .days import ROOT, check_profile
from .download import DataError, Remote, digest, download, unpack

SPLITS = Path(__file__).parent / "splits"


@dataclass(frozen=True)
class Source:
    """A data set on the network: what to fetch, where to unpack it, and how it is recognised.

    `prints` are sha256 digests of unpacked files (relative to the root): they name the set.
    """

    name: str
    days: tuple[int, ...]
    files: tuple[Remote, ...]
    folder: str
    unpacked_bytes: int
    prints: dict[str, str]
    licence: str


def _mnist(filename: str, size: int, md5: str) -> Remote:
    mirrors = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    return Remote(tuple(m + filename for m in mirrors), size, f"md5:{md5}")


SOURCES = {
    "mnist": Source(
        name="mnist",
        days=(2, 3),
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
            "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738"
            "ad16aec93bde7f9b65e87a2fc25776db",
            "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5"
            "333a97f0f4c3dd2ef09a8a9eef7101c5",
            "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77"
            "db3f2f8254e26661ceb7762c4d494ce7",
            "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351"
            "222c34898ecbeaf847f06e48f7ec33f2",
        },
        licence="CC BY-SA 3.0 (Y. LeCun, C. Cortes)",
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
    root = root or data_root()
    return all((root / file).is_file() for file in source(name).prints)


def identify(name: str, root: Path | None = None) -> str:
    """What the set on disk is, by the digests of its files: its name, or `name-other-1a2b3c4d`.

    A result is called after this, never after what the folder was meant to hold.
    """
    root, entry = root or data_root(), source(name)
    found = {file: digest(root / file) for file in entry.prints}
    if found == entry.prints:
        return entry.name
    import hashlib

    mark = hashlib.sha256(
        "".join(found[f] for f in sorted(found)).encode()
    ).hexdigest()[:8]
    return f"{entry.name}-other-{mark}"


def fetch(name: str, root: Path | None = None, bar: bool = True) -> Path:
    """Fetch, verify and unpack a set; does nothing when it is there. Returns the root.

    Raises DataError in one sentence: no network, wrong checksum, full disk, refused archive.
    """
    root, entry = root or data_root(), source(name)
    if is_here(name, root):
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
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
            f"{name} was unpacked into {root / entry.folder}, but its files are not the known "
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
            day = entry.days[0]
            raise DataError(
                f"The data set {name} is not in {_shown(root)} and could not be fetched. Three ways on:\n"
                f"  1. where there is network:    make fetch DAY={day}\n"
                f"  2. a copy that you have:      STUDY_DATA=/path  (a folder that holds {entry.folder})\n"
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
    held_out = torch.tensor(read_split("mnist_validation"))
    keep = torch.ones(len(parts[0]), dtype=torch.bool)
    keep[held_out] = False
    return Images(name, parts[0].take(keep), parts[0].take(held_out), parts[1], classes)


def read_split(name: str) -> list[int]:
    """The numbers of a committed list `utils/splits/NAME.txt` (one a line, `#` begins a comment)."""
    lines = (SPLITS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [int(line) for line in lines if line and not line.startswith("#")]


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
