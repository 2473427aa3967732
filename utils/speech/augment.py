"""Augmentation of waves and spectrograms: shift, speed, microphone, noise, rooms, SpecAugment.

Each works on a whole batch, on any device; the random numbers come from a CPU generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..features import SAMPLE_RATE, fixed_length


def time_shift(wave: Tensor, generator: torch.Generator, max_shift: int) -> Tensor:
    """Shift each wave of `(batch, time)` by up to `max_shift` samples either way, filled with zeros."""
    if max_shift <= 0:
        return wave
    start = torch.randint(0, 2 * max_shift + 1, (len(wave),), generator=generator)
    every = F.pad(wave, (max_shift, max_shift)).unfold(1, wave.shape[1], 1)  # (batch, shifts, time)
    return every[torch.arange(len(wave)), start.to(wave.device)]


def play_at(wave: Tensor, speed: float) -> Tensor:
    """Play `(batch, time)` at `speed` times its speed, pitch included; the length stays.

    Linear interpolation. A wave that gets shorter is filled with zeros at its end, one that gets
    longer is cut on both sides.
    """
    length = wave.shape[1]
    new = round(length / speed)
    other = F.interpolate(wave.unsqueeze(1), new, mode="linear", align_corners=False)
    return fixed_length(other.squeeze(1)[:, max(0, new - length) // 2 :], length)


def change_speed(
    wave: Tensor, generator: torch.Generator, max_change: float = 0.15, groups: int = 4
) -> Tensor:
    """Play `(batch, time)` faster or slower by up to the fraction `max_change` (Ko et al., 2015).

    The batch is divided into `groups`, each with its own factor; see `play_at`.
    """
    if max_change <= 0:
        return wave
    draws = 1 + max_change * (2 * torch.rand(groups, generator=generator) - 1)
    pairs = zip(wave.tensor_split(groups), draws.tolist(), strict=True)
    return torch.cat([play_at(part, speed) for part, speed in pairs if len(part)])


def change_microphone(
    wave: Tensor, generator: torch.Generator, deviation: float = 4.0, muffled: float = 0.3
) -> Tensor:
    """Filter each of `(batch, time)` by a random smooth frequency response, as another microphone would.

    Three cosines over the logarithm of the frequency (50 Hz to 8 kHz), each with a normal weight of
    `deviation` dB; a fraction `muffled` of the waves also gets a low pass, from 500 to 4000 Hz on, of 12 to 30 dB
    an octave, at most 50 dB. The phase stays. (0, 0) leaves the waves as they are.
    """
    if deviation <= 0 and muffled <= 0:
        return wave
    batch, length = wave.shape
    hertz = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE).clamp(min=50.0)  # (bins,)
    position = torch.log(hertz / 50) / math.log(SAMPLE_RATE / 2 / 50)
    curves = torch.cos(math.pi * torch.arange(1, 4)[:, None] * position)  # (3, bins)
    decibels = deviation * torch.randn(batch, 3, generator=generator) @ curves  # (batch, bins)
    edge, slope, chance = torch.rand(3, batch, 1, generator=generator)  # (batch, 1) each
    octaves = torch.log2(hertz / (500 * 8**edge)).clamp(min=0)  # (batch, bins)
    low_pass = (-(12 + 18 * slope) * octaves).clamp(min=-50)
    decibels = decibels + (chance < muffled) * low_pass
    gain = (10 ** (decibels / 20)).to(wave.device)
    return torch.fft.irfft(torch.fft.rfft(wave) * gain, length)


def add_noise(wave: Tensor, noise: Tensor, snr_db: Tensor | float) -> Tensor:
    """Mix noise into `(batch, time)` so that 10 log10(speech power / noise power) is `snr_db` for each wave.

    `noise` `(batch, time)` or `(time,)`; `snr_db` a number or `(batch,)`. Power is the mean square over
    the wave. A silent wave or silent noise has no ratio: that wave is returned as it is.
    """
    snr = torch.as_tensor(snr_db, dtype=wave.dtype, device=wave.device).reshape(-1, 1)
    noise = noise.to(wave).expand_as(wave)
    speech_power = wave.square().mean(1, keepdim=True)
    noise_power = noise.square().mean(1, keepdim=True)
    gain = (speech_power / noise_power.clamp(min=1e-20)).sqrt() * 10 ** (-snr / 20)  # (batch, 1)
    return wave + gain.masked_fill(noise_power <= 0, 0) * noise


def join_noises(noises: Mapping[str, Tensor]) -> Tensor:
    """Recordings `(time,)` at one level, one after another: `(time,)`; empty where there are none."""
    parts = [n / n.square().mean().sqrt().clamp(min=1e-8) for n in noises.values()]
    return 0.1 * torch.cat(parts) if parts else torch.zeros(0)


def noise_segments(noise: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """`batch` random segments of `length` samples from one long noise `(time,)`: `(batch, length)`.

    Raises ValueError when the noise is shorter than `length`.
    """
    if len(noise) < length:
        raise ValueError(f"{len(noise)} samples of noise are fewer than {length}")
    start = torch.randint(0, len(noise) - length + 1, (batch,), generator=generator)
    return torch.stack([noise[s : s + length] for s in start.tolist()])


def spec_augment(
    features: Tensor,
    generator: torch.Generator | None = None,
    time: int = 20,
    frequency: int = 12,
    masks: int = 2,
) -> Tensor:
    """SpecAugment without time warping (Park et al., 2019, arXiv:1904.08779) on `(batch, channels, frames)`.

    `masks` bands of up to `frequency` channels and `masks` spans of up to `time` frames are set to the mean of
    their clip.
    """
    batch, channels, frames = features.shape
    masked = torch.zeros(batch, channels, frames, dtype=torch.bool)
    for size, max_width, axis in ((channels, frequency, 1), (frames, time, 2)):
        position = torch.arange(size)[None]  # (1, size)
        for _ in range(masks if max_width > 0 else 0):
            width = torch.randint(0, min(max_width, size) + 1, (batch, 1), generator=generator)
            start = (torch.rand(batch, 1, generator=generator) * (size - width + 1)).floor()
            inside = (position >= start) & (position < start + width)  # (batch, size)
            masked |= inside.unsqueeze(3 - axis)
    mean = features.mean((1, 2), keepdim=True)
    return torch.where(masked.to(features.device), mean, features)


def room_response(rt60: Tensor, generator: torch.Generator, seconds: float = 0.8) -> Tensor:
    """Synthetic impulse responses of rooms: `rt60` `(batch,)` in s to `(batch, seconds * SAMPLE_RATE)`.

    A direct pulse, then from 2.5 ms on white noise whose envelope falls by 60 dB in `rt60` seconds
    (Moorer, 1979); the energy of the pulse is 5 dB above that of the noise. On the CPU.
    Raises ValueError for a time that is not positive.
    """
    if not (rt60 > 0).all():
        raise ValueError(f"a reverberation time must be longer than 0 s, not {rt60.min():g}")
    t = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    response = torch.randn(len(rt60), len(t), generator=generator)  # (batch, taps)
    response *= 10 ** (-3 * t / rt60[:, None])
    response[:, : round(0.0025 * SAMPLE_RATE)] = 0
    energy = response.square().sum(1, keepdim=True)
    response *= (10**-0.5 / energy).sqrt()
    response[:, 0] = 1
    return response


def reverberate(wave: Tensor, response: Tensor) -> Tensor:
    """Convolve `(batch, time)` with impulse responses `(batch, taps)` or `(1, taps)`; length and level stay.

    The direct sound stays where it was.
    """
    # a power of two, for a fast FFT
    size = 1 << (wave.shape[1] + response.shape[1] - 1).bit_length()
    spectrum = torch.fft.rfft(wave, size) * torch.fft.rfft(response.to(wave), size)
    wet = torch.fft.irfft(spectrum, size)[:, : wave.shape[1]]
    power = wave.square().sum(1, keepdim=True)
    return wet * (power / wet.square().sum(1, keepdim=True).clamp(min=1e-20)).sqrt()
