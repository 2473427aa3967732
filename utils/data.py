"""Image sets in memory, and how their batches reach the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .days import check_profile
from .device import epoch_seed
from .sources import data_root, ensure_available
from .sources.catalogue import CIFAR10_BATCHES, SPLITS, read_cifar10_batch, read_lines


@dataclass
class Split:
    """Examples in memory on one device: `x` `(items, ...)`, and `y` `(items,)` of class numbers."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Split:
        return Split(self.x.to(device), self.y.to(device))

    def take(self, index: torch.Tensor | slice) -> Split:
        return Split(self.x[index], self.y[index])


@dataclass
class Images:
    """An image set in three splits; `name` is its name in results tables."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: list[str]

    def to(self, device: torch.device) -> Images:
        parts = (self.train.to(device), self.validation.to(device), self.test.to(device))
        return Images(self.name, *parts, self.classes)


MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
"""Mean and standard deviation of MNIST's training pixels, scaled to 0..1."""


def mnist(profile: str) -> Images:
    """Handwritten digits, `x` `(items, 1, 28, 28)` with mean 0 and deviation 1 over the set.

    quick: the bundled sample `sample-digits` (1,797 digits, UCI via scikit-learn). study, full: MNIST
    (LeCun et al., 1998); 5,000 of its 60,000 training images, by the committed list
    `splits/mnist_validation.txt`, are the validation set. Raises DataError when MNIST is not available.
    """
    classes = [str(digit) for digit in range(10)]
    if check_profile(profile) == "quick":
        from .sample import digits

        x, y = digits()
        parts = [Split(x[a:b], y[a:b]) for a, b in ((0, 1197), (1197, 1497), (1497, 1797))]
        return Images("sample-digits", *parts, classes)
    name = ensure_available("mnist")
    from torchvision import datasets

    parts = []
    for train in (True, False):
        raw = datasets.MNIST(data_root(), train=train)
        x = raw.data.unsqueeze(1).float().div_(255).sub_(MNIST_MEAN).div_(MNIST_STD)
        parts.append(Split(x, raw.targets))
    train, validation = hold_out(parts[0], read_split("mnist_validation"))
    return Images(name, train, validation, parts[1], classes)


CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of CIFAR-10's training pixels per channel, scaled to 0..1."""


def cifar10(profile: str) -> Images:
    """Small colour images in ten classes, `x` `(items, 3, 32, 32)`, normalised per channel.

    quick: generated shapes, `sample-shapes`. study, full: CIFAR-10 (Krizhevsky, 2009) from the batch files; 5,000
    of its 50,000 training images, by the committed list `splits/cifar10_validation.txt`, are the validation set.
    Raises DataError when it is not available.
    """
    if check_profile(profile) == "quick":
        from .sample import SHAPES, shapes

        x, y = shapes(1600)
        parts = [Split(x[a:b], y[a:b]) for a, b in ((0, 1000), (1000, 1300), (1300, 1600))]
        return Images("sample-shapes", *parts, list(SHAPES))
    name = ensure_available("cifar10")
    batches = [read_cifar10_batch(data_root() / file) for file in CIFAR10_BATCHES]
    mean = torch.tensor(CIFAR10_MEAN).view(3, 1, 1)
    std = torch.tensor(CIFAR10_STD).view(3, 1, 1)
    whole = []
    for some in (batches[:5], batches[5:]):
        pixels = torch.from_numpy(np.concatenate([images for images, _ in some]))
        x = pixels.view(-1, 3, 32, 32).float().div_(255).sub_(mean).div_(std)
        whole.append(Split(x, torch.tensor([label for _, labels in some for label in labels])))
    train, validation = hold_out(whole[0], read_split("cifar10_validation"))
    return Images(name, train, validation, whole[1], list(CIFAR10_CLASSES))


CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def hold_out(split: Split, numbers: list[int]) -> tuple[Split, Split]:
    """The split without the items with these numbers, and those items."""
    held_out = torch.tensor(numbers)
    keep = torch.ones(len(split), dtype=torch.bool)
    keep[held_out] = False
    return split.take(keep), split.take(held_out)


def read_split(name: str) -> list[int]:
    """The numbers in a committed list `utils/splits/NAME.txt` (one per line, `#` begins a comment)."""
    return [int(line) for line in read_lines(SPLITS / f"{name}.txt")]


class Batches:
    """Mini-batches of a split in memory: no worker processes, no copies, no Python code per item.

    The order of an epoch depends on `seed` and its number alone (`epoch_seed`). `augment(x, generator)` changes a
    whole batch at once. `drop_last` leaves out the last, smaller batch, whose statistics would be too noisy for
    batch norm. Raises ValueError for a batch size larger than the split.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    ) -> None:
        if not 0 < batch_size <= len(split):
            raise ValueError(f"batch_size {batch_size} does not fit {len(split)} examples")
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.shuffle, self.drop_last, self.augment = shuffle, drop_last, augment
        self._next_epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of epoch `number` (from 0), each `(x, y)`."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, number))
        n, device = len(self.split), self.split.y.device
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        order = order.to(device)
        for i in range(len(self)):
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            x, y = self.split.x[index], self.split.y[index]
            yield (x if self.augment is None else self.augment(x, generator)), y

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self._next_epoch += 1
        return self.epoch(self._next_epoch - 1)


def random_shift(x: torch.Tensor, generator: torch.Generator, pixels: int = 2) -> torch.Tensor:
    """Shift each image of `(batch, channels, height, width)` by up to `pixels`, all at once.

    The border is repeated. The CPU `generator` draws on every device, so that runs can be compared.
    """
    n, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (pixels,) * 4, mode="replicate").permute(0, 2, 3, 1)
    by = torch.randint(0, 2 * pixels + 1, (2, n), generator=generator).to(x.device)
    rows = (by[0, :, None] + torch.arange(height, device=x.device))[:, :, None]
    columns = (by[1, :, None] + torch.arange(width, device=x.device))[:, None, :]
    item = torch.arange(n, device=x.device)[:, None, None]
    return padded[item, rows, columns].permute(0, 3, 1, 2)


def random_flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image of `(batch, channels, height, width)` horizontally with probability 1/2."""
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)
