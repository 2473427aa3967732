"""Trials of speaker verification, identification, score normalisation, curves and calibration."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from utils.models.verification import _parted, eer, mean_embeddings
from utils.sources.catalogue import SPLITS, read_lines

TRIALS = SPLITS / "librispeech_test_clean_trials.txt"
"""The committed list of trials of LibriSpeech test-clean."""


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
