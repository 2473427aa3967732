"""Speaker encoders: from a voice to a unit vector (an embedding).

`Embedder` is the interface of all encoders: `embed(waves)` gives `(utterances, dim)`, `partials(wave)` one vector
for each window of an utterance. `DVector` is the GE2E encoder whose trained weights come with the package
`resemblyzer`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import SAMPLE_RATE, Spectrogram, as_float

HOP = 160
"""Samples from frame to frame: 10 ms."""


def slice_starts(samples: int, frames: int, rate: float = 1.3, coverage: float = 0.75) -> list[int]:
    """First frames of the windows of `frames` frames that cover an utterance of `samples` samples.

    `rate` windows begin each second. The last one may extend beyond the end; it is left out when less than the
    fraction `coverage` of it is sound, unless it is the only one. Raises ValueError where the windows would
    leave gaps.
    """
    step = round(SAMPLE_RATE / rate / HOP)
    if not 0 < step <= frames:
        raise ValueError(f"{rate} windows a second of {frames} frames leave gaps: raise the rate")
    total = math.ceil((samples + 1) / HOP)
    starts = list(range(0, max(1, total - frames + step + 1), step))
    if len(starts) > 1 and (samples - starts[-1] * HOP) / (frames * HOP) < coverage:
        starts.pop()
    return starts


def normalise_volume(wave: Tensor, target_dbfs: float = -30.0) -> Tensor:
    """`(time,)` amplified to an RMS of `target_dbfs` dB of full scale; a louder wave is returned unchanged."""
    rms = wave.square().mean().sqrt()
    gain = (10 ** (target_dbfs / 20) / rms.clamp(min=1e-9)).clamp(min=1)
    return wave * torch.where(rms > 0, gain, 1)


class Embedder(nn.Module):
    """Cuts utterances into windows, one unit vector each; the embedding of an utterance is their mean.

    A subclass sets `frames`, the length of a window in steps of 10 ms, and `rate`, the windows a second, and
    defines `encode(segments)`.
    """

    frames: int
    rate: float

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def segments(self, wave: Tensor) -> Tensor:
        """The samples of each window of `(time,)`: `(windows, samples)`, without padding.

        A short wave is repeated until it fills a window; the last window ends where the wave does.
        """
        size = self.frames * HOP
        if len(wave) < size:
            wave = wave.repeat(math.ceil(size / len(wave)))[:size]
        last = len(wave) - size
        starts = [min(i * HOP, last) for i in slice_starts(len(wave), self.frames, self.rate)]
        return torch.stack([wave[s : s + size] for s in starts])

    def encode(self, segments: Tensor) -> Tensor:
        """`(windows, samples)` to unit vectors `(windows, dim)`."""
        raise NotImplementedError

    def partials(self, wave: Tensor, batch: int = 64) -> Tensor:
        """Unit vectors of the windows of one utterance `(time,)`: `(windows, dim)`."""
        return self._windows([wave], batch)[0]

    def embed(self, waves: Sequence[Tensor], batch: int = 64) -> Tensor:
        """Unit vectors `(utterances, dim)` of waves `(time,)` at 16 kHz, float or int16, of any lengths.

        The windows of all utterances go through the network `batch` at a time, on its device, without
        gradient and in evaluation mode. Raises ValueError for a wave without samples.
        """
        means = [partials.mean(0) for partials in self._windows(waves, batch)]
        return F.normalize(torch.stack(means), dim=1)

    @torch.no_grad()
    def _windows(self, waves: Sequence[Tensor], batch: int) -> list[Tensor]:
        """The vectors of each wave's windows; at most one wave's windows and a batch are in memory."""
        was_training = self.training
        self.eval()
        try:
            vectors, counts, waiting = [], [], []
            for i, wave in enumerate(waves):
                wave = torch.as_tensor(wave)
                if wave.ndim != 1 or not len(wave):
                    raise ValueError(f"wave {i} is {tuple(wave.shape)}, not (time,)")
                waiting.append(self.segments(as_float(wave.to(self.device))))
                counts.append(len(waiting[-1]))
                ready, last = sum(map(len, waiting)), i == len(waves) - 1
                if ready >= batch or last:
                    rows = torch.cat(waiting)
                    full = ready if last else ready // batch * batch
                    vectors += [self.encode(part) for part in rows[:full].split(batch)]
                    waiting = [rows[full:].clone()]  # not a view that keeps all of them
        finally:
            self.train(was_training)
        return list(torch.cat(vectors).split(counts))


# --- the pretrained d-vector --------------------------------------------------------------------------


class DVector(Embedder):
    """GE2E speaker encoder (Wan et al., 2018, arXiv:1710.10467): three LSTM layers over 40 mel channels.

    A linear layer and ReLU after the last hidden state, scaled to length 1, give the d-vector of 1.6 s of
    speech (160 frames). The mel front end equals librosa's `melspectrogram` with its defaults (Slaney's mel
    scale and area normalisation, power, no logarithm; windows of 400 samples) to within a relative 1e-3.
    Real-Time Voice Cloning also removes long pauses with webrtcvad; this is left out, since read speech has few
    of them and the package needs a compiler.
    """

    frames, rate, n_mels = 160, 1.3, 40
    margin = 200
    """Half an FFT window in samples: what a frame needs on either side of its centre."""

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.spectrogram = Spectrogram(400, 400, HOP, centre=False)
        nyquist = SAMPLE_RATE / 2
        bank = melscale_fbanks(201, 0.0, nyquist, self.n_mels, SAMPLE_RATE, "slaney", "slaney")
        self.register_buffer("bank", bank, persistent=False)
        self.lstm = nn.LSTM(self.n_mels, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def mel(self, segments: Tensor) -> Tensor:
        """Mel power of waves with their margins: `(batch, samples)` to `(batch, frames, 40)`."""
        return self.spectrogram(segments).transpose(1, 2) @ self.bank

    def forward(self, mel: Tensor) -> Tensor:
        """`(batch, frames, 40)` to d-vectors `(batch, 256)` of length 1."""
        _, (hidden, _) = self.lstm(mel)  # (layers, batch, hidden)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)

    def encode(self, segments: Tensor) -> Tensor:
        return self(self.mel(segments))

    def segments(self, wave: Tensor) -> Tensor:
        wave = normalise_volume(wave)
        starts = slice_starts(len(wave), self.frames, self.rate)
        size = (self.frames - 1) * HOP + 2 * self.margin
        missing = starts[-1] * HOP + size - self.margin - len(wave)
        padded = F.pad(wave, (self.margin, max(0, missing)))
        return torch.stack([padded[s * HOP :][:size] for s in starts])


def resemblyzer_weights() -> Path:
    """The file of trained weights in the installed package resemblyzer, whose code is not imported.

    Raises FileNotFoundError with the command that installs it.
    """
    spec = importlib.util.find_spec("resemblyzer")
    if spec and (path := Path(spec.origin).with_name("pretrained.pt")).is_file():
        return path
    raise FileNotFoundError(
        "The trained speaker encoder comes with the package resemblyzer, which is not installed: "
        "pip install --no-deps resemblyzer==0.1.4"
    )


def pretrained_dvector(device: torch.device | str = "cpu") -> DVector:
    """The d-vector encoder with the weights of Real-Time Voice Cloning (1.6 million steps of GE2E)."""
    state = torch.load(resemblyzer_weights(), map_location="cpu", weights_only=True)
    weights = state["model_state"]
    model = DVector()
    # the file also has the scale and offset of the GE2E loss
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("similarity_")})
    return model.to(device).eval()
