"""Mel spectrograms for synthesis, and back to sound by Griffin-Lim.

A synthesizer predicts the normalised log-mel: the log-mel of `utils.features`, shifted and scaled to about -2
(silence) to 3 (loud), so that outputs have roughly zero mean and unit variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import FLOOR, AudioError, LogMel, as_float

SHIFT, SCALE = -5.0, 4.0
"""Normalised = (log-mel - SHIFT) / SCALE: about the mean and deviation of speech between pauses."""

SILENCE = (math.log(FLOOR) - SHIFT) / SCALE
"""The normalised log-mel of digital silence (about -2.2), also the value of padded frames."""


@dataclass(frozen=True)
class MelSettings:
    """Settings of the mel spectrogram. Hop and window: 11.6 and 46 ms at 22.05 kHz, 16 and 64 ms at 16 kHz."""

    sample_rate: int = 22_050
    n_fft: int = 1024
    window: int = 1024
    hop: int = 256
    n_mels: int = 80
    f_min: float = 20.0
    f_max: float = 8000.0

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate / self.hop


KATHLEEN_MEL = MelSettings()
"""22.05 kHz, the rate of the Kathleen recordings."""

LIBRISPEECH_MEL = MelSettings(sample_rate=16_000)
"""16 kHz, the rate of LibriSpeech."""


class SynthesisMel(nn.Module):
    """Sound to normalised log-mel and back to a linear spectrum: `(batch, time)` to `(batch, n_mels, frames)`.

    Frame t is centred at sample `t * hop`; n samples have `1 + n // hop` frames. int16 is accepted too.
    """

    def __init__(self, settings: MelSettings = KATHLEEN_MEL) -> None:
        super().__init__()
        s = self.settings = settings
        self.log_mel = LogMel(s.n_mels, s.sample_rate, s.n_fft, s.window, s.hop, s.f_min, s.f_max)
        self.register_buffer("hann", torch.hann_window(s.window), persistent=False)

    @property
    def bank(self) -> Tensor:
        """The filterbank `(n_fft // 2 + 1, n_mels)`."""
        return self.log_mel.bank[::2]

    def forward(self, wave: Tensor) -> Tensor:
        return (self.log_mel(as_float(wave)) - SHIFT) / SCALE

    def power(self, mel: Tensor) -> Tensor:
        """Mel power of a normalised log-mel; 0 below the floor."""
        log_mel = (SCALE * mel.float() + SHIFT).clamp(max=20.0)
        return (log_mel.exp() - FLOOR).clamp(min=0)

    @torch.no_grad()
    def to_linear(self, mel: Tensor, updates: int = 60) -> Tensor:
        """A magnitude spectrum `(batch, n_fft // 2 + 1, frames)` that has this mel, approximately.

        80 mels do not determine 513 bins. Starting from each mel spread over its bins, multiplicative updates
        (Lee & Seung, 2001) reduce the squared error and keep every bin non-negative.
        """
        target, bank = self.power(mel), self.bank  # (batch, n_mels, frames), (bins, n_mels)
        power = (bank / bank.sum(0)) @ target  # (batch, bins, frames)
        numerator = bank @ target
        for _ in range(updates):
            power = power * numerator / (bank @ (bank.T @ power)).clamp(min=1e-12)
        return power.sqrt()

    @torch.no_grad()
    def griffin_lim(self, mel: Tensor, iterations: int = 60, momentum: float = 0.99, seed: int = 0) -> Tensor:
        """Sound `(batch, (frames - 1) * hop)` of a normalised log-mel `(batch, n_mels, frames)`.

        The phase starts at random (from `seed`, the same on every device) and is made consistent by `iterations`
        inverse and forward STFTs (Griffin & Lim, 1984), accelerated by `momentum` (Perraudin et al., 2013).
        Scaled down where a peak would exceed full scale. Raises ValueError for fewer than two frames.
        """
        if mel.shape[-1] < 2:
            raise ValueError(f"{mel.shape[-1]} frames are no sound: at least two are needed")
        s, magnitude = self.settings, self.to_linear(mel)
        length = (mel.shape[-1] - 1) * s.hop
        g = torch.Generator().manual_seed(seed)
        phase = 2 * math.pi * torch.rand(magnitude.shape, generator=g).to(mel.device)
        angles, before = torch.polar(torch.ones_like(magnitude), phase), 0.0
        frame = s.n_fft, s.hop, s.window, self.hann
        forward = partial(torch.stft, pad_mode="constant", return_complex=True)
        for _ in range(iterations):
            wave = torch.istft(magnitude * angles, *frame, length=length)
            rebuilt = forward(wave, *frame)
            ahead = rebuilt - momentum / (1 + momentum) * before
            angles, before = ahead / ahead.abs().clamp(min=1e-12), rebuilt
        wave = torch.istft(magnitude * angles, *frame, length=length)
        return wave / wave.abs().amax(-1, keepdim=True).clamp(min=1.0)


def loudness(wave: Tensor, sample_rate: int, window: float = 0.025) -> Tensor:
    """Level in dB of full scale every 10 ms of a wave `(time,)`, over a window of `window` seconds."""
    hop, size = round(0.01 * sample_rate), round(window * sample_rate)
    padded = F.pad(as_float(wave).square(), (size // 2, size // 2))
    if len(padded) < size:
        padded = F.pad(padded, (0, size - len(padded)))
    return 10 * padded.unfold(0, size, hop).mean(1).clamp(min=1e-10).log10()


def speech_bounds(
    wave: Tensor, sample_rate: int, top_db: float = 35.0, margin: float = 0.03
) -> tuple[int, int]:
    """First and last sample (exclusive) of the part of a wave `(time,)` within `top_db` of its loudest moment.

    `margin` seconds are added on both sides. Raises AudioError for silence (nothing above -60 dB of full scale).
    """
    if not len(wave):
        raise AudioError("the wave has no samples.")
    level = loudness(wave, sample_rate)
    if level.max() < -60:
        raise AudioError(
            "the recording is silent (no part is above -60 dB): is the microphone on? Record it again."
        )
    loud = torch.nonzero(level > level.max() - top_db).flatten()
    hop, keep = round(0.01 * sample_rate), round(margin * sample_rate)
    first, last = int(loud[0]) * hop - keep, int(loud[-1]) * hop + keep
    return max(0, first), min(len(wave), max(last, first + 1))


def trim_silence(wave: Tensor, sample_rate: int, top_db: float = 35.0, margin: float = 0.03) -> Tensor:
    """The wave `(time,)` without the silence before and after its speech (see `speech_bounds`).

    Untrimmed starts keep a Tacotron from aligning: no letter belongs to the silence.
    """
    first, last = speech_bounds(wave, sample_rate, top_db, margin)
    return wave[first:last]
