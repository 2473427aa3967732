"""The loss of the parallel synthesizer, and the batch that it is computed from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.models.fastspeech import FastSpeech, FastSpeechOutput, channel_statistics
from utils.models.tacotron2 import length_mask


class FastSpeechBatch(NamedTuple):
    """A `TextBatch` with durations `(batch, letters)` in frames and prosody `(batch, letters, 3)`."""

    text: Tensor
    text_lengths: Tensor
    d_vectors: Tensor
    mel: Tensor
    mel_lengths: Tensor
    durations: Tensor
    prosody: Tensor


@torch.no_grad()
def measure_liveliness(model: FastSpeech, batch: FastSpeechBatch, most: float = 1.5) -> None:
    """Set the factors of `compensate_global_variance`: deviation of each mel channel in recordings relative to the
    model's own output.

    The mean over the sentences of `batch`, at most `most`, because the lowest channels are mostly noise.
    """
    own = model.generate(*batch[:3])
    _, mine = channel_statistics(own.before, own.lengths)
    _, true = channel_statistics(batch.mel, batch.mel_lengths)
    factors = true.mean(0) / mine.mean(0).clamp(min=1e-6)
    model.liveliness.copy_(factors.squeeze(1).clamp(max=most))


def fastspeech_losses(out: FastSpeechOutput, batch: FastSpeechBatch) -> dict[str, Tensor]:
    """The terms of the loss, each a scalar without padding: `mel` (squared plus absolute error), `duration`
    (squared error of log(1 + frames)), `prosody` (squared error)."""
    frames = length_mask(batch.mel_lengths, out.mel.shape[2])[:, None]
    error = (out.mel - batch.mel) * frames
    mel = (error.square() + error.abs()).sum() / (frames.sum() * out.mel.shape[1])
    letters = length_mask(batch.text_lengths, batch.text.shape[1])
    duration = (out.log_durations - batch.durations.log1p()).square()  # (batch, letters)
    prosody = (out.prosody - batch.prosody).square().mean(2)
    parts = {"duration": duration, "prosody": prosody}
    return {"mel": mel} | {k: (v * letters).sum() / letters.sum() for k, v in parts.items()}


class FastSpeechLoss(nn.Module):
    """The model with its loss: a `FastSpeechBatch` in, a scalar out, as `training.fit` needs it."""

    def __init__(self, model: FastSpeech, duration: float = 0.5, prosody: float = 0.3) -> None:
        super().__init__()
        self.model, self.weights = model, {"duration": duration, "prosody": prosody}

    def parts(self, batch: FastSpeechBatch) -> dict[str, Tensor]:
        """The terms of the loss; `total` is what `forward` returns."""
        parts = fastspeech_losses(self.model(*batch), batch)
        total = parts["mel"] + sum(w * parts[k] for k, w in self.weights.items())
        return {"total": total, **parts}

    def forward(self, batch: FastSpeechBatch) -> Tensor:
        return self.parts(batch)["total"]
