"""Sound to numbers: reading audio, resampling, spectrogram, log-mel, MFCC.

Everything works on batches `(batch, time)` on any device. The definitions are those of torchaudio with
`pad_mode="constant"` and of librosa with `htk=True, norm=None` (tests compare); frames are centred:
frame t is a window around sample `t * hop`, so a wave of n samples has `1 + n // hop` frames.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 16_000
"""Samples per second (Hz) that all speech days work with."""

FLOOR = 1e-6
"""Added to the mel power before the logarithm: about -138 dB under a full-scale sine."""


class AudioError(ValueError):
    """A sound that cannot be used; the message says why and what to do."""


def read_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """A sound file as mono float32 `(time,)` in -1..1 at `sample_rate` Hz.

    Reads what libsndfile reads (WAV, FLAC, OGG, MP3, AIFF ..., integer or float, any rate); channels are
    averaged. Raises AudioError for a file that is missing, empty, no sound, or holds no finite samples.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path.name} is not there: is the path right?")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as e:
        size = path.stat().st_size
        raise AudioError(
            f"{path.name} ({size:,} bytes) is not a sound file that can be read"
            + (": it is empty." if not size else f" ({e}). Convert it to WAV or FLAC.")
        ) from e
    return to_mono(torch.from_numpy(samples.T), rate, sample_rate, path.name)


def to_mono(
    wave: Tensor | np.ndarray, rate: int, sample_rate: int = SAMPLE_RATE, name: str = ""
) -> Tensor:
    """Any wave `(time,)` or `(channels, time)` as checked mono float32 `(time,)` at `sample_rate` Hz.

    Integers are scaled by their type's range. Raises AudioError for no samples, NaN or infinity,
    or a rate that is not positive.
    """
    wave, name = torch.as_tensor(wave), name or "the wave"
    if not wave.is_floating_point():
        wave = wave.float() / (torch.iinfo(wave.dtype).max + 1)
    wave = wave.float()
    if wave.ndim == 2:
        wave = wave.mean(0)
    if wave.ndim != 1 or not wave.numel():
        raise AudioError(f"{name} holds no samples ({tuple(wave.shape)}).")
    if rate <= 0:
        raise AudioError(f"{name} says {rate} Hz: its header is wrong.")
    if not torch.isfinite(wave).all():
        bad = int((~torch.isfinite(wave)).sum())
        raise AudioError(f"{name} holds {bad} samples that are no numbers (NaN or infinity).")
    return resample(wave, rate, sample_rate)


def as_float(wave: Tensor) -> Tensor:
    """int16 `(..., time)` as float in -1..1; a float wave as it is."""
    return wave if wave.is_floating_point() else wave.float() / 32768


def resample(wave: Tensor, rate: int, target: int = SAMPLE_RATE) -> Tensor:
    """`(..., time)` from `rate` to `target` Hz by a Kaiser-windowed sinc.

    What lies above the lower of the two Nyquist frequencies is filtered out (by 80 dB or more from 5 %
    above it on), not folded back; below 90 % of it the level is kept within 0.1 dB (J. O. Smith,
    Digital Audio Resampling).
    """
    if rate == target:
        return wave
    from torchaudio.functional import resample as sinc

    return sinc(
        wave, int(rate), int(target), lowpass_filter_width=64, rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser", beta=14.769656459379492,
    )  # fmt: skip


def fixed_length(wave: Tensor, length: int) -> Tensor:
    """`(..., time)` cut or filled with zeros at its end to `length` samples."""
    return F.pad(wave[..., :length], (0, max(0, length - wave.shape[-1])))


# --- spectrogram, mel, cepstrum -------------------------------------------------------------------


def hz_to_mel(hz: float | Tensor) -> float | Tensor:
    """HTK's mel scale, 2595 log10(1 + f / 700 Hz) (Young et al., The HTK Book)."""
    log10 = torch.log10 if isinstance(hz, Tensor) else math.log10
    return 2595.0 * log10(1.0 + hz / 700.0)


def mel_to_hz(mel: float | Tensor) -> float | Tensor:
    """The inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def mel_filterbank(n_mels: int, n_fft: int, sample_rate: int, f_min: float, f_max: float) -> Tensor:
    """Triangles of height 1, evenly spaced in mel: `(n_fft // 2 + 1, n_mels)`.

    Raises ValueError when the frequencies do not fit or a filter would see no bin at all (too many
    mels for this n_fft).
    """
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"0 <= f_min < f_max <= {sample_rate / 2:g} Hz is wanted, not {f_min:g} and {f_max:g}"
        )
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    low, high = hz_to_mel(f_min), hz_to_mel(f_max)
    edges = mel_to_hz(torch.linspace(low, high, n_mels + 2, dtype=torch.float64))
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0)
    empty = int((bank.amax(0) == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of {n_mels} mel filters see no bin: take fewer mels or a larger n_fft"
        )
    return bank.float()


def dct_matrix(n_mels: int, n_mfcc: int) -> Tensor:
    """The orthonormal DCT-II as a matrix `(n_mels, n_mfcc)`."""
    n = torch.arange(n_mels, dtype=torch.float64)
    k = torch.arange(n_mfcc, dtype=torch.float64)
    matrix = torch.cos(math.pi / n_mels * (n[:, None] + 0.5) * k[None])
    matrix *= math.sqrt(2.0 / n_mels)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix.float()


class Spectrogram(nn.Module):
    """Power spectrogram: `(batch, time)` to `(batch, n_fft // 2 + 1, frames)`, Hann window.

    `window` and `hop` are in samples; 400 and 160 are 25 ms and 10 ms at 16 kHz. `centre=False` leaves
    the padding out (the stream brings its own). Overlapping frames are a view of the wave, so one
    multiplication by the window and one batched FFT do it: twice as fast as `torch.stft` on a CPU.
    """

    def __init__(
        self, n_fft: int = 512, window: int = 400, hop: int = 160, centre: bool = True
    ) -> None:
        super().__init__()
        if not 0 < hop <= window <= n_fft:
            raise ValueError(f"0 < hop <= window <= n_fft is wanted, not {hop}, {window}, {n_fft}")
        self.n_fft, self.window, self.hop, self.centre = n_fft, window, hop, centre
        left = (n_fft - window) // 2
        hann = F.pad(torch.hann_window(window), (left, n_fft - window - left))
        self.register_buffer("hann", hann, persistent=False)

    def squares(self, wave: Tensor) -> Tensor:
        """Squares of real and imaginary parts side by side: `(batch, frames, 2 * (n_fft // 2 + 1))`."""
        if self.centre:
            wave = F.pad(wave, (self.n_fft // 2, self.n_fft // 2))
        frames = wave.unfold(1, self.n_fft, self.hop) * self.hann
        return torch.view_as_real(torch.fft.rfft(frames)).flatten(2).square_()

    def forward(self, wave: Tensor) -> Tensor:
        return self.squares(wave).unflatten(2, (-1, 2)).sum(-1).transpose(1, 2)


class LogMel(nn.Module):
    """Log-mel features: `(batch, time)` to `(batch, n_mels, frames)`, natural logarithm of mel power.

    The waves are taken in chunks of `chunk` clips: on a CPU the intermediate spectra of more clips
    leave the cache. Without gradient.
    """

    def __init__(
        self,
        n_mels: int = 64,
        sample_rate: int = SAMPLE_RATE,
        n_fft: int = 512,
        window: int = 400,
        hop: int = 160,
        f_min: float = 20.0,
        f_max: float | None = None,
        chunk: int = 16,
    ) -> None:
        super().__init__()
        self.n_mels, self.chunk = n_mels, chunk
        self.spectrogram = Spectrogram(n_fft, window, hop)
        bank = mel_filterbank(n_mels, n_fft, sample_rate, f_min, f_max or sample_rate / 2)
        # each bin's row twice, for its real and its imaginary part: power and bank in one product
        twice = bank.repeat_interleave(2, 0).contiguous()
        self.register_buffer("bank", twice, persistent=False)

    @property
    def out_channels(self) -> int:
        return self.n_mels

    @torch.no_grad()
    def forward(self, wave: Tensor) -> Tensor:
        size = len(wave) if wave.is_cuda else self.chunk
        parts = [self._features(part) for part in wave.split(max(1, size))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _features(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            mel = self.spectrogram.squares(wave.float()) @ self.bank
            return mel.add_(FLOOR).log_().transpose(1, 2)


class MFCC(LogMel):
    """Mel-frequency cepstral coefficients (Davis & Mermelstein, 1980), with first and second deltas if wished.

    `(batch, time)` to `(batch, n_mfcc * (1, 2 or 3), frames)`: the DCT of the log-mel over the mels.
    """

    def __init__(self, n_mfcc: int = 40, deltas: int = 0, n_mels: int = 64, **settings) -> None:
        super().__init__(n_mels, **settings)
        if not 0 < n_mfcc <= n_mels:
            raise ValueError(f"n_mfcc {n_mfcc} does not fit {n_mels} mels")
        self.n_mfcc, self.deltas = n_mfcc, deltas
        self.register_buffer("dct", dct_matrix(n_mels, n_mfcc).T.contiguous(), persistent=False)

    @property
    def out_channels(self) -> int:
        return self.n_mfcc * (1 + self.deltas)

    def _features(self, wave: Tensor) -> Tensor:
        orders = [self.dct @ super()._features(wave)]
        for _ in range(self.deltas):
            orders.append(delta(orders[-1]))
        return torch.cat(orders, 1)


def delta(features: Tensor, reach: int = 2) -> Tensor:
    """Slope over time of `(batch, channels, frames)` by regression over 2 * reach + 1 frames; edges repeat.

    d_t = sum_n n (c_{t+n} - c_{t-n}) / (2 sum_n n^2), The HTK Book.
    """
    n = torch.arange(-reach, reach + 1, device=features.device, dtype=features.dtype)
    batch, channels, frames = features.shape
    flat = features.reshape(batch * channels, 1, frames)
    padded = F.pad(flat, (reach, reach), mode="replicate")
    slope = F.conv1d(padded, (n / n.square().sum()).view(1, 1, -1))
    return slope.view(batch, channels, frames)


def to_level(wave: Tensor, level: float = -26.0, peak: float | None = None) -> Tensor:
    """Each wave of `(..., time)` at the same level: root mean square of `level` dB of full scale.

    A clip that is 40 dB softer is the same word; without this, the floor under the logarithm of a
    log-mel swallows it. With `peak` a wave stays softer where its largest sample would pass that value.
    Silence (below -100 dB) stays as it is.
    """
    rms = wave.square().mean(-1, keepdim=True).sqrt()
    gain = 10 ** (level / 20) / rms.clamp(min=1e-5)
    if peak is not None:
        highest = wave.abs().amax(-1, keepdim=True).clamp(min=1e-8)
        gain = torch.minimum(gain, peak / highest)
    return wave * torch.where(rms > 1e-5, gain, torch.ones_like(gain))
