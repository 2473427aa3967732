"""Who speaks, in numbers: trials, cosine scores, EER, minDCF, DET and ROC, normalisation, calibration.

A trial is a pair of utterances; its score says how alike the voices are. A trial is accepted when its
score is not below the threshold. Two errors: a false alarm accepts different speakers, a miss rejects
the same one. `scores` are `(trials,)`, `same` is `(trials,)` and true where one speaker said both.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from .data import SPLITS, read_lines
from .metrics import Difference, Interval

TRIALS = SPLITS / "librispeech_test_clean_trials.txt"
"""The committed list of trials of LibriSpeech test-clean."""


class EqualError(NamedTuple):
    """Equal error rate (0 to 1) and a threshold that comes nearest to it."""

    rate: float
    threshold: float


def _parted(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores of same-speaker and of different-speaker trials. Raises ValueError for what has no EER."""
    scores, same = np.asarray(scores), np.asarray(same).astype(bool, copy=False)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(
            f"one score and one label a trial: {scores.shape} and {same.shape}"
        )
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


def operating_points(
    scores: ArrayLike, same: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False alarm rates, miss rates and thresholds at every distinct score, from strict to lenient.

    The first point rejects everything (threshold infinity), the last accepts everything. Arrays of
    one length, at most trials + 1.
    """
    target, other = _parted(scores, same)
    thresholds = np.unique(np.concatenate([target, other]))
    below_other = np.searchsorted(np.sort(other), thresholds)
    below_target = np.searchsorted(np.sort(target), thresholds)
    false_alarm = np.append(1 - below_other / len(other), 0.0)
    miss = np.append(below_target / len(target), 1.0)
    return false_alarm[::-1], miss[::-1], np.append(thresholds, np.inf)[::-1]


def roc_points(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """False alarm rate and hit rate (1 - miss) at every threshold: the ROC curve."""
    false_alarm, miss, _ = operating_points(scores, same)
    return false_alarm, 1 - miss


def det_points(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """False alarm and miss rate on the normal-deviate scale, ends left out (Martin et al., 1997).

    Normal scores give a straight line; `probit` of a rate gives the place of its tick.
    """
    false_alarm, miss, _ = operating_points(scores, same)
    inside = (false_alarm > 0) & (false_alarm < 1) & (miss > 0) & (miss < 1)
    return probit(false_alarm[inside]), probit(miss[inside])


def probit(rate: ArrayLike) -> np.ndarray:
    """The normal deviate below which a share `rate` lies."""
    return torch.special.ndtri(torch.as_tensor(np.asarray(rate, float))).numpy()


def min_dcf(
    scores: ArrayLike,
    same: ArrayLike,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_false_alarm: float = 1.0,
) -> float:
    """Least detection cost over all thresholds, 1 for a system that knows nothing (NIST SRE).

    C = c_miss * P_miss * p_target + c_false_alarm * P_fa * (1 - p_target), divided by the cost of the
    better of accepting all and rejecting all. Raises ValueError for a prior outside 0..1.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is a probability between 0 and 1, not {p_target}")
    false_alarm, miss, _ = operating_points(scores, same)
    accept, reject = c_false_alarm * (1 - p_target), c_miss * p_target
    return float((reject * miss + accept * false_alarm).min() / min(accept, reject))


def rates_at(
    scores: ArrayLike, same: ArrayLike, threshold: float
) -> tuple[float, float]:
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
        raise ValueError(
            f"two speakers a trial: {speakers.shape} for {len(scores)} trials"
        )
    names, which = np.unique(speakers, return_inverse=True)
    which = which.reshape(-1, 2)
    order = np.argsort(scores, kind="stable")
    ordered, same, first, second = (
        x[order] for x in (scores, same, which[:, 0], which[:, 1])
    )
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


def as_norm(
    scores: ArrayLike,
    embeddings: torch.Tensor,
    pairs: ArrayLike,
    cohort: torch.Tensor,
    top: int = 200,
) -> np.ndarray:
    """Adaptive symmetric score normalisation, AS-norm1 (Matejka et al., 2017, Interspeech).

    A score is measured in standard deviations above the mean of what each of its two sides scores
    against its own nearest `top` of a cohort `(cohort, dim)` of other speakers (utterances, or one mean
    embedding a speaker); the two results are averaged. Raises ValueError for a cohort of less than 2.
    """
    top = min(top, len(cohort))
    if top < 2:
        raise ValueError("score normalisation needs a cohort of at least 2 embeddings")
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    others = torch.nn.functional.normalize(cohort.double(), dim=1).to(unit.device)
    nearest = (unit @ others.T).topk(top, dim=1).values
    mean = nearest.mean(1).cpu().numpy()
    std = nearest.std(1).clamp(min=1e-9).cpu().numpy()
    scores, (a, b) = np.asarray(scores, float), np.asarray(pairs).T
    return ((scores - mean[a]) / std[a] + (scores - mean[b]) / std[b]) / 2


@dataclass(frozen=True)
class Calibration:
    """What a score means: the threshold at the EER, and the log odds `slope * score + offset`.

    Learnt on other speakers than those it is used on. `agreement` is the least likeness of the two halves of
    a recording that passes as one speaker (see `utils.speakers`); nan where it was not learnt. `centre` `(dim,)`
    is what is subtracted from embeddings before they are scored (see `centred`); None for nothing.
    """

    threshold: float
    slope: float
    offset: float
    eer: float
    agreement: float = float("nan")
    centre: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def probability(self, score: float) -> float:
        """Probability that one speaker said both, if same and different were equally likely before."""
        odds = self.slope * score + self.offset
        return float(torch.sigmoid(torch.tensor(odds, dtype=torch.float64)))

    def __str__(self) -> str:
        odds = f"log odds {self.slope:.1f} * score {self.offset:+.1f}"
        return f"threshold {self.threshold:.3f} (EER {self.eer:.2%}), {odds}, agreement {self.agreement:.3f}"


def calibrate(scores: ArrayLike, same: ArrayLike, steps: int = 50) -> Calibration:
    """Threshold and logistic fit from scored trials of other speakers (Platt, 1999).

    Both kinds of trials weigh the same, whatever their numbers. Labels are drawn in by Platt's rule,
    (n + 1) / (n + 2) and 1 / (n + 2), so that scores which never overlap still give finite odds.
    """
    target, other = _parted(scores, same)
    best = eer(scores, same)
    x = np.concatenate([target, other]).astype(float)
    centre, width = x.mean(), x.std() or 1.0
    z = np.stack([(x - centre) / width, np.ones_like(x)], 1)
    high, low = (len(target) + 1) / (len(target) + 2), 1 / (len(other) + 2)
    goal = np.repeat([high, low], [len(target), len(other)])
    weight = np.repeat([0.5 / len(target), 0.5 / len(other)], [len(target), len(other)])
    beta = np.zeros(2)
    for _ in range(steps):  # Newton's method on a convex loss of two unknowns
        p = 1 / (1 + np.exp(-(z @ beta)))
        slope = z.T @ (weight * (p - goal))
        bend = (z * (weight * p * (1 - p))[:, None]).T @ z + 1e-9 * np.eye(2)
        step = np.linalg.solve(bend, slope)
        beta -= step * min(1.0, 2.0 / np.abs(step).max()) if step.any() else 0
        if np.abs(step).max() < 1e-10:
            break
    scale, offset = beta[0] / width, beta[1] - beta[0] * centre / width
    return Calibration(best.threshold, float(scale), float(offset), best.rate)


# --- identification -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identification:
    """Closed-set identification: `names` of the enrolled, and for each test utterance who it was taken for."""

    names: list[str]
    items: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """True where the speaker was named rightly, `(test utterances,)`."""
        return self.truth == self.predicted

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return float(self.right.mean())


def mean_embeddings(embeddings: torch.Tensor) -> torch.Tensor:
    """The model of one speaker: `(utterances, dim)` to the unit vector along their mean, `(dim,)`."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return torch.nn.functional.normalize(unit.mean(0), dim=0)


def identify(
    embeddings: torch.Tensor, speakers: Sequence[str], enrol: int = 3, seed: int = 0
) -> Identification:
    """Enrol each speaker with the mean of `enrol` random utterances; name the speaker of all others.

    `embeddings` `(utterances, dim)`. Raises ValueError when a speaker has no utterance left to test.
    """
    rng = random.Random(seed)
    names = sorted(set(speakers))
    models, items = [], []
    for name in names:
        own = [i for i, s in enumerate(speakers) if s == name]
        if len(own) <= enrol:
            raise ValueError(
                f"speaker {name} has {len(own)} utterances: {enrol} to enrol leave none to test"
            )
        own.sort(key=lambda _: rng.random())
        models.append(mean_embeddings(embeddings[own[:enrol]]))
        items += own[enrol:]
    scores = torch.nn.functional.normalize(embeddings[items], dim=1)
    predicted = (scores @ torch.stack(models).T).argmax(1).cpu().numpy()
    truth = np.array([names.index(speakers[i]) for i in items])
    return Identification(names, np.array(items), truth, predicted)


# --- trials -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trials:
    """A list of trials: utterances by name with speaker and sex ("M", "F", "" unknown), `pairs` `(trials, 2)`."""

    names: list[str]
    speakers: list[str]
    sexes: list[str]
    pairs: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def same(self) -> np.ndarray:
        """True where one speaker said both, `(trials,)`."""
        a, b = self.pair_speakers.T
        return a == b

    @property
    def pair_speakers(self) -> np.ndarray:
        """The speakers of both sides, `(trials, 2)`: what `eer_interval` draws by."""
        return np.asarray(self.speakers)[self.pairs]

    @property
    def kinds(self) -> np.ndarray:
        """For each trial "same speaker", "same sex", "other sex" or "sex unknown"."""
        a, b = np.asarray(self.sexes)[self.pairs].T
        kinds = np.where(a == b, "same sex", "other sex")
        kinds = np.where((a == "") | (b == ""), "sex unknown", kinds)
        return np.where(self.same, "same speaker", kinds)

    @property
    def same_sex(self) -> np.ndarray:
        """True where the sexes of both sides are known and equal, `(trials,)`; same-speaker trials included."""
        a, b = np.asarray(self.sexes)[self.pairs].T
        return (a == b) & (a != "")


def all_pairs(speakers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every utterance against every later one: pairs `(trials, 2)` and whether the speaker is the same."""
    a, b = np.triu_indices(len(speakers), 1)
    names = np.asarray(speakers)
    return np.stack([a, b], 1), names[a] == names[b]


def make_trials(
    names: Sequence[str],
    speakers: Sequence[str],
    sexes: Mapping[str, str] | None = None,
    same: int = 400,
    other: int = 800,
    seed: int = 13,
) -> Trials:
    """Distinct trials: for each speaker up to `same` pairs of its own, and `other` against other speakers.

    Of the latter half are against speakers of the same sex and half of the other, where `sexes`
    (speaker to "M" or "F") knows it. The draws use only `random.Random.random`, whose numbers Python
    guarantees from version to version, so the same names and seed give the same list anywhere.
    """
    rng = random.Random(seed)
    order = sorted(range(len(names)), key=lambda i: (speakers[i], names[i]))
    names, speakers = [names[i] for i in order], [speakers[i] for i in order]
    sex_of = [(sexes or {}).get(s, "") for s in speakers]
    own = {s: [i for i, t in enumerate(speakers) if t == s] for s in speakers}
    sex = dict(zip(speakers, sex_of, strict=True))
    chosen: set[tuple[int, int]] = set()

    def draw(some: list[int]) -> int:
        return some[int(rng.random() * len(some))]

    for speaker, mine in own.items():
        pairs = sorted(combinations(mine, 2), key=lambda _: rng.random())
        chosen.update(pairs[:same])
        away = [s for s in own if s != speaker]
        known = sex[speaker] and all(sex[s] for s in away)
        alike = [s for s in away if sex[s] == sex[speaker]]
        unlike = [s for s in away if sex[s] != sex[speaker]]
        groups = [(alike, other // 2), (unlike, other - other // 2)]
        for group, wanted in groups if known else [(away, other)]:
            theirs = [i for s in group for i in own[s]]
            found = tries = 0
            # a pair that another speaker drew before is not drawn twice; small sets run out of pairs
            while theirs and found < wanted and tries < 20 * wanted:
                tries += 1
                a, b = sorted((draw(mine), draw(theirs)))
                found += (a, b) not in chosen
                chosen.add((a, b))
    pairs = np.array(sorted(chosen), np.int64).reshape(-1, 2)
    return Trials(names, speakers, sex_of, pairs)


def write_trials(path: Path, trials: Trials, comment: str) -> None:
    """One line an utterance: its name, its speaker's sex (`-` unknown), and the lines it is tried against.

    Lines count from 0 after the comment. Names stand once, so 36,000 trials take about 200 kB.
    """
    partners: list[list[str]] = [[] for _ in trials.names]
    for a, b in trials.pairs.tolist():
        partners[a].append(str(b))
    lines = [f"# {line}" for line in comment.splitlines()]
    for name, speaker, sex, numbers in zip(
        trials.names, trials.speakers, trials.sexes, partners, strict=True
    ):
        lines.append(" ".join([name, speaker, sex or "-", *numbers]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_trials(path: Path = TRIALS) -> Trials:
    """The trials of a committed list; by default those of LibriSpeech test-clean."""
    names, speakers, sexes, pairs = [], [], [], []
    for i, line in enumerate(read_lines(path)):
        name, speaker, sex, *partners = line.split()
        names.append(name)
        speakers.append(speaker)
        sexes.append("" if sex == "-" else sex)
        pairs += [(i, int(j)) for j in partners]
    return Trials(names, speakers, sexes, np.array(pairs, np.int64).reshape(-1, 2))


def read_sexes(path: Path) -> dict[str, str]:
    """Speaker to "M" or "F", from LibriSpeech's SPEAKERS.TXT."""
    rows = [
        line.split("|")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(";")
    ]
    return {row[0].strip(): row[1].strip() for row in rows}
