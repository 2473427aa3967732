"""Who speaks, in numbers: trials, cosine scores, EER, minDCF, DET and ROC, normalisation, calibration.

A trial is a pair of utterances; its score says how alike the voices are. A trial is accepted when its
score is not below the threshold. Two errors: a false alarm accepts different speakers, a miss rejects
the same one. `scores` are `(trials,)`, `same` is `(trials,)` and true where one speaker said both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..metrics import Difference, Interval


class EqualError(NamedTuple):
    """Equal error rate (0 to 1) and a threshold that comes nearest to it."""

    rate: float
    threshold: float


def _parted(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores of same-speaker and of different-speaker trials. Raises ValueError for what has no EER."""
    scores, same = np.asarray(scores), np.asarray(same).astype(bool, copy=False)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(f"one score and one label a trial: {scores.shape} and {same.shape}")
    target, other = scores[same], scores[~same]
    if not len(target) or not len(other):
        raise ValueError(
            f"{len(target)} same-speaker and {len(other)} different-speaker trials: both are needed"
        )
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: is there a silent utterance?")
    return target, other


def eer(scores: ArrayLike, same: ArrayLike) -> EqualError:
    """Equal error rate: where the curve of misses over false alarms meets its diagonal.

    Exact, from the sorted scores. The operating points (false alarm rate, miss rate) at every distinct
    score are joined by straight lines, as in scikit-learn's `roc_curve`, and the EER is read where that
    line crosses miss = false alarm; it is not the convex hull's (ROCCH), nor the mean of two rates at
    the nearest threshold. The threshold lies half way between two scores, at the operating point
    that is nearer to the crossing. Raises ValueError where a kind of trial is missing.
    """
    target, other = (np.sort(part) for part in _parted(scores, same))
    every = np.sort(np.asarray(scores))

    def point(threshold: float) -> tuple[float, float]:
        """False alarm and miss rate when scores from `threshold` on are accepted."""
        return (
            1 - np.searchsorted(other, threshold) / len(other),
            np.searchsorted(target, threshold) / len(target),
        )

    def excess(i: int) -> float:
        false_alarm, miss = point(every[i])
        return miss - false_alarm

    # misses less false alarms only grow with the threshold: bisect for the first that is not negative
    k = bisect_left(range(len(every)), 0.0, key=excess)
    fa0, miss0 = point(every[k - 1])
    fa1, miss1 = point(every[k]) if k < len(every) else (0.0, 1.0)
    below, above = fa0 - miss0, miss1 - fa1
    rate = miss0 + below / (below + above) * (miss1 - miss0)
    nearer = k if above <= below else k - 1
    return EqualError(float(rate), _between(every, nearer))


def _between(every: np.ndarray, k: int) -> float:
    """A threshold that accepts the sorted score number `k`, and nothing below it."""
    k = min(k, len(every) - 1)
    first = int(np.searchsorted(every, every[k]))
    if not first:
        return float(every[0])
    low, high = float(every[first - 1]), float(every[k])
    middle = (low + high) / 2
    return middle if middle > low else high


def rates_at(scores: ArrayLike, same: ArrayLike, threshold: float) -> tuple[float, float]:
    """False alarm rate and miss rate at a threshold that was chosen before, on other speakers."""
    target, other = _parted(scores, same)
    return float((other >= threshold).mean()), float((target < threshold).mean())


def accuracy_at(scores: ArrayLike, same: ArrayLike, threshold: float) -> float:
    """Share of trials that are decided rightly at a threshold that was chosen before, on other speakers.

    Depends on the share of same-speaker trials in the list; `rates_at` does not.
    """
    _parted(scores, same)
    return float(((np.asarray(scores) >= threshold) == np.asarray(same, bool)).mean())


# --- chance: which speakers happened to be in the test ------------------------------------------------


def _resampled_eers(
    scores: ArrayLike,
    same: ArrayLike,
    speakers: Sequence[tuple[str, str]] | np.ndarray,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """EER of each of `resamples` drawings of the speakers, `(resamples,)`.

    A speaker drawn c times gives its same-speaker trials the weight c; a trial of two speakers weighs
    the product of theirs.
    """
    _parted(scores, same)
    scores, same = np.asarray(scores), np.asarray(same, bool)
    speakers = np.asarray(speakers)
    if speakers.shape != (len(scores), 2):
        raise ValueError(f"two speakers a trial: {speakers.shape} for {len(scores)} trials")
    names, which = np.unique(speakers, return_inverse=True)
    which = which.reshape(-1, 2)
    order = np.argsort(scores, kind="stable")
    ordered, same, first, second = (x[order] for x in (scores, same, which[:, 0], which[:, 1]))
    distinct = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    rng = np.random.default_rng(seed)
    rates = []
    while len(rates) < resamples:
        drawn = rng.integers(len(names), size=len(names))
        count = np.bincount(drawn, minlength=len(names)).astype(float)
        weight = np.where(same, count[first], count[first] * count[second])
        missed = np.cumsum(weight * same)[distinct]
        rejected = np.cumsum(weight * ~same)[distinct]
        if not missed[-1] or not rejected[-1]:
            continue  # one speaker alone was drawn: there is no EER
        miss = np.append(0, missed / missed[-1])
        false_alarm = 1 - np.append(0, rejected / rejected[-1])
        gap = miss - false_alarm
        k = int(np.searchsorted(gap, 0.0))
        share = -gap[k - 1] / (gap[k] - gap[k - 1])
        rates.append(miss[k - 1] + share * (miss[k] - miss[k - 1]))
    return np.array(rates)


def eer_interval(
    scores: ArrayLike,
    same: ArrayLike,
    speakers: Sequence[tuple[str, str]] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """EER with its 95 % bootstrap interval over speakers; `speakers` `(trials, 2)` names both of each trial.

    Trials that share a speaker are not independent, so speakers are drawn, not trials (Bolle et al.,
    2004, subsets bootstrap).
    """
    rates = _resampled_eers(scores, same, speakers, resamples, seed)
    low, high = np.quantile(rates, [0.025, 0.975])
    return Interval(eer(scores, same).rate, float(low), float(high))


def eer_difference(
    a: ArrayLike,
    b: ArrayLike,
    same: ArrayLike,
    speakers: Sequence[tuple[str, str]] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """EER of system a less that of b on the same trials, with its interval over the same drawings of speakers."""
    drawn = [_resampled_eers(s, same, speakers, resamples, seed) for s in (a, b)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    mean = eer(a, same).rate - eer(b, same).rate
    return Difference(float(mean), float(low), float(high))


# --- scores -------------------------------------------------------------------------------------------


def cosine_scores(
    embeddings: torch.Tensor, pairs: ArrayLike, centre: torch.Tensor | None = None
) -> np.ndarray:
    """Cosine of the two embeddings of each trial: `(utterances, dim)` and `(trials, 2)` to `(trials,)`.

    With a `centre` `(dim,)` of the `centred` embeddings.
    """
    if centre is not None:
        embeddings = centred(embeddings, centre)
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    a, b = torch.as_tensor(np.asarray(pairs), device=unit.device).long().T
    return (unit[a] * unit[b]).sum(1).cpu().numpy()


def centred(embeddings: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Embeddings `(utterances, dim)` without what all voices share, of length 1 again.

    `mean` `(dim,)` is that of other speakers' embeddings, of many: a cosine of two centred embeddings compares
    what is particular to two voices (Garcia-Romero & Espy-Wilson, 2011, Interspeech, without their whitening).
    """
    return torch.nn.functional.normalize(embeddings - mean.to(embeddings), dim=1)


def mean_embeddings(embeddings: torch.Tensor) -> torch.Tensor:
    """The model of one speaker: `(utterances, dim)` to the unit vector along their mean, `(dim,)`."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return torch.nn.functional.normalize(unit.mean(0), dim=0)


def all_pairs(speakers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every utterance against every later one: pairs `(trials, 2)` and whether the speaker is the same."""
    a, b = np.triu_indices(len(speakers), 1)
    names = np.asarray(speakers)
    return np.stack([a, b], 1), names[a] == names[b]
