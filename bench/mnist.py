"""MNIST: images per second into the model, and seconds of training until 99 % on the test set.

The stock way is the recipe of pytorch/examples (mnist/main.py) written out: images decoded by PIL one
by one, ToTensor and Normalize, DataLoader with batch 64, two convolutions and two linear layers with
dropout, Adadelta at learning rate 1.0, decayed by 0.7 an epoch. Both sides train on all 60,000 images
and are tested on the 10,000 after each epoch; only training is timed. The test set serves as the
finishing line here, which is right for a race and wrong for a result: the days never do this.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from utils import data, sources
from utils.data import Batches, Split
from utils.device import pick_device, seed_everything
from utils.models.mnist_cnn import MnistCNN

from .claims import Claim
from .measure import Trainer, forever, images_per_second, race, slowest_of_three

GOAL = 0.99


class StockNet(nn.Module):
    """The network of pytorch/examples: 1,199,882 weights, `(batch, 1, 28, 28)` to log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        return F.log_softmax(self.fc2(self.dropout2(F.relu(self.fc1(x)))), dim=1)


def stock_loader() -> torch.utils.data.DataLoader:
    """torchvision's MNIST with per-image transforms, batch 64, shuffled: the usual first loader."""
    from torchvision import datasets, transforms

    steps = [transforms.ToTensor(), transforms.Normalize((data.MNIST_MEAN,), (data.MNIST_STD,))]
    images = datasets.MNIST(sources.data_root(), train=True, transform=transforms.Compose(steps))
    return torch.utils.data.DataLoader(images, batch_size=64, shuffle=True)


def stock_race(test: Split, epochs: int = 14) -> tuple[float, float, bool]:
    """The stock recipe's race."""
    device = test.y.device
    seed_everything(0)
    loader, model = stock_loader(), StockNet().to(device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    decay = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)

    def epoch(_: int) -> None:
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.nll_loss(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
        decay.step()

    return race(epoch, model, test, GOAL, epochs)


def our_race(
    train: Split, test: Split, seed: int = 0, epochs: int = 2
) -> tuple[float, float, bool]:
    """Resident data, Day 3's network, AdamW with one cycle over two epochs, mixed precision."""
    device = test.y.device
    seed_everything(seed)
    batches = Batches(train, 128, seed=seed)
    model = MnistCNN().to(device)
    trainer = Trainer(model, 0.01, True, epochs * len(batches), smoothing=0.05)

    def epoch(number: int) -> None:
        trainer.epoch(batches.epoch(number))

    return race(epoch, model, test, GOAL, epochs)


def run() -> list[Claim]:
    """Both claims on the real MNIST; fetches it where it is missing."""
    device = pick_device()
    images = data.mnist("study").to(device)
    train = Split(
        torch.cat([images.train.x, images.validation.x]),
        torch.cat([images.train.y, images.validation.y]),
    )
    stock_rate = images_per_second(iter(stock_loader()), device)

    batches = Batches(train, 64)
    our_rate = images_per_second(forever(lambda: iter(batches)), device)
    print("stock recipe (pytorch/examples):")
    stock_seconds, _, arrived = stock_race(images.test)
    print("ours, three seeds:")
    slowest = slowest_of_three(lambda seed: our_race(train, images.test, seed))
    return [
        Claim("MNIST images/s, batch 64, into the model", stock_rate, our_rate, "1/s", 5, higher=True),
        Claim(
            "MNIST, training to 99 % (ours: slowest of 3 seeds)",
            stock_seconds, slowest, "s", 10, capped=not arrived,
        ),
    ]  # fmt: skip
