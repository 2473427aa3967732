"""The bundled images of the quick profile: no network, no download."""

from __future__ import annotations

import torch


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 handwritten digits, `x` `(1797, 1, 28, 28)` normalised, `y` `(1797,)`.

    scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits, CC BY 4.0): 8 x 8 pixels of 0..16,
    enlarged to MNIST's size, in a fixed random order.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images).float().div(16).unsqueeze(1)
    x = torch.nn.functional.interpolate(x, size=(20, 20), mode="bilinear", align_corners=False)
    x = torch.nn.functional.pad(x, (4, 4, 4, 4))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean()) / x.std())[order], torch.from_numpy(raw.target).long()[order]


SHAPES = (
    "disc", "square", "triangle", "ring", "cross",
    "rows", "columns", "stripes", "checks", "two discs",
)  # fmt: skip


def shapes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` generated colour images in the ten classes of SHAPES, `x` `(count, 3, 32, 32)`, `y` `(count,)`.

    Position, size, colours and noise of each image are drawn from a fixed seed; mean 0, deviation 1.
    """
    g = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=g)

    y = torch.randint(0, len(SHAPES), (count,), generator=g)
    axis = torch.arange(32.0)
    cx, cy, r = uniform(11, 21), uniform(11, 21), uniform(6, 10)
    dx, dy = axis[None, None, :] - cx, axis[None, :, None] - cy
    far = (dx**2 + dy**2).sqrt()
    box = torch.maximum(dx.abs().expand_as(far), dy.abs().expand_as(far))
    wave = 2 * torch.pi / uniform(5, 8)
    masks = [
        far < r,
        box < 0.85 * r,
        (dy > -r) & (dy < 0.8 * r) & (dx.abs() < 0.6 * (dy + r)),
        (far < r) & (far > 0.6 * r),
        (box < r) & (torch.minimum(dx.abs(), dy.abs()) < 0.3 * r),
        ((wave * dy).sin() > 0).expand_as(far),
        ((wave * dx).sin() > 0).expand_as(far),
        (wave * (dx + dy) / 2**0.5).sin() > 0,
        (wave * dx).sin() * (wave * dy).sin() > 0,
        torch.minimum(far, ((dx + 10) ** 2 + (dy - 8) ** 2).sqrt()) < 0.6 * r,
    ]
    mask = torch.stack(masks, 1)[torch.arange(count), y][:, None].float()
    colours = torch.rand(2, count, 3, 1, 1, generator=g)
    x = mask * colours[0] + (1 - mask) * colours[1]
    x = x + 0.1 * torch.randn(x.shape, generator=g)
    return (x - x.mean()) / x.std(), y
