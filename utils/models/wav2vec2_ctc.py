"""wav2vec 2.0 (Baevski et al., 2020, arXiv:2006.11477): a small one, its pretraining, and fine-tuning with CTC.

The networks are Hugging Face's `Wav2Vec2ForPreTraining` and `Wav2Vec2ForCTC`; what is around them is here.
Letters, decoding and batches are in `utils.asr`.
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

from ..device import autocast, pick_device, seed_everything, synchronize
from ..features import SAMPLE_RATE
from ..logger import Run, progress
from ..speech.corpora import Utterances
from ..training import Diverged, History, as_epoch_kwargs, resume, save_checkpoint, total_norm
from . import ctc
from .ctc import BLANK, SEPARATOR, UNKNOWN, Batch, Errors, Vocabulary


def tiny_config(vocabulary: Vocabulary | None = None, **changes: Any) -> Wav2Vec2Config:
    """30 thousand weights and a frame each 10 ms: for tests and rehearsals, not for results."""
    size: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "conv_dim": (32,) * 3, "conv_kernel": (10, 8, 4),
        "conv_stride": (5, 8, 4), "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
        "num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 16,
        "num_negatives": 10,
    }  # fmt: skip
    return ctc_config(vocabulary, size | changes)


def ctc_config(vocabulary: Vocabulary | None, size: Mapping[str, Any]) -> Wav2Vec2Config:
    vocabulary = vocabulary or Vocabulary()
    settings = {
        "vocab_size": len(vocabulary), "pad_token_id": vocabulary.blank, "bos_token_id": None,
        "eos_token_id": None, "feat_extract_norm": "layer", "conv_bias": True,
        "do_stable_layer_norm": True, "layerdrop": 0.0, "mask_time_prob": 0.05,
        "mask_time_length": 10, "ctc_zero_infinity": True, "num_codevector_groups": 2,
    }  # fmt: skip
    return Wav2Vec2Config(**(settings | dict(size)))


def num_frames(samples, config: Wav2Vec2Config):
    """Frames that the convolutions make of so many samples (a number or a tensor); 0 for too few."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples.clamp(min=0) if torch.is_tensor(samples) else max(0, samples)


class Wav2Vec2CTC(nn.Module):
    """A `Wav2Vec2ForCTC` with its vocabulary.

    `(x, lengths)` to logits `(batch, frames, symbols)` and frames `(batch,)`. `x` is normalised waves
    `(batch, time)` with `lengths` in samples, or the convolutions' output `(batch, frames, channels)`,
    kept from before, with `lengths` in frames; both ways are one computation. SpecAugment's masks work in
    training. Group norm (wav2vec2-base) was trained without an attention mask and is given none; there,
    padding changes a result a little. Under autocast only the convolutions leave float32: in the
    transformer bfloat16 loses the gradient (our pretrained weights with a new head: cosine to float32's
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
        config = self.config
        features = self.encode(x) if x.ndim == 2 else x
        frames = num_frames(lengths, config) if x.ndim == 2 else lengths
        with torch.autocast(x.device.type, enabled=False):
            return self._letters(features.float(), frames), frames

    def _letters(self, features: Tensor, frames: Tensor) -> Tensor:
        """What lies above the convolutions: `(batch, frames, channels)` to logits."""
        body, config, inside = self.model.wav2vec2, self.config, None
        if config.feat_extract_norm == "layer":
            places = torch.arange(features.shape[1], device=features.device)
            inside = places < frames[:, None]
        hidden, _ = body.feature_projection(features)
        if self.training and hidden.shape[1] >= config.mask_time_length:
            hidden = body._mask_hidden_states(hidden, attention_mask=inside)
        hidden = body.encoder(hidden, attention_mask=inside).last_hidden_state
        return self.model.lm_head(self.model.dropout(hidden))


def make_processor(
    vocabulary: Vocabulary, config: Wav2Vec2Config | None = None
) -> Wav2Vec2Processor:
    """Tokenizer and feature extractor of this vocabulary for Hugging Face's own tools."""
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
    """A recogniser from wherever its weights are, in evaluation mode.

    `source` is a `Wav2Vec2Config` (random weights), this repository's `NAME.safetensors` with its card, a
    folder that `save_folder` or `save_pretrained` wrote, or a name on the hub, such as
    `facebook/wav2vec2-base` (378 MB). Weights that were fine-tuned keep their head and their vocabulary;
    pretrained ones get a new head for `vocabulary`. `changes` override the configuration. Raises
    RuntimeError that says the ways on when there is nothing to load.
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
    return {
        "vocab_size": len(vocabulary), "pad_token_id": vocabulary.blank,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def change_config(config: Mapping[str, Any], changes: Mapping[str, Any]) -> Wav2Vec2Config:
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
        raise RuntimeError(
            f"{path.name} is of another network: missing {missing[:3]}, unknown {unknown[:3]}"
        )
    return model, vocabulary


def read_card(path: Path) -> dict[str, Any]:
    card = path.with_suffix(".json")
    if not path.is_file() or not card.is_file():
        raise RuntimeError(
            f"{path.name} and {card.name} are not in {path.parent.name}/. Three ways on:\n"
            "  1. check them out of the repository again:  git checkout -- Day09_Wav2Vec2\n"
            "  2. pretrain them:                           python -m Day09_Wav2Vec2.pretrain --profile study\n"
            "  3. begin from random weights:               load_recogniser(small_config())"
        )
    return json.loads(card.read_text(encoding="utf-8"))


def _load_pretrained(
    source: str, vocabulary: Vocabulary, changes: Mapping[str, Any]
) -> tuple[Wav2Vec2ForCTC, Vocabulary]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # a new head is meant, not a mishap
    try:
        config = Wav2Vec2Config.from_pretrained(source)
        if "Wav2Vec2ForCTC" in (config.architectures or []):
            numbers = json.loads(Path(cached_file(source, "vocab.json")).read_text())
            vocabulary = Vocabulary(tuple(sorted(numbers, key=numbers.get)))
        config.update(_head_of(vocabulary) | dict(changes))
        return Wav2Vec2ForCTC.from_pretrained(source, config=config), vocabulary
    except OSError as e:
        raise RuntimeError(
            f"The weights {Path(source).name!r} are not here and could not be fetched. Three ways on:\n"
            f"  1. where there is network:  hf download {source}\n"
            "  2. a copy that you have:    the path of its folder instead of the name\n"
            "  3. our own small weights:   the .safetensors in Day09_Wav2Vec2/checkpoints\n"
            f"Why: {str(e).splitlines()[0]}"
        ) from e
    finally:
        logging.set_verbosity(before)


def save_folder(recogniser: Wav2Vec2CTC, folder: Path) -> None:
    """Write model, tokenizer and feature extractor as `fine_tuned_model/` for `load_recogniser` or any HF tool."""
    recogniser.model.save_pretrained(folder)
    make_processor(recogniser.vocabulary, recogniser.config).save_pretrained(folder)


# --- CTC --------------------------------------------------------------------------------------------


@functools.cache
def ctc_device(device: torch.device) -> torch.device:
    """Where the CTC loss of this device is computed: there if it can, else on the CPU (MPS has no CTC)."""
    try:
        scores = torch.zeros(3, 1, 2, device=device, requires_grad=True)
        labels = torch.ones(1, 1, dtype=torch.long, device=device)
        one = torch.ones(1, dtype=torch.long, device=device)
        F.ctc_loss(scores.log_softmax(-1), labels, 3 * one, one).backward()
    except (NotImplementedError, RuntimeError):
        return torch.device("cpu")
    return device


def ctc_losses(
    logits: Tensor, frames: Tensor, batch: Batch, blank: int, zero_infinity: bool = True
) -> Tensor:
    """-log p(text | sound) of each utterance per letter: `(batch,)`.

    With `zero_infinity` an utterance that is too short for its text counts 0 and has no gradient;
    without, one such utterance makes the whole batch's loss infinite and the weights NaN.
    """
    place = ctc_device(logits.device)
    log_probs = logits.float().log_softmax(-1).transpose(0, 1).to(place)
    labels, frames, lengths = (t.to(place) for t in (batch.labels, frames, batch.label_lengths))
    losses = F.ctc_loss(
        log_probs, labels, frames, lengths, blank, "none", zero_infinity=zero_infinity
    )
    return (losses / lengths.clamp(min=1)).to(logits.device)


# --- examples, decoding, evaluation -------------------------------------------------------------------


def has_enough_frames(
    sentences: Utterances, config: Wav2Vec2Config, vocabulary: Vocabulary
) -> np.ndarray:
    """Which utterances have frames enough for their text, so that CTC can learn them: `(utterances,)` of bool."""
    need = [
        max(1, ctc.frames_needed(vocabulary.encode(ctc.normalise_text(text))))
        for text in sentences.texts
    ]
    return np.array([num_frames(int(n), config) for n in sentences.lengths]) >= need


class CTCDataset:
    """Sentences as batches for a recogniser; with `cached` the frozen convolutions run once, here.

    `lengths` `(utterances,)` are in samples, or frames when cached. Raises ValueError for another rate
    than 16 kHz, for a letter outside the vocabulary, and for an utterance shorter than one frame, in
    training (`strict`) also for one that is too short for its text.
    """

    def __init__(
        self,
        sentences: Utterances,
        recogniser: Wav2Vec2CTC,
        cached: bool = False,
        strict: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        ctc.check_rate(sentences.rate)
        config, vocabulary = recogniser.config, recogniser.vocabulary
        frames = np.array([num_frames(int(n), config) for n in sentences.lengths])
        good = has_enough_frames(sentences, config, vocabulary) if strict else frames > 0
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            raise ValueError(
                f"{int((~good).sum())} of {len(good)} utterances are too short, e.g. "
                f"{sentences.names[first]}: {frames[first]} frames for {sentences.texts[first]!r}. "
                "Leave them out: sentences.take(fits(sentences, config, vocabulary))."
            )
        self.sentences, self.recogniser = sentences, recogniser
        self.lengths = frames if cached else sentences.lengths
        self.kept: list[Tensor] | None = None
        if cached:
            self.kept = self._encode(dtype)
            self.labels = ctc.encode_texts(sentences.texts, vocabulary)

    def __len__(self) -> int:
        return len(self.sentences)

    @torch.no_grad()
    def _encode(self, dtype: torch.dtype) -> list[Tensor]:
        """Each utterance's frames `(frames, channels)`, on the device. Group norm sees one at a time."""
        together = 16 if self.recogniser.config.feat_extract_norm == "layer" else 1
        kept: list[Tensor] = [torch.empty(0)] * len(self)
        for numbers in ctc.length_batches(self.sentences.lengths, together):
            batch = self._waves(numbers)
            features = self.recogniser.encode(batch.x).to(dtype)
            for i, row in zip(numbers, features, strict=True):
                kept[i] = row[: int(self.lengths[i])].clone()
        return kept

    def _waves(self, numbers: Sequence[int]) -> Batch:
        recogniser = self.recogniser
        return ctc.collate(self.sentences, numbers, recogniser.vocabulary, recogniser.device)

    def batch(self, numbers: Sequence[int]) -> Batch:
        """These utterances, padded to the longest, on the recogniser's device."""
        if self.kept is None:
            return self._waves(numbers)
        device = self.recogniser.device
        some = [self.kept[i].float() for i in numbers]
        x = nn.utils.rnn.pad_sequence(some, batch_first=True)
        labels, label_lengths = (t[list(numbers)] for t in self.labels)
        labels = labels[:, : max(1, int(label_lengths.max()))]
        lengths = torch.tensor([len(f) for f in some], device=device)
        return Batch(x, lengths, labels.to(device), label_lengths.to(device))


@dataclass
class Evaluation:
    """What a recogniser says of a set: texts in its order, log probabilities `(frames, symbols)`, numbers."""

    outputs: list[str]
    log_probs: list[Tensor]
    loss: float
    blanks: float
    errors: Errors

    def numbers(self) -> dict[str, float]:
        """`loss`, `wer`, `cer`, and `blanks`, the share of frames whose likeliest symbol is the blank."""
        return {
            "loss": self.loss, "wer": self.errors.wer, "cer": self.errors.cer, "blanks": self.blanks,
        }  # fmt: skip


@torch.no_grad()
def evaluate_ctc(
    recogniser: Wav2Vec2CTC, examples: Utterances | CTCDataset, batch_size: int = 16
) -> Evaluation:
    """Greedy decoding of a set, its mean loss per letter, and its error rates against the normalised texts."""
    if isinstance(examples, Utterances):
        examples = CTCDataset(examples, recogniser)
    vocabulary, training = recogniser.vocabulary, recogniser.training
    recogniser.eval()
    log_probs: list[Tensor] = [torch.empty(0)] * len(examples)
    losses, blanks, total = 0.0, 0.0, 0
    try:
        for numbers in ctc.length_batches(examples.lengths, batch_size):
            batch = examples.batch(numbers)
            logits, frames = recogniser(batch.x, batch.lengths)
            per_utterance = ctc_losses(logits, frames, batch, vocabulary.blank)
            count = int(frames.sum())
            share = ctc.blank_fraction(logits, frames, vocabulary.blank)
            losses, blanks = losses + float(per_utterance.sum()), blanks + share * count
            total += count
            rows = logits.float().log_softmax(-1).cpu()
            for i, row, n in zip(numbers, rows, frames.tolist(), strict=True):
                log_probs[i] = row[:n].clone()
    finally:
        recogniser.train(training)
    outputs = [
        vocabulary.decode(ctc.collapse(p.argmax(-1).tolist(), vocabulary.blank)) for p in log_probs
    ]
    references = [ctc.normalise_text(text) for text in examples.sentences.texts]
    return Evaluation(
        outputs, log_probs, losses / len(examples), blanks / total,
        ctc.errors(references, outputs),
    )  # fmt: skip


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
"""Factor of the learning rate at the share `s` of training; in each the first tenth rises from 0 (warm-up).

`tri-stage` is the paper's: rise, stay until the half, fall exponentially to a twentieth.
"""

WARM_UP = 0.1


def schedule_factor(name: str, step: int, steps: int) -> float:
    """The factor of step `step` (from 0) of `steps`: SCHEDULES[name] under a linear warm-up."""
    share = step / max(1, steps)
    return min((step + 1) / max(1.0, WARM_UP * steps), 1.0) * SCHEDULES[name](share)


@dataclass(frozen=True)
class FineTuning:
    """How a recogniser is fine-tuned. `lr` is the head's, `encoder_lr` that of all below (by default the same).

    `frozen` leaves the convolutions as they are; `cached` computes their output once (frozen only);
    `mixed` computes them in bfloat16 where the device gains.
    `most` bounds a batch in samples (in frames when cached), padding included.
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
    bucketed: bool = True
    most: int | None = None
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.cached and not self.frozen:
            raise ValueError("only the output of frozen convolutions can be cached")
        for name, known in ((self.optimizer, CTC_OPTIMIZERS), (self.scheduler, SCHEDULES)):
            if name not in known:
                raise ValueError(f"{name!r} is unknown: write one of {', '.join(known)}")


def freeze_encoder(recogniser: Wav2Vec2CTC, frozen: bool = True) -> None:
    """Whether the convolutions are trained."""
    extractor = recogniser.model.wav2vec2.feature_extractor
    extractor.requires_grad_(not frozen)
    extractor._requires_grad = not frozen  # else the library asks for gradients of the wave


def make_accelerator():
    """One process or several, as this program was started (`accelerate launch`), on `pick_device`'s device."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # the mask embedding has no gradient in a step without masks
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    on_cpu = pick_device().type == "cpu"
    return Accelerator(mixed_precision="no", cpu=on_cpu, kwargs_handlers=[unused])


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
    """Train with CTC and return the history; the recogniser moves to the device that trains it.

    `train` is one set, or one for each epoch (the last goes on): short sequences first, or others each time.
    Each epoch logs `train_loss` (per letter), `grad_norm`, `lr`, and of the validation part `val_loss`,
    `val_wer`, `val_cer`, `val_blanks` and three `decoded` lines. SpecAugment, dropout and layer drop are
    those of the recogniser's configuration. With `run` (or `checkpoint`) the state is saved after each
    epoch and a killed training goes on there; an epoch's random numbers depend on `seed` and its number
    alone. Under `accelerate launch` each batch is shared out over the processes, so the same settings
    give the same training on any number of them; only the first writes.

    Several trainings from one set of weights can share their cached `CTCDataset`: give these instead of the
    sentences, made by a recogniser with the same convolutions. Raises ValueError for utterances that
    cannot be learned (see CTCDataset) and for cached ones when the convolutions are to be trained, Diverged
    when the loss of an epoch is not finite.
    """
    accelerator = make_accelerator()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    checkpoint = checkpoint or (run.checkpoint if run else None)
    keep = run is not None and run.keeps_checkpoint
    run = run if accelerator.is_main_process else None
    freeze_encoder(recogniser, settings.frozen)
    recogniser.to(accelerator.device)

    def prepared(some: Utterances | CTCDataset, strict: bool) -> CTCDataset:
        if isinstance(some, Utterances):
            return CTCDataset(some, recogniser, settings.cached, strict)
        if some.kept is not None and not settings.frozen:
            raise ValueError("only the output of frozen convolutions can be cached")
        return some

    sets = [train] if isinstance(train, (Utterances, CTCDataset)) else train
    lessons = [prepared(some, True) for some in sets]
    held_out = prepared(validation, False)
    references = [ctc.normalise_text(text) for text in held_out.sentences.texts[:3]]

    def batches_of(epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        lengths = lessons[min(epoch, len(lessons) - 1)].lengths
        return ctc.length_batches(
            lengths, settings.batch_size, generator, settings.bucketed, settings.most
        )

    plan = [batches_of(epoch) for epoch in range(settings.epochs)]
    steps = sum(map(len, plan))
    head = list(recogniser.model.lm_head.parameters())
    below = [p for p in recogniser.model.wav2vec2.parameters() if p.requires_grad]
    encoder_lr = settings.lr if settings.encoder_lr is None else settings.encoder_lr
    groups = [{"params": head}, {"params": below, "lr": encoder_lr}]
    optimizer = CTC_OPTIMIZERS[settings.optimizer](groups, lr=settings.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor(settings.scheduler, step, steps)
    )
    history, start = History(), 0
    if checkpoint and checkpoint.exists():
        history, start = resume(checkpoint, recogniser, optimizer, scheduler, run)
    network = accelerator.prepare(recogniser)
    done = sum(map(len, plan[:start]))
    show = bar and accelerator.is_main_process
    with progress(steps, label, done, show) as shown:
        for epoch in range(start, settings.epochs):
            # other dropout in each process, the same when the epoch is repeated
            seed_everything((seed * 100_003 + epoch) * 64 + rank)
            recogniser.train()
            losses, norms, rates = [], [], []
            examples = lessons[min(epoch, len(lessons) - 1)]
            began = time.perf_counter()
            for numbers in plan[epoch]:
                mine = numbers[rank::ranks]
                batch = examples.batch(mine or numbers[:1])
                with autocast(accelerator.device, settings.mixed):
                    logits, frames = network(batch.x, batch.lengths)
                per_utterance = ctc_losses(
                    logits, frames, batch, recogniser.vocabulary.blank,
                    bool(recogniser.config.ctc_zero_infinity),
                )  # fmt: skip
                part = per_utterance.sum() * bool(mine) / len(numbers)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(part * ranks)  # the processes' gradients are averaged
                norms.append(total_norm(recogniser))
                nn.utils.clip_grad_norm_(recogniser.parameters(), settings.clip)
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
                losses.append(part.detach())
                shown.update()
            synchronize(accelerator.device)
            seconds = time.perf_counter() - began
            total = accelerator.reduce(torch.stack(losses), "sum").cpu()
            norm = torch.stack(norms).cpu()
            curves = {"loss": total.tolist(), "grad_norm": norm.tolist(), "lr": rates}
            for name, values in curves.items():
                history.steps.setdefault(name, []).extend(values)
            if run:
                run.log_steps(done, curves)
            done += len(plan[epoch])
            if not torch.isfinite(total).all():
                raise Diverged(
                    f"the loss is not finite in epoch {epoch + 1}: learning rate too large, or "
                    "ctc_zero_infinity off with an utterance too short for its text?"
                )
            found = evaluate_ctc(recogniser, held_out, settings.batch_size)
            entry: dict[str, Any] = {
                "epoch": epoch + 1, "train_loss": total.mean().item(),
                "grad_norm": norm.mean().item(), "lr": rates[-1], "seconds": round(seconds, 3),
            }  # fmt: skip
            entry |= {f"val_{k}": v for k, v in found.numbers().items()}
            entry["decoded"] = " / ".join(
                f"{ref} → {out or '(nothing)'}"
                for ref, out in zip(references, found.outputs, strict=False)
            )
            history.epochs.append(entry)
            if run:
                run.log_epoch(**as_epoch_kwargs(entry))
            if checkpoint and accelerator.is_main_process:
                save_checkpoint(checkpoint, recogniser, optimizer, scheduler, history)
            accelerator.wait_for_everyone()
            if stop and stop(entry):
                break
            shown.set_postfix_str(
                f"loss {entry['train_loss']:.3g}, WER {entry['val_wer']:.3g}, "
                f"blanks {entry['val_blanks']:.2g}"
            )
    if checkpoint and not keep and accelerator.is_main_process:
        checkpoint.unlink(missing_ok=True)
    recogniser.eval()
    return history
