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
from .measure import Race, images_per_second, our_race, print_share, slowest_of_three, stock_race, stock_step

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


def stock(test: Split) -> Race:
    """The stock recipe's race: 14 epochs at most."""
    seed_everything(0)
    loader, model = stock_loader(), StockNet().to(test.y.device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    decay = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    step = stock_step(model, optimizer, F.nll_loss)
    return stock_race(step, loader, model, test, GOAL, decay, epochs=14)


def ours(train: Split, test: Split, seed: int = 0) -> Race:
    """Resident data, Day 3's network, one cycle over two epochs."""
    seed_everything(seed)
    model = MnistCNN().to(test.y.device, memory_format=torch.channels_last)
    return our_race(model, Batches(train, 128, seed=seed), test, GOAL, 2, 0.01, smoothing=0.05)


def run() -> list[Claim]:
    """Both claims on the real MNIST; fetches it where it is missing."""
    device = pick_device()
    images = data.mnist("study").to(device)
    both = (images.train, images.validation)
    train = Split(torch.cat([s.x for s in both]), torch.cat([s.y for s in both]))
    rates = [images_per_second(source, device) for source in (stock_loader(), Batches(train, 64))]
    print("share of the machine's peak, batch 128:")
    some = next(iter(Batches(train, 128)))
    print_share("pytorch/examples' network", StockNet().to(device), *some, mixed=False)
    network = MnistCNN().to(device, memory_format=torch.channels_last)
    print_share("Day 3's network, channels last", network, *some, mixed=True)
    print("stock recipe (pytorch/examples):")
    stock_seconds, _, arrived = stock(images.test)
    print("ours, three seeds:")
    slowest = slowest_of_three(lambda seed: ours(train, images.test, seed))
    what = "MNIST, training to 99 % (ours: slowest of 3 seeds)"
    return [
        Claim("MNIST images/s, batch 64, into the model", *rates, "1/s", 5, True),
        Claim(what, stock_seconds, slowest, "s", 10, capped=not arrived),
    ]
