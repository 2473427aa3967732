"""Data, training, validation and synthesis for Days 11 and 12.

The loop is `training.fit`: a synthesizer or a vocoder is wrapped in a module that returns its loss, and each batch
holds all of its inputs. On a GPU the step can be captured as a CUDA graph (`capture_cuda_graph`).
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import epoch_seed, gains_bf16
from ..features import MFCC, SAMPLE_RATE, AudioError, as_float, resample, to_level
from ..logger import Run
from ..speech.corpora import Utterances
from ..speech.pack import to_int16
from ..training import Batches, History, fit
from .fastspeech import FastSpeech
from .ge2e import pretrained_dvector
from .tacotron2 import TAIL, SynthesisOutput, Tacotron2, TacotronLoss, TextBatch, diagonality, speech_steps
from .tts_mel import SILENCE, SynthesisMel, trim_silence
from .tts_text import TextError, encode, encode_batch

# --- data ---------------------------------------------------------------------------------------------


def waves_at(sentences: Utterances, rate: int = SAMPLE_RATE) -> list[Tensor]:
    """The utterances as int16 or float waves `(time,)` at `rate` Hz."""
    if sentences.rate == rate:
        return [torch.from_numpy(np.array(sentences.wave(i))) for i in range(len(sentences))]
    return [sentences.sound(i, rate) for i in range(len(sentences))]


def make_dataset(
    parts: Sequence[Utterances], mel: SynthesisMel, longest: float, most: int = 10
) -> TTSDataset:
    """Utterances of one or several sets as training data, each with the d-vector of its speaker.

    The mels are computed at the rate of `mel`, the d-vectors at 16 kHz (see `speaker_vectors` for `most`).
    """
    rate, encoder = mel.settings.sample_rate, pretrained_dvector(mel.hann.device)
    waves = [w for part in parts for w in waves_at(part, rate)]
    texts = [text for part in parts for text in part.texts]
    speakers = [name for part in parts for name in part.speakers]

    def embed(some: list[Tensor]) -> Tensor:
        return encoder.embed([resample(as_float(w), rate, SAMPLE_RATE) for w in some])

    voices = speaker_vectors(waves, speakers, embed, most).cpu()
    return prepare(waves, texts, voices, mel, longest)


Vocoder = Callable[[Tensor], Tensor]
"""Normalised mel `(batch, n_mels, frames)` to sound `(batch, (frames - 1) * hop)`."""


@dataclass
class TTSDataset:
    """Spoken sentences in memory, padded: text `(n, letters)`, mel `(n, n_mels, frames)`, d-vectors `(n, 256)`.

    `numbers` are their indices in the input of `prepare`, which skips some.
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
        tensors = {name: getattr(self, name).to(device) for name in TextBatch._fields}
        return replace(self, **tensors)

    def batch(self, index: Tensor | Sequence[int], r: int, frames: int = 0, letters: int = 0) -> TextBatch:
        """A batch of sentences, with the silence in which a model of reduction factor `r` learns to stop.

        Padded to `frames` and `letters`, by default to the longest sentence.
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
    """Frames rounded up to a multiple of r, plus TAIL decoder steps of silence."""
    return (-(-frames // r) + TAIL) * r


def prepare(
    waves: Sequence[Tensor], texts: Sequence[str], d_vectors: Tensor, mel: SynthesisMel, longest: float = 8.0
) -> TTSDataset:
    """Utterances as training data: trimmed, equal in level, with mel and symbols computed once.

    `waves` `(time,)` each, float or int16, at `mel.settings.sample_rate`; `d_vectors` `(n, 256)`. Silent
    utterances, those of more than `longest` seconds and texts that cannot be read are skipped and
    listed in `skipped`. Raises ValueError when the numbers differ or nothing is left.
    """
    rate, device = mel.settings.sample_rate, mel.hann.device
    kept, mels, symbols, skipped = [], [], [], {}
    for i, (wave, text, _) in enumerate(zip(waves, texts, d_vectors, strict=True)):
        try:
            wave, numbers = trim_silence(wave, rate), encode(text)
            if len(wave) > longest * rate:
                raise AudioError(f"{len(wave) / rate:.1f} s, {longest:g} at most")
        except (AudioError, TextError) as e:
            skipped[i] = str(e)
            continue
        wave = to_level(as_float(wave), -25.0, peak=0.99)
        mels.append(mel(wave[None].to(device))[0])
        symbols.append(torch.tensor(numbers))
        kept.append(i)
    if not kept:
        raise ValueError(f"no sentence of {len(waves)} can be used: {skipped}")
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    frames = pad([m.T for m in mels], padding_value=SILENCE).transpose(1, 2).contiguous()
    text_lengths = torch.tensor([len(s) for s in symbols])
    mel_lengths = torch.tensor([m.shape[1] for m in mels])
    voices = d_vectors[kept].float()
    every = TTSDataset(pad(symbols), text_lengths, voices, frames, mel_lengths, kept, skipped)
    return every.to(device)


def speaker_vectors(
    waves: Sequence[Tensor], speakers: Sequence[str], embed: Callable[[list[Tensor]], Tensor], most: int = 10
) -> Tensor:
    """The d-vector of its speaker for each utterance, `(n, d)`, of length 1.

    It is the mean over up to `most` utterances of the speaker. With `most` 0 each utterance has its own d-vector
    (Jia et al., 2018), so the model sees how the d-vectors of one voice vary. `embed` takes waves
    `(time,)` and returns `(utterances, d)`.
    """
    if not most:
        parts = (waves[i : i + 32] for i in range(0, len(waves), 32))
        return torch.cat([F.normalize(embed(part).float(), dim=1) for part in parts])
    found: dict[str, Tensor] = {}
    for speaker in dict.fromkeys(speakers):
        some = [w for w, s in zip(waves, speakers, strict=True) if s == speaker]
        found[speaker] = F.normalize(embed(some[:most]).float().mean(0), dim=0)
    return torch.stack([found[s] for s in speakers])


@dataclass
class LengthBatches:
    """Batches of sentences of similar length; all batches of a bucket are padded to the same shape.

    The sentences are sorted by length and split into `buckets`; each batch is drawn from one bucket, in random
    order. `buckets=1` gives a single shape, as `capture_cuda_graph` needs it. The batches of an epoch depend
    only on `seed` and its number; `steps` sets its length (by default one pass). Raises ValueError when a bucket
    has fewer sentences than a batch.
    """

    sentences: TTSDataset
    batch_size: int
    r: int
    buckets: int = 4
    seed: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        lengths, letters = self.sentences.mel_lengths.cpu(), self.sentences.text_lengths.cpu()
        self.groups = self.sentences.mel_lengths.argsort().cpu().tensor_split(self.buckets)
        if min(map(len, self.groups)) < self.batch_size:
            raise ValueError(
                f"{len(lengths)} sentences in {self.buckets} buckets do not fill a batch of "
                f"{self.batch_size}: use fewer buckets or smaller batches"
            )
        self.shapes = [
            (frames_with_tail(int(lengths[g].max()), self.r), int(letters[g].max())) for g in self.groups
        ]
        self.steps = self.steps or sum(len(g) // self.batch_size for g in self.groups)

    def __len__(self) -> int:
        return self.steps

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
        """The batches of epoch `number` (from 0), each with None in the place of a target."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, number))
        passes = chain.from_iterable(self._one_pass(generator) for _ in count())
        for batch in islice(passes, self.steps):
            yield batch, None


# --- training -----------------------------------------------------------------------------------------


def capture_cuda_graph(loss: nn.Module, batch: TextBatch, mixed: bool = True) -> None:
    """Capture the forward and backward pass of `loss` as CUDA graphs, which training then replays.

    Starting the hundreds of small kernels of a decoder loop keeps the CPU busy and the GPU waiting; a graph starts
    them all at once. Every batch must have the shapes of this one (`LengthBatches(buckets=1)`). Evaluation mode
    is not affected. Raises ValueError off CUDA.
    """
    tensors = [t.clone() for t in batch]
    if any(t.device.type != "cuda" for t in tensors):
        raise ValueError("CUDA graphs need a CUDA device: train without capture here")
    loss.train()
    before = {name: b.clone() for name, b in loss.named_buffers()}
    mixed = mixed and gains_bf16(tensors[0].device)
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed, cache_enabled=False):
        torch.cuda.make_graphed_callables(loss, (type(batch)(*tensors),))
    with torch.no_grad():  # the warm-up runs changed the running statistics of the batch norms
        for name, b in loss.named_buffers():
            b.copy_(before[name])


def train(
    loss: nn.Module, batches: Batches, *, epochs: int, lr: float, graph: bool = False, **how: Any
) -> History:
    """Train a module that returns its loss (`TacotronLoss`, `WaveGlowLoss`) with AdamW and one cycle.

    The gradient norm is clipped at 1 and logged before clipping; `graph` captures the step (CUDA only). A GPU that
    gains from it computes in bfloat16; a CPU stays in float32. `how` goes to `training.fit`: validate, stop, and
    run or checkpoint, with which a killed training continues after its last epoch. Raises Diverged when the loss
    is no longer a number.
    """
    cuda = next(loss.parameters()).is_cuda
    optimizer = torch.optim.AdamW(loss.parameters(), lr, weight_decay=1e-4, fused=cuda)
    total = max(3, epochs * len(batches))  # OneCycleLR needs three
    warmup = max(0.1, 2 / total)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total, pct_start=warmup)
    if graph:
        capture_cuda_graph(loss, next(iter(batches.epoch(0)))[0])
    # the loss is cloned because a captured step always writes to the same tensor
    return fit(
        loss, batches, optimizer, epochs=epochs, loss_fn=lambda total, _: total.clone(),
        scheduler=schedule, clip=1.0, mixed=cuda, **how,
    )  # fmt: skip


@contextlib.contextmanager
def repeatable(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Seeds torch inside the context and restores its generators afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards every submodule is in the mode that it had.

    A plain `train()` would also put a finished network inside the module into training mode, where its batch
    norms change with every input.
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
    """One validation: the numbers over all sentences, and of the first sentence `alignment` `(steps, letters)`,
    `target` and `predicted` mel `(n_mels, frames)` and `stop` `(steps,)`, also in free running."""

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
    """Evaluate a synthesizer on held-out sentences, teacher-forced and free-running.

    Numbers: the loss and its terms; `diagonality` forced and `free_diagonality`; `free_stopped`, the fraction that
    the stop gate ended; `free_length`, the mean length as a fraction of the true one. The pre-net's dropout is
    seeded with `seed`; torch's generators are restored.
    """
    model = loss.model
    r, device = model.config.r, batch.text.device
    with evaluating(loss), repeatable(device, seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see `free_stopped`
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


@dataclass
class AlignmentMonitor:
    """Validation for `train` on one batch that keeps its results and shows them in TensorBoard.

    `seen` holds the validations of this session; with `folder` each is also written there (`0003.npz`), so that
    those of a resumed training are complete: `AlignmentMonitor.load(folder)`.
    """

    batch: TextBatch
    run: Run | None = None
    folder: Path | None = None
    seen: list[Validation] = field(default_factory=list)

    def __call__(self, loss: nn.Module) -> dict[str, float]:
        seen = validate(loss, self.batch)
        self.seen.append(seen)
        number = len(self.seen) - 1
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = len(list(self.folder.glob("*.npz")))
            arrays = vars(seen) | {"numbers": json.dumps(seen.numbers)}
            np.savez_compressed(self.folder / f"{number:04d}.npz", **arrays)
        if self.run:
            for name in ("alignment", "free_alignment"):
                self.run.image(name, torch.from_numpy(getattr(seen, name)).T.flip(0), number)
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
                every.append(Validation(**{**f, "numbers": json.loads(str(f["numbers"]))}))
        return every


# --- speaking -----------------------------------------------------------------------------------------


def speak(
    model: Tacotron2 | FastSpeech, texts: Sequence[str], d_vectors: Tensor, *, seed: int = 0, **how: Any
) -> SynthesisOutput:
    """Speak texts in the voices of `d_vectors` `(texts, 256)` or `(256,)`; the same seed gives the same speech.

    `how` is for the model's `generate`: `threshold` and `window` of a Tacotron 2, `pace` of a FastSpeech.
    Raises TextError for a text that cannot be read. Warns when a text ran into its length limit.
    """
    device = next(model.parameters()).device
    text, lengths = encode_batch(texts)
    d_vectors = torch.as_tensor(d_vectors, dtype=torch.float32, device=device)
    d_vectors = d_vectors.expand(len(texts), -1)
    model.eval()
    with repeatable(device, seed):
        return model.generate(text.to(device), lengths.to(device), d_vectors, **how)


def to_waves(speech: SynthesisOutput, vocoder: Vocoder, hop: int) -> list[Tensor]:
    """The sound of each item `(time,)` on the CPU; all mels go through the vocoder in one batch."""
    mel = F.pad(speech.mel, (0, 1), value=SILENCE)  # n + 1 frames are n hops of sound
    pairs = zip(vocoder(mel), speech.lengths.tolist(), strict=True)
    return [wave[: n * hop].float().cpu() for wave, n in pairs]


def write_wav(path: Path, wave: Tensor, sample_rate: int) -> None:
    """A wave `(time,)` in -1..1 as a 16-bit WAV file."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, to_int16(wave), sample_rate, subtype="PCM_16")


# --- distance from a recording ------------------------------------------------------------------------


def mel_cepstra(wave: Tensor, sample_rate: int, order: int = 13) -> Tensor:
    """Mel-cepstrum `(frames, order)` of a wave `(time,)` without the 0th coefficient, the level.

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
    """Mel-cepstral distortion in dB of two waves `(time,)` of the same words, aligned by dynamic time warping.

    `10 / ln 10 * sqrt(2 sum (c_k - c'_k)^2)` (Kubichek, 1993), mean over the warping path. Level has no effect;
    silence around the speech has: trim it. 0 for equal waves. Compare only values of this function, since
    every toolkit has its own cepstrum.
    """
    from librosa.sequence import dtw  # takes seconds to import

    x, y = (mel_cepstra(w, sample_rate, order) for w in (a, b))
    distance = 10 / math.log(10) * math.sqrt(2) * torch.cdist(x.double(), y.double())
    total, path = dtw(C=distance.numpy())
    return float(total[-1, -1]) / len(path)
