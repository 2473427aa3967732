"""Training targets of the parallel synthesizer: letter durations from the attention of a Tacotron 2, pitch and
energy from the sound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional as F

from utils.features import as_float
from utils.models.fastspeech import length_regulate
from utils.models.tacotron2 import Tacotron2, length_mask, speech_steps
from utils.models.tts import TTSDataset, repeatable
from utils.models.tts_mel import MelSettings, trim_silence

PITCH = math.log(160.0), 0.2
"""Mean and deviation of log pitch (Hz), fixed so that every set of speakers has the same scale."""

PITCH_RANGE = 60, 400
"""Lowest and highest pitch in Hz. A narrower range for one voice avoids octave errors."""

VOICED = 0.3
"""A frame is voiced when its lower mels (100 to 1000 Hz) are loud, and by this much louder than the upper ones."""


class FastSpeechBatch(NamedTuple):
    """A `TextBatch` with durations `(batch, letters)` in frames and prosody `(batch, letters, 3)`."""

    text: Tensor
    text_lengths: Tensor
    d_vectors: Tensor
    mel: Tensor
    mel_lengths: Tensor
    durations: Tensor
    prosody: Tensor


@dataclass
class TimedUtterances(TTSDataset):
    """Sentences with durations in frames `(n, letters)` and prosody `(n, letters, 3)`."""

    durations: Tensor | None = None
    prosody: Tensor | None = None

    def batch(
        self, index: Tensor | Sequence[int], r: int = 1, frames: int = 0, letters: int = 0
    ) -> FastSpeechBatch:
        """A batch of sentences, padded as in `TTSDataset.batch`."""
        index = torch.as_tensor(index, device=self.text.device)
        batch = super().batch(index, r, frames, letters)
        letters = batch.text.shape[1]
        return FastSpeechBatch(*batch, self.durations[index, :letters], self.prosody[index, :letters])


@torch.no_grad()
def letter_durations(teacher: Tacotron2, sentences: TTSDataset, batch_size: int = 32) -> Tensor:
    """Frames of each letter, `(n, letters)`: its attention under teacher forcing, summed over time.

    Durations are fractions; their sum is the length of the sentence. (Ren et al. count the steps at which a letter
    has the largest weight; a sum keeps letters that are shorter than a step.)
    """
    r, device = teacher.config.r, next(teacher.parameters()).device
    durations = torch.zeros(sentences.text.shape, device=sentences.text.device)
    teacher.eval()
    with repeatable(device):  # the pre-net's dropout
        for index in sentences.mel_lengths.argsort().split(batch_size):
            batch = sentences.batch(index, r)
            attention = teacher(*batch[:5]).alignment  # (batch, steps, letters)
            steps = length_mask(speech_steps(batch.mel_lengths, r), attention.shape[1])
            sums = (attention * steps[..., None]).sum(1)  # (batch, letters)
            sums = sums * (batch.mel_lengths / sums.sum(1))[:, None]
            durations[index, : sums.shape[1]] = sums
    return durations


def frame_pitch(
    wave: Tensor, settings: MelSettings, frames: int, between: tuple[int, int] = PITCH_RANGE
) -> Tensor:
    """Pitch in Hz of each mel frame of a wave `(time,)`, smoothed over nine frames: `(frames,)`.

    The normalised cross-correlation of torchaudio, `between` two frequencies; unvoiced frames have a value too.
    """
    pitch = torchaudio.functional.detect_pitch_frequency(
        wave[None], settings.sample_rate, settings.hop / settings.sample_rate, 9, *between
    )[0]  # fmt: skip
    if not len(pitch):
        return torch.full((frames,), float(between[0]))
    return F.pad(pitch[None], (0, max(0, frames - len(pitch))), mode="replicate")[0, :frames]


def voiced_frames(mel: Tensor) -> Tensor:
    """1.0 for voiced frames of a normalised mel `(batch, n_mels, frames)`, else 0.0: `(batch, frames)`.

    Judged by the spectrum alone: loud at low frequencies, quieter at high ones.
    """
    n = mel.shape[1]
    low, high = mel[:, n // 40 : 3 * n // 10].mean(1), mel[:, 5 * n // 8 :].mean(1)
    return ((low > 0) & (low - high > VOICED)).float()


def letter_prosody(mel: Tensor, mel_lengths: Tensor, pitch: Tensor, durations: Tensor) -> Tensor:
    """Means over each letter's frames, `(n, letters, 3)`, as named in `PROSODY`: log pitch of voiced frames
    (standardised by `PITCH`; 0 where less than `VOICED` of it is voiced), fraction of voiced frames, mean of the
    normalised mel.

    `mel` `(n, n_mels, frames)`, `pitch` `(n, frames)` in Hz, `durations` `(n, letters)` in frames.
    """
    frames = mel.shape[2]
    weights, _, _ = length_regulate(durations, frames)  # (n, frames, letters)
    weights = weights * length_mask(mel_lengths, frames)[..., None]
    voiced = voiced_frames(mel)

    def mean(x: Tensor, counts: Tensor) -> Tensor:
        whole = torch.einsum("nfl,nf->nl", weights, counts)
        return torch.einsum("nfl,nf->nl", weights, counts * x) / whole.clamp(min=1e-3)

    share = mean(voiced, torch.ones_like(voiced))
    middle, scale = PITCH
    height = (mean(pitch.clamp(min=PITCH_RANGE[0]).log(), voiced) - middle) / scale
    height = torch.where(share > VOICED, height, 0.0).clamp(-4, 4)
    level = mean(mel.mean(1), torch.ones_like(voiced))
    return torch.stack([height, share, level], 2)


def timed(
    sentences: TTSDataset,
    waves: Sequence[Tensor],
    teacher: Tacotron2,
    settings: MelSettings,
    between: tuple[int, int] = PITCH_RANGE,
) -> TimedUtterances:
    """Sentences with durations and prosody. `waves` `(time,)` each are the input of `prepare`; the pitch lies
    `between` two frequencies (Hz)."""
    durations = letter_durations(teacher, sentences)
    pitch = torch.zeros_like(sentences.mel[:, 0])
    for k, number in enumerate(sentences.numbers):
        wave = trim_silence(as_float(waves[number]), settings.sample_rate)
        n = int(sentences.mel_lengths[k])
        pitch[k, :n] = frame_pitch(wave, settings, n, between).to(pitch.device)
    each = sentences.mel, sentences.mel_lengths, pitch, durations
    parts = [letter_prosody(*some) for some in zip(*(x.split(64) for x in each), strict=True)]
    return TimedUtterances(**vars(sentences), durations=durations, prosody=torch.cat(parts))
