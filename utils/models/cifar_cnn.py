"""Day 4's network for 32 x 32 colour images; Day 5 and a template project use it as well."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three convolutions, each followed by max pooling, then dropout and one linear layer.

    `(batch, 3, 32, 32)` to logits `(batch, 10)`. Pooling comes before batch norm and activation, which then
    process a quarter of the values; max pooling and ReLU can be swapped without changing the result.
    """

    def __init__(
        self, batch_norm: bool = True, dropout: float = 0.0, widths: tuple[int, ...] = (32, 64, 128)
    ) -> None:
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
            norm = [nn.BatchNorm2d(width)] if batch_norm else []
            layers += [nn.MaxPool2d(2), *norm, nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * (32 // 2 ** len(widths)) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x)))
