"""Day 14's searches: training of the enhancer, and fine-tuning of Day 13's speaker encoder on noisy speech.

`python -m tools sweep --day 14` fills both studies, one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import Trial
from torch import Tensor, nn

from utils import days, tuning
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE
from utils.logger import RunLogger
from utils.models import ecapa_tdnn
from utils.models.ecapa_tdnn import SpeakerNet
from utils.models.verification import mean_embeddings
from utils.speech.corpora import librispeech
from utils.speech.pack import PackedSpeech
from utils.training import OPTIMIZERS, History

from . import train as day14
from .enhancer import LOSSES


def init_class_weights(encoder: SpeakerNet, voices: PackedSpeech) -> Tensor:
    """Mean embedding of each training speaker: unit vectors `(speakers, dim)`, by sorted names.

    Over the first 4 s of up to four utterances of each.
    """
    who, sizes = np.asarray(voices.speakers), np.minimum(voices.lengths, 4 * SAMPLE_RATE)
    means = []
    for name in sorted(set(voices.speakers)):
        chosen = np.flatnonzero(who == name)[:4]
        waves = [voices.samples[voices.starts[i] :][: sizes[i]] for i in chosen]
        means.append(mean_embeddings(encoder.embed(waves)))
    return torch.stack(means)


BUDGET: dict[str, dict[str, Any]] = {
    "quick": {"trials": 2, "epochs": 1, "sound": 8, "seconds": 1.0, "utterances": 2, "width": 0.25},
    "study": {"trials": 10, "epochs": 6, "sound": 400, "seconds": 2.0, "utterances": 8, "width": 1.0},
    "full": {"trials": 40, "epochs": 10, "sound": 4000, "seconds": 3.0, "utterances": 20, "width": 1.0},
}  # fmt: skip
"""Trials of each study, epochs of a trial that is not pruned, seconds of sound an epoch (three times as much for
the encoder, which trains faster), seconds of an example, validation utterances a speaker, and the fraction of
the networks' channels. The sound is the same for every batch size: few large steps against many small ones."""

SPACES: dict[str, dict[str, BaseDistribution]] = {
    "enhancer": {
        "optimizer": CategoricalDistribution(list(OPTIMIZERS)),
        "lr": FloatDistribution(3e-4, 1e-2, log=True),
        "batch_size": CategoricalDistribution([2, 4, 8, 16]),
        "loss": CategoricalDistribution(list(LOSSES)),
    },
    "verifier": {
        "optimizer": CategoricalDistribution(list(OPTIMIZERS)),
        "lr": FloatDistribution(3e-5, 3e-3, log=True),
        "batch_size": CategoricalDistribution([8, 16, 32, 64]),
        "margin": FloatDistribution(0.0, 0.5),
    },
}
"""The hyperparameters of each study."""

SGD_FACTOR = 10.0
"""SGD's learning rate is drawn from this many times the range: Adam normalises its steps, SGD does not."""

SNR_DB = 5.0
"""Speech-to-noise ratio of the validation mixtures of both studies (dB)."""


@dataclass
class Speech:
    """What the searches share: speech and voices to train with, noises, and validation mixtures.

    The names of `speech` and `voices` are those of the data in the table.
    """

    speech: PackedSpeech
    voices: PackedSpeech
    noises: Mapping[str, Tensor]
    mixed: day14.Mixed
    mixed_speakers: list[str]
    encoder: SpeakerNet | None = None
    class_weights: Tensor | None = None


def load(profile: str, device: torch.device) -> Speech:
    """The training and validation speakers of LibriSpeech and Speech Commands, and the noises to train with.

    Validation uses the ends of the noise recordings, training the rest. The test split is not touched. The
    verifier's study fine-tunes Day 13's encoder from a GPU; in quick it starts from random weights.
    """
    corpus, noise = librispeech(profile), day14.day14_noises(profile)
    train_noise, val_noise = day14.split_tail(noise.train)
    mixed, speakers = day14.validation_mixtures(
        corpus.validation, val_noise, BUDGET[profile]["utterances"], SNR_DB
    )
    found = ecapa_tdnn.training_voices(profile, corpus, speeds=(1.0,)).to(device)
    encoder = weights = None
    if profile != "quick":
        encoder = ecapa_tdnn.load_speaker_net(0, device, "full")
        weights = init_class_weights(encoder, found)
    return Speech(
        corpus.train.packed(device, f"{corpus.name}+{noise.name}"),
        replace(found, name=f"{found.name}+{noise.name}"), train_noise,
        mixed.to(device), speakers, encoder, weights,
    )  # fmt: skip


def train(
    study: str,
    speech: Speech,
    settings: Mapping[str, Any],
    budget: Mapping[str, Any],
    seed: int = 0,
    **more: Any,
) -> tuple[nn.Module, History]:
    """One training run of a study with these settings; `more` goes to `training.fit`."""
    seed_everything(seed)
    sound = budget["sound"] * (1 if study == "enhancer" else 3)
    examples = sound / budget["seconds"]
    how = {
        "epochs": budget["epochs"], "seconds": budget["seconds"],
        "batches": max(1, round(examples / settings["batch_size"])),
    }  # fmt: skip
    if study == "enhancer":
        plan = day14.EnhancerSettings(channels=round(32 * budget["width"]), **how, **settings)
        validate = partial(day14.validation_quality, mixed=speech.mixed)
        return day14.train_enhancer(speech.speech, speech.noises, validate, plan, seed=seed, **more)
    plan = ecapa_tdnn.SpeakerSettings(channels=round(128 * budget["width"]), **how, **settings)
    noisy, device = list(speech.mixed.noisy), speech.voices.samples.device
    augment = ecapa_tdnn.voice_augmentation(
        speech.noises, noisy=1.0, snr_db=(-5.0, 15.0), device=device, seed=seed
    )
    validate = partial(ecapa_tdnn.validation_eer, waves=noisy, speakers=speech.mixed_speakers)
    return ecapa_tdnn.train_speaker_net(
        speech.voices, validate, plan, augment, encoder=copy.deepcopy(speech.encoder),
        class_weights=speech.class_weights, seed=seed, **more,
    )  # fmt: skip


def score(study: str, numbers: Mapping[str, float]) -> float:
    """What a search maximises, on validation mixtures at 5 dB.

    Enhancer: STOI, which none of the losses optimises directly, plus a hundredth of the gain in SI-SDR (dB).
    Verifier: minus the EER, and a tiny part of the loss as a tie-breaker: the loss differs by whole units from
    margin to margin, an EER over these mixtures by tenths of a per cent.
    """
    if study == "enhancer":
        return numbers["val_stoi"] + 0.01 * numbers["val_gain"]
    return -numbers["val_eer"] - 1e-5 * min(numbers["train_loss"], 10.0)


def objective(
    study: str, log: RunLogger, speech: Speech, budget: Mapping[str, Any]
) -> Callable[[Trial], float]:
    """A function of a trial: trains, writes a row, and returns the score."""
    curve = "val_stoi" if study == "enhancer" else "val_eer"
    how = {"epochs": budget["epochs"], "curves": {"val_curve": curve}, "study": study}
    trained = partial(train, study, speech, budget=budget, bar=False)

    def measure(_: nn.Module, history: History) -> dict[str, Any]:
        found = {"steps": len(history.steps["loss"]), "snr_db": SNR_DB}
        if study == "verifier":
            found["similarity"] = history.epochs[-1]["val_similarity"]
        return found

    def run_trial(trial: Trial) -> float:
        settings = tuning.suggest(trial, SPACES[study], SGD_FACTOR)
        return tuning.run_trial(trial, log, settings, trained, partial(score, study), measure=measure, **how)

    return run_trial


study_path = partial(tuning.study_path, 14)
"""The journal file of one study: `study_path(profile, study)`."""


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker: trials of the enhancer's study, then of the verifier's."""
    device, budget = pick_device(), BUDGET[profile]
    speech = load(profile, device)
    for number, study in enumerate(SPACES):
        data = speech.speech if study == "enhancer" else speech.voices
        log = RunLogger(14, profile, data.name, device, day14.COLUMNS)
        tuning.search(
            study_path(profile, study),
            objective(study, log, speech, budget),
            trials or budget["trials"],
            code=days.code_version(log.day.folder, notebooks=False),
            seed=1000 * number,  # or both would begin with the same draws
        )
