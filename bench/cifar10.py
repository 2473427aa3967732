"""CIFAR-10: augmented images per second, training images per second, seconds of training to 80 %.

The stock way: a torchvision-style dataset whose items are decoded to PIL and transformed one by one
(RandomCrop with padding 4, RandomHorizontalFlip, ToTensor, Normalize), a DataLoader with batch 128 and
no workers, Day 4's plain CNN in float32, Adam at 1e-3. Both sides see the same 45,000 training images
and are tested on the 10,000 after each epoch; only training is timed.

Ours: augmentation on the resident batch, Day 4's FastCNN in a narrow form, one cycle of AdamW over four
epochs of which the first two see the images at 24 x 24 pixels (nine sixteenths of the work), and at the
test the mean of the logits of an image and its mirror image, as airbench has it (arXiv:2404.00498).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from Day04_CIFAR10.fast_cnn import FastCNN
from utils import data, sources
from utils.data import Batches, Split, random_flip, random_shift
from utils.device import pick_device, seed_everything
from utils.models.cifar_cnn import SmallCNN
from utils.sources import catalogue

from .claims import Claim
from .measure import Race, images_per_second, our_race, print_share, slowest_of_three, stock_race, stock_step

GOAL = 0.80


class StockImages(torch.utils.data.Dataset):
    """`torchvision.datasets.CIFAR10` without its checksum, which the JPEG copy would not pass."""

    def __init__(self, numbers: list[int]) -> None:
        from torchvision import transforms

        batches = [
            catalogue.read_cifar10_batch(sources.data_root() / file) for file in catalogue.CIFAR10_BATCHES[:5]
        ]
        pixels = np.concatenate([images for images, _ in batches])
        self.pixels = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)[numbers]
        labels = np.array([label for _, some in batches for label in some])
        self.labels = labels[numbers].tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(data.CIFAR10_MEAN, data.CIFAR10_STD)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def stock_loader() -> torch.utils.data.DataLoader:
    """The training images without those of the validation split, one by one."""
    held_out = set(data.read_split("cifar10_validation"))
    images = StockImages([i for i in range(50_000) if i not in held_out])
    return torch.utils.data.DataLoader(images, batch_size=128, shuffle=True)


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return random_shift(random_flip(x, generator), generator, pixels=2)


def stock(test: Split) -> Race:
    """Plain CNN, Adam, per-image transforms."""
    seed_everything(0)
    loader, model = stock_loader(), SmallCNN(False).to(test.y.device)
    step = stock_step(model, torch.optim.Adam(model.parameters(), 1e-3))
    return stock_race(step, loader, model, test, GOAL, epochs=100)


class Mirrored(nn.Module):
    """A network whose answer, outside training, is the mean over the image and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        return logits if self.training else (logits + self.model(x.flip(3))) / 2


SIZES = (24, 24, 32, 32)
"""Height and width in pixels of the training images, for each epoch."""


class GrowingBatches(Batches):
    """Batches whose images have the size of their epoch, by SIZES."""

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((shrunk(x, SIZES[number]), y) for x, y in super().epoch(number))


def ours(train: Split, test: Split, seed: int) -> Race:
    """A narrow FastCNN with its whitening fixed, one cycle over the epochs of SIZES."""
    seed_everything(seed)
    batches = GrowingBatches(train, 256, seed=seed, augment=augment)
    return our_race(Mirrored(narrow(train)), batches, test, GOAL, len(SIZES), 0.02, smoothing=0.1)


def narrow(train: Split) -> FastCNN:
    """FastCNN with fewer channels; its whitening is fixed, so no gradient reaches the largest images."""
    network = FastCNN(train.x[:500].cpu(), widths=(16, 64, 96))
    network.whiten.requires_grad_(False)
    return network.to(train.y.device, memory_format=torch.channels_last)


def shrunk(x: torch.Tensor, size: int) -> torch.Tensor:
    """Images `(batch, 3, height, width)` at `size` x `size` pixels, anti-aliased; as they are where they fit."""
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def training_rate(batches: Iterable, device: torch.device, mixed: bool) -> float:
    """Images per second through training steps of the plain CNN; `mixed`: bfloat16, channels last."""
    seed_everything(0)
    model = SmallCNN(False).to(device)
    if mixed:
        model = model.to(memory_format=torch.channels_last)
    print_share("Day 4's plain CNN" + ", channels last" * mixed, model, *next(iter(batches)), mixed)
    step = stock_step(model, torch.optim.Adam(model.parameters(), 1e-3), mixed=mixed)
    return images_per_second(batches, device, step, seconds=6)


def run() -> list[Claim]:
    """The three claims on CIFAR-10 as it is on this disk; fetches it where it is missing."""
    device = pick_device()
    images = data.cifar10("study").to(device)
    print(f"data: {images.name}")
    loader, batches = stock_loader(), Batches(images.train, 128, augment=augment)
    incoming = [images_per_second(source, device) for source in (loader, batches)]
    rates = training_rate(loader, device, False), training_rate(batches, device, True)
    print_share("the race's narrow FastCNN", narrow(images.train), *next(iter(batches)), mixed=True)
    print("stock recipe:")
    stock_seconds, _, arrived = stock(images.test)
    print("ours, three seeds:")
    slowest = slowest_of_three(lambda seed: ours(images.train, images.test, seed))
    what = "CIFAR-10, training to 80 % (ours: slowest of 3 seeds)"
    return [
        Claim("CIFAR-10, augmented images/s", *incoming, "1/s", 5, higher=True),
        Claim("CIFAR-10, training images/s, the same plain CNN", *rates, "1/s", 1, higher=True),
        Claim(what, stock_seconds, slowest, "s", 5, capped=not arrived),
    ]
