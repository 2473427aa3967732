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
    averaged. Raises AudioError for a file that is missing, empty, not a sound, or contains NaN or infinity.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path.name} is not there: is the path right?")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as e:
        reason = f"({e}). Convert it to WAV or FLAC." if path.stat().st_size else ": it is empty."
        raise AudioError(f"{path.name} is not a sound file that can be read {reason}") from e
    return to_mono(torch.from_numpy(samples.T), rate, sample_rate, path.name)


def to_mono(wave: Tensor | np.ndarray, rate: int, sample_rate: int = SAMPLE_RATE, name: str = "") -> Tensor:
    """A wave `(time,)` or `(channels, time)` as checked mono float32 `(time,)` at `sample_rate` Hz.

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
        raise AudioError(f"{name} has no samples ({tuple(wave.shape)}).")
    if rate <= 0:
        raise AudioError(f"{name} has a rate of {rate} Hz: its header is wrong.")
    if not torch.isfinite(wave).all():
        bad = int((~torch.isfinite(wave)).sum())
        raise AudioError(f"{name} has {bad} samples that are NaN or infinity.")
    return resample(wave, rate, sample_rate)


def as_float(wave: Tensor) -> Tensor:
    """int16 `(..., time)` as float in -1..1; a float wave is returned unchanged."""
    return wave if wave.is_floating_point() else wave.float() / 32768


def resample(wave: Tensor, rate: int, target: int = SAMPLE_RATE) -> Tensor:
    """`(..., time)` from `rate` to `target` Hz by a Kaiser-windowed sinc.

    Frequencies above the lower of the two Nyquist frequencies are filtered out (by 80 dB or more from 5 % above
    it) and do not alias; below 90 % of it the level changes by less than 0.1 dB (J. O. Smith, Digital Audio
    Resampling).
    """
    if rate == target:
        return wave
    from torchaudio.functional import resample as sinc

    return sinc(
        wave, int(rate), int(target), lowpass_filter_width=64, rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser", beta=14.769656459379492,
    )  # fmt: skip


def fixed_length(wave: Tensor, length: int) -> Tensor:
    """`(..., time)` cut, or padded with zeros at the end, to `length` samples."""
    return F.pad(wave[..., :length], (0, max(0, length - wave.shape[-1])))


# --- spectrogram, mel, cepstrum -------------------------------------------------------------------


def mel_filterbank(n_mels: int, n_fft: int, sample_rate: int, f_min: float, f_max: float) -> Tensor:
    """Triangular filters of height 1, evenly spaced on HTK's mel scale: `(n_fft // 2 + 1, n_mels)`.

    In double precision: torchaudio's filters in single precision move the log-mel of speech by up to 9e-4.

    Raises ValueError when the frequencies do not fit, or when a filter contains no frequency bin.
    """
    if not 0 <= f_min < f_max <= sample_rate / 2:
        limit = f"0 <= f_min < f_max <= {sample_rate / 2:g} Hz"
        raise ValueError(f"{limit} is necessary, not {f_min:g} and {f_max:g}")
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    mel = [2595.0 * math.log10(1.0 + f / 700.0) for f in (f_min, f_max)]
    mel = torch.linspace(*mel, n_mels + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0)
    if empty := int((bank.amax(0) == 0).sum()):
        raise ValueError(f"{empty} of {n_mels} mel filters see no bin: use fewer or a larger n_fft")
    return bank.float()


def dct_matrix(n_mels: int, n_mfcc: int) -> Tensor:
    """The orthonormal DCT-II as a matrix `(n_mels, n_mfcc)`."""
    from torchaudio.functional import create_dct

    return create_dct(n_mfcc, n_mels, "ortho")


class Spectrogram(nn.Module):
    """Power spectrogram: `(batch, time)` to `(batch, n_fft // 2 + 1, frames)`, Hann window.

    `window` and `hop` are in samples; 400 and 160 are 25 ms and 10 ms at 16 kHz. `centre=False` does not pad.
    Overlapping frames are a view of the wave, so that one multiplication by the window and one batched FFT are
    enough: twice as fast as `torch.stft` on a CPU. Raises ValueError for lengths that do not fit.
    """

    def __init__(self, n_fft: int = 512, window: int = 400, hop: int = 160, centre: bool = True) -> None:
        super().__init__()
        if not 0 < hop <= window <= n_fft:
            raise ValueError(f"0 < hop <= window <= n_fft is necessary, not {hop}, {window}, {n_fft}")
        self.n_fft, self.window, self.hop, self.centre = n_fft, window, hop, centre
        left = (n_fft - window) // 2
        hann = F.pad(torch.hann_window(window), (left, n_fft - window - left))
        self.register_buffer("hann", hann, persistent=False)

    def squares(self, wave: Tensor) -> Tensor:
        """Squares of real and imaginary parts side by side: `(batch, frames, 2 * (n_fft // 2 + 1))`."""
        if self.centre:
            wave = F.pad(wave, (self.n_fft // 2, self.n_fft // 2))
        frames = wave.unfold(1, self.n_fft, self.hop) * self.hann  # (batch, frames, n_fft)
        spectrum = torch.view_as_real(torch.fft.rfft(frames))  # (batch, frames, bins, 2)
        return spectrum.flatten(2).square_()

    def forward(self, wave: Tensor) -> Tensor:
        return self.squares(wave).unflatten(2, (-1, 2)).sum(-1).transpose(1, 2)


class LogMel(nn.Module):
    """Log-mel features: `(batch, time)` to `(batch, n_mels, frames)`, natural logarithm of mel power.

    Computed in chunks of `chunk` clips, whose spectra fit a CPU's cache; on a GPU at once. Without gradient.
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
        # each bin twice, for its real and imaginary part: power and filters in one matrix product
        twice = bank.repeat_interleave(2, 0).contiguous()  # (2 * bins, n_mels)
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
    """Mel-frequency cepstral coefficients (Davis & Mermelstein, 1980), with first and second deltas on request.

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
        from torchaudio.functional import compute_deltas

        orders = [self.dct @ super()._features(wave)]
        for _ in range(self.deltas):
            orders.append(compute_deltas(orders[-1]))
        return torch.cat(orders, 1)


def to_level(wave: Tensor, level: float = -26.0, peak: float | None = None) -> Tensor:
    """Scale each wave of `(..., time)` to a root mean square of `level` dB of full scale.

    A clip that is 40 dB softer is the same word, but without this step it falls below the floor of the log-mel.
    With `peak` a wave stays softer if its largest sample would exceed that value. Silence (below -100 dB) is not
    changed.
    """
    rms = wave.square().mean(-1, keepdim=True).sqrt()
    gain = 10 ** (level / 20) / rms.clamp(min=1e-5)
    if peak is not None:
        highest = wave.abs().amax(-1, keepdim=True).clamp(min=1e-8)
        gain = torch.minimum(gain, peak / highest)
    return wave * torch.where(rms > 1e-5, gain, torch.ones_like(gain))
