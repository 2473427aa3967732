"""The networks that Day 11 ships, and their training: synthesizers of one voice and of many, and a vocoder.

Each training is a command of its own, `python -m Day11_Voice_Cloning.train NAME`, may be stopped at any
moment, and leaves weights with a card, a row, and the alignments that it saw on its way. All sound is at 16 kHz,
as LibriSpeech is recorded and as Real-Time Voice Cloning does it: one vocoder serves all voices, and the
synthesizer of many voices goes on from the weights of the first; the parallel one learns from the attention of
the first how long a letter lasts.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils import days
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE
from utils.logger import Run, RunLogger
from utils.models import tts
from utils.models.fastspeech import FastSpeech, FastSpeechConfig
from utils.models.tacotron2 import Tacotron2, TacotronConfig, TacotronLoss, TextBatch
from utils.models.tts import (
    AlignmentMonitor,
    LengthBatches,
    Segments,
    TTSDataset,
    make_dataset,
    waves_at,
)
from utils.models.tts_mel import LIBRISPEECH, SynthesisMel
from utils.speech import corpora
from utils.speech.corpora import Utterances
from utils.training import History, count_parameters, load_weights, training_card, training_command

from . import durations, networks
from .fastspeech_training import FastSpeechBatch, FastSpeechLoss, measure_liveliness
from .waveglow import WaveGlow, WaveGlowConfig, WaveGlowLoss

PARTS = ("kathleen", "voices", "vocoder", "parallel")
"""The trainings, in the order in which one needs the other: `voices` goes on from `kathleen`, `parallel` times its
letters by it."""

COLUMNS = (
    "model", "task", "text", "speaker", "vocoder", "steps", "batch_size", "lr", "r", "guided", "n_params",
    "final_loss", "val_loss", "val_mel", "diagonality", "free_diagonality", "free_stopped", "grad_norm",
    "audio_sample", "similarity", "identification", "wer", "mcd", "audio_quality",
    "quality_metric", "real_time_factor",
)  # fmt: skip
"""Day 11's own columns; `wer` is the error rate of a recogniser that had no part in it."""


@dataclass(frozen=True)
class Synthesis:
    """How a synthesizer is trained: `steps` batches by one cycle up to `lr`, validated each `every` steps.

    `longest` (s) leaves longer sentences out; a voice is the mean d-vector of up to `most` utterances (0: each
    utterance has its own); `guided` weighs the guided-attention loss; of the steps the share `own` hears the
    network's own frames, the share `drop` a mean frame (see `TacotronLoss`).
    """

    steps: int = 6000
    batch_size: int = 16
    lr: float = 1e-3
    guided: float = 1.0
    own: float = 0.0
    drop: float = 0.2
    longest: float = 6.0
    most: int = 10
    every: int = 250


@dataclass(frozen=True)
class Vocoding:
    """How the vocoder is trained: stretches of `frames` frames, `batch_size` of them a step."""

    steps: int = 6000
    batch_size: int = 8
    frames: int = 32
    lr: float = 1e-3
    every: int = 250


@dataclass(frozen=True)
class Parallel:
    """How the parallel synthesizer is trained: `steps` batches by one cycle up to `lr`, validated each `every`.

    `longest` (s) leaves longer sentences out; the voice is the mean d-vector of up to `most` utterances; its pitch
    is looked for between `lowest` and `highest` Hz.
    """

    steps: int = 2600
    batch_size: int = 16
    lr: float = 2e-3
    longest: float = 6.0
    most: int = 10
    lowest: int = 100
    highest: int = 400
    every: int = 100


SYNTHESIS = {
    "quick": Synthesis(steps=12, batch_size=8, longest=4.0, most=2, every=6),
    "study": Synthesis(steps=2500, lr=4e-3),
    "full": Synthesis(steps=3000, batch_size=64, lr=3e-3, every=300),
}

MORE = {"quick": 12, "study": 1000, "full": 900}
"""Steps of `voices`, which goes on from what `kathleen` learned, by profile."""

VOCODING = {
    "quick": Vocoding(steps=10, batch_size=2, frames=16, every=5),
    "study": Vocoding(),
    "full": Vocoding(steps=30_000, batch_size=24, frames=64, every=500),
}

PARALLEL = {
    "quick": Parallel(steps=12, batch_size=8, longest=4.0, most=2, every=6),
    "study": Parallel(),
    "full": Parallel(steps=12_000, batch_size=32, every=400),
}

SIZES: dict[str, TacotronConfig] = {
    "quick": TacotronConfig(encoder=32, decoder=32, attention=16, prenet=16, postnet=16, speaker=8),
    "study": TacotronConfig(decoder=384, postnet=128, dropout=0.1),
    "full": TacotronConfig(r=2, dropout=0.2),
}

PARALLEL_SIZES: dict[str, FastSpeechConfig] = {
    "quick": FastSpeechConfig(encoder=32, width=16, hidden=32, blocks=2, predictor=16, speaker=8),
    "study": FastSpeechConfig(),
    "full": FastSpeechConfig(width=384, hidden=768),
}

GLOWS: dict[str, WaveGlowConfig] = {
    "quick": WaveGlowConfig(flows=4, layers=2, channels=16, condition=16),
    "study": WaveGlowConfig(channels=64, layers=5),
    "full": WaveGlowConfig(),
}
"""Sizes by profile: study is for a CPU core over hours, full for minutes of one GPU. Dropout is a tenth or a
fifth, not the paper's half: on a core the networks of this day learn too little of their hour of speech; on a GPU
they know it by heart after half the steps, and the best weights on validation are kept."""


def weights_path(part: str, profile: str = "study") -> Path:
    """Where a part's weights are: `waveglow` or `synthesizer_` and the part, `.safetensors`."""
    if part not in PARTS:
        raise ValueError(f"part {part!r}: write one of {', '.join(PARTS)}")
    name = "waveglow" if part == "vocoder" else f"synthesizer_{part}"
    return days.get(11).output(profile) / "checkpoints" / f"{name}.safetensors"


def synthesis(part: str, profile: str) -> Synthesis:
    """How the synthesizer `part` is trained in a profile; `voices` gives each utterance its own d-vector."""
    settings = SYNTHESIS[profile]
    if part == "kathleen":
        return settings
    return replace(settings, steps=MORE[profile], lr=1e-3, most=0)


def timed_utterances(
    parts: Sequence[Utterances], mel: SynthesisMel, settings: Parallel, teacher: Tacotron2
) -> durations.TimedUtterances:  # fmt: skip
    """`utterances` whose letters are timed by the teacher-forced attention of `teacher` (see `timing.timed`)."""
    waves = [w for part in parts for w in waves_at(part, mel.settings.sample_rate)]
    sentences = make_dataset(parts, mel, settings.longest, settings.most, waves)
    between = settings.lowest, settings.highest
    return durations.timed(sentences, waves, teacher, mel.settings, between)


def sets_of(part: str, profile: str) -> tuple[str, list[Utterances], Utterances]:
    """What a part is trained on: name, training parts, and the one to validate on."""
    one = corpora.kathleen(profile)
    if part != "voices":
        return one.name, [one.train], one.validation
    many = corpora.librispeech(profile)
    return f"{many.name}+{one.name}", [many.train, one.train], many.validation


# --- training -----------------------------------------------------------------------------------------


def train_own(part: str, profile: str, path: Path, seed: int = 0) -> History:
    """Train one part and write its weights in float16 with their card; returns the history.

    Raises ValueError for another part, FileNotFoundError when `voices` or `parallel` have no weights of
    `kathleen` to begin from.
    """
    weights_path(part)  # is it a part?
    own = {"vocoder": _train_vocoder, "parallel": _train_parallel}
    return own.get(part, _train_synthesizer)(part, profile, path, seed)


@dataclass
class Begun:
    """A synthesizer before its first step: the model in its loss, its batches, what it is validated on."""

    loss: TacotronLoss
    batches: LengthBatches
    held_out: TextBatch
    data: TTSDataset
    name: str
    before: str

    @property
    def graph(self) -> bool:
        """Whether the step is captured (CUDA)."""
        return self.held_out.text.device.type == "cuda"


def _first_weights(profile: str) -> Path:
    first = weights_path("kathleen", profile)
    if not first.is_file():
        raise FileNotFoundError(
            f"{first.name} is not here: python -m Day11_Voice_Cloning.train kathleen --profile {profile}"
        )
    return first


def begin(part: str, profile: str, seed: int = 0) -> Begun:
    """Data, weights and batches of a synthesizer's training; `voices` goes on from the weights of `kathleen`."""
    settings, config = synthesis(part, profile), SIZES[profile]
    device = pick_device()
    name, training, held_out = sets_of(part, profile)
    mel = SynthesisMel(LIBRISPEECH).to(device)
    data = make_dataset(training, mel, settings.longest, settings.most)
    seen = make_dataset([held_out], mel, settings.longest, settings.most)
    seen = seen.batch(range(min(16, len(seen))), config.r)
    seed_everything(seed)
    model, before = Tacotron2(config), ""
    if part == "voices":
        first = _first_weights(profile)
        load_weights(first, model)
        before = first.stem
    how = {k: getattr(settings, k) for k in ("guided", "own", "drop")}
    loss = TacotronLoss(model, **how).to(device)
    whole = device.type == "cuda" or len(data) < 8 * settings.batch_size
    batches = LengthBatches(
        data, min(settings.batch_size, len(data)), config.r, seed=seed, steps=settings.every,
        buckets=1 if whole else 4,
    )  # fmt: skip
    return Begun(loss, batches, seen, data, name, before)


def check_card(part: str, profile: str, epochs: int = 1, seed: int = 0) -> History:
    """The first epochs of a synthesizer's training again, nothing written: are they those of its card?"""
    settings, begun = synthesis(part, profile), begin(part, profile, seed)
    return tts.train(
        begun.loss, begun.batches, epochs=settings.steps // settings.every, lr=settings.lr,
        graph=begun.graph, stop=lambda epoch: epoch["epoch"] >= epochs,
    )  # fmt: skip


def _train_synthesizer(part: str, profile: str, path: Path, seed: int) -> History:
    settings, config = synthesis(part, profile), SIZES[profile]
    begun = begin(part, profile, seed)
    loss, data = begun.loss, begun.data
    model = loss.model
    log = RunLogger(11, profile, begun.name, begun.held_out.text.device, COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("steps", "batch_size", "lr", "guided")}
    with log.run(
        role="sweep", seed=seed, model=path.stem, task="synthesis", r=config.r, **chosen
    ) as run:
        watched = _watched(log, run)
        best = Best(AlignmentMonitor(begun.held_out, run, watched), watched / "best.pt")
        history = tts.train(
            loss, begun.batches, epochs=settings.steps // settings.every, lr=settings.lr,
            graph=begun.graph, validate=best, run=run,
        )  # fmt: skip
        end, kept = _keep_best(best, loss, history, settings.every, run)
        judged = ("diagonality", "free_diagonality", "free_stopped")
        run.log_metrics(**{k: end[f"val_{k}"] for k in judged})
    card = training_card(
        log, history, settings, seed, n_params=count_parameters(model),
        what="synthesizer conditioned on d-vectors", data=begun.name, sentences=len(data), kept_step=kept,
        hours=_hours(data), begun_from=begun.before or "random weights",
    )  # fmt: skip
    networks.save_network(path, model, **card)
    keep_watched(
        path.with_name(f"{path.stem}_alignments.npz"),
        AlignmentMonitor.load(watched),
        settings.every,
    )
    return history


def _watched(log: RunLogger, run: Run) -> Path:
    """Where a training keeps what its validations saw; emptied when it is a new one, not one that goes on."""
    folder = days.runs(log.profile, log.day.name, "watched", run.id)
    if not run.checkpoint.exists():
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _keep_best(
    best: Best, loss: torch.nn.Module, history: History, every: int, run: Run
) -> tuple[dict[str, float], int]:
    """The weights of the lowest loss on validation, into `loss` and the run's row: their epoch and step."""
    best.restore(loss)
    end = min(history.epochs, key=lambda e: e["val_loss"])
    kept = end["epoch"] * every
    run.note = f"weights of step {kept}, the lowest loss on validation"
    run.log_metrics(final_loss=end["train_loss"], grad_norm=end["grad_norm"])
    run.log_metrics(val_loss=end["val_loss"], val_mel=end["val_mel"])
    run.log_metrics(n_params=count_parameters(loss))
    return end, kept


def _hours(data: TTSDataset) -> float:
    seconds = int(data.mel_lengths.sum()) / LIBRISPEECH.frames_per_second
    return round(seconds / 3600, 2)


def keep_watched(path: Path, seen: Sequence[tts.Validation], every: int) -> None:
    """The alignments of a training's validations in one small file: `steps`, `forced_0`, `free_0`, ..."""
    arrays: dict[str, Any] = {"steps": [every * (i + 1) for i in range(len(seen))]}
    for i, one in enumerate(seen):
        arrays[f"forced_{i}"] = one.alignment.astype(np.float16)
        arrays[f"free_{i}"] = one.free_alignment.astype(np.float16)
    np.savez_compressed(path, **arrays)


def _train_vocoder(part: str, profile: str, path: Path, seed: int) -> History:
    settings, config, device = VOCODING[profile], GLOWS[profile], pick_device()
    name, training, held_out = sets_of(part, profile)
    mel = SynthesisMel(LIBRISPEECH).to(device)
    sizes = {"batch_size": settings.batch_size, "frames": settings.frames, "seed": seed}
    sounds = [w for s in training for w in waves_at(s)]
    batches = Segments(sounds, mel, steps=settings.every, **sizes)
    seen = Segments(waves_at(held_out), mel, **(sizes | {"seed": 1}), steps=8)
    seed_everything(seed)
    loss = WaveGlowLoss(WaveGlow(config)).to(device)

    @torch.no_grad()
    def validate(module: torch.nn.Module) -> dict[str, float]:
        values = [module(batch).item() for batch, _ in seen.epoch(0)]
        return {"loss": sum(values) / len(values)}

    log = RunLogger(11, profile, name, device, COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("steps", "batch_size", "lr")}
    with log.run(role="sweep", seed=seed, model=path.stem, task="vocoding", **chosen) as run:
        history = tts.train(
            loss, batches, epochs=settings.steps // settings.every, lr=settings.lr,
            validate=validate, run=run,
        )  # fmt: skip
        end = history.epochs[-1]
        run.log_metrics(final_loss=end["train_loss"], grad_norm=end["grad_norm"])
        run.log_metrics(val_loss=end["val_loss"], n_params=count_parameters(loss))
    hours = sum(map(len, sounds)) / SAMPLE_RATE / 3600
    card = training_card(
        log, history, settings, seed, n_params=count_parameters(loss),
        what="vocoder from mel spectrograms at 16 kHz", data=name, hours=round(hours, 2),
    )  # fmt: skip
    networks.save_network(path, loss.model, **card)
    return history


@torch.no_grad()
def validate_parallel(loss: FastSpeechLoss, batch: FastSpeechBatch) -> dict[str, float]:
    """The loss and its parts on held-out sentences whose durations and prosody are told, and `free_length`: the
    length that it gives them by itself as a share of the true one (mean)."""
    with tts.evaluating(loss):
        parts = loss.parts(batch)
        free = loss.model.generate(*batch[:3])
    numbers = {"loss" if k == "total" else k: v.item() for k, v in parts.items()}
    return numbers | {"free_length": (free.lengths / batch.mel_lengths).mean().item()}


def _train_parallel(part: str, profile: str, path: Path, seed: int) -> History:
    settings, device = PARALLEL[profile], pick_device()
    name, training, held_out = sets_of(part, profile)
    first = _first_weights(profile)
    teacher, _ = networks.load_network(first, device)
    mel = SynthesisMel(LIBRISPEECH).to(device)
    data = timed_utterances(training, mel, settings, teacher)
    seen = timed_utterances([held_out], mel, settings, teacher)
    seen = seen.batch(range(len(seen)))
    seed_everything(seed)
    model = FastSpeech(PARALLEL_SIZES[profile])
    for shared in ("encoder", "speaker"):  # letters are read as the teacher reads them
        getattr(model, shared).load_state_dict(getattr(teacher, shared).state_dict())
    loss = FastSpeechLoss(model).to(device)
    batches = LengthBatches(
        data, min(settings.batch_size, len(data)), 1, seed=seed, steps=settings.every,
        buckets=1 if len(data) < 8 * settings.batch_size else 8,
    )  # fmt: skip
    log = RunLogger(11, profile, name, device, COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("steps", "batch_size", "lr")}
    with log.run(role="sweep", seed=seed, model=path.stem, task="synthesis", **chosen) as run:
        watch = partial(validate_parallel, batch=seen)
        best = Best(watch, _watched(log, run) / "best.pt")
        history = tts.train(
            loss, batches, epochs=settings.steps // settings.every, lr=settings.lr,
            validate=best, run=run,
        )  # fmt: skip
        _, kept = _keep_best(best, loss, history, settings.every, run)
    measure_liveliness(model.eval(), seen)
    card = training_card(
        log, history, settings, seed, n_params=count_parameters(model),
        what="parallel synthesizer conditioned on d-vectors", data=name, sentences=len(data),
        kept_step=kept, hours=_hours(data), begun_from=f"{first.stem}: encoder, voice, durations",
    )  # fmt: skip
    networks.save_network(path, model, **card)
    return history


class Best:
    """Asks `watch` at each validation and keeps the weights of the lowest loss in the file `path`.

    So a training that learns by heart leaves what it was before; the file stays when the training is killed.
    """

    def __init__(self, watch: Callable[[nn.Module], dict[str, float]], path: Path) -> None:
        self.watch, self.path = watch, path
        self.lowest = torch.load(path)["loss"] if path.exists() else math.inf

    def __call__(self, module: nn.Module) -> dict[str, float]:
        numbers = self.watch(module)
        if numbers["loss"] < self.lowest:
            self.lowest = numbers["loss"]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"loss": numbers["loss"], "weights": module.state_dict()}, self.path)
        return numbers

    def restore(self, module: nn.Module) -> None:
        """Load the weights that were kept."""
        module.load_state_dict(torch.load(self.path)["weights"])


if __name__ == "__main__":
    jobs = {
        part: (
            lambda profile, seed, part=part: weights_path(part, profile),
            partial(train_own, part),
        )
        for part in PARTS
    }
    sys.exit(training_command(jobs))
