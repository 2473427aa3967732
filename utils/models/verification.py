"""Speaker verification in numbers: trials, cosine scores, equal error rate and its confidence interval.

A trial is a pair of utterances; its score says how similar the voices are. A trial is accepted when its
score is at or above the threshold. There are two errors: a false alarm accepts different speakers, a miss
rejects the same speaker. `scores` are `(trials,)`; `same` is `(trials,)`, true for one speaker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from ..metrics import Difference, Interval


class EER(NamedTuple):
    """Equal error rate (0 to 1) and the threshold of the operating point nearest to it."""

    rate: float
    threshold: float


def split_scores(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the same-speaker and of the different-speaker trials.

    Raises ValueError where no EER is defined: one kind of trial is missing, or a score is not finite.
    """
    scores, same = np.asarray(scores), np.asarray(same).astype(bool, copy=False)
    target, other = scores[same], scores[~same]
    if not len(target) or not len(other):
        raise ValueError(
            f"{len(target)} same-speaker and {len(other)} different-speaker trials: both are needed"
        )
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: is there a silent utterance?")
    return target, other


def eer(scores: ArrayLike, same: ArrayLike) -> EER:
    """Equal error rate: where the curve of misses over false alarms crosses its diagonal.

    scikit-learn's `roc_curve` gives the operating points at every distinct score. They are joined by straight
    lines, and the EER is where that line crosses miss = false alarm. It is not that of the convex hull
    (ROCCH), nor the mean of two rates at the nearest threshold. The threshold is half way between two
    scores, at the operating point nearest to the crossing. Raises ValueError as `split_scores` does.
    """
    from sklearn.metrics import roc_curve

    split_scores(scores, same)
    false_alarm, hit, accepted = roc_curve(same, scores, drop_intermediate=False)
    gap = 1 - hit - false_alarm  # falls from 1 (all rejected) to -1 (all accepted)
    rate = np.interp(0.0, gap[::-1], false_alarm[::-1])
    k = max(1, int(np.abs(gap).round(12).argmin()))  # point 0 has no finite threshold
    low, high = accepted[min(k + 1, len(gap) - 1)], accepted[k]
    middle = (low + high) / 2
    return EER(float(rate), float(middle if middle > low else high))


def rates_at(scores: ArrayLike, same: ArrayLike, threshold: float) -> tuple[float, float]:
    """False alarm rate and miss rate at a threshold that was chosen on other speakers."""
    target, other = split_scores(scores, same)
    return float((other >= threshold).mean()), float((target < threshold).mean())


def accuracy_at(scores: ArrayLike, same: ArrayLike, threshold: float) -> float:
    """Fraction of trials decided correctly at a threshold that was chosen on other speakers.

    It depends on the fraction of same-speaker trials in the list; `rates_at` does not.
    """
    split_scores(scores, same)
    return float(((np.asarray(scores) >= threshold) == np.asarray(same, bool)).mean())


# --- confidence intervals: another test would have other speakers -------------------------------------


def _resampled_eers(
    scores: ArrayLike, same: ArrayLike, speakers: ArrayLike, resamples: int, seed: int
) -> np.ndarray:
    """EER of each of `resamples` draws of the speakers with replacement, `(resamples,)`.

    A speaker drawn c times gives its same-speaker trials the weight c; a trial of two speakers has the
    product of their weights. The scores are sorted once for all draws.
    """
    split_scores(scores, same)
    scores, same, speakers = np.asarray(scores), np.asarray(same, bool), np.asarray(speakers)
    if speakers.shape != (len(scores), 2):
        raise ValueError(f"two speakers a trial: {speakers.shape} for {len(scores)} trials")
    names, which = np.unique(speakers, return_inverse=True)
    order = np.argsort(scores, kind="stable")
    same, (first, second) = same[order], which.reshape(-1, 2)[order].T
    distinct = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    rng = np.random.default_rng(seed)
    rates = []
    while len(rates) < resamples:
        drawn = rng.integers(len(names), size=len(names))
        count = np.bincount(drawn, minlength=len(names)).astype(float)
        weight = np.where(same, count[first], count[first] * count[second])
        missed = np.append(0, np.cumsum(weight * same)[distinct])
        rejected = np.append(0, np.cumsum(weight * ~same)[distinct])
        if missed[-1] and rejected[-1]:  # else one speaker alone was drawn: there is no EER
            miss = missed / missed[-1]
            gap = miss + rejected / rejected[-1] - 1
            rates.append(np.interp(0.0, gap, miss))
    return np.array(rates)


def eer_interval(
    scores: ArrayLike, same: ArrayLike, speakers: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Interval:
    """EER with its 95 % bootstrap interval over speakers; `speakers` `(trials, 2)` names both of each trial.

    Trials that share a speaker are not independent, so speakers are drawn, not trials (Bolle et al.,
    2004, subsets bootstrap).
    """
    rates = _resampled_eers(scores, same, speakers, resamples, seed)
    low, high = np.quantile(rates, [0.025, 0.975])
    return Interval(eer(scores, same).rate, float(low), float(high))


def eer_difference(
    a: ArrayLike, b: ArrayLike, same: ArrayLike, speakers: ArrayLike, resamples: int = 1000
) -> Difference:
    """EER of system a minus that of b on the same trials, with its interval over the same draws of speakers."""
    drawn = [_resampled_eers(s, same, speakers, resamples, seed=0) for s in (a, b)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    mean = eer(a, same).rate - eer(b, same).rate
    return Difference(float(mean), float(low), float(high))


# --- scores -------------------------------------------------------------------------------------------


def cosine_scores(embeddings: Tensor, pairs: ArrayLike, centre: Tensor | None = None) -> np.ndarray:
    """Cosine of the two embeddings of each trial: `(utterances, dim)` and `(trials, 2)` to `(trials,)`.

    With a `centre` `(dim,)` the embeddings are `centred` first.
    """
    if centre is not None:
        embeddings = centred(embeddings, centre)
    unit = F.normalize(embeddings.double(), dim=1)
    a, b = torch.as_tensor(np.asarray(pairs), device=unit.device).long().T
    return (unit[a] * unit[b]).sum(1).cpu().numpy()


def centred(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Embeddings `(utterances, dim)` minus what all voices share, scaled to length 1 again.

    `mean` `(dim,)` is the mean embedding of many other speakers. The cosine of two centred embeddings compares
    what is particular to two voices (Garcia-Romero & Espy-Wilson, 2011, Interspeech, without whitening).
    """
    return F.normalize(embeddings - mean.to(embeddings), dim=1)


def mean_embeddings(embeddings: Tensor) -> Tensor:
    """The model of one speaker: the unit vector along the mean of `(utterances, dim)`, `(dim,)`."""
    unit = F.normalize(embeddings, dim=1)
    return F.normalize(unit.mean(0), dim=0)


def all_pairs(speakers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Each utterance paired with every later one: pairs `(trials, 2)`, and whether the speaker is the same."""
    a, b = np.triu_indices(len(speakers), 1)
    names = np.asarray(speakers)
    return np.stack([a, b], 1), names[a] == names[b]
