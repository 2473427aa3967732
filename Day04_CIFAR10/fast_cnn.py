"""The network of Day 4's fast recipe: fixed whitening filters, then three stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def whitening_filters(x: Tensor, size: int = 2) -> Tensor:
    """Filters that decorrelate `size` x `size` patches of `x`: `(3 * size**2, 3, size, size)`.

    The eigenvectors of the covariance of the patches, each divided by the square root of its eigenvalue, largest
    eigenvalue first. `x` is `(images, 3, height, width)`; a few hundred images are enough.
    """
    patches = x.unfold(2, size, 1).unfold(3, size, 1)  # (images, 3, rows, columns, size, size)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * size**2)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0)
    return filters.reshape(-1, 3, size, size)


class FastCNN(nn.Module):
    """A fixed whitening layer, then three blocks of two convolutions.

    After K. Jordan's airbench (arXiv:2404.00498): the trained layers get uncorrelated inputs, pooling comes
    early, the activation is GELU. `(batch, 3, 32, 32)` to logits `(batch, 10)`; smaller images work as well,
    which makes the first epochs of a training run cheap.
    """

    def __init__(self, sample: Tensor, widths: tuple[int, int, int] = (32, 96, 96)) -> None:
        super().__init__()
        filters = whitening_filters(sample)
        self.whiten = nn.Conv2d(3, 2 * len(filters), 2)
        self.whiten.weight = nn.Parameter(torch.cat([filters, -filters]), requires_grad=False)
        nn.init.zeros_(self.whiten.bias)
        blocks, channels = [nn.GELU()], 2 * len(filters)
        for width in widths:
            first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            blocks += [first, nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
            second = nn.Conv2d(width, width, 3, padding=1, bias=False)
            blocks += [second, nn.BatchNorm2d(width), nn.GELU()]
            channels = width
        self.blocks = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.whiten(x)))
