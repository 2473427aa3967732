"""A synthesizer without a loop: text and a d-vector to mel frames, all at once, by durations that it predicts.

After FastSpeech (Ren et al., 2019, arXiv:1905.09263), with pitch and energy as in FastPitch (Lancucki, 2021,
arXiv:2006.06873). No frame hears another's output, so nothing can be lost on the way from teacher forcing to
free running; what attention did, a duration for each letter does, learned from the attention of a Tacotron 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tacotron2 import Encoder, Speech, length_mask, letters_and_voice
from .tts_mel import SILENCE
from .tts_text import SYMBOLS

PROSODY = ("pitch", "voiced", "energy")
"""What is said of each letter beside its duration (see `timing.letter_prosody`)."""


@dataclass(frozen=True)
class ParallelConfig:
    """Sizes. `encoder`: as Tacotron 2's; `width` and `hidden`: of each of the decoder's `blocks`."""

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


class Timed(NamedTuple):
    """What the network gives for true durations: mel `(batch, n_mels, frames)`, and what it would have predicted,
    log durations `(batch, letters)` (of one frame more) and prosody `(batch, letters, 3)`."""

    mel: Tensor
    log_durations: Tensor
    prosody: Tensor


class ConvNeXt(nn.Module):
    """A residual block over `(batch, time, width)`: each channel over its neighbours in time, then all channels
    (Liu et al., 2022, arXiv:2201.03545). What `mask` `(batch, time, 1)` leaves out is read as 0."""

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
    """A linear layer, blocks, and a linear layer out: `(batch, time, before)` to `(batch, time, after)`."""

    def __init__(
        self, before: int, width: int, hidden: int, after: int, n: int, kernel: int, dropout: float
    ) -> None:  # fmt: skip
        super().__init__()
        self.enter = nn.Linear(before, width)
        self.blocks = nn.ModuleList(ConvNeXt(width, hidden, kernel, dropout) for _ in range(n))  # fmt: skip
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, after)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(self.norm(x))


def spread(durations: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each frame belongs to each letter, `(batch, frames, letters)`, from durations in frames.

    Letters stand one behind the other on the time axis; frame t is the stretch from t to t + 1, and its weights
    are what of it each letter covers. Durations need not be whole numbers. Also where in its letter the middle of
    a frame lies: frames since the letter's beginning and until its end, `(batch, frames)` each.
    """
    end = durations.cumsum(1)[:, None]
    start = end - durations[:, None]
    t = torch.arange(frames, device=durations.device, dtype=durations.dtype)[:, None]
    weights = (torch.minimum(end, t + 1) - torch.maximum(start, t)).clamp(min=0)
    since = (weights * (t + 0.5 - start)).sum(2)
    until = (weights * (end - t - 0.5)).sum(2)
    return weights, since, until


class ParallelSynthesizer(nn.Module):
    """Text `(batch, letters)` and d-vectors `(batch, d_vector)` to mel frames `(batch, n_mels, frames)`.

    `forward` is told the durations and the prosody, `generate` predicts them.
    """

    def __init__(self, config: ParallelConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or ParallelConfig()
        self.encoder = Encoder(c)
        self.speaker = nn.Linear(c.d_vector, c.speaker)
        memory, small = c.encoder + c.speaker, (c.predictor, 2 * c.predictor)
        self.duration = Blocks(memory, *small, 1, 2, 5, 0.2)
        self.prosody = Blocks(memory, *small, len(PROSODY), 2, 5, 0.2)
        self.colour = nn.Conv1d(len(PROSODY), memory, 3, padding=1)
        self.decoder = Blocks(memory + 2, c.width, c.hidden, c.n_mels, c.blocks, c.kernel, c.dropout)  # fmt: skip
        self.register_buffer("liveliness", torch.ones(c.n_mels))

    def memory(self, text: Tensor, lengths: Tensor, d_vectors: Tensor) -> Tensor:
        """Each letter as it was read, with the voice beside it: `(batch, letters, encoder + speaker)`."""
        return letters_and_voice(self.encoder(text, lengths), d_vectors, self.speaker)

    def frames_of(self, memory: Tensor, inside: Tensor) -> Tensor:
        """Frames that each letter of a memory should last, `(batch, letters)`; 0 where `inside` `(batch, letters,
        1)` is 0."""
        lasting = self.duration(memory, inside).squeeze(2).exp() - 1
        return lasting.clamp(min=0) * inside.squeeze(2)

    def decode(
        self, memory: Tensor, durations: Tensor, prosody: Tensor, lengths: Tensor, frames: int
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Mel `(batch, n_mels, frames)` of timed letters, and the weights by which they were spread over time."""
        memory = memory + self.colour(prosody.transpose(1, 2)).transpose(1, 2)
        weights, since, until = spread(durations, frames)
        # in units of 8 frames (128 ms), so that they are about as large as what stands beside them
        x = torch.cat([weights @ memory, since[..., None] / 8, until[..., None] / 8], 2)
        inside = length_mask(lengths, frames)[..., None].to(x.dtype)
        return self.decoder(x, inside).transpose(1, 2), weights

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        d_vectors: Tensor,
        mel: Tensor,
        mel_lengths: Tensor,
        durations: Tensor,
        prosody: Tensor,
    ) -> Timed:
        """The mel for true durations and prosody; their predictions beside it. `mel` gives the shape alone.

        The durations are predicted from a memory without gradient: how long letters last must not change how
        they are read.
        """
        memory = self.memory(text, text_lengths, d_vectors)
        inside = length_mask(text_lengths, text.shape[1])[..., None].to(memory.dtype)
        told, _ = self.decode(memory, durations, prosody, mel_lengths, mel.shape[2])
        lasting = self.duration(memory.detach(), inside).squeeze(2)
        return Timed(told.float(), lasting.float(), self.prosody(memory, inside).float())

    @torch.no_grad()
    def generate(
        self, text: Tensor, text_lengths: Tensor, d_vectors: Tensor, pace: float = 1.0
    ) -> Speech:
        """Speech as `Tacotron2.generate` gives it, without a loop: the `alignment` is that of the durations.

        Of `Speech`, `before` is the mel as the decoder gave it, `mel` the same made lively (see `enliven`).
        `pace` divides the durations. Evaluation mode is the caller's affair; nothing is drawn at random.
        Raises ValueError unless `pace` is above 0.
        """
        if not pace > 0:
            raise ValueError(f"pace {pace}: write a number above 0 (2 is twice as fast)")
        memory = self.memory(text, text_lengths, d_vectors)
        inside = length_mask(text_lengths, text.shape[1])[..., None].to(memory.dtype)
        durations = self.frames_of(memory, inside) / pace
        lengths = durations.sum(1).ceil().long().clamp(min=2)
        mel, weights = self.decode(
            memory, durations, self.prosody(memory, inside) * inside, lengths, int(lengths.max())
        )  # fmt: skip
        silent = ~length_mask(lengths, mel.shape[2])
        mel = mel.masked_fill(silent[:, None], SILENCE)
        lively = enliven(mel, lengths, self.liveliness)
        ended = torch.ones(len(text), dtype=torch.bool, device=text.device)
        return Speech(lively, lengths, silent.float(), weights, ended, mel)


def spread_over_time(mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over each item's own frames, `(batch, n_mels, 1)` both."""
    inside = length_mask(lengths, mel.shape[2])[:, None].to(mel.dtype)
    count = inside.sum(2, keepdim=True)
    mean = (mel * inside).sum(2, keepdim=True) / count
    return mean, ((mel - mean).square() * inside).sum(2, keepdim=True).div(count).sqrt()


def enliven(mel: Tensor, lengths: Tensor, factors: Tensor) -> Tensor:
    """Each channel of `mel` `(batch, n_mels, frames)` moved away from its mean by its factor `(n_mels,)`.

    What is predicted by squared and absolute error is a mean of all that could have been said, and moves less than
    speech does; this gives it the global variance of speech back (after Toda & Tokuda, 2007, IEICE E90-D(5)).
    """
    mean, _ = spread_over_time(mel, lengths)
    inside = length_mask(lengths, mel.shape[2])[:, None]
    return torch.where(inside, mean + (mel - mean) * factors[:, None], mel)
