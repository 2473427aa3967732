"""Day 12's search: what makes Tacotron's attention align soon. `python -m tools sweep --day 12`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
from utils.models.tts import (
    AlignmentMonitor,
    LengthBatches,
    TTSDataset,
    make_dataset,
    mel_cepstral_distortion,
)
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
"""Trials, steps of each (the same for all, none is pruned: alignment may come late), steps between validations,
the longest sentence (s), sentences to validate on, and by how much all sizes are divided (a rehearsal aligns
nothing)."""

COLUMNS = (
    "system", "trial", "encoder_dim", "decoder_dim", "r", "guided", "lr", "steps", "steps_to_alignment",
    "diagonality", "free_diagonality", "free_stopped", "free_length", "final_loss", "val_loss",
    "val_mel", "val_score", "grad_norm", "audio_quality", "quality_metric", "audio_sample",
    "n_params", "diagonality_curve", "free_curve", "mel_curve",
)  # fmt: skip
"""The curves are those of all validations as text: forced and free diagonality, and the mel part of the loss."""

QUALITY = "MCD (dB) on {}, lower is better"
"""What `audio_quality` is; trials are judged on validation sentences, the chosen one on test sentences."""

SPACE: dict[str, BaseDistribution] = {
    "encoder_dim": CategoricalDistribution([128, 256]),
    "decoder_dim": CategoricalDistribution([256, 512]),
    "r": CategoricalDistribution([2, 3, 4, 5]),
    "guided": CategoricalDistribution([0.0, 0.3, 1.0, 3.0]),
    "lr": FloatDistribution(3e-4, 5e-3, log=True),
}
"""What may vary: sizes, reduction factor, weight of the guided-attention loss (0 is none), learning rate."""


@dataclass
class Material:
    """What all trials share: sentences to train and to validate on, and the recordings of the latter, trimmed."""

    name: str
    train: TTSDataset
    held_out: TTSDataset
    recordings: list[Tensor]
    mel: SynthesisMel


suggest = partial(tuning.suggest, space=SPACE)
"""What a trial draws from the space: `suggest(trial)`."""


def held_out(
    sentences: Utterances, mel: SynthesisMel, longest: float, most: int = 16
) -> tuple[TTSDataset, list[Tensor]]:
    """Utterances to judge by, and the recordings `(time,)` of the first `most` of them, trimmed."""
    part = make_dataset([sentences], mel, longest)
    rate = mel.settings.sample_rate
    return part, [trim_silence(sentences.sound(i), rate) for i in part.numbers[:most]]


def material(profile: str, device: torch.device) -> Material:
    """Kathleen's sentences (in quick the bundled ones) with her d-vector, as mels on the device."""
    corpus, budget = kathleen(profile), BUDGET[profile]
    longest = budget["longest"]
    mel = SynthesisMel(MelSettings(corpus.train.rate)).to(device)
    spoken = make_dataset([corpus.train], mel, longest)
    judged = held_out(corpus.validation, mel, longest, budget["validation"])
    return Material(corpus.name, spoken, *judged, mel)


def sizes(data: Material, settings: dict, shrink: int = 1) -> TacotronConfig:
    """The network of these settings, the rest as on Day 11, every width divided by `shrink`."""
    c = TacotronConfig(postnet=128)
    return TacotronConfig(
        encoder=settings["encoder_dim"] // shrink, decoder=settings["decoder_dim"] // shrink,
        r=settings["r"], attention=c.attention // shrink, prenet=c.prenet // shrink,
        postnet=c.postnet // shrink, speaker=c.speaker // shrink,
        n_mels=data.mel.settings.n_mels, d_vector=data.train.d_vectors.shape[1],
    )  # fmt: skip


def train(
    data: Material,
    settings: dict,
    budget: dict,
    seed: int = 0,
    run: Run | None = None,
    stop: Callable[[dict], bool] | None = None,
) -> tuple[TacotronLoss, History, AlignmentMonitor]:
    """One training by these settings; returns the model in its loss, the history, and what was validated.

    `stop(numbers)` is asked after each validation, True ends the training; its schedule stays that of `budget`.
    """
    device = data.mel.hann.device
    seed_everything(seed)
    config = sizes(data, settings, budget.get("shrink", 1))
    loss = TacotronLoss(Tacotron2(config), guided=settings["guided"]).to(device)
    graph = device.type == "cuda"
    batches = LengthBatches(
        data.train, min(budget["batch_size"], len(data.train)), config.r, seed=seed,
        buckets=1 if graph else 4 if len(data.train) >= 8 * budget["batch_size"] else 1,
        steps=budget["every"],
    )  # fmt: skip
    held_out = data.held_out.batch(range(len(data.recordings)), config.r)
    watch = AlignmentMonitor(held_out, run)
    history = tts.train(
        loss, batches, epochs=budget["steps"] // budget["every"], lr=settings["lr"], graph=graph,
        validate=watch, run=run, stop=stop, bar=False,
    )  # fmt: skip
    return loss, history, watch


def distortion(data: Material, loss: TacotronLoss, sentences: int = 4) -> float:
    """Mean mel-cepstral distortion (dB) of what the model says by itself, by Griffin-Lim, from the recordings."""
    batch = data.held_out.batch(range(min(sentences, len(data.recordings))), 1)
    with tts.repeatable(batch.text.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `free_stopped` says it
        speech = loss.model.eval().generate(*batch[:3])
    settings = data.mel.settings
    waves = tts.to_waves(speech, data.mel.griffin_lim, settings.hop)
    pairs = zip(waves, data.recordings, strict=False)
    every = [mel_cepstral_distortion(w, s, settings.sample_rate) for w, s in pairs]
    return sum(every) / len(every)


def score(aligned: int | None, steps: int, diagonality: float) -> float:
    """What the search maximises: the share of the training that was aligned, and a tenth of the diagonality,
    which ranks those that never aligned."""
    return (0.0 if aligned is None else 1 - aligned / steps) + 0.1 * diagonality


def results(history: History, every: int) -> dict[str, Any]:
    """What a row says of a training whose epochs have `every` steps: the last validation, and all curves."""
    last, curve = history.epochs[-1], history.column("val_diagonality")
    at = [(i + 1) * every for i in range(len(curve))]
    aligned = steps_to_alignment(at, curve)
    names = ("diagonality", "free_diagonality", "free_stopped", "free_length")
    curves = {
        "diagonality_curve": curve,
        "free_curve": history.column("val_free_diagonality"),
        "mel_curve": history.column("val_mel"),
    }
    return {
        "steps": at[-1], "steps_to_alignment": aligned, "final_loss": last["train_loss"],
        "val_score": score(aligned, at[-1], curve[-1]),
        **{name: last[f"val_{name}"] for name in names},
        **{name: last[name] for name in ("grad_norm", "val_loss", "val_mel")},
        **{name: " ".join(f"{v:.3f}" for v in values) for name, values in curves.items()},
    }  # fmt: skip


def objective(log: RunLogger, data: Material, budget: dict) -> Callable[[Trial], float]:
    """A function of a trial: trains, leaves a row and its last alignment, and returns its score."""

    def run_trial(trial: Trial) -> float:
        settings = suggest(trial)
        with log.run(role="sweep", trial=trial.number, **settings) as run:
            loss, history, watch = train(data, settings, budget, run=run)
            found = results(history, budget["every"])
            run.log_metrics(
                **found, n_params=count_parameters(loss), audio_quality=distortion(data, loss),
                quality_metric=QUALITY.format("validation"),
            )  # fmt: skip
            keep_alignment(log, run, last_seen(watch, loss))
        return found["val_score"]

    return run_trial


def last_seen(watch: AlignmentMonitor, loss: TacotronLoss) -> tts.Validation:
    """The last validation; of a finished training that was loaded, which validated nothing, made anew."""
    return watch.seen[-1] if watch.seen else tts.validate(loss, watch.batch)


def alignment_path(log: RunLogger, run_id: str) -> Path:
    """Where a run's last alignments are kept, beside the table."""
    return log.folder / "alignments" / f"{run_id}.npz"


def keep_alignment(log: RunLogger, run: Run, seen: tts.Validation) -> None:
    """The last alignments, forced and free, for the grid of pictures; stop curve and mel of the free speech."""
    path = alignment_path(log, run.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("alignment", "free_alignment", "free_stop", "free_mel")
    arrays = {name: getattr(seen, name).astype(np.float16) for name in names}
    np.savez_compressed(path, **arrays)


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker: fills the study."""
    device, budget = pick_device(), BUDGET[profile]
    data = material(profile, device)
    log = RunLogger(12, profile, data.name, device, COLUMNS)
    tuning.search(
        tuning.study_path(12, profile),
        objective(log, data, budget),
        trials or budget["trials"],
        code=days.code_version(log.day.folder, notebooks=False),
    )
