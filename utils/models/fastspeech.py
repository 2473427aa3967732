"""A FastSpeech-like synthesizer: text and a d-vector to all mel frames at once, with predicted durations.

After FastSpeech (Ren et al., 2019, arXiv:1905.09263), with pitch and energy as in FastPitch (Lancucki, 2021,
arXiv:2006.06873). It is non-autoregressive, so there is no gap between training and free running. A duration
for each letter, learned from the attention of a Tacotron 2, takes the place of the attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tacotron2 import Encoder, SynthesisOutput, add_speaker_embedding, length_mask
from .tts_mel import SILENCE
from .tts_text import SYMBOLS

PROSODY = ("pitch", "voiced", "energy")
"""The values that are predicted for each letter beside its duration."""


@dataclass(frozen=True)
class FastSpeechConfig:
    """Layer sizes. `encoder`: as in Tacotron 2; `width` and `hidden`: of each of the `blocks` of the decoder."""

    encoder: int = 256
    width: int = 256
    hidden: int = 512
    blocks: int = 8
    kernel: int = 7
    predictor: int = 192
    speaker: int = 64
    d_vector: int = 256
    n_mels: int = 80
    symbols: int = len(SYMBOLS)
    dropout: float = 0.1


class FastSpeechOutput(NamedTuple):
    """Output for given durations: mel `(batch, n_mels, frames)`, and the predicted log(1 + duration)
    `(batch, letters)` and prosody `(batch, letters, 3)`."""

    mel: Tensor
    log_durations: Tensor
    prosody: Tensor


class ConvNeXt(nn.Module):
    """A residual block over `(batch, time, width)`: depthwise convolution, then two linear layers (Liu et al.,
    2022, arXiv:2201.03545). Positions outside `mask` `(batch, time, 1)` are read as 0."""

    def __init__(self, width: int, hidden: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.near = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        near = self.near((x * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(self.scale * self.down(F.gelu(self.up(self.norm(near)))))


class Blocks(nn.Module):
    """A linear layer, `n` ConvNeXt blocks and a linear layer: `(batch, time, inputs)` to `(..., outputs)`."""

    def __init__(
        self, inputs: int, width: int, hidden: int, outputs: int, n: int, kernel: int, dropout: float
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ConvNeXt(width, hidden, kernel, dropout) for _ in range(n))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(self.norm(x))


def length_regulate(durations: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """The fraction of each frame that each letter covers, `(batch, frames, letters)`, from durations in frames.

    Letters follow one another on the time axis; frame t lasts from t to t + 1. Durations need not be whole
    numbers. Also the position of each frame's middle in its letter: frames since the letter's beginning and
    until its end, `(batch, frames)` each.
    """
    end = durations.cumsum(1)[:, None]  # (batch, 1, letters)
    start = end - durations[:, None]
    t = torch.arange(frames, device=durations.device, dtype=durations.dtype)[:, None]
    weights = (torch.minimum(end, t + 1) - torch.maximum(start, t)).clamp(min=0)
    since = (weights * (t + 0.5 - start)).sum(2)  # (batch, frames)
    until = (weights * (end - t - 0.5)).sum(2)
    return weights, since, until


class FastSpeech(nn.Module):
    """Text `(batch, letters)` and d-vectors `(batch, d_vector)` to mel frames `(batch, n_mels, frames)`.

    `forward` takes durations and prosody, `generate` predicts them.
    """

    def __init__(self, config: FastSpeechConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or FastSpeechConfig()
        self.encoder = Encoder(c)
        self.speaker = nn.Linear(c.d_vector, c.speaker)
        memory, small = c.encoder + c.speaker, (c.predictor, 2 * c.predictor)
        self.duration = Blocks(memory, *small, 1, 2, 5, 0.2)
        self.prosody = Blocks(memory, *small, len(PROSODY), 2, 5, 0.2)
        self.colour = nn.Conv1d(len(PROSODY), memory, 3, padding=1)
        sizes = memory + 2, c.width, c.hidden, c.n_mels
        self.decoder = Blocks(*sizes, c.blocks, c.kernel, c.dropout)
        self.register_buffer("liveliness", torch.ones(c.n_mels))

    def memory(self, text: Tensor, lengths: Tensor, d_vectors: Tensor) -> Tensor:
        """Encoded letters with the speaker embedding, `(batch, letters, encoder + speaker)`."""
        return add_speaker_embedding(self.encoder(text, lengths), d_vectors, self.speaker)

    def predict_durations(self, memory: Tensor, mask: Tensor) -> Tensor:
        """Predicted frames of each letter, `(batch, letters)`; 0 where `mask` `(batch, letters, 1)` is 0."""
        durations = self.duration(memory, mask).squeeze(2).exp() - 1
        return durations.clamp(min=0) * mask.squeeze(2)

    def decode(
        self, memory: Tensor, durations: Tensor, prosody: Tensor, lengths: Tensor, frames: int
    ) -> tuple[Tensor, Tensor]:
        """Mel `(batch, n_mels, frames)` of letters with durations, and the weights of `length_regulate`."""
        memory = memory + self.colour(prosody.transpose(1, 2)).transpose(1, 2)
        weights, since, until = length_regulate(durations, frames)
        # in units of 8 frames (128 ms), so that they are about as large as the other inputs
        x = torch.cat([weights @ memory, since[..., None] / 8, until[..., None] / 8], 2)
        mask = length_mask(lengths, frames)[..., None].to(x.dtype)  # (batch, frames, 1)
        return self.decoder(x, mask).transpose(1, 2), weights

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        d_vectors: Tensor,
        mel: Tensor,
        mel_lengths: Tensor,
        durations: Tensor,
        prosody: Tensor,
    ) -> FastSpeechOutput:
        """The mel for true durations and prosody, and the predictions of both. Only the shape of `mel` is used.

        No gradient flows from the duration predictor into the encoder.
        """
        memory = self.memory(text, text_lengths, d_vectors)
        mask = length_mask(text_lengths, text.shape[1])[..., None].to(memory.dtype)
        predicted, _ = self.decode(memory, durations, prosody, mel_lengths, mel.shape[2])
        log_durations = self.duration(memory.detach(), mask).squeeze(2)
        prosody = self.prosody(memory, mask)
        return FastSpeechOutput(predicted.float(), log_durations.float(), prosody.float())

    @torch.no_grad()
    def generate(
        self, text: Tensor, text_lengths: Tensor, d_vectors: Tensor, pace: float = 1.0
    ) -> SynthesisOutput:
        """Speech, as `Tacotron2.generate` returns it; the `alignment` is that of the predicted durations.

        `before` is the mel of the decoder, `mel` the same after `compensate_global_variance`. `pace` divides the
        durations. Call `model.eval()` first; nothing is random. Raises ValueError unless `pace` is above 0.
        """
        if not pace > 0:
            raise ValueError(f"pace {pace}: write a number above 0 (2 is twice as fast)")
        memory = self.memory(text, text_lengths, d_vectors)
        mask = length_mask(text_lengths, text.shape[1])[..., None].to(memory.dtype)
        durations = self.predict_durations(memory, mask) / pace
        prosody = self.prosody(memory, mask) * mask
        lengths = durations.sum(1).ceil().long().clamp(min=2)
        mel, weights = self.decode(memory, durations, prosody, lengths, int(lengths.max()))
        silent = ~length_mask(lengths, mel.shape[2])
        mel = mel.masked_fill(silent[:, None], SILENCE)
        after = compensate_global_variance(mel, lengths, self.liveliness)
        stopped = torch.ones(len(text), dtype=torch.bool, device=text.device)
        return SynthesisOutput(after, lengths, silent.float(), weights, stopped, mel)


def channel_statistics(mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each mel channel over the unpadded frames, `(batch, n_mels, 1)` both."""
    mask = length_mask(lengths, mel.shape[2])[:, None].to(mel.dtype)
    count = mask.sum(2, keepdim=True)
    mean = (mel * mask).sum(2, keepdim=True) / count
    return mean, ((mel - mean).square() * mask).sum(2, keepdim=True).div(count).sqrt()


def compensate_global_variance(mel: Tensor, lengths: Tensor, factors: Tensor) -> Tensor:
    """Scale each channel's deviation from its mean, in `mel` `(batch, n_mels, frames)`, by `factors` `(n_mels,)`.

    Squared and absolute errors lead to averaged predictions with less variance than speech has; this restores
    the global variance (after Toda & Tokuda, 2007, IEICE E90-D(5)).
    """
    mean, _ = channel_statistics(mel, lengths)
    mask = length_mask(lengths, mel.shape[2])[:, None]
    return torch.where(mask, mean + (mel - mean) * factors[:, None], mel)
