"""Are two recordings of one speaker? The decision, with a calibrated probability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.features import SAMPLE_RATE, AudioError, read_audio, to_mono
from utils.models.ge2e import Embedder
from utils.models.verification import cosine_scores

from .trials import Calibration

SHORTEST = 0.5
"""Seconds: a shorter recording has too little speech to compare voices."""

SILENCE_DB = -60.0
"""RMS in dB of full scale below which a recording counts as silent."""


def agreement(partials: Tensor, least: int = 2) -> float:
    """Whether a recording has one voice: the cosine between two groups of its windows.

    `partials` `(windows, dim)` are unit vectors. Spherical k-means with k = 2 groups them, starting from the two
    that differ most. Near 1 for one speaker, low where two take turns. 1.0 where it cannot be measured: fewer
    than `2 * least` windows, or a group of fewer than `least` (a cough, not a second speaker).
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


@dataclass(frozen=True)
class Verdict:
    """Result of `verify`: `probability` of one speaker; `warnings` are reasons to doubt it."""

    score: float
    threshold: float
    probability: float
    warnings: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return self.score >= self.threshold

    @property
    def confidence(self) -> float:
        """Probability of the decision that was taken."""
        return self.probability if self.same else 1 - self.probability

    def __str__(self) -> str:
        who = "the same speaker" if self.same else "different speakers"
        line = f"{who}, {self.confidence:.0%} sure (cosine {self.score:.3f}, threshold {self.threshold:.3f})"
        return "\n".join([line, *(f"  but: {w}" for w in self.warnings)])


Sound = str | Path | np.ndarray | Tensor


def verify(
    encoder: Embedder, calibration: Calibration, a: Sound, b: Sound, rate: int = SAMPLE_RATE
) -> Verdict:
    """Is it one speaker? `a` and `b` are files of any sample rate, or samples at `rate` Hz.

    `calibration` was fitted with the same encoder on other speakers. Raises AudioError, naming the recording,
    for no samples, silence, or less than half a second. Two voices in one recording, a narrow band (telephone,
    8 kHz) and little speech give an answer with a warning.
    """
    warnings: list[str] = []
    waves = [_checked(x, rate, name, warnings) for x, name in ((a, "a"), (b, "b"))]
    for wave, name in zip(waves, ("a", "b"), strict=True):
        halves = agreement(encoder.partials(wave))
        if halves < calibration.agreement:
            warnings.append(
                f"recording {name} seems to have two voices (agreement {halves:.3f}, one voice has at "
                f"least {calibration.agreement:.3f}): cut it to one speaker"
            )
    score = float(cosine_scores(encoder.embed(waves), [[0, 1]], calibration.centre)[0])
    return Verdict(score, calibration.threshold, calibration.probability(score), tuple(warnings))


def _checked(sound: Sound, rate: int, name: str, warnings: list[str]) -> Tensor:
    """The recording `(time,)` at 16 kHz; reasons to doubt the answer are appended to `warnings`."""
    if isinstance(sound, (str, Path)):
        import soundfile

        wave = read_audio(sound)  # its errors are clearer than those of reading the header
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
        raise AudioError(f"Recording {name} is silent ({level:.0f} dB of full scale): is the microphone on?")
    if seconds < 1.6:
        warnings.append(f"recording {name} has only {seconds:.1f} s: 5 s are good")
    if rate < SAMPLE_RATE:
        warnings.append(
            f"recording {name} has {rate} Hz: nothing above {rate // 2} Hz is in it, and the threshold "
            "was chosen on wide-band speech"
        )
    return wave
