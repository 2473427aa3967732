"""Day 12's search: what makes Tacotron's attention align soon. `python -m utils sweep --day 12`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.trial import Trial
from torch import Tensor

from .. import days, tts, tuning
from ..device import pick_device, seed_everything
from ..features import SAMPLE_RATE, as_float, resample
from ..logger import Run, RunLogger
from ..mel import MelSettings, SynthesisMel, trim_silence
from ..models.keywords import count_parameters
from ..models.tacotron2 import (
    Tacotron2,
    TacotronConfig,
    TacotronLoss,
    steps_to_alignment,
)
from ..training import History
from ..tts import LengthBatches, Utterances, Watch
from ..voice import mel_cepstral_distortion

BUDGET = {
    "quick": {"trials": 2, "steps": 20, "every": 10, "batch_size": 8, "longest": 4.0},
    "study": {"trials": 12, "steps": 800, "every": 50, "batch_size": 16, "longest": 4.0},
    "full": {"trials": 32, "steps": 2000, "every": 50, "batch_size": 48, "longest": 6.0},
}  # fmt: skip
"""Trials, steps of each (the same for all, none is pruned: alignment may come late), steps between validations,
and the longest sentence (s)."""
COLUMNS = (
    "trial", "encoder_dim", "decoder_dim", "r", "guided", "lr", "steps", "steps_to_alignment", "diagonality",
    "free_diagonality", "free_stopped", "final_loss", "val_loss", "val_mel", "grad_norm",
    "audio_quality", "quality_metric", "n_params", "diagonality_curve",
)  # fmt: skip

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
    train: Utterances
    held_out: Utterances
    recordings: list[Tensor]
    mel: SynthesisMel


def suggest(trial: Trial) -> dict:
    """What a trial draws from the space; the rate of four digits, so that the table's row is the whole truth."""
    drawn = {
        name: trial.suggest_float(name, d.low, d.high, log=d.log)
        if isinstance(d, FloatDistribution)
        else trial.suggest_categorical(name, d.choices)
        for name, d in SPACE.items()
    }
    return drawn | {"lr": float(f"{drawn['lr']:.4g}")}


def material(profile: str, device: torch.device, validation: int = 16) -> Material:
    """Kathleen's sentences (in quick the bundled ones) with her d-vector, as mels on the device."""
    from ..models.speaker import pretrained_dvector
    from ..speech import kathleen

    corpus, longest = kathleen(profile), BUDGET[profile]["longest"]
    rate = corpus.train.rate
    mel = SynthesisMel(MelSettings(rate)).to(device)
    encoder = pretrained_dvector(device)

    def embed(waves: list[Tensor]) -> Tensor:
        return encoder.embed([resample(as_float(w), rate, SAMPLE_RATE) for w in waves])

    parts = []
    for part in (corpus.train, corpus.validation):
        waves = [part.wave(i) for i in range(len(part))]
        voices = tts.speaker_vectors(waves, part.speakers, embed).cpu()
        parts.append(tts.prepare(waves, part.texts, voices, mel, longest, bar=False))
    train, held_out = parts
    kept = held_out.numbers[:validation]
    sounds = [trim_silence(corpus.validation.sound(i), rate) for i in kept]
    return Material(corpus.name, train, held_out, sounds, mel)


def train(
    data: Material, settings: dict, budget: dict, seed: int = 0, run: Run | None = None
) -> tuple[TacotronLoss, History, Watch]:
    """One training by these settings; returns the model in its loss, the history, and what was validated."""
    device = data.mel.hann.device
    seed_everything(seed)
    config = TacotronConfig(
        encoder=settings["encoder_dim"], decoder=settings["decoder_dim"], r=settings["r"],
        n_mels=data.mel.settings.n_mels, d_vector=data.train.d_vectors.shape[1],
    )  # fmt: skip
    loss = TacotronLoss(Tacotron2(config), guided=settings["guided"]).to(device)
    graph = device.type == "cuda"
    batches = LengthBatches(
        data.train, min(budget["batch_size"], len(data.train)), config.r, seed=seed,
        buckets=1 if graph else 4 if len(data.train) >= 8 * budget["batch_size"] else 1,
        steps=budget["every"],
    )  # fmt: skip
    held_out = data.held_out.batch(range(len(data.recordings)), config.r)
    watch = Watch(held_out, run)
    history = tts.train(
        loss, batches, epochs=budget["steps"] // budget["every"], lr=settings["lr"], graph=graph,
        validate=watch, run=run, bar=False,
    )  # fmt: skip
    return loss, history, watch


def distortion(data: Material, loss: TacotronLoss, sentences: int = 4) -> float:
    """Mean mel-cepstral distortion (dB) of what the model says by itself, by Griffin-Lim, from the recordings."""
    batch = data.held_out.batch(range(min(sentences, len(data.recordings))), 1)
    with tts.repeatable(batch.text.device):
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


def objective(log: RunLogger, data: Material, budget: dict) -> Callable[[Trial], float]:
    """A function of a trial: trains, leaves a row and its last alignment, and returns its score."""

    def run_trial(trial: Trial) -> float:
        settings = suggest(trial)
        with log.run(role="sweep", trial=trial.number, **settings) as run:
            loss, history, watch = train(data, settings, budget, run=run)
            last, curve = history.epochs[-1], history.column("val_diagonality")
            steps = [(i + 1) * budget["every"] for i in range(len(curve))]
            aligned = steps_to_alignment(steps, curve)
            run.result(
                steps=steps[-1], steps_to_alignment=aligned, final_loss=last["train_loss"],
                grad_norm=last["grad_norm"], val_loss=last["val_loss"], val_mel=last["val_mel"],
                diagonality=last["val_diagonality"],
                free_diagonality=last["val_free_diagonality"],
                free_stopped=last["val_free_stopped"], n_params=count_parameters(loss),
                audio_quality=distortion(data, loss), quality_metric="MCD (dB), lower is better",
                diagonality_curve=" ".join(f"{v:.3f}" for v in curve),
            )  # fmt: skip
            if watch.seen:  # nothing was trained anew where a finished run was loaded
                keep_alignment(log, run, watch)
        return score(aligned, steps[-1], curve[-1])

    return run_trial


def keep_alignment(log: RunLogger, run: Run, watch: Watch) -> None:
    """The last alignments, forced and free, beside the table, for the grid of pictures."""
    path = log.folder / "alignments" / f"{run.id}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    last = watch.seen[-1]
    np.savez_compressed(
        path,
        alignment=last.alignment.astype(np.float16),
        free_alignment=last.free_alignment.astype(np.float16),
    )


def study_path(profile: str):
    """The journal file of the study."""
    return days.runs(profile, days.get(12).name, "tpe.journal")


def work(profile: str, trials: int | None = None) -> None:
    """One worker: fills the study."""
    device, budget = pick_device(), BUDGET[profile]
    data = material(profile, device)
    log = RunLogger(12, profile, data.name, device, COLUMNS)
    tuning.search(
        study_path(profile), objective(log, data, budget), trials or budget["trials"]
    )
