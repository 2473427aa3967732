"""The bundled sample: what the quick profile runs on, with no network and no download."""

from __future__ import annotations

import torch


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 handwritten digits, `x` `(1797, 1, 28, 28)` normalised, `y` `(1797,)`.

    scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits, CC BY 4.0): 8 x 8
    pixels of 0..16, here enlarged to MNIST's size in an order that is shuffled once and for all.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images).float().div(16).unsqueeze(1)
    x = torch.nn.functional.interpolate(
        x, size=(20, 20), mode="bilinear", align_corners=False
    )
    x = torch.nn.functional.pad(x, (4, 4, 4, 4))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean()) / x.std())[order], torch.from_numpy(raw.target).long()[order]
