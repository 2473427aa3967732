"""The networks that Day 11 ships and their training: synthesizers of one voice and of many, and a vocoder.

Each part is one command, `python -m Day11_Voice_Cloning.train NAME`, which can be stopped at any moment
and continues when it is repeated. It writes weights, their card, a row of the table and alignments.
All sound is at 16 kHz, the rate of LibriSpeech and of Real-Time Voice Cloning, so one vocoder serves all voices.
The synthesizer of many voices is fine-tuned from that of one voice; the parallel one learns from the attention
of the latter how long each letter lasts.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import days
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE
from utils.logger import RunLogger
from utils.models import fastspeech, tts
from utils.models.fastspeech import FastSpeech, FastSpeechConfig
from utils.models.tacotron2 import Tacotron2, TacotronConfig, TacotronLoss, length_mask
from utils.models.tts import AlignmentMonitor, LengthBatches
from utils.models.tts_mel import LIBRISPEECH_MEL, SynthesisMel
from utils.models.weights import load_weights, save_weights, training_card, training_command
from utils.speech import corpora
from utils.speech.corpora import Utterances
from utils.training import History, count_parameters

from . import durations
from .waveglow import Segments, WaveGlow, WaveGlowConfig, WaveGlowLoss

PARTS = ("kathleen", "voices", "vocoder", "parallel")
"""The networks in the order of training: `voices` is fine-tuned from `kathleen`, whose attention also gives the
durations for `parallel`."""

COLUMNS = (
    "model", "task", "text", "speaker", "vocoder", "steps", "batch_size", "lr", "r", "guided", "n_params",
    "final_loss", "val_loss", "val_mel", "diagonality", "free_diagonality", "free_stopped", "grad_norm",
    "audio_sample", "similarity", "identification", "wer", "mcd", "audio_quality",
    "quality_metric", "real_time_factor",
)  # fmt: skip
"""Day 11's own columns; `wer` is measured with an independent recogniser."""


@dataclass(frozen=True)
class Synthesis:
    """Training of a Tacotron 2: `steps` batches in one cycle up to the learning rate `lr`, validated each `every`.

    Sentences of more than `longest` seconds are left out; a voice is the mean d-vector of up to `most` utterances
    (0: each utterance has its own). For `guided`, `own` and `drop` see `TacotronLoss`.
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
    """Training of the vocoder on `batch_size` segments of `frames` frames a step."""

    steps: int = 6000
    batch_size: int = 8
    frames: int = 32
    lr: float = 1e-3
    every: int = 250


@dataclass(frozen=True)
class Parallel:
    """Training of the parallel synthesizer, as in `Synthesis`; `lowest` and `highest` limit the pitch (Hz)."""

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
"""Steps of the fine-tuning of `voices`, by profile."""

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
"""Sizes by profile: study takes hours of a CPU core, full takes minutes of a GPU. Dropout is a tenth or a fifth
instead of the paper's half: on a CPU the networks underfit their hour of speech; on a GPU they overfit it after
half the steps, and the best weights on validation are kept."""


def weights_path(part: str, profile: str = "study") -> Path:
    """The file of a part's weights: `waveglow.safetensors` or `synthesizer_` and the part."""
    if part not in PARTS:
        raise ValueError(f"part {part!r}: write one of {', '.join(PARTS)}")
    name = "waveglow" if part == "vocoder" else f"synthesizer_{part}"
    return days.get(11).output(profile) / "checkpoints" / f"{name}.safetensors"


def trained_weights(part: str, profile: str) -> Path:
    """`weights_path` of a trained part. Raises FileNotFoundError with the command that trains it."""
    path = weights_path(part, profile)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is not here: python -m Day11_Voice_Cloning.train {part} --profile {profile}"
        )
    return path


def synthesis(part: str, profile: str) -> Synthesis:
    """The settings of the synthesizer `part` in a profile; in `voices` each utterance has its own d-vector."""
    settings = SYNTHESIS[profile]
    if part == "kathleen":
        return settings
    return replace(settings, steps=MORE[profile], lr=1e-3, most=0)


def timed_utterances(
    parts: Sequence[Utterances], mel: SynthesisMel, settings: Parallel, teacher: Tacotron2
) -> durations.TimedUtterances:
    """A data set with the durations of its letters, from the attention of `teacher` (see `durations.timed`)."""
    sentences = tts.make_dataset(parts, mel, settings.longest, settings.most)
    waves = [w for part in parts for w in tts.waves_at(part, mel.settings.sample_rate)]
    between = settings.lowest, settings.highest
    return durations.timed(sentences, waves, teacher, mel.settings, between)


# --- weights ------------------------------------------------------------------------------------------

Network = Tacotron2 | WaveGlow | FastSpeech

NETWORKS = {
    "Tacotron2": (Tacotron2, TacotronConfig),
    "WaveGlow": (WaveGlow, WaveGlowConfig),
    "FastSpeech": (FastSpeech, FastSpeechConfig),
    "ParallelSynthesizer": (FastSpeech, FastSpeechConfig),  # its name in the shipped card
}


def save_network(path: Path, model: Network, **card: Any) -> int:
    """Write a synthesizer or vocoder as float16 safetensors; its config goes into the card. Returns the bytes."""
    known = {"network": type(model).__name__, "config": asdict(model.config)}
    return save_weights(path, model, known | card, half=True)


def load_network(path: Path, device: torch.device | str = "cpu") -> tuple[Network, dict[str, Any]]:
    """A network that `save_network` wrote, in float32 and evaluation mode, and its card.

    Raises FileNotFoundError where weights or card are missing.
    """
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    network, config = NETWORKS[card["network"]]
    model = network(config(**card["config"]))
    load_weights(path, model)
    return model.to(device).eval(), card


# --- loss of the parallel synthesizer -----------------------------------------------------------------


@torch.no_grad()
def measure_liveliness(model: FastSpeech, batch: durations.FastSpeechBatch, most: float = 1.5) -> None:
    """Set the factors of `compensate_global_variance`: deviation of each mel channel in recordings relative to the
    model's own output.

    The mean over the sentences of `batch`, at most `most`, because the lowest channels are mostly noise.
    """
    own = model.generate(*batch[:3])
    _, mine = fastspeech.channel_statistics(own.before, own.lengths)
    _, true = fastspeech.channel_statistics(batch.mel, batch.mel_lengths)
    factors = true.mean(0) / mine.mean(0).clamp(min=1e-6)
    model.liveliness.copy_(factors.squeeze(1).clamp(max=most))


def fastspeech_losses(
    out: fastspeech.FastSpeechOutput, batch: durations.FastSpeechBatch
) -> dict[str, Tensor]:
    """The terms of the loss, each a scalar without padding: `mel` (squared plus absolute error), `duration`
    (squared error of log(1 + frames)), `prosody` (squared error)."""
    frames = length_mask(batch.mel_lengths, out.mel.shape[2])[:, None]
    error = (out.mel - batch.mel) * frames
    mel = (error.square() + error.abs()).sum() / (frames.sum() * out.mel.shape[1])
    letters = length_mask(batch.text_lengths, batch.text.shape[1])
    duration = (out.log_durations - batch.durations.log1p()).square()  # (batch, letters)
    prosody = (out.prosody - batch.prosody).square().mean(2)
    parts = {"duration": duration, "prosody": prosody}
    return {"mel": mel} | {k: (v * letters).sum() / letters.sum() for k, v in parts.items()}


class FastSpeechLoss(nn.Module):
    """The model with its loss: a `FastSpeechBatch` in, a scalar out, as `training.fit` needs it."""

    def __init__(self, model: FastSpeech, duration: float = 0.5, prosody: float = 0.3) -> None:
        super().__init__()
        self.model, self.weights = model, {"duration": duration, "prosody": prosody}

    def parts(self, batch: durations.FastSpeechBatch) -> dict[str, Tensor]:
        """The terms of the loss; `total` is what `forward` returns."""
        parts = fastspeech_losses(self.model(*batch), batch)
        total = parts["mel"] + sum(w * parts[k] for k, w in self.weights.items())
        return {"total": total, **parts}

    def forward(self, batch: durations.FastSpeechBatch) -> Tensor:
        return self.parts(batch)["total"]


# --- setting up ---------------------------------------------------------------------------------------


@dataclass
class TrainingSetup:
    """A network before its first step: settings, the module that returns its loss, batches, validation, and what
    its row (`chosen`) and its card (`about`) say of it."""

    settings: Synthesis | Vocoding | Parallel
    loss: TacotronLoss | FastSpeechLoss | WaveGlowLoss
    batches: LengthBatches | Segments
    validate: Callable[[nn.Module], dict[str, float]]
    chosen: dict[str, Any]
    about: dict[str, Any]

    def train(self, **how: Any) -> History:
        """`tts.train` with these settings; a Tacotron's step is captured on CUDA. `how` goes to it too."""
        s, device = self.settings, next(self.loss.parameters()).device
        graph = device.type == "cuda" and isinstance(self.loss, TacotronLoss)
        epochs = s.steps // s.every
        return tts.train(self.loss, self.batches, epochs=epochs, lr=s.lr, graph=graph, **how)


def setup(part: str, profile: str, seed: int = 0) -> TrainingSetup:
    """Data, weights and batches for the training of a part; `voices` and `parallel` need those of `kathleen`.

    Raises ValueError for an unknown part, FileNotFoundError where the weights of `kathleen` are missing.
    """
    weights_path(part)
    if part == "vocoder":
        return _setup_vocoder(profile, seed)
    return _setup_synthesizer(part, profile, seed)


def _setup_synthesizer(part: str, profile: str, seed: int) -> TrainingSetup:
    device, what, begun_from = pick_device(), "synthesizer", "random weights"
    one = corpora.kathleen(profile)
    name, train_sets, held_out = one.name, [one.train], one.validation
    if part == "voices":
        many = corpora.librispeech(profile)
        name, train_sets, held_out = f"{many.name}+{name}", [many.train, one.train], many.validation
    mel, chosen = SynthesisMel(LIBRISPEECH_MEL).to(device), {"task": "synthesis"}
    if part != "kathleen":
        first = trained_weights("kathleen", profile)
        teacher, _ = load_network(first, device)
        begun_from = first.stem
    if part == "parallel":
        what, begun_from = "parallel synthesizer", f"{first.stem}: encoder, voice, durations"
        settings, r, buckets = PARALLEL[profile], 1, 8
        data = timed_utterances(train_sets, mel, settings, teacher)
        seen = timed_utterances([held_out], mel, settings, teacher)
        seed_everything(seed)
        model = FastSpeech(PARALLEL_SIZES[profile])
        for shared in ("encoder", "speaker"):  # initialised from the teacher
            getattr(model, shared).load_state_dict(getattr(teacher, shared).state_dict())
        loss = FastSpeechLoss(model)
        validate = partial(validate_parallel, batch=seen.batch(range(len(seen))))
    else:
        settings, config = synthesis(part, profile), SIZES[profile]
        r, buckets = config.r, 1 if device.type == "cuda" else 4
        data = tts.make_dataset(train_sets, mel, settings.longest, settings.most)
        seen = tts.make_dataset([held_out], mel, settings.longest, settings.most)
        seed_everything(seed)
        model = Tacotron2(config)
        if part == "voices":
            model.load_state_dict(teacher.state_dict())
        terms = {k: getattr(settings, k) for k in ("guided", "own", "drop")}
        loss = TacotronLoss(model, **terms)
        chosen |= {"r": r, "guided": settings.guided}
        validate = AlignmentMonitor(seen.batch(range(min(16, len(seen))), r))
    batches = LengthBatches(
        data, min(settings.batch_size, len(data)), r, seed=seed, steps=settings.every,
        buckets=buckets if len(data) >= 8 * settings.batch_size else 1,
    )  # fmt: skip
    hours = int(data.mel_lengths.sum()) / LIBRISPEECH_MEL.frames_per_second / 3600
    about = {
        "what": f"{what} conditioned on d-vectors", "data": name, "sentences": len(data),
        "hours": round(hours, 2), "begun_from": begun_from,
    }  # fmt: skip
    return TrainingSetup(settings, loss.to(device), batches, validate, chosen, about)


def _setup_vocoder(profile: str, seed: int) -> TrainingSetup:
    settings, device, one = VOCODING[profile], pick_device(), corpora.kathleen(profile)
    mel = SynthesisMel(LIBRISPEECH_MEL).to(device)
    segments = partial(Segments, mel=mel, batch_size=settings.batch_size, frames=settings.frames)
    sounds = tts.waves_at(one.train)
    batches = segments(sounds, steps=settings.every, seed=seed)
    seen = segments(tts.waves_at(one.validation), steps=8, seed=1)
    seed_everything(seed)
    loss = WaveGlowLoss(WaveGlow(GLOWS[profile])).to(device)

    @torch.no_grad()
    def validate(module: nn.Module) -> dict[str, float]:
        values = [module(batch).item() for batch, _ in seen.epoch(0)]
        return {"loss": sum(values) / len(values)}

    hours = round(sum(map(len, sounds)) / SAMPLE_RATE / 3600, 2)
    about = {"what": "vocoder from mel spectrograms at 16 kHz", "data": one.name, "hours": hours}
    return TrainingSetup(settings, loss, batches, validate, {"task": "vocoding"}, about)


@torch.no_grad()
def validate_parallel(loss: FastSpeechLoss, batch: durations.FastSpeechBatch) -> dict[str, float]:
    """The loss and its terms on held-out sentences with true durations and prosody, and `free_length`: the mean
    length with predicted durations as a fraction of the true one."""
    with tts.evaluating(loss):
        parts = loss.parts(batch)
        free = loss.model.generate(*batch[:3])
    numbers = {"loss" if k == "total" else k: v.item() for k, v in parts.items()}
    return numbers | {"free_length": (free.lengths / batch.mel_lengths).mean().item()}


# --- training -----------------------------------------------------------------------------------------


def train_own(part: str, profile: str, path: Path, seed: int = 0) -> History:
    """Train one part and write the weights with the lowest validation loss, in float16, with their card.

    Returns the history. Raises what `setup` raises.
    """
    prepared = setup(part, profile, seed)
    settings, loss, monitor = prepared.settings, prepared.loss, prepared.validate
    log = RunLogger(11, profile, prepared.about["data"], pick_device(), COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("steps", "batch_size", "lr")} | prepared.chosen
    with log.run(role="sweep", seed=seed, model=path.stem, **chosen) as run:
        folder = days.runs(profile, log.day.name, "watched", run.id)
        if not run.checkpoint.exists():  # a new training, not one that continues
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(monitor, AlignmentMonitor):
            monitor.run, monitor.folder = run, folder
        best = Best(monitor, folder / "best.pt")
        history = prepared.train(validate=best, run=run)
        best.restore(loss)
        end = min(history.epochs, key=lambda e: e["val_loss"])
        kept, size = end["epoch"] * settings.every, count_parameters(loss)
        run.note = f"weights of step {kept}, the lowest loss on validation"
        names = {k: f"val_{k}" for k in ("diagonality", "free_diagonality", "free_stopped")}
        names |= {k: k for k in ("grad_norm", "val_loss", "val_mel")}
        found = {k: end[name] for k, name in names.items() if name in end}
        run.log_metrics(final_loss=end["train_loss"], n_params=size, **found)
    if isinstance(loss, FastSpeechLoss):
        measure_liveliness(loss.model.eval(), monitor.keywords["batch"])
    about = prepared.about | {"n_params": size, "kept_step": kept}
    save_network(path, loss.model, **training_card(log, history, settings, seed, **about))
    if isinstance(monitor, AlignmentMonitor):
        keep_watched(path.with_name(f"{path.stem}_alignments.npz"), folder, settings.every)
    return history


def check_card(part: str, profile: str, epochs: int = 1, seed: int = 0) -> History:
    """Repeat the first epochs of a training without writing anything, to compare them with its card."""
    return setup(part, profile, seed).train(stop=lambda epoch: epoch["epoch"] >= epochs)


def keep_watched(path: Path, folder: Path, every: int) -> None:
    """Write the alignments of all validations in `folder` to one small file: `steps`, `forced_0`, `free_0`, ..."""
    seen = AlignmentMonitor.load(folder)
    arrays = {"steps": every * np.arange(1, len(seen) + 1)}
    for i, one in enumerate(seen):
        arrays[f"forced_{i}"] = one.alignment.astype(np.float16)
        arrays[f"free_{i}"] = one.free_alignment.astype(np.float16)
    np.savez_compressed(path, **arrays)


class Best:
    """Calls `watch` at each validation and keeps the weights with the lowest loss in the file `path`.

    So an overfitted run still leaves its best checkpoint; the file stays when the training is killed.
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
        """Load the best weights."""
        module.load_state_dict(torch.load(self.path)["weights"])


if __name__ == "__main__":
    where = {part: lambda profile, seed, part=part: weights_path(part, profile) for part in PARTS}
    sys.exit(training_command({k: (path, partial(train_own, k)) for k, path in where.items()}))
