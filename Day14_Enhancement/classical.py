"""Enhancers without training: spectral subtraction, Wiener filter, RNNoise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.features import SAMPLE_RATE, as_float, resample

from .enhancer import HOP, istft, stft


def noise_power(power: Tensor, smooth: float = 0.9, seconds: float = 1.5) -> Tensor:
    """Noise in a power spectrum `(batch, frames, bins)`: the minimum of the smoothed power in the last `seconds`.

    Speech pauses in every bin sooner or later, so the minimum is noise (Martin, 2001, in its simplest form, with a
    constant instead of his bias correction). Causal, except for the first 100 ms, which are averaged.
    """
    level, smoothed = power[:, :6].mean(1), []
    for frame in power.unbind(1):
        level = smooth * level + (1 - smooth) * frame
        smoothed.append(level)
    line = torch.stack(smoothed, 1).transpose(1, 2)  # (batch, bins, frames)
    reach = max(1, round(seconds * SAMPLE_RATE / HOP))
    padded = F.pad(-line, (reach - 1, 0), value=-torch.inf)
    least = -F.max_pool1d(padded, reach, stride=1)
    return 1.5 * least.transpose(1, 2)


@torch.no_grad()
def spectral_subtraction(wave: Tensor, over: float = 2.0, floor: float = 0.1) -> Tensor:
    """`(batch, time)` minus `over` times the power of its noise (Boll, 1979; Berouti et al., 1979).

    No bin falls below the fraction `floor` of its magnitude, otherwise the remaining noise rings (musical noise).
    """
    wave = as_float(wave)
    spectrum = stft(wave)
    power = spectrum.abs().square()
    gain = 1 - over * noise_power(power) / power.clamp(min=1e-12)
    return istft(spectrum * gain.clamp(min=floor**2).sqrt(), wave.shape[1])


@torch.no_grad()
def wiener(wave: Tensor, memory: float = 0.98, floor_db: float = -20.0) -> Tensor:
    """`(batch, time)` through a Wiener filter with the decision-directed SNR (Ephraim & Malah, 1984).

    The a priori SNR is `memory` times what the filter passed in the last frame, plus the rest from this frame;
    gain = snr / (1 + snr), not below `floor_db`.
    """
    wave = as_float(wave)
    spectrum = stft(wave)
    power = spectrum.abs().square()
    after = power / noise_power(power).clamp(min=1e-12)
    passed, gains = torch.zeros_like(after[:, 0]), []
    for seen in after.unbind(1):
        snr = memory * passed + (1 - memory) * (seen - 1).clamp(min=0)
        gain = (snr / (1 + snr)).clamp(min=10 ** (floor_db / 20))
        passed = gain.square() * seen
        gains.append(gain)
    return istft(spectrum * torch.stack(gains, 1), wave.shape[1])


@torch.no_grad()
def rnnoise(wave: Tensor) -> Tensor:
    """`(batch, time)` through RNNoise (Valin, 2018, arXiv:1709.08243) at 48 kHz; its 20 ms of delay are undone.

    Raises ImportError with the command to type where the optional package is missing.
    """
    try:
        from pyrnnoise import rnnoise as library
    except ImportError as e:
        raise ImportError(
            f"RNNoise is an extra of Day 14 and cannot be used here ({e}): pip install pyrnnoise"
        ) from e
    rate, step = library.SAMPLE_RATE, library.FRAME_SIZE
    delay = 2 * step  # measured with pyrnnoise 0.4.5: SI-SDR is highest so
    outputs = []
    for row in as_float(wave).cpu():
        high = resample(row, SAMPLE_RATE, rate)
        size = -(-len(high) // step) * step + delay
        frames = (F.pad(high, (0, size - len(high))).clamp(-1, 1) * 32767).short()
        state = library.create()
        try:
            made = [
                torch.from_numpy(library.process_mono_frame(state, frame)[0].copy())
                for frame in frames.view(-1, step).numpy()
            ]
        finally:
            library.destroy(state)
        clean = as_float(torch.cat(made))[delay:]
        outputs.append(resample(clean, rate, SAMPLE_RATE)[: len(row)])
    return torch.stack(outputs).to(wave.device)
