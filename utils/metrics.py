"""Accuracy, mean and deviation over seeds, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction of rows whose largest logit is at the label, 0 to 1.

    `logits` is `(batch, classes)`, `labels` `(batch,)` of class numbers. Raises ValueError for an empty batch and
    for shapes that do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"accuracy needs (batch, classes) and (batch,), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    return (logits.argmax(1) == labels).sum().item() / len(labels)  # MPS has no float64


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of repeated runs; `std` is nan for a single run."""

    mean: float
    std: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        return f"{self.mean:{spec}}" + (f" ± {self.std:{spec}} (n={self.n})" if self.n > 1 else "")


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over seeds. Raises ValueError for an empty sequence."""
    x = np.asarray(list(values), dtype=float)
    if not x.size:
        raise ValueError("spread needs at least one value")
    return Spread(float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else float("nan"), x.size)


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True)
class Difference(Interval):
    """`mean(a) - mean(b)` with its 95 % bootstrap interval; `real` when the interval excludes 0."""

    @classmethod
    def of(cls, interval: Interval) -> Difference:
        """The same interval as a difference."""
        return cls(interval.mean, interval.low, interval.high)

    @property
    def real(self) -> bool:
        return self.low > 0 or self.high < 0

    def __format__(self, spec: str) -> str:
        spec = spec or "+.4f"
        verdict = "a difference" if self.real else "no difference"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}] ({verdict})"


def bootstrap_difference(
    a: Sequence[float],
    b: Sequence[float],
    groups: Sequence | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap of two systems on the same test items (Efron & Tibshirani, 1993, ch. 13).

    `a` and `b` are scores per item, `(items,)`, e.g. 1 for correct and 0 for wrong. Items that are not independent
    (the clips of one speaker) have the same entry in `groups` and are drawn together. Raises ValueError when the
    lengths differ.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"the systems need scores of the same items: {a.shape} against {b.shape}")
    return Difference.of(bootstrap_ratio(a - b, np.ones_like(a), groups, resamples, seed))


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """sum(numerators) / sum(denominators) with its 95 % bootstrap interval, e.g. errors over words: a WER.

    Both are `(items,)`; `groups` as in `bootstrap_difference`. Differences of errors as numerators give the
    difference of two error rates. Raises ValueError when the lengths differ or the denominators sum to 0.
    """
    top, bottom = (np.asarray(x, dtype=float) for x in (numerators, denominators))
    if top.shape != bottom.shape or top.ndim != 1 or not bottom.sum() > 0:
        raise ValueError(f"no ratio of {top.shape} to {bottom.shape} items")
    totals, sizes = top, bottom
    if groups is not None:
        if len(groups) != len(top):
            raise ValueError(f"{len(groups)} groups for {len(top)} items")
        _, which = np.unique(np.asarray(groups), return_inverse=True)
        totals, sizes = np.bincount(which, top), np.bincount(which, bottom)
    rng, n, ratios = np.random.default_rng(seed), len(totals), np.empty(resamples)
    at_once = max(1, 500_000 // n)  # resamples whose draws fit the cache
    for first in range(0, resamples, at_once):
        chunk = ratios[first : first + at_once]
        drawn = rng.integers(n, size=(len(chunk), n))  # (resamples, n)
        chunk[:] = totals[drawn].sum(1) / np.maximum(sizes[drawn].sum(1), 1e-12)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def bootstrap_mean(
    values: Sequence[float], groups: Sequence | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of scores per item `(items,)` with its bootstrap interval, drawn by `groups` (speakers) if given."""
    return bootstrap_ratio(values, np.ones(len(values)), groups, resamples, seed)
