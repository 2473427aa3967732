"""wav2vec 2.0 with a CTC head (Baevski et al., 2020, arXiv:2006.11477): loading, evaluation and fine-tuning.

The network is Hugging Face's `Wav2Vec2ForCTC`. Letters, decoding and batches are in `ctc`, pretraining in Day 9.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)
from transformers.utils import cached_file, logging

from ..device import autocast, epoch_seed, pick_device, seed_everything, synchronize
from ..features import SAMPLE_RATE
from ..logger import Run, progress
from ..speech.pack import Utterances
from ..training import Diverged, History, as_epoch_kwargs, resume, save_checkpoint
from . import ctc
from .ctc import BLANK, SEPARATOR, UNKNOWN, Batch, Errors, Vocabulary


def tiny_config(vocabulary: Vocabulary | None = None, **changes: Any) -> Wav2Vec2Config:
    """A network of 30 thousand weights with a frame every 10 ms, for tests and the quick profile only."""
    size: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "conv_dim": (32,) * 3, "conv_kernel": (10, 8, 4),
        "conv_stride": (5, 8, 4), "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
        "num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 16,
        "num_negatives": 10,
    }  # fmt: skip
    return make_config(vocabulary, size | changes)


def make_config(vocabulary: Vocabulary | None, size: Mapping[str, Any]) -> Wav2Vec2Config:
    """The configuration of our own networks: `size` is what differs between them."""
    settings = {
        "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True,
        "layerdrop": 0.0, "mask_time_prob": 0.05, "mask_time_length": 10,
        "ctc_zero_infinity": True, "num_codevector_groups": 2,
    }  # fmt: skip
    return Wav2Vec2Config(**(_head_of(vocabulary or Vocabulary()) | settings | dict(size)))


def num_frames(samples, config: Wav2Vec2Config):
    """Frames that the convolutions make of this many samples (a number or a tensor); 0 for too few."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples.clamp(min=0) if torch.is_tensor(samples) else max(0, samples)


class Wav2Vec2CTC(nn.Module):
    """A `Wav2Vec2ForCTC` with its vocabulary.

    Takes normalised waves `(batch, time)` with their lengths in samples, or the cached output of the
    convolutions `(batch, frames, channels)` with lengths in frames: both give the same logits. SpecAugment is on
    in training. A network with group norm (wav2vec2-base) was trained without an attention mask and gets none, so
    there padding changes the logits a little. Under autocast only the convolutions leave float32: in the
    transformer bfloat16 spoils the gradient (our pretrained weights with a new head: cosine to float32's
    -0.04 in the keys of its first layer, 0.35 in the projection below it; WER 1.5 after 944 steps for 0.62).
    Raises ValueError when network and vocabulary do not fit.
    """

    def __init__(self, model: Wav2Vec2ForCTC, vocabulary: Vocabulary) -> None:
        super().__init__()
        if model.config.vocab_size != len(vocabulary):
            raise ValueError(
                f"the network has {model.config.vocab_size} outputs, the vocabulary {len(vocabulary)} symbols"
            )
        if model.config.pad_token_id != vocabulary.blank:
            raise ValueError(
                f"the network's blank is symbol {model.config.pad_token_id}, the vocabulary's {BLANK} is "
                f"{vocabulary.blank}: set pad_token_id, or every letter is trained against the wrong blank."
            )
        self.model, self.vocabulary = model, vocabulary

    @property
    def config(self) -> Wav2Vec2Config:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, waves: Tensor) -> Tensor:
        """The convolutions alone: `(batch, time)` to `(batch, frames, channels)`."""
        return self.model.wav2vec2.feature_extractor(waves).transpose(1, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(batch, frames, symbols)` and the number of frames of each utterance `(batch,)`."""
        features = self.encode(x) if x.ndim == 2 else x  # (batch, frames, channels)
        frames = num_frames(lengths, self.config) if x.ndim == 2 else lengths  # (batch,)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features.float(), frames), frames

    def head(self, features: Tensor, frames: Tensor) -> Tensor:
        """All that is above the convolutions: `(batch, frames, channels)` to logits `(batch, frames, symbols)`."""
        body, config, inside = self.model.wav2vec2, self.config, None
        if config.feat_extract_norm == "layer":
            positions = torch.arange(features.shape[1], device=features.device)
            inside = positions < frames[:, None]  # (batch, frames), False in padding
        hidden, _ = body.feature_projection(features)  # (batch, frames, hidden)
        width = hidden.shape[1]
        if self.training and config.mask_time_prob > 0 and width >= config.mask_time_length:
            counts = [width] * len(hidden) if inside is None else inside.sum(1).tolist()
            mask = draw_time_masks(counts, width, config).to(hidden.device)  # (batch, frames)
            hidden[mask] = body.masked_spec_embed.to(hidden.dtype)
        hidden = body.encoder(hidden, attention_mask=inside).last_hidden_state
        return self.model.lm_head(self.model.dropout(hidden))


def draw_time_masks(counts: Sequence[int], width: int, config: Wav2Vec2Config) -> Tensor:
    """The frames that SpecAugment masks, `(batch, width)` of bool; `counts` are the utterances' frames.

    Spans of `mask_time_length` frames start at different places and may overlap. The random numbers are NumPy's,
    drawn in the library's order.
    """
    length = config.mask_time_length
    masks = np.zeros((len(counts), width), bool)
    rounding = np.random.rand()  # noqa: NPY002
    for row, n in zip(masks, counts, strict=True):
        starts = max(n - length + 1, 0)
        spans = int(config.mask_time_prob * n / length + rounding)
        spans = min(max(spans, config.mask_time_min_masks), width // length, starts)
        first = np.random.choice(starts, spans, replace=False)  # noqa: NPY002
        row[first[:, None] + np.arange(length)] = True
    return torch.from_numpy(masks)


def make_processor(vocabulary: Vocabulary, config: Wav2Vec2Config | None = None) -> Wav2Vec2Processor:
    """The tokenizer and the feature extractor that Hugging Face's tools expect beside the weights."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "vocab.json"
        numbers = {symbol: i for i, symbol in enumerate(vocabulary.symbols)}
        file.write_text(json.dumps(numbers), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(
            str(file), bos_token=None, eos_token=None, unk_token=UNKNOWN, pad_token=BLANK,
            word_delimiter_token=SEPARATOR,
        )  # fmt: skip
    masked = config is None or config.feat_extract_norm == "layer"
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=masked
    )
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)


def load_recogniser(
    source: str | Path | Wav2Vec2Config,
    vocabulary: Vocabulary | None = None,
    device: torch.device | None = None,
    **changes: Any,
) -> Wav2Vec2CTC:
    """Load a recogniser, in evaluation mode.

    `source` is a `Wav2Vec2Config` (random weights), this repository's `NAME.safetensors` with its card, a
    folder that `save_folder` or `save_pretrained` wrote, or a name on the hub, such as
    `facebook/wav2vec2-base` (378 MB). Fine-tuned weights keep their head and vocabulary; pretrained ones get a
    new head for `vocabulary`. `changes` override the configuration. Raises RuntimeError, with what to do
    about it, when the weights are not there.
    """
    vocabulary = vocabulary or Vocabulary()
    if isinstance(source, Wav2Vec2Config):
        config = change_config(source.to_dict(), _head_of(vocabulary) | changes)
        model = Wav2Vec2ForCTC(config)
    elif str(source).endswith(".safetensors"):
        model, vocabulary = _load_small(Path(source), vocabulary, changes)
    else:
        model, vocabulary = _load_pretrained(str(source), vocabulary, changes)
    return Wav2Vec2CTC(model, vocabulary).to(device or torch.device("cpu")).eval()


def _head_of(vocabulary: Vocabulary) -> dict[str, Any]:
    symbols = {"vocab_size": len(vocabulary), "pad_token_id": vocabulary.blank}
    return symbols | {"bos_token_id": None, "eos_token_id": None}


def change_config(config: Mapping[str, Any], changes: Mapping[str, Any]) -> Wav2Vec2Config:
    """A configuration from a dictionary, with some fields replaced."""
    return Wav2Vec2Config.from_dict({**config, **changes})


def _load_small(
    path: Path, vocabulary: Vocabulary, changes: Mapping[str, Any]
) -> tuple[Wav2Vec2ForCTC, Vocabulary]:
    card = read_card(path)
    if "symbols" in card:
        vocabulary = Vocabulary(tuple(card["symbols"]))
    config = change_config(card["config"], _head_of(vocabulary) | dict(changes))
    model = Wav2Vec2ForCTC(config)
    state = {k: v.float() for k, v in load_file(path).items()}
    left = model.load_state_dict(state, strict=False)
    mask = "wav2vec2.masked_spec_embed"  # not in a network without SpecAugment
    heads = ("quantizer.", "project_hid.", "project_q.")  # of pretraining
    missing = [k for k in left.missing_keys if not k.startswith(("lm_head.", mask))]
    unknown = [k for k in left.unexpected_keys if not k.startswith((*heads, mask))]
    if missing or unknown:
        raise RuntimeError(f"{path.name} is of another network: missing {missing[:3]}, unknown {unknown[:3]}")
    return model, vocabulary


def read_card(path: Path) -> dict[str, Any]:
    """The card beside a `.safetensors` file. Raises RuntimeError when either is missing."""
    card = path.with_suffix(".json")
    if not path.is_file() or not card.is_file():
        raise RuntimeError(
            f"{path.name} and {card.name} are not in {path.parent.name}/. Three options:\n"
            "  1. check them out of the repository again:  git checkout -- Day09_Wav2Vec2\n"
            "  2. pretrain them:                           python -m Day09_Wav2Vec2.pretrain --profile study\n"
            "  3. start from random weights:               load_recogniser(small_config())"
        )
    return json.loads(card.read_text(encoding="utf-8"))


def _load_pretrained(
    source: str, vocabulary: Vocabulary, changes: Mapping[str, Any]
) -> tuple[Wav2Vec2ForCTC, Vocabulary]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning about the newly initialised head
    try:
        config = Wav2Vec2Config.from_pretrained(source)
        if "Wav2Vec2ForCTC" in (config.architectures or []):
            numbers = json.loads(Path(cached_file(source, "vocab.json")).read_text())
            vocabulary = Vocabulary(tuple(sorted(numbers, key=numbers.get)))
        config.update(_head_of(vocabulary) | dict(changes))
        return Wav2Vec2ForCTC.from_pretrained(source, config=config), vocabulary
    except OSError as e:
        raise RuntimeError(
            f"The weights {Path(source).name!r} are not here and could not be fetched. Three options:\n"
            f"  1. where there is network:  hf download {source}\n"
            "  2. a copy that you have:    the path of its folder instead of the name\n"
            "  3. our own small weights:   the .safetensors in Day09_Wav2Vec2/checkpoints\n"
            f"Why: {str(e).splitlines()[0]}"
        ) from e
    finally:
        logging.set_verbosity(before)


def save_folder(recogniser: Wav2Vec2CTC, folder: Path) -> None:
    """Write model, tokenizer and feature extractor, for `load_recogniser` and for any Hugging Face tool."""
    recogniser.model.save_pretrained(folder)
    make_processor(recogniser.vocabulary, recogniser.config).save_pretrained(folder)


# --- CTC --------------------------------------------------------------------------------------------


def ctc_losses(
    logits: Tensor, frames: Tensor, batch: Batch, blank: int, zero_infinity: bool = True
) -> Tensor:
    """-log p(text | sound) of each utterance, per letter: `(batch,)`.

    With `zero_infinity` an utterance that is too short for its text counts 0 and has no gradient;
    without, one such utterance makes the whole batch's loss infinite and the weights NaN. Computed on the CPU
    where the device has no CTC loss (MPS).
    """
    place = logits.device if logits.is_cuda else torch.device("cpu")
    log_probs = logits.float().log_softmax(-1).transpose(0, 1).to(place)  # (frames, batch, symbols)
    labels, frames, lengths = (t.to(place) for t in (batch.labels, frames, batch.label_lengths))
    losses = F.ctc_loss(log_probs, labels, frames, lengths, blank, "none", zero_infinity=zero_infinity)
    return (losses / lengths.clamp(min=1)).to(logits.device)


# --- data sets, evaluation ----------------------------------------------------------------------------


def has_enough_frames(utterances: Utterances, config: Wav2Vec2Config, vocabulary: Vocabulary) -> np.ndarray:
    """Which utterances have enough frames for their text, so that CTC can learn them: `(utterances,)`, bool."""
    codes = [vocabulary.encode(ctc.normalise_text(text)) for text in utterances.texts]
    needed = [max(1, ctc.frames_needed(code)) for code in codes]
    return np.array([num_frames(int(n), config) for n in utterances.lengths]) >= needed


class CTCDataset:
    """Utterances as batches for a recogniser; with `cached` the frozen convolutions run once, here.

    `lengths` `(utterances,)` are in samples, or in frames when cached. Raises ValueError for another sample rate
    than 16 kHz, for a letter outside the vocabulary, for an utterance shorter than one frame and, with
    `strict` (training), for one that is too short for its text.
    """

    def __init__(
        self, utterances: Utterances, recogniser: Wav2Vec2CTC, cached: bool = False, strict: bool = False
    ) -> None:
        ctc.check_rate(utterances.rate)
        config, vocabulary = recogniser.config, recogniser.vocabulary
        frames = np.array([num_frames(int(n), config) for n in utterances.lengths])
        good = has_enough_frames(utterances, config, vocabulary) if strict else frames > 0
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            raise ValueError(
                f"{int((~good).sum())} of {len(good)} utterances are too short, e.g. "
                f"{utterances.names[first]}: {frames[first]} frames for {utterances.texts[first]!r}. "
                "Leave them out: utterances.take(has_enough_frames(utterances, config, vocabulary))."
            )
        self.utterances, self.recogniser = utterances, recogniser
        self.lengths = frames if cached else utterances.lengths
        self.cache: list[Tensor] | None = None
        if cached:
            self.cache = self._encode()
            self.labels = ctc.encode_texts(utterances.texts, vocabulary)

    def __len__(self) -> int:
        return len(self.utterances)

    @torch.no_grad()
    def _encode(self) -> list[Tensor]:
        """Each utterance's frames `(frames, channels)`, on the device; one by one for group norm."""
        together = 16 if self.recogniser.config.feat_extract_norm == "layer" else 1
        cache: list[Tensor] = [torch.empty(0)] * len(self)
        for numbers in ctc.length_batches(self.utterances.lengths, together):
            features = self.recogniser.encode(self.batch(numbers).x)  # (batch, frames, channels)
            for i, row in zip(numbers, features, strict=True):
                cache[i] = row[: int(self.lengths[i])].clone()
        return cache

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These utterances, padded to the longest, on the recogniser's device."""
        device = self.recogniser.device
        if self.cache is None:
            return ctc.collate(self.utterances, numbers, self.recogniser.vocabulary, device)
        features = [self.cache[i] for i in numbers]
        x = nn.utils.rnn.pad_sequence(features, batch_first=True)  # (batch, frames, channels)
        labels, label_lengths = (t[list(numbers)] for t in self.labels)
        labels = labels[:, : max(1, int(label_lengths.max()))]
        lengths = torch.tensor([len(f) for f in features], device=device)
        return Batch(x, lengths, labels.to(device), label_lengths.to(device))


@dataclass
class Evaluation:
    """A recogniser's output for a data set: texts, log probabilities `(frames, symbols)` each, loss and errors."""

    outputs: list[str]
    log_probs: list[Tensor]
    loss: float
    blanks: float
    errors: Errors

    def numbers(self) -> dict[str, float]:
        """`loss`, `wer`, `cer`, and `blanks`, the fraction of frames whose likeliest symbol is the blank."""
        return {
            "loss": self.loss, "wer": self.errors.wer, "cer": self.errors.cer, "blanks": self.blanks,
        }  # fmt: skip


@torch.no_grad()
def evaluate_ctc(
    recogniser: Wav2Vec2CTC, dataset: Utterances | CTCDataset, batch_size: int = 16
) -> Evaluation:
    """Greedy decoding of a data set, its mean loss per letter, and its errors against the normalised texts."""
    if isinstance(dataset, Utterances):
        dataset = CTCDataset(dataset, recogniser)
    vocabulary, training = recogniser.vocabulary, recogniser.training
    recogniser.eval()
    log_probs: list[Tensor] = [torch.empty(0)] * len(dataset)
    losses, blanks, total = 0.0, 0.0, 0
    try:
        for numbers in ctc.length_batches(dataset.lengths, batch_size):
            batch = dataset.batch(numbers)
            logits, frames = recogniser(batch.x, batch.lengths)
            losses += float(ctc_losses(logits, frames, batch, vocabulary.blank).sum())
            count = int(frames.sum())
            blanks += ctc.blank_fraction(logits, frames, vocabulary.blank) * count
            total += count
            rows = logits.float().log_softmax(-1).cpu()  # (batch, frames, symbols)
            for i, row, n in zip(numbers, rows, frames.tolist(), strict=True):
                log_probs[i] = row[:n].clone()
    finally:
        recogniser.train(training)
    outputs = [vocabulary.decode_frames(p) for p in log_probs]
    references = [ctc.normalise_text(text) for text in dataset.utterances.texts]
    errors = ctc.errors(references, outputs)
    return Evaluation(outputs, log_probs, losses / len(dataset), blanks / total, errors)


# --- fine-tuning --------------------------------------------------------------------------------------

CTC_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": functools.partial(torch.optim.AdamW, betas=(0.9, 0.98), weight_decay=0.005),
    "RAdam": functools.partial(torch.optim.RAdam, betas=(0.9, 0.98)),
    "SGD": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "tri-stage": lambda s: 1.0 if s < 0.5 else 0.05 ** ((s - 0.5) / 0.5),
    "linear": lambda s: 1.0 - s,
    "cosine": lambda s: 0.5 * (1 + float(np.cos(np.pi * s))),
    "constant": lambda s: 1.0,
}
"""Factor of the learning rate at a fraction of the training; each starts with a warm-up over the first tenth.

`tri-stage` is the paper's: warm-up, constant until the half, then exponential decay to a twentieth.
"""

WARM_UP = 0.1


def schedule_factor(name: str, step: int, steps: int) -> float:
    """The factor of the learning rate at `step` (from 0) of `steps`: SCHEDULES[name] under a linear warm-up."""
    fraction = step / max(1, steps)
    return min((step + 1) / max(1.0, WARM_UP * steps), 1.0) * SCHEDULES[name](fraction)


@dataclass(frozen=True)
class FineTuning:
    """How a recogniser is fine-tuned.

    `lr` is the head's learning rate, `encoder_lr` (default: `lr`) that of the rest. `frozen` keeps the
    convolutions as they are, `cached` computes their output once (frozen only), `mixed` computes them in
    bfloat16 where the device is faster with it. `max_samples` bounds a batch in samples (in frames when cached),
    padding included.
    """

    epochs: int = 20
    batch_size: int = 16
    lr: float = 1e-3
    encoder_lr: float | None = None
    optimizer: str = "AdamW"
    scheduler: str = "tri-stage"
    clip: float = 1.0
    frozen: bool = True
    cached: bool = False
    max_samples: int | None = None
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.cached and not self.frozen:
            raise ValueError("only the output of frozen convolutions can be cached")
        for name, known in ((self.optimizer, CTC_OPTIMIZERS), (self.scheduler, SCHEDULES)):
            if name not in known:
                raise ValueError(f"{name!r} is unknown: write one of {', '.join(known)}")


def freeze_encoder(recogniser: Wav2Vec2CTC, frozen: bool = True) -> None:
    """Freeze the convolutions, or train them."""
    if frozen:
        recogniser.model.freeze_feature_encoder()
    else:
        recogniser.model.wav2vec2.feature_extractor.requires_grad_(True)


def fine_tune(
    recogniser: Wav2Vec2CTC,
    train: Utterances | CTCDataset | Sequence[Utterances],
    validation: Utterances | CTCDataset,
    settings: FineTuning,
    *,
    seed: int = 0,
    run: Run | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[Mapping[str, Any]], bool] | None = None,
    label: str = "fine-tuning",
    bar: bool = True,
) -> History:
    """Train with CTC on `pick_device()`, to which the recogniser moves, and return the history.

    `train` is one data set, or one for each epoch (a curriculum; the last one repeats). Each epoch logs
    `train_loss` (per letter), `grad_norm` and `lr`, and on the validation part `val_loss`, `val_wer`, `val_cer`,
    `val_blanks` and three `decoded` lines. SpecAugment, dropout and layer drop are the configuration's. With
    `run` (or `checkpoint`) the state is saved after each epoch, and the same call after a kill continues there:
    an epoch's random numbers depend only on `seed` and its number. `stop(entry)` may end the training.

    Several training runs from the same convolutions can share one cached `CTCDataset`. Raises ValueError for
    utterances that cannot be learned (see CTCDataset) and for a cached data set when the convolutions are to be
    trained, Diverged when the loss of an epoch is not finite.
    """
    device, vocabulary = pick_device(), recogniser.vocabulary
    checkpoint = checkpoint or (run.checkpoint if run else None)
    keep = run is not None and run.keeps_checkpoint
    freeze_encoder(recogniser, settings.frozen)
    recogniser.to(device)

    def prepare(data: Utterances | CTCDataset, strict: bool) -> CTCDataset:
        if isinstance(data, Utterances):
            return CTCDataset(data, recogniser, settings.cached, strict)
        if data.cache is not None and not settings.frozen:
            raise ValueError("only the output of frozen convolutions can be cached")
        return data

    parts = [train] if isinstance(train, (Utterances, CTCDataset)) else train
    curriculum = [prepare(part, strict=True) for part in parts]
    curriculum += curriculum[-1:] * (settings.epochs - len(curriculum))
    held_out = prepare(validation, strict=False)
    references = [ctc.normalise_text(text) for text in held_out.utterances.texts[:3]]

    plan: list[list[list[int]]] = []  # for each epoch its batches of utterance numbers
    for epoch, data in zip(range(settings.epochs), curriculum, strict=False):
        order = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        size = settings.batch_size
        plan.append(ctc.length_batches(data.lengths, size, order, settings.max_samples))
    steps = sum(map(len, plan))
    model, encoder_lr = recogniser.model, settings.encoder_lr
    encoder = [p for p in model.wav2vec2.parameters() if p.requires_grad]
    groups = [
        {"params": list(model.lm_head.parameters())},
        {"params": encoder, "lr": settings.lr if encoder_lr is None else encoder_lr},
    ]
    optimizer = CTC_OPTIMIZERS[settings.optimizer](groups, lr=settings.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor(settings.scheduler, step, steps)
    )
    history, start = History(), 0
    if checkpoint and checkpoint.exists():
        history, start = resume(checkpoint, recogniser, optimizer, scheduler, run)
    done = sum(map(len, plan[:start]))
    zero_infinity = bool(recogniser.config.ctc_zero_infinity)
    with progress(steps, label, done, bar) as shown:
        for epoch in range(start, settings.epochs):
            # other masks and dropout in each epoch, the same when it is repeated
            seed_everything(epoch_seed(seed, epoch) * 64)
            recogniser.train()
            losses, norms, rates = [], [], []
            began = time.perf_counter()
            for numbers in plan[epoch]:
                batch = curriculum[epoch].batch(numbers)
                with autocast(device, settings.mixed):
                    logits, frames = recogniser(batch.x, batch.lengths)
                loss = ctc_losses(logits, frames, batch, vocabulary.blank, zero_infinity)
                loss = loss.sum() / len(numbers)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norms.append(nn.utils.clip_grad_norm_(recogniser.parameters(), settings.clip))
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
                losses.append(loss.detach())
                shown.update()
            synchronize(device)
            seconds = time.perf_counter() - began
            loss, norm = torch.stack(losses).cpu(), torch.stack(norms).cpu()
            curves = {"loss": loss.tolist(), "grad_norm": norm.tolist(), "lr": rates}
            for name, values in curves.items():
                history.steps.setdefault(name, []).extend(values)
            if run:
                run.log_steps(done, curves)
            done += len(plan[epoch])
            if not torch.isfinite(loss).all():
                raise Diverged(
                    f"the loss is not finite in epoch {epoch + 1}: learning rate too large, or "
                    "ctc_zero_infinity off with an utterance too short for its text?"
                )
            found = evaluate_ctc(recogniser, held_out, settings.batch_size)
            entry: dict[str, Any] = {
                "epoch": epoch + 1, "train_loss": loss.mean().item(),
                "grad_norm": norm.mean().item(), "lr": rates[-1], "seconds": round(seconds, 3),
            }  # fmt: skip
            entry |= {f"val_{k}": v for k, v in found.numbers().items()}
            pairs = zip(references, found.outputs, strict=False)
            entry["decoded"] = " / ".join(f"{ref} → {out or '(nothing)'}" for ref, out in pairs)
            history.epochs.append(entry)
            if run:
                run.log_epoch(**as_epoch_kwargs(entry))
            if checkpoint:
                save_checkpoint(checkpoint, recogniser, optimizer, scheduler, history)
            if stop and stop(entry):
                break
            shown.set_postfix_str(
                f"loss {entry['train_loss']:.3g}, WER {entry['val_wer']:.3g}, "
                f"blanks {entry['val_blanks']:.2g}"
            )
    if checkpoint and not keep:
        checkpoint.unlink(missing_ok=True)
    recogniser.eval()
    return history
