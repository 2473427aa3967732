"""Training and use of Days 11 and 12: sentences in memory, batches by length, validation that is seen, speech.

The loop is `training.fit`: a synthesizer or a vocoder is wrapped so that it gives its own loss, and a batch
is all that it reads. On a GPU the step can be captured once and replayed (`capture`).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import gains_bf16
from ..features import MFCC, SAMPLE_RATE, AudioError, as_float, resample, to_level
from ..logger import Run, progress
from ..speech.corpora import Utterances
from ..speech.pack import to_int16
from ..training import History, fit
from .fastspeech import ParallelSynthesizer
from .ge2e import pretrained_dvector
from .tacotron2 import TAIL, Speech, Tacotron2, TacotronLoss, TextBatch, diagonality, speech_steps
from .tts_mel import SILENCE, SynthesisMel, trim_silence
from .tts_text import TextError, encode, encode_batch

# --- material -----------------------------------------------------------------------------------------


def waves_at(sentences: Utterances, rate: int = SAMPLE_RATE) -> list[Tensor]:
    """The utterances as int16 or float waves `(time,)` at `rate` Hz."""
    if sentences.rate == rate:
        return [torch.from_numpy(np.array(sentences.wave(i))) for i in range(len(sentences))]
    return [sentences.sound(i, rate) for i in range(len(sentences))]


def utterances(
    parts: Sequence[Utterances], mel: SynthesisMel, longest: float, most: int = 10,
    waves: Sequence[Tensor] | None = None,
) -> TTSDataset:  # fmt: skip
    """Sentences of one or several sets as training data, each with the d-vector of its speaker.

    The mels are those of `mel`, at its rate; the d-vectors are computed at 16 kHz, each the mean over up to
    `most` utterances, with 0 each its own (see `tts.speaker_vectors`). `waves` are those of the parts at the mel's
    rate, for a caller who has them.
    """
    rate, encoder = mel.settings.sample_rate, pretrained_dvector(mel.hann.device)
    if waves is None:
        waves = [w for part in parts for w in waves_at(part, rate)]
    texts = [text for part in parts for text in part.texts]
    speakers = [name for part in parts for name in part.speakers]

    def embed(some: list[Tensor]) -> Tensor:
        return encoder.embed([resample(as_float(w), rate, SAMPLE_RATE) for w in some])

    voices = speaker_vectors(waves, speakers, embed, most).cpu()
    return prepare(waves, texts, voices, mel, longest, bar=False)


Vocoder = Callable[[Tensor], Tensor]
"""Normalised mel `(batch, n_mels, frames)` to sound `(batch, (frames - 1) * hop)`."""


@dataclass
class TTSDataset:
    """Spoken sentences in memory, padded: text `(n, letters)`, mel `(n, n_mels, frames)`, d-vectors `(n, 256)`.

    `numbers` are their places among what was given to `prepare`, which leaves some out.
    """

    text: Tensor
    text_lengths: Tensor
    d_vectors: Tensor
    mel: Tensor
    mel_lengths: Tensor
    numbers: list[int]
    skipped: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def to(self, device: torch.device) -> TTSDataset:
        tensors = [getattr(self, name).to(device) for name in TextBatch._fields]
        return TTSDataset(*tensors, self.numbers, self.skipped)

    def batch(
        self, index: Tensor | Sequence[int], r: int, frames: int = 0, letters: int = 0
    ) -> TextBatch:
        """Some sentences, with the tail in which a model of reduction factor `r` learns to stop.

        Padded to `frames` and `letters`, by default to the longest of them.
        """
        index = torch.as_tensor(index, device=self.text.device)
        lengths, text_lengths = self.mel_lengths[index], self.text_lengths[index]
        frames = frames or frames_with_tail(int(lengths.max()), r)
        letters = letters or int(text_lengths.max())
        mel = self.mel[index, :, :frames]
        mel = F.pad(mel, (0, frames - mel.shape[2]), value=SILENCE)
        text = self.text[index, :letters]
        return TextBatch(text, text_lengths, self.d_vectors[index], mel, lengths)


def frames_with_tail(frames: int, r: int) -> int:
    """Frames rounded up to a multiple of r, and TAIL decoder steps of silence."""
    return (-(-frames // r) + TAIL) * r


def prepare(
    waves: Sequence[Tensor | np.ndarray],
    texts: Sequence[str],
    d_vectors: Tensor,
    mel: SynthesisMel,
    longest: float = 8.0,
    bar: bool = True,
) -> TTSDataset:
    """Utterances as training data: silence trimmed, level made equal, mel and symbols computed once.

    `waves` `(time,)` each, float or int16, at `mel.settings.sample_rate`; `d_vectors` `(n, 256)`. Left out, and
    named in `skipped`: silent ones, those of more than `longest` seconds, and texts that cannot be read.
    Raises ValueError when the numbers differ or nothing is left.
    """
    if not len(waves) == len(texts) == len(d_vectors):
        raise ValueError(
            f"{len(waves)} waves, {len(texts)} texts and {len(d_vectors)} d-vectors: as many of each are wanted"
        )
    rate, device = mel.settings.sample_rate, mel.hann.device
    kept, mels, symbols, skipped = [], [], [], {}
    with progress(len(waves), "mel spectrograms", enabled=bar) as shown:
        for i, (wave, text) in enumerate(zip(waves, texts, strict=True)):
            shown.update()
            try:
                if isinstance(wave, np.ndarray):
                    wave = torch.from_numpy(np.array(wave))  # a pack is read-only
                wave = trim_silence(wave, rate)
                numbers = encode(text)
            except (AudioError, TextError) as e:
                skipped[i] = str(e)
                continue
            if len(wave) > longest * rate:
                skipped[i] = f"{len(wave) / rate:.1f} s, {longest:g} at most"
                continue
            wave = to_level(as_float(wave), -25.0, peak=0.99)
            mels.append(mel(wave[None].to(device))[0])
            symbols.append(torch.tensor(numbers))
            kept.append(i)
    if not kept:
        raise ValueError(f"no sentence of {len(waves)} can be used: {skipped}")
    text = nn.utils.rnn.pad_sequence(symbols, batch_first=True)
    frames = nn.utils.rnn.pad_sequence(
        [m.T for m in mels], batch_first=True, padding_value=SILENCE
    ).transpose(1, 2)
    text_lengths = torch.tensor([len(s) for s in symbols])
    mel_lengths = torch.tensor([m.shape[1] for m in mels])
    sentences = TTSDataset(
        text, text_lengths, d_vectors[kept].float(), frames.contiguous(), mel_lengths, kept, skipped
    )  # fmt: skip
    return sentences.to(device)


def speaker_vectors(
    waves: Sequence[Tensor | np.ndarray],
    speakers: Sequence[str],
    embed: Callable[[list[Tensor]], Tensor],
    most: int = 10,
) -> Tensor:
    """One d-vector per speaker, given to each of that speaker's utterances: `(n, d)`, of length 1.

    The mean over the d-vectors of up to `most` utterances; `embed` takes waves `(time,)` at the rate
    that it wants and gives `(utterances, d)`. A voice, not what one sentence made of it. With `most` 0 each
    utterance has its own d-vector (Jia et al., 2018): a voice is then a cloud, not a name.
    """
    tensors = [w if isinstance(w, Tensor) else torch.from_numpy(np.array(w)) for w in waves]  # fmt: skip
    if not most:
        parts = (tensors[i : i + 32] for i in range(0, len(tensors), 32))
        return torch.cat([F.normalize(embed(part).float(), dim=1) for part in parts])
    found: dict[str, Tensor] = {}
    for speaker in dict.fromkeys(speakers):
        some = [w for w, s in zip(tensors, speakers, strict=True) if s == speaker]
        found[speaker] = F.normalize(embed(some[:most]).float().mean(0), dim=0)
    return torch.stack([found[s] for s in speakers])


class LengthBatches:
    """Batches of sentences of like length, every batch of a bucket padded to the same shape.

    The sentences are sorted by length and parted into `buckets`; batches are drawn within a bucket and come
    in random order. `buckets=1` gives one shape throughout, which `capture` wants. What an epoch draws depends
    on `seed` and its number alone; `steps` sets its length (by default, one pass). Raises ValueError when
    a bucket has fewer sentences than a batch.
    """

    def __init__(
        self,
        sentences: TTSDataset,
        batch_size: int,
        r: int,
        *,
        buckets: int = 4,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        order = sentences.mel_lengths.argsort().cpu()
        self.groups = order.tensor_split(buckets)
        if batch_size < 1 or min(map(len, self.groups)) < batch_size:
            raise ValueError(
                f"{len(sentences)} sentences in {buckets} buckets do not fill a batch of {batch_size}: "
                "take fewer buckets or smaller batches"
            )
        self.sentences, self.batch_size, self.r, self.seed = (sentences, batch_size, r, seed)
        lengths, letters = sentences.mel_lengths.cpu(), sentences.text_lengths.cpu()
        self.shapes = [
            (frames_with_tail(int(lengths[g].max()), r), int(letters[g].max())) for g in self.groups
        ]
        self.passes = sum(len(g) // batch_size for g in self.groups)
        self.steps = steps or self.passes

    def __len__(self) -> int:
        return self.steps

    @property
    def padding(self) -> float:
        """Share of the frames that are padding, over one pass; TAIL counts as padding."""
        lengths = self.sentences.mel_lengths.float().cpu()
        frames = [frames for frames, _ in self.shapes]
        sizes = [len(group) for group in self.groups]
        room = sum(a * b for a, b in zip(frames, sizes, strict=True))
        return 1 - lengths.sum().item() / room

    def _one_pass(self, generator: torch.Generator) -> Iterator[TextBatch]:
        draws = []
        for group, shape in zip(self.groups, self.shapes, strict=True):
            mixed = group[torch.randperm(len(group), generator=generator)]
            whole = len(group) // self.batch_size * self.batch_size
            draws += [(i, shape) for i in mixed[:whole].split(self.batch_size)]
        for i in torch.randperm(len(draws), generator=generator).tolist():
            index, shape = draws[i]
            yield self.sentences.batch(index, self.r, *shape)

    def epoch(self, number: int) -> Iterator[tuple[TextBatch, None]]:
        """The batches of epoch `number` (from 0); the second of each pair is None: the loss reads the batch."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        left = self.steps
        while left:
            for batch in self._one_pass(generator):
                yield batch, None
                left -= 1
                if not left:
                    break


class Segments:
    """Random stretches of sound with their mels, to train a vocoder: `(wave, mel)` in batches.

    `waves` `(time,)` each at the mel's rate, laid end to end on its device as int16. A stretch has `frames * hop`
    samples and `frames + 1` frames, cut out of a longer one so that its first and last frame see what
    was there. Raises ValueError when no wave is long enough.
    """

    def __init__(
        self,
        waves: Sequence[Tensor],
        mel: SynthesisMel,
        batch_size: int,
        *,
        frames: int = 32,
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        s = mel.settings
        self.mel, self.batch_size, self.steps, self.seed = mel, batch_size, steps, seed
        self.length = frames * s.hop
        self.margin = -(-s.n_fft // 2 // s.hop)  # frames whose window reaches outside
        self.need = self.length + 2 * self.margin * s.hop
        sounds = [torch.from_numpy(to_int16(as_float(w).cpu())) for w in waves]
        sounds = [w for w in sounds if len(w) >= self.need]
        if not sounds:
            raise ValueError(
                f"no wave has the {self.need} samples that a stretch of {frames} frames needs"
            )
        sizes = torch.tensor([len(w) for w in sounds])
        self.starts, self.room = sizes.cumsum(0) - sizes, sizes - self.need + 1
        self.samples = torch.cat(sounds).to(mel.hann.device)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int) -> Iterator[tuple[tuple[Tensor, Tensor], None]]:
        """The batches of epoch `number`; a wave is drawn as often as it is long."""
        g = torch.Generator().manual_seed(self.seed * 100_003 + number)
        hop, share = self.mel.settings.hop, self.room.double()
        for _ in range(self.steps):
            which = torch.multinomial(share, self.batch_size, True, generator=g)
            draw = torch.rand(self.batch_size, generator=g, dtype=torch.float64)
            start = self.starts[which] + (draw * self.room[which]).long()
            index = start[:, None] + torch.arange(self.need)
            wide = as_float(self.samples[index.to(self.samples.device)])
            mel = self.mel(wide)[:, :, self.margin : -self.margin]
            cut = self.margin * hop
            yield (wide[:, cut : cut + self.length], mel), None


# --- training -----------------------------------------------------------------------------------------


def capture(loss: nn.Module, batch: Any, mixed: bool = True) -> None:
    """Capture the forward and backward pass of `loss` once as CUDA graphs; training then replays them.

    A decoder loop of hundreds of small kernels keeps the CPU busy starting them and the GPU idle; a graph starts
    them all at once. Every batch must have the shapes of this one (`LengthBatches(buckets=1)`).
    In evaluation mode the module computes as before. Raises ValueError off CUDA.
    """
    tensors = [t.clone() for t in batch]
    if any(t.device.type != "cuda" for t in tensors):
        raise ValueError("CUDA graphs need a CUDA device: train without capture here")
    device = tensors[0].device
    loss.train()
    before = {name: b.clone() for name, b in loss.named_buffers()}
    mixed = mixed and gains_bf16(device)
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed, cache_enabled=False):
        sample = type(batch)(*tensors) if hasattr(batch, "_fields") else tuple(tensors)
        torch.cuda.make_graphed_callables(loss, (sample,))
    with torch.no_grad():  # the trial runs moved the running means of the batch norms
        for name, b in loss.named_buffers():
            b.copy_(before[name])


def train(
    loss: nn.Module,
    batches: LengthBatches | Segments,
    *,
    epochs: int,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    warmup: float = 0.1,
    mixed: bool = True,
    graph: bool = False,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    run: Run | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[Mapping[str, float]], bool] | None = None,
    bar: bool = True,
) -> History:
    """Train a module that gives its own loss (`TacotronLoss`, `WaveGlowLoss`) by AdamW with one cycle.

    `clip` bounds the gradient norm, which is logged as it was before; `graph` captures the step (CUDA only).
    `mixed` computes in bfloat16 on a GPU that gains; a CPU, whose LSTMs cannot be trained in bfloat16, stays in
    float32. With
    `run` or `checkpoint` a killed training goes on where its last epoch ended (see `training.fit`).
    Raises Diverged when the loss is no number any more.
    """
    device = next(loss.parameters()).device
    optimizer = torch.optim.AdamW(
        loss.parameters(), lr, weight_decay=weight_decay, fused=device.type == "cuda"
    )
    total = max(3, epochs * len(batches))  # fewer have no room for up and down
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total, pct_start=max(warmup, 2 / total)
    )
    if graph:
        capture(loss, next(iter(batches.epoch(0)))[0], mixed)
    # cloned, since a captured step writes each loss to the same place
    return fit(
        loss, batches, optimizer, epochs=epochs, loss_fn=lambda total, _: total.clone(),
        scheduler=schedule, validate=validate, run=run, clip=clip,
        mixed=mixed and device.type == "cuda",
        checkpoint=checkpoint, stop=stop, bar=bar,
    )  # fmt: skip


@contextlib.contextmanager
def repeatable(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Within it torch draws by `seed`; afterwards its generators are as they were before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it every part of the module is in evaluation mode; afterwards each is in the mode it had.

    Each for itself: a new loss around a network that is finished must not leave that network training, where its
    batch norms go on learning from whatever it is asked.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@dataclass
class Validation:
    """What one validation saw of its first sentence, and the numbers over all: `alignment` `(steps, letters)`,
    `target` and `predicted` mel `(n_mels, frames)`, `stop` `(steps,)`, and the same in free running."""

    numbers: dict[str, float]
    alignment: np.ndarray
    target: np.ndarray
    predicted: np.ndarray
    stop: np.ndarray
    free_alignment: np.ndarray
    free_mel: np.ndarray
    free_stop: np.ndarray


@torch.no_grad()
def validate(loss: TacotronLoss, batch: TextBatch, seed: int = 0) -> Validation:
    """Judge a synthesizer on held-out sentences: teacher-forced, and on its own output, which is what counts.

    Numbers: the loss and its parts; `diagonality` forced and `free_diagonality`; `free_stopped`, the share that
    ended by the stop gate; `free_length`, the length of what it said as a share of the true one (mean). The
    pre-net's dropout is drawn by `seed`; torch's generators are left as they were.
    """
    model = loss.model
    r, device = model.config.r, batch.text.device
    with evaluating(loss), repeatable(device, seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `free_stopped` says it
        out, parts = loss.parts(batch)
        free = model.generate(batch.text, batch.text_lengths, batch.d_vectors)
    steps = speech_steps(batch.mel_lengths, r)
    forced = diagonality(out.alignment, batch.text_lengths, steps)
    alone = diagonality(free.alignment, batch.text_lengths, free.lengths // r)
    numbers = {"loss" if k == "total" else k: v.item() for k, v in parts.items()}
    numbers |= {
        "diagonality": forced.mean().item(),
        "free_diagonality": alone.mean().item(),
        "free_stopped": free.stopped.float().mean().item(),
        "free_length": (free.lengths / batch.mel_lengths).mean().item(),
    }
    letters, frames = int(batch.text_lengths[0]), int(batch.mel_lengths[0])
    own = int(free.lengths[0]) // r
    arrays = (
        out.alignment[0, : int(steps[0]) + TAIL, :letters],
        batch.mel[0, :, :frames],
        out.mel[0, :, :frames],
        out.stop[0, : int(steps[0]) + TAIL].sigmoid(),
        free.alignment[0, : own + TAIL, :letters],
        free.item(0),
        free.stop[0, : own + TAIL],
    )
    return Validation(numbers, *(a.float().cpu().numpy() for a in arrays))


class Watch:
    """`validate` for `train`: validates on one batch, keeps what it saw, and shows it in TensorBoard.

    `seen` holds the validations of this session; with `folder` each is also written there (`0003.npz`), so that
    the pictures of a training that was resumed are all there: `Watch.load(folder)`.
    """

    def __init__(
        self, batch: TextBatch, run: Run | None = None, folder: Path | None = None
    ) -> None:
        self.batch, self.run, self.folder = batch, run, folder
        self.seen: list[Validation] = []

    def __call__(self, loss: nn.Module) -> dict[str, float]:
        seen = validate(loss, self.batch)
        self.seen.append(seen)
        number = len(self.load(self.folder)) if self.folder else len(self.seen) - 1
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            arrays = {k: v for k, v in vars(seen).items() if k != "numbers"}
            names, values = zip(*seen.numbers.items(), strict=True)
            np.savez_compressed(
                self.folder / f"{number:04d}.npz", names=names, values=values, **arrays
            )
        if self.run:
            for name in ("alignment", "free_alignment"):
                picture = torch.from_numpy(getattr(seen, name)).T.flip(0)
                self.run.image(name, picture, number)
            pair = np.concatenate([seen.target, seen.predicted])  # target below
            self.run.image("mel", (torch.from_numpy(pair).flip(0) + 2.2) / 5, number)
            curve = torch.from_numpy(seen.free_stop)[None].expand(16, -1)
            self.run.image("free_stop", curve, number)
        return seen.numbers

    @staticmethod
    def load(folder: Path) -> list[Validation]:
        """The validations written to `folder`, in order."""
        every = []
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as f:
                numbers = dict(zip(f["names"].tolist(), f["values"].tolist(), strict=True))
                rest = {k: f[k] for k in f.files if k not in ("names", "values")}
            every.append(Validation(numbers, **rest))
        return every


# --- speaking -----------------------------------------------------------------------------------------


def speak(
    model: Tacotron2 | ParallelSynthesizer,
    texts: Sequence[str],
    d_vectors: Tensor,
    *,
    seed: int = 0,
    **how: Any,
) -> Speech:
    """Texts in the voices of `d_vectors` `(texts, 256)` or `(256,)`, free-running; the same seed, the same speech.

    `how` is for the model's `generate`: `threshold` and `window` of a Tacotron 2, `pace` of a parallel one.
    Raises TextError for a text that cannot be read. Warns when a text ran into its limit.
    """
    device = next(model.parameters()).device
    text, lengths = encode_batch(texts)
    d_vectors = torch.as_tensor(d_vectors, dtype=torch.float32, device=device)
    d_vectors = d_vectors.expand(len(texts), -1)
    model.eval()
    with repeatable(device, seed):
        return model.generate(text.to(device), lengths.to(device), d_vectors, **how)


def to_waves(speech: Speech, vocoder: Vocoder, hop: int) -> list[Tensor]:
    """Each item's sound `(time,)` on the CPU: all mels through the vocoder at once, then cut to their lengths."""
    mel = F.pad(speech.mel, (0, 1), value=SILENCE)  # n + 1 frames are n hops of sound
    waves = vocoder(mel)
    return [
        wave[: int(n) * hop].float().cpu() for wave, n in zip(waves, speech.lengths, strict=True)
    ]


def write_wav(path: Path, wave: Tensor, sample_rate: int) -> None:
    """A wave `(time,)` in -1..1 as a 16-bit WAV file."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, to_int16(wave), sample_rate, subtype="PCM_16")


# --- how far from a recording -------------------------------------------------------------------------


def dtw(cost: np.ndarray) -> tuple[float, np.ndarray]:
    """Dynamic time warping: the cheapest way through a cost matrix `(n, m)`, and its cells `(steps, 2)`.

    From the first cell to the last by steps down, right, or both; the sum is over the cells visited (Sakoe &
    Chiba, 1978, without weights or band). A row is done at once: going right from k to j costs a difference
    of running sums. Raises ValueError for an empty matrix.
    """
    cost = np.asarray(cost, dtype=np.float64)
    if cost.ndim != 2 or not cost.size:
        raise ValueError(f"a cost matrix (n, m) is wanted, not {cost.shape}")
    n, m = cost.shape
    total = np.full((n, m), np.inf)
    total[0] = np.cumsum(cost[0])
    for i in range(1, n):
        entry = total[i - 1].copy()  # cheapest way into each cell from the row above
        entry[1:] = np.minimum(entry[1:], total[i - 1, :-1])
        sums = np.cumsum(cost[i])
        total[i] = sums + np.minimum.accumulate(entry - (sums - cost[i]))
    path = [(n - 1, m - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        ways = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        path.append(min((w for w in ways if min(w) >= 0), key=lambda w: total[w]))
    return float(total[-1, -1]), np.array(path[::-1])


def mel_cepstra(wave: Tensor, sample_rate: int, order: int = 13) -> Tensor:
    """Mel-cepstrum `(frames, order)` of a wave `(time,)` without its 0th coefficient, the level.

    Scaled as the coefficients of `ln |H| = c_0 + sum c_k cos(k w)` over the mel axis, from 60 mels every 5 ms.
    """
    window = round(0.025 * sample_rate)
    n_fft = 2 ** math.ceil(math.log2(2 * window))
    front = MFCC(
        order + 1, n_mels=60, sample_rate=sample_rate, n_fft=n_fft, window=window,
        hop=round(0.005 * sample_rate), f_max=min(8000.0, sample_rate / 2),
    )  # fmt: skip
    cepstrum = front(wave[None].cpu().float())[0, 1:].T
    return cepstrum / math.sqrt(2 * front.n_mels)


def mel_cepstral_distortion(a: Tensor, b: Tensor, sample_rate: int, order: int = 13) -> float:
    """Mel-cepstral distortion in dB between two waves `(time,)` that say the same, warped onto each other.

    `10 / ln 10 * sqrt(2 sum (c_k - c'_k)^2)` (Kubichek, 1993), mean over the path of `dtw`. Level does not
    count; silence around the speech does: trim it. 0 for the same wave; compare only values of this one function,
    since every toolkit has its own cepstrum.
    """
    x, y = (mel_cepstra(w, sample_rate, order) for w in (a, b))
    distance = 10 / math.log(10) * math.sqrt(2) * torch.cdist(x.double(), y.double())
    total, path = dtw(distance.numpy())
    return total / len(path)
