"""The losses of the parallel synthesizer and the batch that they are computed from."""

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
def measure_liveliness(model: FastSpeech, batch: FastSpeechBatch, most: float = 1.5) -> None:  # fmt: skip
    """Set the model's factors: how much more each channel moves in recordings than in what the model says alone.

    The mean over the sentences of `batch`; never above `most`, since the lowest channels hold little but noise.
    """
    said = model.generate(*batch[:3])
    _, mine = channel_statistics(said.before, said.lengths)
    _, true = channel_statistics(batch.mel, batch.mel_lengths)
    factors = true.mean(0) / mine.mean(0).clamp(min=1e-6)
    model.liveliness.copy_(factors.squeeze(1).clamp(max=most))


def fastspeech_losses(out: FastSpeechOutput, batch: FastSpeechBatch) -> dict[str, Tensor]:
    """The parts of the loss, each a scalar: `mel` (squared plus absolute error), `duration` (squared error of
    log(1 + frames)), `prosody` (squared error). Padding counts nowhere."""
    frames = length_mask(batch.mel_lengths, out.mel.shape[2])[:, None]
    off = (out.mel - batch.mel) * frames
    mel = (off.square() + off.abs()).sum() / (frames.sum() * out.mel.shape[1])
    letters = length_mask(batch.text_lengths, batch.text.shape[1])
    wrong = (out.log_durations - batch.durations.log1p()).square()
    coloured = (out.prosody - batch.prosody).square().mean(2)
    parts = {"duration": wrong, "prosody": coloured}
    return {"mel": mel} | {k: (v * letters).sum() / letters.sum() for k, v in parts.items()}  # fmt: skip


class FastSpeechLoss(nn.Module):
    """The model with its loss: a `TimedBatch` in, one number out, which is what `training.fit` lowers."""

    def __init__(self, model: FastSpeech, duration: float = 0.5, prosody: float = 0.3) -> None:
        super().__init__()
        self.model, self.weights = model, {"duration": duration, "prosody": prosody}

    def parts(self, batch: FastSpeechBatch) -> dict[str, Tensor]:
        """The parts of the loss; `total` is what `forward` gives."""
        parts = fastspeech_losses(self.model(*batch), batch)
        total = parts["mel"] + sum(w * parts[k] for k, w in self.weights.items())
        return {"total": total, **parts}

    def forward(self, batch: FastSpeechBatch) -> Tensor:
        return self.parts(batch)["total"]
