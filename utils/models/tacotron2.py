"""Tacotron 2 that speaks in a given voice: text and a d-vector to mel frames.

Shen et al., 2018 (arXiv:1712.05884), conditioned on a speaker embedding as in Jia et al., 2018
(arXiv:1806.04558), with a reduction factor (Wang et al., 2017, arXiv:1703.10135). What pads a text or a
mel changes nothing: every convolution, batch norm, attention and backward LSTM leaves it out, in training
as in synthesis; and training shows the network some silence after each sentence, in which it learns to stop.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tts_mel import SILENCE
from .tts_text import SYMBOLS

TAIL = 4
"""Decoder steps of silence after each sentence: there the stop gate is to be open."""

FRAMES_PER_LETTER, FRAMES_EXTRA = 12, 80
"""The longest speech that a text may give: about twice what slow reading takes."""

ALIGNED = 0.6
"""Diagonality from which an attention is called aligned."""


@dataclass(frozen=True)
class TacotronConfig:
    """Sizes. `encoder`: embedding, convolutions, BiLSTM; `decoder`: both LSTMs; `r`: frames a decoder step."""

    encoder: int = 256
    decoder: int = 512
    r: int = 3
    attention: int = 128
    prenet: int = 256
    postnet: int = 256
    speaker: int = 64
    d_vector: int = 256
    n_mels: int = 80
    symbols: int = len(SYMBOLS)
    dropout: float = 0.5
    rnn_dropout: float = 0.1
    prenet_dropout: float = 0.5


class TextBatch(NamedTuple):
    """Sentences: text `(batch, letters)`, mel `(batch, n_mels, frames)` normalised, lengths and d-vectors."""

    text: Tensor
    text_lengths: Tensor
    d_vectors: Tensor
    mel: Tensor
    mel_lengths: Tensor


class Forced(NamedTuple):
    """What teacher forcing gives: mel before and after the post-net, stop logits `(batch, steps)`,
    alignment `(batch, steps, letters)`."""

    before: Tensor
    mel: Tensor
    stop: Tensor
    alignment: Tensor


@dataclass
class Speech:
    """What free running gives: mel `(batch, n_mels, frames)`, silent after each item's `lengths` frames;
    stop probabilities `(batch, steps)`; alignment `(batch, steps, letters)`; `stopped` is False where the
    text's limit ended it."""

    mel: Tensor
    lengths: Tensor
    stop: Tensor
    alignment: Tensor
    stopped: Tensor
    before: Tensor

    def item(self, i: int) -> Tensor:
        """The mel of one item without its padding, `(n_mels, frames)`."""
        return self.mel[i, :, : int(self.lengths[i])]


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """`(batch, size)`, True where an item has something."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def speech_steps(mel_lengths: Tensor, r: int) -> Tensor:
    """Decoder steps that hold speech: frames divided by r, rounded up."""
    return (mel_lengths + r - 1) // r


def run_lstm(lstm: nn.LSTM, x: Tensor, past: tuple | None = None):
    """`lstm(x, past)`; on a CPU in float32, since oneDNN cannot train an LSTM in bfloat16."""
    if x.device.type != "cpu":
        return lstm(x, past)
    with torch.autocast("cpu", enabled=False):
        return lstm(x.float(), past)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of `(batch, channels, time)` whose mean and variance leave padding out. Computes in float32."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.float()
        if self.training:
            inside = mask.float()
            n = inside.sum()
            mean = (x * inside).sum((0, 2)) / n
            var = ((x - mean[:, None]).square() * inside).sum((0, 2)) / n
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
                self.num_batches_tracked += 1
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.weight * (var + self.eps).rsqrt()
        return (x - mean[:, None]) * scale[:, None] + self.bias[:, None]


class ConvNorm(nn.Module):
    """Convolution over 5 positions, masked batch norm, activation, dropout; padding stays 0."""

    def __init__(self, before: int, after: int, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, 5, padding=2, bias=False)
        self.norm = MaskedBatchNorm(after)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.conv(x), mask))) * mask


class Encoder(nn.Module):
    """Letters to what attention looks at: embedding, three convolutions, a bidirectional LSTM.

    The backward direction is an LSTM over each text turned around, its padding still behind, so that it
    never reads padding and needs no packed sequence (whose lengths a GPU would have to send back).
    """

    def __init__(self, config: TacotronConfig) -> None:
        super().__init__()
        size = config.encoder
        self.embedding = nn.Embedding(config.symbols, size, padding_idx=0)
        self.convs = nn.ModuleList(
            ConvNorm(size, size, nn.ReLU(), config.dropout) for _ in range(3)
        )
        self.forwards = nn.LSTM(size, size // 2, batch_first=True)
        self.backwards = nn.LSTM(size, size - size // 2, batch_first=True)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        inside = length_mask(lengths, text.shape[1])
        x = self.embedding(text).transpose(1, 2)
        for conv in self.convs:
            x = conv(x, inside[:, None])
        x = x.transpose(1, 2)
        place = torch.arange(text.shape[1], device=text.device).expand_as(text)
        turned = torch.where(inside, lengths[:, None] - 1 - place, place)
        there, _ = run_lstm(self.forwards, x)
        back, _ = run_lstm(self.backwards, x.gather(1, turned[..., None].expand_as(x)))
        back = back.gather(1, turned[..., None].expand_as(back))
        return torch.cat([there, back], 2) * inside[..., None]


def letters_and_voice(letters: Tensor, d_vectors: Tensor, speaker: nn.Linear) -> Tensor:
    """Each letter as it was read, `(batch, letters, encoder)`, with the voice beside it."""
    voice = F.softsign(speaker(F.normalize(d_vectors, dim=1)))
    voice = voice[:, None].expand(-1, letters.shape[1], -1)
    return torch.cat([letters, voice.to(letters.dtype)], 2)


class Prenet(nn.Module):
    """Two small layers over the last frame. Dropout stays on in synthesis too, as in the paper: the decoder
    must not lean on the last frame alone."""

    def __init__(self, config: TacotronConfig) -> None:
        super().__init__()
        self.first = nn.Linear(config.n_mels, config.prenet)
        self.second = nn.Linear(config.prenet, config.prenet)
        self.dropout = config.prenet_dropout

    def forward(self, frames: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            frames = F.dropout(layer(frames).relu(), self.dropout, training=True)
        return frames


class Attention(nn.Module):
    """Location-sensitive attention (Chorowski et al., 2015, arXiv:1506.07503): where to look next depends on
    the decoder, on the letters, and on where it has looked (last weights and their sum)."""

    def __init__(self, query: int, memory: int, size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query, size, bias=False)
        self.key = nn.Linear(memory, size, bias=False)
        self.place = nn.Conv1d(2, size, 31, padding=15, bias=False)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor, weights: Tensor, seen: Tensor
    ) -> Tensor:
        """Weights `(batch, letters)` that sum to 1 inside the mask and are 0 outside."""
        # self.place as one product: a convolution of two channels costs more to call than to compute
        reach = self.place.padding[0]
        both = F.pad(torch.stack([weights, seen], 1), (reach, reach))
        both = both.unfold(2, 2 * reach + 1, 1).transpose(1, 2).flatten(2)
        place = F.linear(both, self.place.weight.flatten(1))
        hidden = torch.tanh(self.query(query)[:, None] + keys + place)
        energy = self.score(hidden).squeeze(2).float()
        return energy.masked_fill(~mask, -1e9).softmax(1)


class WeightLater(torch.autograd.Function):
    """`sums` `(steps, batch, out)` as they are; backward, one product is the gradient of a `weight` `(out, in)`.

    For a loop that adds products with `weight.detach()` to the sums and notes its `inputs`, one `(batch, in)` a
    step: the weight's gradient is computed once over all steps, not once a step and added up.
    """

    @staticmethod
    def forward(ctx, sums: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs = inputs
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs = torch.cat(ctx.inputs)
        return gradient, gradient.flatten(0, 1).T.to(inputs.dtype) @ inputs, None


class State(NamedTuple):
    """What the attention loop hands from one step to the next."""

    hidden: Tensor
    cell: Tensor
    context: Tensor
    weights: Tensor
    seen: Tensor


class Postnet(nn.Module):
    """Five convolutions that add what single steps cannot see: the neighbouring frames."""

    def __init__(self, config: TacotronConfig) -> None:
        super().__init__()
        sizes = [config.n_mels, *[config.postnet] * 4, config.n_mels]
        self.convs = nn.ModuleList(
            ConvNorm(
                sizes[i], sizes[i + 1], nn.Tanh() if i < 4 else nn.Identity(), config.dropout
            )
            for i in range(5)
        )  # fmt: skip

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        x = mel * mask
        for conv in self.convs:
            x = conv(x, mask)
        return x


class Tacotron2(nn.Module):
    """Text `(batch, letters)` and d-vectors `(batch, d_vector)` to mel frames `(batch, n_mels, frames)`.

    `forward` is teacher-forced, `generate` runs on its own output. Only the attention LSTM and the attention
    are a loop over steps; the decoder LSTM reads the loop's whole output at once, since nothing of it
    goes back into the loop.
    """

    def __init__(self, config: TacotronConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or TacotronConfig()
        self.encoder = Encoder(c)
        self.speaker = nn.Linear(c.d_vector, c.speaker)
        memory = c.encoder + c.speaker
        self.prenet = Prenet(c)
        self.attention_rnn = nn.LSTMCell(c.prenet + memory, c.decoder)
        self.attention = Attention(c.decoder, memory, c.attention)
        self.dropout = nn.Dropout(c.rnn_dropout)
        self.decoder_rnn = nn.LSTM(c.decoder + memory, c.decoder, batch_first=True)
        self.to_mel = nn.Linear(c.decoder + memory, c.n_mels * c.r)
        self.to_stop = nn.Linear(c.decoder + memory, 1)
        self.postnet = Postnet(c)

    def memory(self, text: Tensor, lengths: Tensor, d_vectors: Tensor) -> Tensor:
        """What attention looks at, `(batch, letters, encoder + speaker)`: each letter with the voice beside it."""
        return letters_and_voice(self.encoder(text, lengths), d_vectors, self.speaker)

    def _begin(self, memory: Tensor) -> State:
        batch, letters, size = memory.shape

        def zeros(n: int) -> Tensor:
            return torch.zeros(batch, n, device=memory.device)

        width = self.config.decoder
        return State(zeros(width), zeros(width), zeros(size), zeros(letters), zeros(letters))

    def _attend(
        self, frame: Tensor, state: State, memory: Tensor, keys: Tensor, mask: Tensor
    ) -> State:
        """One step of the loop: the last frame (after the pre-net) and the last context move the attention."""
        hidden, cell = self.attention_rnn(
            torch.cat([frame, state.context.to(frame.dtype)], 1), (state.hidden, state.cell)
        )
        return self._look(hidden, cell, state, memory, keys, mask)

    def _look(
        self, hidden: Tensor, cell: Tensor, state: State, memory: Tensor, keys: Tensor, mask: Tensor
    ) -> State:
        """The second half of a step: where the attention looks, and what it sees there."""
        weights = self.attention(hidden, keys, mask, state.weights, state.seen)
        context = torch.bmm(weights[:, None].to(memory.dtype), memory).squeeze(1)
        return State(hidden, cell, context, weights, state.seen + weights)

    def _attend_all(
        self, frames: Tensor, memory: Tensor, keys: Tensor, mask: Tensor
    ) -> list[State]:
        """`_attend` over all frames `(batch, steps, prenet)`, whose part of the cell comes before the loop."""
        rnn, width = self.attention_rnn, self.config.prenet
        gates = F.linear(frames, rnn.weight_ih[:, :width], rnn.bias_ih + rnn.bias_hh)
        weight = torch.cat([rnn.weight_ih[:, width:], rnn.weight_hh], 1)
        inputs: list[Tensor] = []
        gates = WeightLater.apply(gates.transpose(0, 1), weight, inputs)
        weight = weight.detach().to(gates.dtype).T
        state, states = self._begin(memory), []
        for sums in gates.unbind(0):
            both = torch.cat([state.context, state.hidden], 1)
            inputs.append(both.detach())
            sums = torch.addmm(sums, both.to(sums.dtype), weight)
            take, forget, new, give = sums.chunk(4, 1)
            cell = forget.sigmoid() * state.cell + take.sigmoid() * new.tanh()
            hidden = give.sigmoid() * cell.tanh()
            state = self._look(hidden, cell, state, memory, keys, mask)
            states.append(state)
        return states

    def _frames(self, out: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder LSTM's output `(batch, steps, decoder)` to frames and stop logits."""
        both = torch.cat([self.dropout(out), context.to(out.dtype)], 2)
        batch, steps, _ = both.shape
        frames = self.to_mel(both).float().view(batch, steps * self.config.r, -1)
        return frames.transpose(1, 2), self.to_stop(both).squeeze(2).float()

    def _decode(self, hidden: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Attention's output over all steps `(batch, steps, ...)` to frames and stop logits."""
        both = torch.cat([self.dropout(hidden), context.to(hidden.dtype)], 2)
        out, _ = run_lstm(self.decoder_rnn, both)
        return self._frames(out, context)

    def _decode_step(
        self, state: State, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The same for one step, by the same weights as a cell: an LSTM of length 1 is slow to call."""
        both = torch.cat([self.dropout(state.hidden), state.context], 1)
        past = torch.lstm_cell(both, past, *self.decoder_rnn.all_weights[0])
        return *self._frames(past[0][:, None], state.context[:, None]), past

    def _refine(self, before: Tensor, steps: Tensor) -> Tensor:
        """The post-net over each item's speech and the TAIL of silence behind it, in training and synthesis."""
        frames = (steps + TAIL) * self.config.r
        mask = length_mask(frames, before.shape[2])[:, None]
        return before + self.postnet(before, mask).float()

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        d_vectors: Tensor,
        mel: Tensor,
        mel_lengths: Tensor,
        heard: Tensor | None = None,
    ) -> Forced:
        """Teacher forcing: each step is given the true last frame, whatever the network said before.

        `heard` `(batch, n_mels, frames)` is given in the place of the true frames (the network's own, in part).
        Frames are filled up with silence to a multiple of r.
        """
        r = self.config.r
        given = pad_frames(mel if heard is None else heard, r)
        last = given[:, :, r - 1 :: r]
        last = F.pad(last, (1, 0), value=SILENCE)[:, :, :-1].transpose(1, 2)
        frames = self.prenet(last)
        memory = self.memory(text, text_lengths, d_vectors)
        mask = length_mask(text_lengths, text.shape[1])
        keys = self.attention.key(memory)
        states = self._attend_all(frames, memory, keys, mask)
        hidden, _, context, weights, _ = (torch.stack(x, 1) for x in zip(*states, strict=True))
        before, stop = self._decode(hidden, context)
        after = self._refine(before, speech_steps(mel_lengths, r))
        return Forced(before, after, stop, weights)

    @torch.no_grad()
    def generate(
        self,
        text: Tensor,
        text_lengths: Tensor,
        d_vectors: Tensor,
        threshold: float = 0.5,
        max_frames: int | None = None,
        window: int | None = None,
    ) -> Speech:
        """Free running: each step is given the network's own last frame, until the stop gate passes `threshold`.

        An item ends at the latest after `FRAMES_PER_LETTER` frames a letter (or `max_frames`); a warning says
        so, and its `stopped` is False. `window` keeps the attention within so many letters ahead of the one
        it looked at last, and one behind (Ping et al., 2018, arXiv:1710.07654). Evaluation mode is the
        caller's affair; the pre-net's dropout draws from torch's generator: seed it to repeat a sentence.
        """
        r = self.config.r
        memory = self.memory(text, text_lengths, d_vectors)
        mask = length_mask(text_lengths, text.shape[1])
        keys = self.attention.key(memory)
        most = FRAMES_PER_LETTER * text_lengths + FRAMES_EXTRA
        most = torch.full_like(most, max_frames) if max_frames else most
        limit = (most + r - 1) // r
        state, ended = self._begin(memory), limit.clone()
        past = state.hidden, state.cell  # zeros for the decoder LSTM too
        last = torch.full((len(text), self.config.n_mels), SILENCE, device=text.device)
        place = torch.arange(text.shape[1], device=text.device)
        mels, stops, weights = [], [], []
        for step in range(int(limit.max()) + TAIL):
            near = mask
            if window is not None:
                at = state.weights.argmax(1, keepdim=True)
                near = mask & (place >= at - 1) & (place <= at + window)
            state = self._attend(self.prenet(last), state, memory, keys, near)
            mel, stop, past = self._decode_step(state, past)
            last = mel[:, :, -1]
            mels.append(mel)
            stops.append(stop.sigmoid())
            weights.append(state.weights)
            if step:  # a sentence has one step at least
                ends = (stops[-1][:, 0] > threshold) & (step < ended)
                ended = torch.where(ends, step, ended)
            # asked now and then: the answer has to come back from the device
            if step % 8 == 7 and bool((ended + TAIL <= step).all()):
                break
        before, stop = torch.cat(mels, 2), torch.cat(stops, 1)
        after, lengths = self._refine(before, ended), ended * r
        inside = length_mask(lengths, before.shape[2])[:, None]
        longest = int(lengths.max())
        stopped = ended < limit
        if not bool(stopped.all()):
            warnings.warn(
                f"{int((~stopped).sum())} of {len(text)} texts did not stop by themselves and were ended at "
                "the limit of their length: train longer, or look at the alignment.",
                stacklevel=2,
            )
        return Speech(
            after.masked_fill(~inside, SILENCE)[:, :, :longest],
            lengths,
            stop,
            torch.stack(weights, 1),
            stopped,
            before,
        )


def pad_frames(mel: Tensor, r: int, extra: int = 0) -> Tensor:
    """`(batch, n_mels, frames)` filled with silence by `extra` frames and then to a multiple of r."""
    frames = math.ceil((mel.shape[2] + extra) / r) * r
    return F.pad(mel, (0, frames - mel.shape[2]), value=SILENCE)


# --- losses and measures ------------------------------------------------------------------------------


def _relative(lengths: Tensor, size: int) -> Tensor:
    """Position 0 to 1 within each item `(batch, size)`; what lies behind its end counts as its end."""
    place = torch.arange(size, device=lengths.device)
    return (place / (lengths[:, None] - 1).clamp(min=1)).clamp(max=1)


def guided_attention_loss(
    alignment: Tensor, text_lengths: Tensor, steps: Tensor, width: float = 0.2
) -> Tensor:
    """How far attention strays from the diagonal, 0 to 1 (Tachibana et al., 2018, arXiv:1710.08969).

    `alignment` `(batch, steps, letters)`, `steps` those with speech. Mean over steps (TAIL included, which
    should rest on the end) of the weights times `1 - exp(-(n/N - t/T)^2 / 2 width^2)`, summed over letters;
    the paper divides by the number of letters too.
    """
    _, size, letters = alignment.shape
    t, n = _relative(steps, size), _relative(text_lengths, letters)
    penalty = 1 - torch.exp(-((n[:, None] - t[..., None]) ** 2) / (2 * width**2))
    inside = length_mask(steps + TAIL, size)
    return ((alignment * penalty).sum(2) * inside).sum() / inside.sum()


@torch.no_grad()
def diagonality(
    alignment: Tensor, text_lengths: Tensor, steps: Tensor, band: float = 0.2
) -> Tensor:
    """How sharply and how diagonally attention looks, 0 to 1 for each item `(batch,)`.

    Mean over the steps with speech of the weight on the letter most looked at and its two neighbours, as far
    as they lie within `band` of the diagonal (both axes from 0 to 1). A blurred diagonal scores low, a
    sharp attention at the wrong place too; one letter after another scores 1.
    """
    _, size, letters = alignment.shape
    t, n = _relative(steps, size), _relative(text_lengths, letters)
    near = (n[:, None] - t[..., None]).abs() <= band
    padded = F.pad(alignment * near, (1, 1))
    peak = alignment.argmax(2, keepdim=True)
    three = sum(padded.gather(2, peak + i) for i in range(3)).squeeze(2)
    inside = length_mask(steps, size)
    return (three * inside).sum(1) / inside.sum(1)


def tacotron_losses(out: Forced, batch: TextBatch, r: int) -> dict[str, Tensor]:
    """The parts of the loss, each a scalar: `mel` (squared plus absolute error, before plus after the
    post-net), `stop` (binary cross-entropy, the open steps weighted), `guided`. Padding counts nowhere."""
    steps = speech_steps(batch.mel_lengths, r)
    size = out.stop.shape[1]
    inside = length_mask(steps + TAIL, size)
    frames = inside.repeat_interleave(r, 1)[:, None]
    target = pad_frames(batch.mel, r)
    count = frames.sum() * target.shape[1]
    mel = sum(
        ((guess - target).square() + (guess - target).abs()).mul(frames).sum() / count
        for guess in (out.before, out.mel)
    )
    open_ = (~length_mask(steps, size)).float()
    # four open steps against a hundred closed ones: each counts five times
    weight = inside * (1 + 4 * open_)
    stop = F.binary_cross_entropy_with_logits(out.stop, open_, reduction="none")
    stop = (stop * weight).sum() / inside.sum()
    guided = guided_attention_loss(out.alignment, batch.text_lengths, steps)
    return {"mel": mel, "stop": stop, "guided": guided}


class TacotronLoss(nn.Module):
    """The model with its loss: a batch in, one number out, which is what `training.fit` lowers.

    `guided` and `stop` weigh the parts. Two ways against the gap between teacher forcing and free running:
    `drop` is the share of steps that hear a mean frame (0) instead of the true last one, so that the letters must
    do (Liu et al., 2019, arXiv:1909.01145); `own` is the share that hears the network's own: a first pass gives
    them, a second is trained (parallel scheduled sampling, Duckworth et al., 2019, arXiv:1906.04331).
    """

    def __init__(
        self,
        model: Tacotron2,
        guided: float = 1.0,
        stop: float = 0.5,
        own: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.guided, self.stop = model, guided, stop
        self.own, self.drop = own, drop

    def heard(self, batch: TextBatch) -> Tensor | None:
        """The frames that the steps hear in training, `(batch, n_mels, frames)`; None: the true ones."""
        if not self.training or not (self.own or self.drop):
            return None
        frames = pad_frames(batch.mel, self.model.config.r)
        if self.own:
            with torch.no_grad():
                guess = self.model(*batch).before
            torch.clear_autocast_cache()  # weights cast without gradient stay here
            chosen = torch.rand_like(frames[:, :1]) < self.own
            frames = torch.where(chosen, guess, frames)
        gone = torch.rand_like(frames[:, :1]) < self.drop
        return frames.masked_fill(gone, 0.0)

    def parts(self, batch: TextBatch) -> tuple[Forced, dict[str, Tensor]]:
        """The output and the parts of the loss; `total` is what `forward` gives."""
        heard = self.heard(batch)
        out = self.model(*batch, heard=heard)
        parts = tacotron_losses(out, batch, self.model.config.r)
        total = parts["mel"] + self.stop * parts["stop"] + self.guided * parts["guided"]
        return out, {"total": total, **parts}

    def forward(self, batch: TextBatch) -> Tensor:
        return self.parts(batch)[1]["total"]


def steps_to_alignment(
    steps: list[int], scores: list[float], threshold: float = ALIGNED
) -> int | None:
    """The training step from which diagonality is at `threshold` or above and stays there; None if it never is.

    `steps` and `scores` are those of the validations, in order.
    """
    first = None
    for step, score in zip(steps, scores, strict=True):
        if score < threshold:
            first = None
        elif first is None:
            first = step
    return first
