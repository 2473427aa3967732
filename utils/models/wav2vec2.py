"""wav2vec 2.0 (Baevski et al., 2020, arXiv:2006.11477): a small one, its pretraining, and fine-tuning with CTC.

The networks are Hugging Face's `Wav2Vec2ForPreTraining` and `Wav2Vec2ForCTC`; what is around them is here.
Letters, decoding and batches are in `utils.asr`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    Wav2Vec2ForPreTraining,
    Wav2Vec2Processor,
)
from transformers.utils import cached_file, logging

from .. import asr, days, speech
from ..asr import PAD, SEPARATOR, UNKNOWN, Batch, Errors, Vocabulary, WordModel
from ..device import (
    allow_tf32,
    autocast,
    pick_device,
    seed_everything,
    synchronize,
)
from ..features import SAMPLE_RATE, AudioError, as_float, read_audio, to_mono
from ..logger import Run, progress
from ..speech import Sentences
from ..training import (
    Diverged,
    History,
    numbered,
    resume,
    save_checkpoint,
    total_norm,
)
from ..weights import load_weights, save_weights, training_card

SMALL_WEIGHTS = days.get(9).folder / "checkpoints" / "wav2vec2_small.safetensors"
FULL_WEIGHTS = SMALL_WEIGHTS.with_name("wav2vec2_small_full.safetensors")
"""This repository's own pretrained weights, made by `python -m utils pretrain --day 9` on a CPU, and by the same
network's full profile on a GPU."""

# --- the network ------------------------------------------------------------------------------------


def small_config(
    vocabulary: Vocabulary | None = None, **changes: Any
) -> Wav2Vec2Config:
    """3.1 million weights: 7 convolutions (a frame each 20 ms), 6 layers of 192. A CPU core pretrains it in hours.

    Layer norm in the convolutions and before each block, as in wav2vec2-large-lv60, since it trains
    stably and padding does not touch it. Few channels where frames are many, 30 distractors for 100, and
    no dropout inside the blocks: each saves a CPU time. `changes` override any field of `Wav2Vec2Config`.
    """
    size: dict[str, Any] = {
        "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4,
        "intermediate_size": 768, "conv_dim": (64, 64, 96, 128, 128, 128, 128),
        "num_conv_pos_embeddings": 64, "num_codevectors_per_group": 64, "codevector_dim": 128,
        "proj_codevector_dim": 128, "num_negatives": 30, "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }  # fmt: skip
    return _config(vocabulary, size | changes)


def tiny_config(vocabulary: Vocabulary | None = None, **changes: Any) -> Wav2Vec2Config:
    """30 thousand weights and a frame each 10 ms: for tests and rehearsals, not for results."""
    size: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "conv_dim": (32,) * 3, "conv_kernel": (10, 8, 4),
        "conv_stride": (5, 8, 4), "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
        "num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 16,
        "num_negatives": 10,
    }  # fmt: skip
    return _config(vocabulary, size | changes)


def _config(vocabulary: Vocabulary | None, size: Mapping[str, Any]) -> Wav2Vec2Config:
    vocabulary = vocabulary or Vocabulary()
    settings = {
        "vocab_size": len(vocabulary), "pad_token_id": vocabulary.blank, "bos_token_id": None,
        "eos_token_id": None, "feat_extract_norm": "layer", "conv_bias": True,
        "do_stable_layer_norm": True, "layerdrop": 0.0, "mask_time_prob": 0.05,
        "mask_time_length": 10, "ctc_zero_infinity": True, "num_codevector_groups": 2,
    }  # fmt: skip
    return Wav2Vec2Config(**(settings | dict(size)))


def frames_of(samples, config: Wav2Vec2Config):
    """Frames that the convolutions make of so many samples (a number or a tensor); 0 for too few."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples.clamp(min=0) if torch.is_tensor(samples) else max(0, samples)


def receptive_field(config: Wav2Vec2Config) -> tuple[int, int]:
    """Samples that one frame sees, and samples from one frame to the next: 400 and 320 in wav2vec2-base."""
    field_, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field_, hop = field_ + (kernel - 1) * hop, hop * stride
    return field_, hop


class Recogniser(nn.Module):
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
                f"the network's blank is symbol {model.config.pad_token_id}, the vocabulary's {PAD} is "
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
        frames = frames_of(lengths, config) if x.ndim == 2 else lengths
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
            str(file), bos_token=None, eos_token=None, unk_token=UNKNOWN, pad_token=PAD,
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
) -> Recogniser:
    """A recogniser from wherever its weights are, in evaluation mode.

    `source` is a `Wav2Vec2Config` (random weights), this repository's `NAME.safetensors` with its card, a
    folder that `save_folder` or `save_pretrained` wrote, or a name on the hub, such as
    `facebook/wav2vec2-base` (378 MB). Weights that were fine-tuned keep their head and their vocabulary;
    pretrained ones get a new head for `vocabulary`. `changes` override the configuration. Raises
    RuntimeError that says the ways on when there is nothing to load.
    """
    vocabulary = vocabulary or Vocabulary()
    if isinstance(source, Wav2Vec2Config):
        config = _changed(source.to_dict(), _head_of(vocabulary) | changes)
        model = Wav2Vec2ForCTC(config)
    elif str(source).endswith(".safetensors"):
        model, vocabulary = _load_small(Path(source), vocabulary, changes)
    else:
        model, vocabulary = _load_pretrained(str(source), vocabulary, changes)
    return Recogniser(model, vocabulary).to(device or torch.device("cpu")).eval()


def mean_of(recognisers: Sequence[Recogniser]) -> Recogniser:
    """A recogniser whose weights are the mean of theirs, which have one layout and vocabulary.

    Worth something where their trainings began at the same weights: then they lie in one basin of the loss
    (Wortsman et al., 2022, arXiv:2203.05482).
    """
    states = [r.state_dict() for r in recognisers]
    together = copy.deepcopy(recognisers[0])
    together.load_state_dict(
        {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]}
    )
    return together


def _head_of(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary), "pad_token_id": vocabulary.blank,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> Wav2Vec2Config:
    return Wav2Vec2Config.from_dict({**config, **changes})


def _load_small(
    path: Path, vocabulary: Vocabulary, changes: Mapping[str, Any]
) -> tuple[Wav2Vec2ForCTC, Vocabulary]:
    card = _read_card(path)
    if "symbols" in card:
        vocabulary = Vocabulary(tuple(card["symbols"]))
    config = _changed(card["config"], _head_of(vocabulary) | dict(changes))
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


def _read_card(path: Path) -> dict[str, Any]:
    card = path.with_suffix(".json")
    if not path.is_file() or not card.is_file():
        raise RuntimeError(
            f"{path.name} and {card.name} are not in {path.parent.name}/. Three ways on:\n"
            "  1. check them out of the repository again:  git checkout -- Day09_Wav2Vec2\n"
            "  2. pretrain them:                           python -m utils pretrain --profile study\n"
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


def save_folder(recogniser: Recogniser, folder: Path) -> None:
    """Write model, tokenizer and feature extractor as `fine_tuned_model/` for `load_recogniser` or any HF tool."""
    recogniser.model.save_pretrained(folder)
    make_processor(recogniser.vocabulary, recogniser.config).save_pretrained(folder)


def save_small(
    path: Path,
    model: Recogniser | Wav2Vec2ForPreTraining,
    card: Mapping[str, Any],
    half: bool = True,
) -> int:
    """Write weights in float16 and their card with the configuration; returns the bytes.

    Of a Recogniser also its head and vocabulary, of a pretrained model also the quantiser.
    """
    network = model.model if isinstance(model, Recogniser) else model
    whole = {**card, "config": network.config.to_diff_dict()}
    if isinstance(model, Recogniser):
        whole["symbols"] = model.vocabulary.symbols
    return save_weights(path, network, whole, half)


def load_pretraining(path: Path) -> tuple[Wav2Vec2ForPreTraining, dict[str, Any]]:
    """The pretrained network with its quantiser, in evaluation mode, and its card."""
    model = Wav2Vec2ForPreTraining(_changed(_read_card(path)["config"], {}))
    card = load_weights(path, model)
    return model.eval(), card


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
    labels, frames, lengths = (
        t.to(place) for t in (batch.labels, frames, batch.label_lengths)
    )
    losses = F.ctc_loss(
        log_probs, labels, frames, lengths, blank, "none", zero_infinity=zero_infinity
    )
    return (losses / lengths.clamp(min=1)).to(logits.device)


def letter_times(
    log_probs: Tensor, text: str, recogniser: Recogniser
) -> list[tuple[str, float, float]]:
    """When each letter of `text` was said, by the likeliest CTC path: (letter, begin in s, end in s).

    `log_probs` `(frames, symbols)` of one utterance. CTC puts a letter in few frames, often one, and
    blanks around: the times say where the network saw it, not how long it lasted.
    """
    from torchaudio.functional import forced_align

    vocabulary = recogniser.vocabulary
    codes = vocabulary.encode(asr.normalise(text))
    if not codes:
        return []
    path, _ = forced_align(
        log_probs[None].float().cpu(), torch.tensor([codes]), blank=vocabulary.blank
    )
    hop = receptive_field(recogniser.config)[1] / SAMPLE_RATE
    found: list[tuple[str, float, float]] = []
    before = vocabulary.blank
    for t, number in enumerate(path[0].tolist()):
        if number != vocabulary.blank:
            begin = found.pop()[1] if number == before else t * hop
            found.append((vocabulary.symbols[number], begin, (t + 1) * hop))
        before = number
    return found


def word_times(
    log_probs: Tensor, text: str, recogniser: Recogniser
) -> list[tuple[str, float, float]]:
    """When each word of `text` was said, from its first letter to its last: (word, begin in s, end in s)."""
    letters = letter_times(log_probs, text, recogniser)
    words = itertools.groupby(letters, key=lambda letter: letter[0] == SEPARATOR)
    spelled = [list(some) for is_space, some in words if not is_space]
    return [
        ("".join(c for c, _, _ in some), some[0][1], some[-1][2]) for some in spelled
    ]


# --- examples, decoding, evaluation -------------------------------------------------------------------


def fits(
    sentences: Sentences, config: Wav2Vec2Config, vocabulary: Vocabulary
) -> np.ndarray:
    """Which utterances have frames enough for their text, so that CTC can learn them: `(utterances,)` of bool."""
    need = [
        max(1, asr.frames_needed(vocabulary.encode(asr.normalise(text))))
        for text in sentences.texts
    ]
    return np.array([frames_of(int(n), config) for n in sentences.lengths]) >= need


class Examples:
    """Sentences as batches for a recogniser; with `cached` the frozen convolutions run once, here.

    `lengths` `(utterances,)` are in samples, or frames when cached. Raises ValueError for another rate
    than 16 kHz, for a letter outside the vocabulary, and for an utterance shorter than one frame, in
    training (`strict`) also for one that is too short for its text.
    """

    def __init__(
        self,
        sentences: Sentences,
        recogniser: Recogniser,
        cached: bool = False,
        strict: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        asr.check_rate(sentences.rate)
        config, vocabulary = recogniser.config, recogniser.vocabulary
        frames = np.array([frames_of(int(n), config) for n in sentences.lengths])
        good = fits(sentences, config, vocabulary) if strict else frames > 0
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
            self.labels = asr.encode_texts(sentences.texts, vocabulary)

    def __len__(self) -> int:
        return len(self.sentences)

    @torch.no_grad()
    def _encode(self, dtype: torch.dtype) -> list[Tensor]:
        """Each utterance's frames `(frames, channels)`, on the device. Group norm sees one at a time."""
        together = 16 if self.recogniser.config.feat_extract_norm == "layer" else 1
        kept: list[Tensor] = [torch.empty(0)] * len(self)
        for numbers in asr.length_batches(self.sentences.lengths, together):
            batch = self._waves(numbers)
            features = self.recogniser.encode(batch.x).to(dtype)
            for i, row in zip(numbers, features, strict=True):
                kept[i] = row[: int(self.lengths[i])].clone()
        return kept

    def _waves(self, numbers: Sequence[int]) -> Batch:
        recogniser = self.recogniser
        return asr.collate(
            self.sentences, numbers, recogniser.vocabulary, recogniser.device
        )

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
def evaluate(
    recogniser: Recogniser, examples: Sentences | Examples, batch_size: int = 16
) -> Evaluation:
    """Greedy decoding of a set, its mean loss per letter, and its error rates against the normalised texts."""
    if isinstance(examples, Sentences):
        examples = Examples(examples, recogniser)
    vocabulary, training = recogniser.vocabulary, recogniser.training
    recogniser.eval()
    log_probs: list[Tensor] = [torch.empty(0)] * len(examples)
    losses, blanks, total = 0.0, 0.0, 0
    try:
        for numbers in asr.length_batches(examples.lengths, batch_size):
            batch = examples.batch(numbers)
            logits, frames = recogniser(batch.x, batch.lengths)
            per_utterance = ctc_losses(logits, frames, batch, vocabulary.blank)
            count = int(frames.sum())
            share = asr.blank_share(logits, frames, vocabulary.blank)
            losses, blanks = losses + float(per_utterance.sum()), blanks + share * count
            total += count
            rows = logits.float().log_softmax(-1).cpu()
            for i, row, n in zip(numbers, rows, frames.tolist(), strict=True):
                log_probs[i] = row[:n].clone()
    finally:
        recogniser.train(training)
    outputs = [
        vocabulary.decode(asr.collapse(p.argmax(-1).tolist(), vocabulary.blank))
        for p in log_probs
    ]
    references = [asr.normalise(text) for text in examples.sentences.texts]
    return Evaluation(
        outputs, log_probs, losses / len(examples), blanks / total,
        asr.errors(references, outputs),
    )  # fmt: skip


@torch.no_grad()
def transcribe(
    recogniser: Recogniser,
    sound: str | Path | np.ndarray | Tensor,
    rate: int = SAMPLE_RATE,
    model: WordModel | None = None,
    most: float = 30.0,
    **beam: Any,
) -> str:
    """What was said in a file, or in samples `(time,)` or `(channels, time)` at `rate` Hz, at any rate.

    Greedy, or by beam search with a word `model` or whatever else `asr.beam_search` takes (`beam`; a list of
    `words`, which alone can then be written). Longer recordings are cut at quiet places into pieces of at
    most `most` s. Raises AudioError for what is no sound or is shorter than one frame (25 ms).
    """
    wave = read_audio(sound) if isinstance(sound, (str, Path)) else to_mono(sound, rate)
    config, vocabulary = recogniser.config, recogniser.vocabulary
    least = receptive_field(config)[0]
    if len(wave) < least:
        raise AudioError(
            f"{1000 * len(wave) / SAMPLE_RATE:.1f} ms of sound are shorter than one frame of the network "
            f"({1000 * least / SAMPLE_RATE:.0f} ms): record at least half a second."
        )
    recogniser.eval()
    texts = []
    for piece in asr.cut_long(wave, most):
        if len(piece) < least:
            continue  # a rest of some samples after the last cut
        lengths = torch.tensor([len(piece)], device=recogniser.device)
        x = asr.normalise_waves(piece[None].to(recogniser.device), lengths)
        logits, frames = recogniser(x, lengths)
        if model or beam:
            log_probs = logits[0].float().log_softmax(-1)
            best = asr.beam_search(log_probs, vocabulary, model=model, **beam)
            texts.append(best[0].text)
        else:
            texts += asr.greedy(logits, frames, vocabulary)
    return " ".join(t for t in texts if t)


# --- fine-tuning --------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": functools.partial(
        torch.optim.AdamW, betas=(0.9, 0.98), weight_decay=0.005
    ),
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
        for name, known in ((self.optimizer, OPTIMIZERS), (self.scheduler, SCHEDULES)):
            if name not in known:
                raise ValueError(
                    f"{name!r} is unknown: write one of {', '.join(known)}"
                )


def freeze_encoder(recogniser: Recogniser, frozen: bool = True) -> None:
    """Whether the convolutions are trained."""
    extractor = recogniser.model.wav2vec2.feature_extractor
    extractor.requires_grad_(not frozen)
    extractor._requires_grad = (
        not frozen
    )  # else the library asks for gradients of the wave


def make_accelerator():
    """One process or several, as this program was started (`accelerate launch`), on `pick_device`'s device."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # the mask embedding has no gradient in a step without masks
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    on_cpu = pick_device().type == "cpu"
    return Accelerator(mixed_precision="no", cpu=on_cpu, kwargs_handlers=[unused])


def fine_tune(
    recogniser: Recogniser,
    train: Sentences | Examples | Sequence[Sentences],
    validation: Sentences | Examples,
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

    Several trainings from one set of weights can share their cached `Examples`: give these instead of the
    sentences, made by a recogniser with the same convolutions. Raises ValueError for utterances that
    cannot be learned (see Examples) and for cached ones when the convolutions are to be trained, Diverged
    when the loss of an epoch is not finite.
    """
    accelerator = make_accelerator()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    checkpoint = checkpoint or (run.checkpoint if run else None)
    keep = run is not None and run.keeps_checkpoint
    run = run if accelerator.is_main_process else None
    freeze_encoder(recogniser, settings.frozen)
    recogniser.to(accelerator.device)

    def prepared(some: Sentences | Examples, strict: bool) -> Examples:
        if isinstance(some, Sentences):
            return Examples(some, recogniser, settings.cached, strict)
        if some.kept is not None and not settings.frozen:
            raise ValueError("only the output of frozen convolutions can be cached")
        return some

    sets = [train] if isinstance(train, (Sentences, Examples)) else train
    lessons = [prepared(some, True) for some in sets]
    held_out = prepared(validation, False)
    references = [asr.normalise(text) for text in held_out.sentences.texts[:3]]

    def batches_of(epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        lengths = lessons[min(epoch, len(lessons) - 1)].lengths
        return asr.length_batches(
            lengths, settings.batch_size, generator, settings.bucketed, settings.most
        )

    plan = [batches_of(epoch) for epoch in range(settings.epochs)]
    steps = sum(map(len, plan))
    head = list(recogniser.model.lm_head.parameters())
    below = [p for p in recogniser.model.wav2vec2.parameters() if p.requires_grad]
    encoder_lr = settings.lr if settings.encoder_lr is None else settings.encoder_lr
    groups = [{"params": head}, {"params": below, "lr": encoder_lr}]
    optimizer = OPTIMIZERS[settings.optimizer](groups, lr=settings.lr)
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
                accelerator.backward(
                    part * ranks
                )  # the processes' gradients are averaged
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
                run.steps(done, curves)
            done += len(plan[epoch])
            if not torch.isfinite(total).all():
                raise Diverged(
                    f"the loss is not finite in epoch {epoch + 1}: learning rate too large, or "
                    "ctc_zero_infinity off with an utterance too short for its text?"
                )
            found = evaluate(recogniser, held_out, settings.batch_size)
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
                run.epoch(**numbered(entry))
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


# --- pretraining --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pretraining:
    """How a network is pretrained: `batch_size` crops of `crop` s a step, logged and saved each `every` steps.

    `mask_prob` 0.65 in spans of 10 frames hides about half of them. The Gumbel temperature falls from 2
    to 0.5 over the first 70 % of the steps.
    """

    steps: int = 7600
    batch_size: int = 8
    crop: float = 2.0
    lr: float = 7e-4
    mask_prob: float = 0.65
    mask_length: int = 10
    weight_decay: float = 0.01
    clip: float = 5.0
    every: int = 100
    mixed: bool = False


PRETRAINING = {
    "quick": Pretraining(steps=20, batch_size=4, crop=1.0, every=10),
    "study": Pretraining(),
    "full": Pretraining(steps=7500, batch_size=64, crop=4.0),
}
"""quick rehearses on `tiny_config`; study is for a CPU in the background or a small GPU; full is for one GPU."""


def pretraining_sound(profile: str) -> tuple[Tensor, dict[str, float]]:
    """All speech to pretrain on, one after another: int16 `(samples,)` at 16 kHz, and the hours of each set.

    The training parts alone: no speaker of a validation or test part is heard. Neighbours are of one
    speaker, so a crop over the seam of two clips sounds like one recording. The words come twice: they
    are fewer hours but hundreds of voices, and the ones that Day 9 learns to write.
    """
    corpus = speech.librispeech(profile)
    # full, too: the sets' own training list holds speakers of the committed test list
    words = speech.speech_commands("quick" if profile == "quick" else "study")
    order = np.argsort(np.array(words.train.speakers), kind="stable")
    parts = {
        corpus.name: corpus.train.joined(),
        words.name: words.train.x[torch.from_numpy(order)].flatten(),
    }
    hours = {name: round(len(x) / SAMPLE_RATE / 3600, 2) for name, x in parts.items()}
    return torch.cat([*parts.values(), parts[words.name]]), hours


def draw_masks(
    batch_size: int,
    frames: int,
    config: Wav2Vec2Config,
    settings: Pretraining,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Which frames are hidden, `(batch, frames)`, and which others of the same crop each is told apart from.

    `mask_prob * frames / mask_length` spans a crop (rounded up or down at random, at least 2) begin at
    different frames and may overlap. The second is `(batch, frames, negatives)`: numbers into all frames of
    the batch, drawn among the hidden ones, never the frame itself. With torch's random numbers, on `device`:
    during the library's own way, a loop over the crops in NumPy, a GPU would wait.
    """
    length = settings.mask_length
    spans = max(2, int(settings.mask_prob * frames / length + torch.rand(()).item()))
    chance = torch.rand(batch_size, frames - length + 1, device=device)
    starts = chance.argsort(1)[:, :spans, None]
    places = (starts + torch.arange(length, device=device)).flatten(1)
    mask = torch.zeros(batch_size, frames, dtype=torch.bool, device=device)
    mask.scatter_(1, places, True)
    hidden_first = (~mask).byte().argsort(dim=1, stable=True)
    others = mask.sum(1)[:, None, None] - 1
    drawn = torch.rand(batch_size, frames, config.num_negatives, device=device)
    drawn = torch.minimum((drawn * others).long(), others - 1)
    drawn += drawn >= mask.cumsum(1)[..., None] - 1  # leave itself out
    negatives = hidden_first.gather(1, drawn.flatten(1)).view_as(drawn)
    first = frames * torch.arange(batch_size, device=device)
    return mask, negatives + first[:, None, None]


def pretrain(
    model: Wav2Vec2ForPreTraining,
    sound: Tensor,
    settings: Pretraining,
    *,
    seed: int = 0,
    run: Run | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[Mapping[str, Any]], bool] | None = None,
    label: str = "pretraining",
    bar: bool = True,
) -> History:
    """Learn from sound alone: tell each hidden frame's code from those of other hidden frames.

    `sound` is int16 `(samples,)`, wholly on the model's device; crops are cut there. Loss per hidden
    frame: contrastive (-log softmax of cosine similarities over the true code and `num_negatives` others,
    temperature 0.1) plus 0.1 times diversity (1 - perplexity / codes). The history has one entry for
    `settings.every` steps: `loss`, `contrastive`, `diversity`, `perplexity` (codes in use, at most 128
    in `small_config`), `grad_norm`. After each the state is saved, and a killed training goes on there;
    `stop` sees it, and ends the training by saying True.

    Raises ValueError when a crop is longer than the sound, Diverged for a loss that is not finite.
    """
    device, config = model.device, model.config
    length = round(settings.crop * SAMPLE_RATE)
    if len(sound) < length:
        raise ValueError(f"{len(sound)} samples of sound are less than one crop")
    frames = frames_of(length, config)
    checkpoint = checkpoint or (run.checkpoint if run else None)
    keep = run is not None and run.keeps_checkpoint
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, (0.9, 0.98), weight_decay=settings.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor("linear", step, settings.steps)
    )
    history, start = History(), 0
    if checkpoint and checkpoint.exists():
        history, start = resume(checkpoint, model, optimizer, scheduler, run)
    model.train()
    inside = torch.arange(length, device=device)
    all_samples = torch.full((settings.batch_size,), length, device=device)
    periods = -(-settings.steps // settings.every)
    with progress(settings.steps, label, start * settings.every, bar) as shown:
        for period in range(start, periods):
            seed_everything(seed * 100_003 + period)
            first = period * settings.every
            last = min(first + settings.every, settings.steps)
            curves: dict[str, list[Tensor]] = {}
            began = time.perf_counter()
            for step in range(first, last):
                mask, negatives = draw_masks(
                    settings.batch_size, frames, config, settings, device
                )
                at = torch.randint(0, len(sound) - length + 1, (settings.batch_size, 1))
                crops = as_float(sound[at.to(device) + inside])
                share = min(1.0, step / (0.7 * settings.steps))
                model.set_gumbel_temperature(2.0 * 0.25**share)
                with autocast(device, settings.mixed):
                    out = model(
                        asr.normalise_waves(crops, all_samples),
                        mask_time_indices=mask, sampled_negative_indices=negatives,
                    )  # fmt: skip
                hidden = mask.sum()
                loss = out.loss / hidden
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                optimizer.step()
                scheduler.step()
                step_numbers = {
                    "loss": loss, "contrastive": out.contrastive_loss / hidden,
                    "diversity": out.diversity_loss / hidden,
                    "perplexity": out.codevector_perplexity, "grad_norm": norm,
                }  # fmt: skip
                for name, value in step_numbers.items():
                    curves.setdefault(name, []).append(value.detach().float())
                shown.update()
            numbers = {k: torch.stack(v).cpu() for k, v in curves.items()}
            seconds = time.perf_counter() - began
            for name, values in numbers.items():
                history.steps.setdefault(name, []).extend(values.tolist())
            if run:
                run.steps(first, {k: v.tolist() for k, v in numbers.items()})
            if not torch.isfinite(numbers["loss"]).all():
                raise Diverged(f"the loss is not finite near step {last}: a lower lr?")
            entry = {"epoch": period + 1, "step": last}
            entry |= {k: v.mean().item() for k, v in numbers.items()}
            entry |= {"lr": scheduler.get_last_lr()[0], "seconds": round(seconds, 3)}
            history.epochs.append(entry)
            if run:
                run.epoch(**numbered(entry))
            if checkpoint:
                save_checkpoint(checkpoint, model, optimizer, scheduler, history)
            if stop and stop(entry):
                break
            shown.set_postfix_str(
                f"loss {entry['loss']:.3f}, perplexity {entry['perplexity']:.0f}"
            )
    if checkpoint and not keep:
        checkpoint.unlink(missing_ok=True)
    model.eval()
    return history


@torch.no_grad()
def code_numbers(model: Wav2Vec2ForPreTraining, waves: Tensor) -> Tensor:
    """The quantiser's choice for each frame of normalised waves `(batch, time)`: `(batch, frames, groups)`."""
    features = model.wav2vec2.feature_extractor(waves).transpose(1, 2)
    _, normed = model.wav2vec2.feature_projection(features)
    scores = model.quantizer.weight_proj(normed)
    return scores.unflatten(-1, (model.quantizer.num_groups, -1)).argmax(-1)


PRETRAIN_COLUMNS = (
    "model", "task", "n_params", "steps", "batch_size", "crop", "lr", "final_loss",
    "contrastive", "perplexity", "grad_norm",
)  # fmt: skip


def pretrain_small(profile: str, path: Path, steps: int | None = None, seed: int = 0):
    """Pretrain the small network on the speech at hand and write it to `path`; returns the history.

    What `python -m utils pretrain` does. The run is a row of Day 9's table; the card has data, settings,
    device and the curve.
    """
    from ..logger import RunLogger

    settings = PRETRAINING[profile]
    if steps:
        settings = replace(settings, steps=steps)
    sound, hours = pretraining_sound(profile)
    device = pick_device()
    allow_tf32(device)
    seed_everything(seed)
    config = tiny_config() if profile == "quick" else small_config()
    model = Wav2Vec2ForPreTraining(config).to(device)
    size = sum(p.numel() for p in model.parameters())
    log = RunLogger(9, profile, "+".join(hours), device, PRETRAIN_COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("steps", "batch_size", "crop", "lr")}
    with log.run(
        role="sweep", seed=seed, model=path.stem, task="pretraining", **chosen
    ) as run:
        history = pretrain(model, sound.to(device), settings, seed=seed, run=run)
        end = history.epochs[-1]
        run.result(n_params=size, final_loss=end["loss"], grad_norm=end["grad_norm"])
        run.result(contrastive=end["contrastive"], perplexity=end["perplexity"])
    card = training_card(
        log, history, settings, seed, model=path.stem, n_params=size, hours=hours,
        what="wav2vec 2.0 pretrained without labels",
        **{"never heard": "speakers of validation and test"},
    )  # fmt: skip
    save_small(path, model, card)
    return history
