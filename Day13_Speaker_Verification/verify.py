"""Are two recordings of one speaker? The decision, with a calibrated probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.features import SAMPLE_RATE, AudioError, read_audio, to_mono
from utils.models.ge2e import Embedder
from utils.models.verification import all_pairs, cosine_scores

from .trials import Calibration, calibrate

SHORTEST = 0.5
"""Seconds: a recording that is shorter says too little of a voice."""

SILENCE_DB = -60.0
"""RMS in dB of full scale under which a recording counts as silent."""


# --- one's own recordings -----------------------------------------------------------------------------


def agreement(partials: Tensor, least: int = 2) -> float:
    """How alike the two halves of a recording's voice are: the cosine between two groups of its windows.

    `partials` `(windows, dim)` unit vectors, parted by k-means with k = 2 on the sphere from the two least
    alike. Near 1 for one speaker, low where two take turns. 1.0 where that cannot be seen: fewer than four
    windows, or a group of fewer than `least` (one odd window is a cough, no second speaker).
    """
    if len(partials) < 2 * least:
        return 1.0
    alike = partials @ partials.T
    pair = divmod(int(alike.argmin()), len(partials))
    centres = partials[list(pair)]
    for _ in range(10):
        group = (partials @ centres.T).argmax(1)
        if int(group.bincount(minlength=2).min()) < least:
            return 1.0
        means = [partials[group == k].mean(0) for k in (0, 1)]
        centres = F.normalize(torch.stack(means), dim=1)
    return float(centres[0] @ centres[1])


def calibrate_encoder(
    encoder: Embedder,
    waves: Sequence[Tensor],
    speakers: Sequence[str],
    centre: Tensor | None = None,
) -> Calibration:
    """Threshold, logistic fit and least agreement from utterances of other speakers than those to verify.

    All pairs of the utterances are the trials. With a `centre` `(dim,)`, the mean embedding of many people, these
    and what is verified later are centred first; that of few people may make things worse. An agreement lower
    than that of 99 % of these recordings, each by one speaker, is what `verify` warns of.
    """
    pairs, same = all_pairs(speakers)
    scores = cosine_scores(encoder.embed(waves), pairs, centre)
    halves = [agreement(encoder.partials(wave)) for wave in waves]
    least = float(np.quantile(halves, 0.01))
    return replace(calibrate(scores, same), agreement=least, centre=centre)


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. `probability` that one speaker said both; `warnings` are reasons to doubt it."""

    score: float
    threshold: float
    probability: float
    warnings: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return self.score >= self.threshold

    @property
    def sure(self) -> float:
        """Probability of the decision that was taken."""
        return self.probability if self.same else 1 - self.probability

    def __str__(self) -> str:
        who = "the same speaker" if self.same else "different speakers"
        line = (
            f"{who}, {self.sure:.0%} sure (cosine {self.score:.3f}, threshold {self.threshold:.3f})"
        )
        return "\n".join([line, *(f"  but: {w}" for w in self.warnings)])


Sound = str | Path | np.ndarray | Tensor


def verify(
    encoder: Embedder, calibration: Calibration, a: Sound, b: Sound, rate: int = SAMPLE_RATE
) -> Verdict:
    """Did one speaker say both? `a` and `b` are files of any rate, or samples at `rate` Hz.

    `calibration` comes from `calibrate_encoder` on other speakers. Raises AudioError, naming the recording, for
    what says nothing of a voice: no samples, silence, less than half a second. Two voices in one
    recording, a narrow band (telephone, 8 kHz) and little speech give an answer with a warning.
    """
    warnings: list[str] = []
    waves = [_checked(x, rate, name, warnings) for x, name in ((a, "a"), (b, "b"))]
    for wave, name in zip(waves, ("a", "b"), strict=True):
        halves = agreement(encoder.partials(wave))
        if halves < calibration.agreement:
            warnings.append(
                f"recording {name} seems to hold two voices (agreement {halves:.3f}, one voice has at "
                f"least {calibration.agreement:.3f}): cut it to one speaker"
            )
    score = float(cosine_scores(encoder.embed(waves), [[0, 1]], calibration.centre)[0])
    return Verdict(score, calibration.threshold, calibration.probability(score), tuple(warnings))


def _checked(sound: Sound, rate: int, name: str, warnings: list[str]) -> Tensor:
    """The recording at 16 kHz; adds what makes an answer doubtful to `warnings`."""
    if isinstance(sound, (str, Path)):
        import soundfile

        wave = read_audio(sound)  # says what is wrong with the file before its header is asked
        rate = soundfile.info(sound).samplerate
    else:
        wave = to_mono(sound, rate, name=f"recording {name}")
    seconds = len(wave) / SAMPLE_RATE
    if seconds < SHORTEST:
        raise AudioError(
            f"Recording {name} has {len(wave)} samples at 16 kHz ({seconds:.2f} s): at least "
            f"{SHORTEST} s of speech are needed, 5 s are good."
        )
    level = 20 * float(wave.square().mean().sqrt().clamp(min=1e-10).log10())
    if level < SILENCE_DB:
        raise AudioError(
            f"Recording {name} is silent ({level:.0f} dB of full scale): is the microphone on?"
        )
    if seconds < 1.6:
        warnings.append(f"recording {name} has {seconds:.1f} s only: 5 s are good")
    if rate < SAMPLE_RATE:
        warnings.append(
            f"recording {name} has {rate} Hz: what a voice has above {rate // 2} Hz is missing, and the "
            "threshold was learnt on wide-band speech"
        )
    return wave
