"""Trials of speaker verification, minDCF, score normalisation, calibration and identification.

`python -m Day13_Speaker_Verification.trials` writes the committed list of trials again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import det_curve
from torch import Tensor
from torch.nn import functional as F

from utils.models.verification import eer, mean_embeddings, split_scores
from utils.sources import data_root
from utils.sources.catalogue import SPLITS, librispeech_names, read_lines

TRIALS = SPLITS / "librispeech_test_clean_trials.txt"
"""The committed list of trials of LibriSpeech test-clean."""


def min_dcf(scores: ArrayLike, same: ArrayLike, p_target: float = 0.01) -> float:
    """Minimum detection cost over all thresholds (NIST SRE); 1 for a system that carries no information.

    C = P_miss * p_target + P_fa * (1 - p_target), divided by the cost of the better of accepting all and
    rejecting all. Raises ValueError for a prior outside 0..1.
    """
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is a probability between 0 and 1, not {p_target}")
    split_scores(scores, same)
    false_alarm, miss, _ = det_curve(same, scores)
    cost = (p_target * miss + (1 - p_target) * false_alarm).min() / min(p_target, 1 - p_target)
    return min(1.0, float(cost))  # rejecting all lies off the curve


def as_norm(
    scores: ArrayLike, embeddings: Tensor, pairs: ArrayLike, cohort: Tensor, top: int = 200
) -> np.ndarray:
    """Adaptive symmetric score normalisation, AS-norm1 (Matejka et al., 2017, Interspeech).

    Each score is expressed in standard deviations above the mean of what one side of the trial scores against
    its `top` most similar members of a cohort `(cohort, dim)` of other speakers (utterances, or one mean
    embedding a speaker); the results for the two sides are averaged. Raises ValueError for a cohort below 2.
    """
    top = min(top, len(cohort))
    if top < 2:
        raise ValueError("score normalisation needs a cohort of at least 2 embeddings")
    unit = F.normalize(embeddings.double(), dim=1)
    others = F.normalize(cohort.double(), dim=1).to(unit.device)
    nearest = (unit @ others.T).topk(top, dim=1).values  # (utterances, top)
    mean = nearest.mean(1).cpu().numpy()
    std = nearest.std(1).clamp(min=1e-9).cpu().numpy()
    scores, (a, b) = np.asarray(scores, float), np.asarray(pairs).T
    return ((scores - mean[a]) / std[a] + (scores - mean[b]) / std[b]) / 2


@dataclass(frozen=True)
class Calibration:
    """What a score means: the threshold at the EER, and the log odds `slope * score + offset`.

    Fitted on other speakers than those it is used on. `agreement` is the lowest similarity of the two halves of
    a recording that passes as one speaker (see `verify.agreement`); nan where it was not measured. `centre`
    `(dim,)` is subtracted from embeddings before they are scored (see `centred`); None for nothing.
    """

    threshold: float
    slope: float
    offset: float
    eer: float
    agreement: float = float("nan")
    centre: Tensor | None = field(default=None, repr=False, compare=False)

    def probability(self, score: float) -> float:
        """Probability of one speaker, when same and different speakers are equally likely beforehand."""
        return float(expit(self.slope * score + self.offset))

    def __str__(self) -> str:
        odds = f"log odds {self.slope:.1f} * score {self.offset:+.1f}"
        return f"threshold {self.threshold:.3f} (EER {self.eer:.2%}), {odds}, agreement {self.agreement:.3f}"


def calibrate(scores: ArrayLike, same: ArrayLike) -> Calibration:
    """Threshold and logistic regression from scored trials of other speakers (Platt, 1999).

    Both kinds of trials have the same total weight, whatever their numbers. Platt's soft labels,
    (n + 1) / (n + 2) and 1 / (n + 2), keep the odds finite where the scores do not overlap.
    """
    target, other = split_scores(scores, same)
    x = np.concatenate([target, other])[:, None]
    sizes = [len(target), len(other)]
    label, n = np.repeat([1, 0], sizes), np.repeat(sizes, sizes)
    # each trial twice, with its own label and with the other, weighted by the soft label
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9).fit(
        np.concatenate([x, x]),
        np.concatenate([label, 1 - label]),
        np.concatenate([(n + 1) / (n + 2), 1 / (n + 2)]) / np.concatenate([n, n]),
    )
    rate, threshold = eer(scores, same)
    return Calibration(threshold, float(model.coef_[0, 0]), float(model.intercept_[0]), rate)


# --- identification -----------------------------------------------------------------------------------


class Identification(NamedTuple):
    """Closed-set identification: numbers of the test utterances, and whether each was `right`, both `(items,)`."""

    items: np.ndarray
    right: np.ndarray

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return float(self.right.mean())


def identify(embeddings: Tensor, speakers: Sequence[str], enrol: int = 3) -> Identification:
    """Enrol each speaker with the mean of `enrol` random utterances; identify the speaker of all others.

    `embeddings` `(utterances, dim)`. Raises ValueError when a speaker has no utterance left to test.
    """
    rng = random.Random(0)
    models, items = {}, []
    for name in sorted(set(speakers)):
        own = [i for i, s in enumerate(speakers) if s == name]
        if len(own) <= enrol:
            raise ValueError(f"speaker {name} has {len(own)} utterances: {enrol} to enrol leave none to test")
        own.sort(key=lambda _: rng.random())
        models[name] = mean_embeddings(embeddings[own[:enrol]])
        items += own[enrol:]
    scores = F.normalize(embeddings[items], dim=1) @ torch.stack([*models.values()]).T
    predicted = np.array([*models])[scores.argmax(1).cpu().numpy()]
    return Identification(np.array(items), predicted == np.array(speakers)[items])


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


def make_trials(
    names: Sequence[str],
    speakers: Sequence[str],
    sexes: Mapping[str, str] | None = None,
    same: int = 400,
    other: int = 800,
    seed: int = 13,
) -> Trials:
    """Distinct trials: for each speaker up to `same` pairs of its own, and `other` against other speakers.

    Half of the latter are against speakers of the same sex and half of the other, where `sexes`
    (speaker to "M" or "F") contains everybody. The draws use only `random.Random.random`, whose numbers are
    the same in every version of Python, so the same names and seed give the same list anywhere.
    """
    rng = random.Random(seed)
    order = sorted(range(len(names)), key=lambda i: (speakers[i], names[i]))
    names, speakers = [names[i] for i in order], [speakers[i] for i in order]
    own = {s: [i for i, t in enumerate(speakers) if t == s] for s in speakers}
    sex = {s: (sexes or {}).get(s, "") for s in own}
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
        for group, goal in groups if known else [(away, other)]:
            theirs = [i for s in group for i in own[s]]
            found = tries = 0
            # a pair that another speaker drew before is not drawn twice; small sets run out of pairs
            while theirs and found < goal and tries < 20 * goal:
                tries += 1
                a, b = sorted((draw(mine), draw(theirs)))
                found += (a, b) not in chosen
                chosen.add((a, b))
    pairs = np.array(sorted(chosen), np.int64).reshape(-1, 2)
    return Trials(names, speakers, [sex[s] for s in speakers], pairs)


def write_trials(path: Path, trials: Trials, comment: str) -> None:
    """One line an utterance: its name, speaker, sex (`-` unknown), and the numbers of the lines it is paired with.

    Lines count from 0 after the comment. Each name is written once, so 36,000 trials take about 200 kB.
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    for i, name in enumerate(trials.names):
        partners = trials.pairs[trials.pairs[:, 0] == i, 1]
        lines.append(" ".join([name, trials.speakers[i], trials.sexes[i] or "-", *map(str, partners)]))
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


def committed_trials() -> Trials:
    """The trials of TRIALS made anew from LibriSpeech on this machine: its utterances, SPEAKERS.TXT for the sexes.

    Raises FileNotFoundError where LibriSpeech or an utterance of the list is missing.
    """
    folder = data_root() / "LibriSpeech"
    rows = [line.split("|") for line in (folder / "SPEAKERS.TXT").read_text("utf-8").splitlines()]
    sexes = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1 and row[0][0] != ";"}
    names = read_trials().names
    if missing := set(names) - set(librispeech_names(data_root(), "test-clean")):
        raise FileNotFoundError(f"{len(missing)} utterances of the list are not in {folder}")
    return make_trials(names, [n.split("-")[0] for n in names], sexes)


if __name__ == "__main__":
    comment = [line[2:] for line in TRIALS.read_text("utf-8").splitlines() if line[0] == "#"]
    write_trials(TRIALS, committed_trials(), "\n".join(comment))
