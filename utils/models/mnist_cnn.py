"""Day 3's network for 28 x 28 grey images; Day 6 trains it as well."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class MnistCNN(nn.Module):
    """Three blocks of convolution, batch norm and activation, then one linear layer.

    `(batch, 1, 28, 28)` to logits `(batch, 10)`, 29,434 weights at the default width. The first convolution
    has stride 2, so the larger layers process a quarter of the pixels.
    """

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU, width: int = 16) -> None:
        super().__init__()
        w = width
        self.block1 = nn.Sequential(
            nn.Conv2d(1, w, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(w), activation()
        )
        self.block2 = nn.Sequential(
            nn.Conv2d(w, 2 * w, 3, padding=1, bias=False), nn.BatchNorm2d(2 * w), activation()
        )
        self.block3 = nn.Sequential(
            nn.Conv2d(2 * w, 4 * w, 3, padding=1, bias=False), nn.BatchNorm2d(4 * w), activation()
        )
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4 * w * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)  # (batch, 16, 14, 14)
        x = self.pool(self.block2(x))  # (batch, 32, 7, 7)
        x = self.pool(self.block3(x))  # (batch, 64, 3, 3)
        return self.head(x.flatten(1))
