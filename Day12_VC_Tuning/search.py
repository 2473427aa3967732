"""Day 12's search: which settings make a Tacotron 2 align early? Run by `python -m tools sweep --day 12`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import Trial
from torch import Tensor

from utils import days, tuning
from utils.device import pick_device, seed_everything
from utils.logger import Run, RunLogger
from utils.models import tts
from utils.models.tacotron2 import Tacotron2, TacotronConfig, TacotronLoss, steps_to_alignment
from utils.models.tts_mel import MelSettings, SynthesisMel, trim_silence
from utils.speech.corpora import Utterances, kathleen
from utils.training import History, count_parameters

BUDGET = {
    "quick": {
        "trials": 2, "steps": 10, "every": 5, "batch_size": 4, "longest": 3.2, "validation": 1,
        "shrink": 8,
    },
    "study": {
        "trials": 10, "steps": 600, "every": 50, "batch_size": 16, "longest": 4.0,
        "validation": 16, "shrink": 1,
    },
    "full": {
        "trials": 32, "steps": 2000, "every": 50, "batch_size": 48, "longest": 6.0,
        "validation": 16, "shrink": 1,
    },
}  # fmt: skip
"""Trials, their steps (no trial is pruned, because alignment may come late), steps between validations, longest
sentence (s), sentences to validate on, and the divisor of all layer sizes."""

COLUMNS = (
    "system", "trial", "encoder_dim", "decoder_dim", "r", "guided", "lr", "steps", "steps_to_alignment",
    "diagonality", "free_diagonality", "free_stopped", "free_length", "final_loss", "val_loss",
    "val_mel", "val_score", "grad_norm", "audio_quality", "quality_metric", "audio_sample",
    "n_params", "diagonality_curve", "free_curve", "mel_curve",
)  # fmt: skip
"""The curves list all validations as text: diagonality forced and free, and the mel term of the loss."""

QUALITY = "MCD (dB) on {}, lower is better"
"""The measure `audio_quality`: of trials on validation sentences, of the chosen one on test sentences."""

SPACE: dict[str, BaseDistribution] = {
    "encoder_dim": CategoricalDistribution([128, 256]),
    "decoder_dim": CategoricalDistribution([256, 512]),
    "r": CategoricalDistribution([2, 3, 4, 5]),
    "guided": CategoricalDistribution([0.0, 0.3, 1.0, 3.0]),
    "lr": FloatDistribution(3e-4, 5e-3, log=True),
}
"""The search space: sizes, reduction factor, weight of the guided-attention loss (0: none), learning rate."""


@dataclass
class Material:
    """What all trials share: training and validation sentences, and the trimmed recordings of the latter."""

    name: str
    train: tts.TTSDataset
    held_out: tts.TTSDataset
    recordings: list[Tensor]
    mel: SynthesisMel


suggest = partial(tuning.suggest, space=SPACE)
"""What a trial draws from the space: `suggest(trial)`."""


def held_out(
    sentences: Utterances, mel: SynthesisMel, longest: float, most: int = 16
) -> tuple[tts.TTSDataset, list[Tensor]]:
    """Sentences for evaluation, and the trimmed recordings `(time,)` of the first `most` of them."""
    part = tts.make_dataset([sentences], mel, longest)
    rate = mel.settings.sample_rate
    return part, [trim_silence(sentences.sound(i), rate) for i in part.numbers[:most]]


def material(profile: str, device: torch.device) -> Material:
    """Kathleen's sentences (in quick the bundled ones) with d-vectors and mels, on the device."""
    corpus, budget = kathleen(profile), BUDGET[profile]
    mel = SynthesisMel(MelSettings(corpus.train.rate)).to(device)
    spoken = tts.make_dataset([corpus.train], mel, budget["longest"])
    validation = held_out(corpus.validation, mel, budget["longest"], budget["validation"])
    return Material(corpus.name, spoken, *validation, mel)


def sizes(data: Material, settings: dict, shrink: int = 1) -> TacotronConfig:
    """The configuration for these settings, the rest as on Day 11, every width divided by `shrink`."""
    c = TacotronConfig(encoder=settings["encoder_dim"], decoder=settings["decoder_dim"], postnet=128)
    widths = ("encoder", "decoder", "attention", "prenet", "postnet", "speaker")
    shapes = {"n_mels": data.mel.settings.n_mels, "d_vector": data.train.d_vectors.shape[1]}
    shrunk = {name: getattr(c, name) // shrink for name in widths}
    return replace(c, r=settings["r"], **shapes, **shrunk)


def train(
    data: Material, settings: dict, budget: dict, seed: int = 0, run: Run | None = None, **how: Any
) -> tuple[TacotronLoss, History, tts.AlignmentMonitor]:
    """Train once with these settings; returns the model in its loss, the history, and the validations.

    `how` goes to `tts.train`; with `stop` a training ends early in the learning-rate schedule of `budget`.
    """
    device = data.mel.hann.device
    seed_everything(seed)
    config = sizes(data, settings, budget.get("shrink", 1))
    loss = TacotronLoss(Tacotron2(config), guided=settings["guided"]).to(device)
    graph, size = device.type == "cuda", min(budget["batch_size"], len(data.train))
    buckets = 1 if graph or len(data.train) < 8 * budget["batch_size"] else 4
    batches = tts.LengthBatches(data.train, size, config.r, seed=seed, buckets=buckets, steps=budget["every"])
    watch = tts.AlignmentMonitor(data.held_out.batch(range(len(data.recordings)), config.r), run)
    history = tts.train(
        loss, batches, epochs=budget["steps"] // budget["every"], lr=settings["lr"], graph=graph,
        validate=watch, run=run, bar=False, **how,
    )  # fmt: skip
    return loss, history, watch


def distortion(data: Material, loss: TacotronLoss, sentences: int = 4) -> float:
    """Mean mel-cepstral distortion (dB) of free-running speech through Griffin-Lim from the recordings."""
    batch = data.held_out.batch(range(min(sentences, len(data.recordings))), 1)
    with tts.repeatable(batch.text.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see `free_stopped`
        speech = loss.model.eval().generate(*batch[:3])
    waves = tts.to_waves(speech, data.mel.griffin_lim, data.mel.settings.hop)
    pairs, rate = zip(waves, data.recordings, strict=False), data.mel.settings.sample_rate
    every = [tts.mel_cepstral_distortion(w, s, rate) for w, s in pairs]
    return sum(every) / len(every)


def score(aligned: int | None, steps: int, diagonality: float) -> float:
    """The objective, to be maximised: the fraction of steps after alignment, plus a tenth of the diagonality,
    which ranks the trials that never align."""
    return (0.0 if aligned is None else 1 - aligned / steps) + 0.1 * diagonality


def results(history: History, every: int) -> dict[str, Any]:
    """The results of a training whose epochs have `every` steps: the last validation, and all curves."""
    last, curve = history.epochs[-1], history.column("val_diagonality")
    at = [(i + 1) * every for i in range(len(curve))]
    aligned = steps_to_alignment(at, curve)
    names = ("diagonality", "free_diagonality", "free_stopped", "free_length")
    curves = {"diagonality_curve": curve}
    for name, column in (("free_curve", "val_free_diagonality"), ("mel_curve", "val_mel")):
        curves[name] = history.column(column)
    return {
        "steps": at[-1], "steps_to_alignment": aligned, "final_loss": last["train_loss"],
        "val_score": score(aligned, at[-1], curve[-1]),
        **{name: last[f"val_{name}"] for name in names},
        **{name: last[name] for name in ("grad_norm", "val_loss", "val_mel")},
        **{name: " ".join(f"{v:.3f}" for v in values) for name, values in curves.items()},
    }  # fmt: skip


def objective(log: RunLogger, data: Material, budget: dict) -> Callable[[Trial], float]:
    """The objective of the study: trains, writes a row and the last alignment, and returns the score."""

    def run_trial(trial: Trial) -> float:
        settings = suggest(trial)
        with log.run(role="sweep", trial=trial.number, **settings) as run:
            loss, history, watch = train(data, settings, budget, run=run)
            found = results(history, budget["every"]) | {"n_params": count_parameters(loss)}
            quality = {"quality_metric": QUALITY.format("validation")}
            run.log_metrics(**found, audio_quality=distortion(data, loss), **quality)
            keep_alignment(log, run, last_seen(watch, loss))
        return found["val_score"]

    return run_trial


def last_seen(watch: tts.AlignmentMonitor, loss: TacotronLoss) -> tts.Validation:
    """The last validation, computed again for a finished training that was only loaded."""
    return watch.seen[-1] if watch.seen else tts.validate(loss, watch.batch)


def alignment_path(log: RunLogger, run_id: str) -> Path:
    """The file of a run's last alignments, beside the table."""
    return log.folder / "alignments" / f"{run_id}.npz"


def keep_alignment(log: RunLogger, run: Run, seen: tts.Validation) -> None:
    """Write the last alignments, forced and free, and the stop curve and mel of the free-running speech."""
    path = alignment_path(log, run.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("alignment", "free_alignment", "free_stop", "free_mel")
    np.savez_compressed(path, **{k: getattr(seen, k).astype(np.float16) for k in names})


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker of the study."""
    device, budget = pick_device(), BUDGET[profile]
    data = material(profile, device)
    log = RunLogger(12, profile, data.name, device, COLUMNS)
    tuning.search(
        tuning.study_path(12, profile),
        objective(log, data, budget),
        trials or budget["trials"],
        code=days.code_version(log.day.folder, notebooks=False),
    )
