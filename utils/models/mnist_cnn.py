"""Day 3's network for 28 x 28 grey images; Day 6 trains it as well."""

from __future__ import annotations

from torch import Tensor, nn


def block(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, batch norm, ReLU; with stride 1 the size of the image stays."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class MnistCNN(nn.Module):
    """Three blocks of convolution, batch norm and ReLU, then one linear layer.

    `(batch, 1, 28, 28)` to logits `(batch, 10)`, 29,434 weights. The first convolution
    has stride 2, so the larger layers process a quarter of the pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block1 = block(1, 16, 5, stride=2)
        self.block2 = block(16, 32, 3)
        self.block3 = block(32, 64, 3)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(64 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)  # (batch, 16, 14, 14)
        x = self.pool(self.block2(x))  # (batch, 32, 7, 7)
        x = self.pool(self.block3(x))  # (batch, 64, 3, 3)
        return self.head(x.flatten(1))
