"""Tacotron 2 for many speakers: text and a d-vector to mel frames.

Shen et al., 2018 (arXiv:1712.05884), conditioned on a speaker embedding as in Jia et al., 2018
(arXiv:1806.04558), with a reduction factor (Wang et al., 2017, arXiv:1703.10135). Padding never changes the
result: convolutions, batch norm, attention and the backward LSTM are masked, in training and in synthesis.
In training each sentence is followed by some silence, from which the model learns to stop.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tts_mel import SILENCE
from .tts_text import SYMBOLS

TAIL = 4
"""Decoder steps of silence after each sentence, in which the stop gate should be open."""

FRAMES_PER_LETTER, FRAMES_EXTRA = 12, 80
"""Length limit of free-running speech: about twice the length of slow reading."""

ALIGNED = 0.6
"""Diagonality from which an alignment counts as aligned."""


@dataclass(frozen=True)
class TacotronConfig:
    """Layer sizes. `encoder`: embedding, convolutions, BiLSTM; `decoder`: both LSTMs; `r`: frames a step."""

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
    """Sentences: text `(batch, letters)`, normalised mel `(batch, n_mels, frames)`, lengths and d-vectors."""

    text: Tensor
    text_lengths: Tensor
    d_vectors: Tensor
    mel: Tensor
    mel_lengths: Tensor


class TeacherForcedOutput(NamedTuple):
    """Output under teacher forcing: mel before and after the post-net `(batch, n_mels, frames)`, stop logits
    `(batch, steps)`, alignment `(batch, steps, letters)`."""

    before: Tensor
    mel: Tensor
    stop: Tensor
    alignment: Tensor


@dataclass
class SynthesisOutput:
    """Output of free running: mel `(batch, n_mels, frames)`, silent after the `lengths` of each item; stop
    probabilities `(batch, steps)`; alignment `(batch, steps, letters)`; `stopped` is False for items that
    ran into the length limit; `before` is the mel before the post-net."""

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
    """`(batch, size)`, True at the positions before each item's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def speech_steps(mel_lengths: Tensor, r: int) -> Tensor:
    """Decoder steps that hold speech: frames divided by r, rounded up."""
    return (mel_lengths + r - 1) // r


def pad_frames(mel: Tensor, r: int) -> Tensor:
    """`(batch, n_mels, frames)` padded with silence to a multiple of r frames."""
    return F.pad(mel, (0, -mel.shape[2] % r), value=SILENCE)


def run_lstm(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """The outputs of `lstm(x)`; in float32 on a CPU, because oneDNN cannot train an LSTM in bfloat16."""
    if x.device.type != "cpu":
        return lstm(x)[0]
    with torch.autocast("cpu", enabled=False):
        return lstm(x.float())[0]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of `(batch, channels, time)` with statistics over the unpadded positions. Computes in float32."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.float()
        if self.training:
            inside = mask.float()  # (batch, 1, time)
            n = inside.sum()
            mean = (x * inside).sum((0, 2)) / n  # (channels,)
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

    def __init__(self, in_channels: int, out_channels: int, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, 5, padding=2, bias=False)
        self.norm = MaskedBatchNorm(out_channels)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.conv(x), mask))) * mask


class Encoder(nn.Module):
    """Letters to the memory of the attention: embedding, three convolutions, a bidirectional LSTM.

    The backward direction is an LSTM over each text reversed within its own length, so it never reads
    padding and needs no packed sequence (whose lengths a GPU would have to send back to the CPU).
    """

    def __init__(self, config: TacotronConfig) -> None:
        super().__init__()
        size = config.encoder
        self.embedding = nn.Embedding(config.symbols, size, padding_idx=0)
        self.convs = nn.ModuleList(ConvNorm(size, size, nn.ReLU(), config.dropout) for _ in range(3))
        self.forwards = nn.LSTM(size, size // 2, batch_first=True)
        self.backwards = nn.LSTM(size, size - size // 2, batch_first=True)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        mask = length_mask(lengths, text.shape[1])  # (batch, letters)
        x = self.embedding(text).transpose(1, 2)  # (batch, size, letters)
        for conv in self.convs:
            x = conv(x, mask[:, None])
        x = x.transpose(1, 2)  # (batch, letters, size)
        position = torch.arange(text.shape[1], device=text.device).expand_as(text)
        reversed_ = torch.where(mask, lengths[:, None] - 1 - position, position)[..., None]
        forwards = run_lstm(self.forwards, x)
        backwards = run_lstm(self.backwards, x.gather(1, reversed_.expand_as(x)))
        backwards = backwards.gather(1, reversed_.expand_as(backwards))
        return torch.cat([forwards, backwards], 2) * mask[..., None]  # (batch, letters, size)


def add_speaker_embedding(letters: Tensor, d_vectors: Tensor, speaker: nn.Linear) -> Tensor:
    """The encoded letters `(batch, letters, encoder)`, each joined by the projected d-vector."""
    voice = F.softsign(speaker(F.normalize(d_vectors, dim=1)))  # (batch, speaker)
    voice = voice[:, None].expand(-1, letters.shape[1], -1)  # (batch, letters, speaker)
    return torch.cat([letters, voice.to(letters.dtype)], 2)


class Prenet(nn.Module):
    """Two small layers over the last frame. As in the paper dropout stays on in synthesis, so that the decoder
    does not rely on the last frame alone."""

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
    """Location-sensitive attention (Chorowski et al., 2015, arXiv:1506.07503): the weights depend on the decoder
    state, on the letters, and on the previous weights and their sum so far."""

    def __init__(self, query: int, memory: int, size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query, size, bias=False)
        self.key = nn.Linear(memory, size, bias=False)
        self.location_conv = nn.Conv1d(2, size, 31, padding=15, bias=False)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(
        self, query: Tensor, keys: Tensor, mask: Tensor, weights: Tensor, cumulative: Tensor
    ) -> Tensor:
        """Weights `(batch, letters)` that sum to 1 inside the mask and are 0 outside."""
        # location_conv as one matrix product: a convolution of two channels costs more to call than to compute
        reach = self.location_conv.padding[0]
        past = F.pad(torch.stack([weights, cumulative], 1), (reach, reach))
        past = past.unfold(2, 2 * reach + 1, 1)  # (batch, 2, letters, kernel)
        past = past.transpose(1, 2).flatten(2)  # (batch, letters, 2 * kernel)
        location = F.linear(past, self.location_conv.weight.flatten(1))  # (batch, letters, size)
        hidden = torch.tanh(self.query(query)[:, None] + keys + location)
        energy = self.score(hidden).squeeze(2).float()  # (batch, letters)
        return energy.masked_fill(~mask, -1e9).softmax(1)


class DeferredWeightGrad(torch.autograd.Function):
    """Identity on `sums` `(steps, batch, out)` that computes the gradient of `weight` `(out, in)` in one product.

    For a recurrent loop that multiplies by `weight.detach()` and appends its `inputs`, one `(batch, in)` a step:
    the gradient is one product over all steps instead of one product and one addition a step.
    """

    @staticmethod
    def forward(ctx, sums: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs = inputs
        return sums.view_as(sums)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs = torch.cat(ctx.inputs)  # (steps * batch, in)
        return gradient, gradient.flatten(0, 1).T.to(inputs.dtype) @ inputs, None


class DecoderState(NamedTuple):
    """State of the attention loop between two steps: LSTM hidden and cell `(batch, decoder)`, context `(batch,
    memory)`, attention weights and their sum so far `(batch, letters)`."""

    hidden: Tensor
    cell: Tensor
    context: Tensor
    weights: Tensor
    cumulative: Tensor


class Postnet(nn.Module):
    """Five convolutions that predict a correction of the mel from neighbouring frames."""

    def __init__(self, config: TacotronConfig) -> None:
        super().__init__()
        sizes = [config.n_mels, *[config.postnet] * 4, config.n_mels]
        activations = [*(nn.Tanh() for _ in range(4)), nn.Identity()]
        layers = zip(sizes[:-1], sizes[1:], activations, strict=True)
        self.convs = nn.ModuleList(ConvNorm(*layer, config.dropout) for layer in layers)

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        x = mel * mask
        for conv in self.convs:
            x = conv(x, mask)
        return x


def accept_old_names(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: the shipped weights have the layer names of the first edition."""
    for key in [k for k in state if k.startswith(prefix)]:
        new = key.replace("to_stop.", "gate.").replace("attention.place.", "attention.location_conv.")
        state[new] = state.pop(key)


class Tacotron2(nn.Module):
    """Text `(batch, letters)` and d-vectors `(batch, d_vector)` to mel frames `(batch, n_mels, frames)`.

    `forward` is teacher-forced, `generate` runs on its own output. Only the attention LSTM and the attention
    need a loop over steps; the decoder LSTM processes the output of the loop at once, because nothing is fed
    back from it into the loop.
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
        self.gate = nn.Linear(c.decoder + memory, 1)
        self.postnet = Postnet(c)
        self.register_load_state_dict_pre_hook(accept_old_names)

    def memory(self, text: Tensor, lengths: Tensor, d_vectors: Tensor) -> Tensor:
        """Encoded letters with the speaker embedding, `(batch, letters, encoder + speaker)`."""
        return add_speaker_embedding(self.encoder(text, lengths), d_vectors, self.speaker)

    def initial_state(self, memory: Tensor) -> DecoderState:
        """Zeros: the decoder has attended to nothing yet."""
        letters, size = memory.shape[1:]
        widths = self.config.decoder, self.config.decoder, size, letters, letters
        return DecoderState(*(torch.zeros(len(memory), n, device=memory.device) for n in widths))

    def attend(
        self, frame: Tensor, state: DecoderState, memory: Tensor, keys: Tensor, mask: Tensor
    ) -> DecoderState:
        """One step of the attention LSTM and the attention; `frame` `(batch, prenet)` is the last one."""
        hidden, cell = self.attention_rnn(
            torch.cat([frame, state.context.to(frame.dtype)], 1), (state.hidden, state.cell)
        )
        return self._look(state._replace(hidden=hidden, cell=cell), memory, keys, mask)

    def _look(self, state: DecoderState, memory: Tensor, keys: Tensor, mask: Tensor) -> DecoderState:
        """The second half of a step: new attention weights, and the context that they select."""
        weights = self.attention(state.hidden, keys, mask, state.weights, state.cumulative)
        context = torch.bmm(weights[:, None].to(memory.dtype), memory).squeeze(1)
        cumulative = state.cumulative + weights
        return DecoderState(state.hidden, state.cell, context, weights, cumulative)

    def attend_all(self, frames: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> list[DecoderState]:
        """`attend` over all frames `(batch, steps, prenet)`, with the product over the frames before the loop."""
        rnn, width = self.attention_rnn, self.config.prenet
        gates = F.linear(frames, rnn.weight_ih[:, :width], rnn.bias_ih + rnn.bias_hh)
        weight = torch.cat([rnn.weight_ih[:, width:], rnn.weight_hh], 1)
        inputs: list[Tensor] = []
        gates = DeferredWeightGrad.apply(gates.transpose(0, 1), weight, inputs)
        weight = weight.detach().to(gates.dtype).T  # (memory + decoder, 4 * decoder)
        state, states = self.initial_state(memory), []
        for sums in gates.unbind(0):  # (batch, 4 * decoder)
            both = torch.cat([state.context, state.hidden], 1)
            inputs.append(both.detach())
            sums = torch.addmm(sums, both.to(sums.dtype), weight)
            take, forget, new, give = sums.chunk(4, 1)
            cell = forget.sigmoid() * state.cell + take.sigmoid() * new.tanh()
            state = state._replace(hidden=give.sigmoid() * cell.tanh(), cell=cell)
            state = self._look(state, memory, keys, mask)
            states.append(state)
        return states

    def _project(self, out: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the decoder LSTM `(batch, steps, decoder)` to frames and stop logits."""
        both = torch.cat([self.dropout(out), context.to(out.dtype)], 2)
        batch, steps, _ = both.shape
        frames = self.to_mel(both).float().view(batch, steps * self.config.r, -1)
        return frames.transpose(1, 2), self.gate(both).squeeze(2).float()

    def decode_step(
        self, state: DecoderState, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Frames `(batch, n_mels, r)`, stop logits `(batch, 1)` and new state of the decoder LSTM for one step.

        Computed as a cell with the weights of the LSTM: an LSTM call over one step is slow.
        """
        both = torch.cat([self.dropout(state.hidden), state.context], 1)
        past = torch.lstm_cell(both, past, *self.decoder_rnn.all_weights[0])
        return *self._project(past[0][:, None], state.context[:, None]), past

    def _refine(self, before: Tensor, steps: Tensor) -> Tensor:
        """The mel plus the post-net's correction, over each item's speech and its TAIL of silence."""
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
        decoder_inputs: Tensor | None = None,
    ) -> TeacherForcedOutput:
        """Teacher forcing: the input of each step is the last true frame.

        `decoder_inputs` `(batch, n_mels, frames)` replace the true frames (scheduled sampling). The frames are
        padded with silence to a multiple of r.
        """
        r = self.config.r
        frames = pad_frames(mel if decoder_inputs is None else decoder_inputs, r)
        last = frames[:, :, r - 1 :: r]  # (batch, n_mels, steps): the last frame of each step
        last = F.pad(last, (1, 0), value=SILENCE)[:, :, :-1].transpose(1, 2)
        last = self.prenet(last)  # (batch, steps, prenet)
        memory = self.memory(text, text_lengths, d_vectors)
        mask = length_mask(text_lengths, text.shape[1])
        keys = self.attention.key(memory)  # (batch, letters, attention)
        states = self.attend_all(last, memory, keys, mask)
        hidden, _, context, weights, _ = (torch.stack(x, 1) for x in zip(*states, strict=True))
        both = torch.cat([self.dropout(hidden), context.to(hidden.dtype)], 2)
        before, stop = self._project(run_lstm(self.decoder_rnn, both), context)
        after = self._refine(before, speech_steps(mel_lengths, r))
        return TeacherForcedOutput(before, after, stop, weights)

    @torch.no_grad()
    def generate(
        self,
        text: Tensor,
        text_lengths: Tensor,
        d_vectors: Tensor,
        threshold: float = 0.5,
        max_frames: int | None = None,
        window: int | None = None,
    ) -> SynthesisOutput:
        """Free running: the input of each step is the model's own last frame, until the gate passes `threshold`.

        The length is limited to `FRAMES_PER_LETTER` frames a letter (or `max_frames`); an item that reaches the
        limit has `stopped` False and a warning is given. `window` restricts the attention to one letter
        before and that many letters after the last maximum (Ping et al., 2018, arXiv:1710.07654). Call
        `model.eval()` first. The pre-net's dropout uses torch's generator: seed it for repeatable output.
        """
        r = self.config.r
        memory = self.memory(text, text_lengths, d_vectors)
        mask = length_mask(text_lengths, text.shape[1])
        keys = self.attention.key(memory)
        limit = FRAMES_PER_LETTER * text_lengths + FRAMES_EXTRA
        limit = speech_steps(torch.full_like(limit, max_frames) if max_frames else limit, r)
        state, ended = self.initial_state(memory), limit.clone()
        past = state.hidden, state.cell  # the decoder LSTM starts from zeros too
        last = torch.full((len(text), self.config.n_mels), SILENCE, device=text.device)
        position = torch.arange(text.shape[1], device=text.device)
        mels, stops, weights = [], [], []
        for step in range(int(limit.max()) + TAIL):
            near = mask
            if window is not None:
                peak = state.weights.argmax(1, keepdim=True)
                near = mask & (position >= peak - 1) & (position <= peak + window)
            state = self.attend(self.prenet(last), state, memory, keys, near)
            mel, stop, past = self.decode_step(state, past)
            last = mel[:, :, -1]
            mels.append(mel)
            stops.append(stop.sigmoid())
            weights.append(state.weights)
            if step:  # a sentence has at least one step
                ends = (stops[-1][:, 0] > threshold) & (step < ended)
                ended = torch.where(ends, step, ended)
            # only every eighth step: the answer has to come back from the device
            if step % 8 == 7 and bool((ended + TAIL <= step).all()):
                break
        before, stop = torch.cat(mels, 2), torch.cat(stops, 1)
        lengths, stopped = ended * r, ended < limit
        silent = ~length_mask(lengths, before.shape[2])[:, None]
        after = self._refine(before, ended).masked_fill(silent, SILENCE)[:, :, : int(lengths.max())]
        if not bool(stopped.all()):
            warnings.warn(
                f"{int((~stopped).sum())} of {len(text)} texts did not stop by themselves and were cut at "
                "the length limit: train longer, or look at the alignment.",
                stacklevel=2,
            )
        return SynthesisOutput(after, lengths, stop, torch.stack(weights, 1), stopped, before)


# --- losses and measures ------------------------------------------------------------------------------


def _relative_position(lengths: Tensor, size: int) -> Tensor:
    """Position 0 to 1 within each item `(batch, size)`; 1 after its end."""
    position = torch.arange(size, device=lengths.device)
    return (position / (lengths[:, None] - 1).clamp(min=1)).clamp(max=1)


def guided_attention_loss(
    alignment: Tensor, text_lengths: Tensor, steps: Tensor, width: float = 0.2
) -> Tensor:
    """How far the attention lies from the diagonal, 0 to 1 (Tachibana et al., 2018, arXiv:1710.08969).

    `alignment` `(batch, steps, letters)`; `steps` `(batch,)` are those with speech. The weights times
    `1 - exp(-(n/N - t/T)^2 / 2 width^2)`, summed over letters, mean over steps (including TAIL, where the
    attention should stay at the last letter); the paper divides by the number of letters too.
    """
    _, size, letters = alignment.shape
    t, n = _relative_position(steps, size), _relative_position(text_lengths, letters)
    penalty = 1 - torch.exp(-((n[:, None] - t[..., None]) ** 2) / (2 * width**2))
    mask = length_mask(steps + TAIL, size)  # (batch, steps)
    return ((alignment * penalty).sum(2) * mask).sum() / mask.sum()


@torch.no_grad()
def diagonality(alignment: Tensor, text_lengths: Tensor, steps: Tensor, band: float = 0.2) -> Tensor:
    """How sharp and how diagonal the attention is, 0 to 1 for each item `(batch,)`.

    Mean over the steps with speech of the weight on the letter with the largest weight and its two neighbours,
    counted only within `band` of the diagonal (both axes from 0 to 1). A blurred diagonal scores low, and so
    does a sharp attention at the wrong place; one letter after another scores 1.
    """
    _, size, letters = alignment.shape
    t, n = _relative_position(steps, size), _relative_position(text_lengths, letters)
    near = (n[:, None] - t[..., None]).abs() <= band  # (batch, steps, letters)
    padded = F.pad(alignment * near, (1, 1))
    peak = alignment.argmax(2, keepdim=True)
    three = sum(padded.gather(2, peak + i) for i in range(3)).squeeze(2)  # (batch, steps)
    mask = length_mask(steps, size)
    return (three * mask).sum(1) / mask.sum(1)


def tacotron_losses(out: TeacherForcedOutput, batch: TextBatch, r: int) -> dict[str, Tensor]:
    """The terms of the loss, each a scalar over unpadded frames: `mel` (squared plus absolute error, before plus
    after the post-net), `stop` (weighted binary cross-entropy), `guided`."""
    steps = speech_steps(batch.mel_lengths, r)
    size = out.stop.shape[1]
    mask = length_mask(steps + TAIL, size)  # (batch, steps)
    frames = mask.repeat_interleave(r, 1)[:, None]  # (batch, 1, frames)
    target = pad_frames(batch.mel, r)
    count = frames.sum() * target.shape[1]
    mel = sum(
        ((guess - target).square() + (guess - target).abs()).mul(frames).sum() / count
        for guess in (out.before, out.mel)
    )
    ended = (~length_mask(steps, size)).float()
    # four steps after the end against a hundred before it: each counts five times
    weight = mask * (1 + 4 * ended)
    stop = F.binary_cross_entropy_with_logits(out.stop, ended, reduction="none")
    stop = (stop * weight).sum() / mask.sum()
    guided = guided_attention_loss(out.alignment, batch.text_lengths, steps)
    return {"mel": mel, "stop": stop, "guided": guided}


class TacotronLoss(nn.Module):
    """The model with its loss: a batch in, a scalar out, as `training.fit` needs it.

    `guided` and `stop` are weights of the loss terms. Two methods reduce the gap between teacher forcing and free
    running: `drop` is the fraction of decoder inputs replaced by a mean frame (0), so that the model must use
    the letters (Liu et al., 2019, arXiv:1909.01145); `own` is the fraction replaced by the model's own output from
    a first pass (parallel scheduled sampling, Duckworth et al., 2019, arXiv:1906.04331).
    """

    def __init__(
        self, model: Tacotron2, guided: float = 1.0, stop: float = 0.5, own: float = 0.0, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.model, self.guided, self.stop = model, guided, stop
        self.own, self.drop = own, drop

    def decoder_inputs(self, batch: TextBatch) -> Tensor | None:
        """The decoder inputs of a training step, `(batch, n_mels, frames)`; None for the true frames."""
        if not self.training or not (self.own or self.drop):
            return None
        frames = pad_frames(batch.mel, self.model.config.r)
        if self.own:
            with torch.no_grad():
                guess = self.model(*batch).before
            torch.clear_autocast_cache()  # it holds weights that were cast without gradient
            chosen = torch.rand_like(frames[:, :1]) < self.own
            frames = torch.where(chosen, guess, frames)
        dropped = torch.rand_like(frames[:, :1]) < self.drop
        return frames.masked_fill(dropped, 0.0)

    def parts(self, batch: TextBatch) -> tuple[TeacherForcedOutput, dict[str, Tensor]]:
        """The output and the terms of the loss; `total` is what `forward` returns."""
        out = self.model(*batch, decoder_inputs=self.decoder_inputs(batch))
        parts = tacotron_losses(out, batch, self.model.config.r)
        total = parts["mel"] + self.stop * parts["stop"] + self.guided * parts["guided"]
        return out, {"total": total, **parts}

    def forward(self, batch: TextBatch) -> Tensor:
        return self.parts(batch)[1]["total"]


def steps_to_alignment(steps: list[int], scores: list[float], threshold: float = ALIGNED) -> int | None:
    """The training step from which the diagonality `scores` stay at `threshold` or above; None if they never do.

    `steps` are those of the validations, in order.
    """
    below = [i for i, score in enumerate(scores) if score < threshold]
    first = below[-1] + 1 if below else 0
    return steps[first] if first < len(steps) else None
