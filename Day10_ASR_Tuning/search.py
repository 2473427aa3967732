"""Day 10's search: how to fine-tune Day 9's recogniser, by WER. `python -m tools sweep --day 10`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import Trial

from utils import days, tuning
from utils.device import pick_device, seed_everything
from utils.logger import RunLogger
from utils.models.wav2vec2_ctc import (
    CTC_OPTIMIZERS,
    SCHEDULES,
    CTCDataset,
    FineTuning,
    Wav2Vec2CTC,
    fine_tune,
    load_recogniser,
    tiny_config,
)
from utils.speech.connected_words import connected_words
from utils.speech.corpora import SpeechCorpus
from utils.training import History

WEIGHTS = days.get(9).folder / "checkpoints" / "connected_words_pretrained_full.safetensors"
"""Where the trials begin: Day 9's recogniser of its grid, pretrained by the full profile, all labels."""
DAY9 = {
    "quick": FineTuning(
        epochs=2,
        batch_size=8,
        lr=1e-2,
        encoder_lr=1e-3,
        frozen=False,
        mixed=True,
        max_samples=240_000,
    ),
    "study": FineTuning(
        epochs=8,
        batch_size=16,
        lr=1e-2,
        encoder_lr=1e-3,
        frozen=False,
        mixed=True,
        max_samples=240_000,
    ),
    "full": FineTuning(
        epochs=40,
        batch_size=64,
        lr=1e-2,
        encoder_lr=1e-3,
        frozen=False,
        mixed=True,
        max_samples=1_920_000,
    ),
}
"""The settings of Day 9's grid, which the search is compared with."""

BUDGET = {
    "quick": {"trials": 2, "epochs": 2, "train": 24},
    "study": {"trials": 16, "epochs": 6, "train": 400},
    "full": {"trials": 48, "epochs": 20, "train": 2000},
}
"""Trials of the study, epochs of a trial that is not pruned, and sequences to train on."""

COLUMNS = (
    "model", "task", "trial", "state", "optimizer", "scheduler", "batch_size", "lr", "encoder_lr",
    "epochs", "n_params", "final_loss", "val_loss", "val_wer", "val_cer", "val_blanks", "wer",
    "cer", "accuracy", "substitutions", "deletions", "insertions", "decoder", "grad_norm",
    "val_curve", "loss_curve",
)  # fmt: skip
"""`val_curve` is the WER on validation, `loss_curve` the training loss, both of every epoch as text."""

SPACE: dict[str, BaseDistribution] = {
    "optimizer": CategoricalDistribution(list(CTC_OPTIMIZERS)),
    "scheduler": CategoricalDistribution(list(SCHEDULES)),
    "batch_size": CategoricalDistribution([4, 8, 16, 32]),
    "lr": FloatDistribution(3e-4, 1e-2, log=True),
    "encoder_lr": FloatDistribution(3e-5, 3e-3, log=True),
}
"""What may vary: `lr` is the head's learning rate, `encoder_lr` that of the transformer below it."""

SGD_FACTOR = 30.0
"""SGD's steps are the gradient times the rate, Adam's about the rate itself: its range lies higher."""


suggest = partial(tuning.suggest, space=SPACE, sgd_factor=SGD_FACTOR)
"""What a trial draws from the space: `suggest(trial)`."""


def build(profile: str, device: torch.device) -> Wav2Vec2CTC:
    """What is tuned: the recogniser that Day 9's short training from the GPU's pretrained weights left.

    From a new head and so few sequences a trial would spend its epochs at nothing but blanks. It was trained
    without dropout and masks; now that it reads, both are on, since Day 9's long training fell far lower in
    training than in validation. In quick a tiny random network stands for it.
    """
    seed_everything(0)
    source = tiny_config() if profile == "quick" else WEIGHTS
    return load_recogniser(
        source, device=device, hidden_dropout=0.1, final_dropout=0.1, mask_time_prob=0.05
    )


@dataclass(frozen=True)
class Kept:
    """What the frozen convolutions make of training and validation part, computed once for many trainings."""

    train: CTCDataset
    validation: CTCDataset


def keep(corpus: SpeechCorpus, recogniser: Wav2Vec2CTC) -> Kept:
    """The parts of a corpus as cached examples; every recogniser of `build` has the same convolutions."""
    return Kept(
        CTCDataset(corpus.train, recogniser, cached=True, strict=True),
        CTCDataset(corpus.validation, recogniser, cached=True),
    )


def train(
    recogniser: Wav2Vec2CTC,
    corpus: SpeechCorpus | Kept,
    settings: Mapping[str, Any],
    epochs: int,
    seed: int = 0,
    **how: Any,
):
    """One fine-tuning by these settings, the convolutions frozen and their output kept; returns the history."""
    names = set(asdict(FineTuning()))
    chosen = {k: v for k, v in settings.items() if k in names}
    plan = FineTuning(epochs=epochs, cached=True, **chosen)
    return fine_tune(recogniser, corpus.train, corpus.validation, plan, seed=seed, **how)


def score(numbers: Mapping[str, float]) -> float:
    """What the search maximises: minus WER on validation, and a hundredth of the loss to part what is equal.

    While nothing but blanks comes out, the WER of all trials is 1; the loss still tells them apart.
    """
    return -numbers["val_wer"] - 0.01 * min(numbers["val_loss"], 10.0)


def objective(
    log: RunLogger, profile: str, corpus: SpeechCorpus | Kept, epochs: int
) -> Callable[[Trial], float]:
    """A function of a trial: fine-tunes, leaves a row, and returns its score."""

    about = {
        "model": "wav2vec2-tiny" if profile == "quick" else "wav2vec2-small",
        "task": "connected words", "decoder": "greedy",
    }  # fmt: skip
    how = {"epochs": epochs, "curves": {"val_curve": "val_wer", "loss_curve": "train_loss"}}

    def trained(settings: Mapping[str, Any], **hooks: Any):
        recogniser = build(profile, log.device)
        return recogniser, train(recogniser, corpus, settings, epochs, bar=False, **hooks)

    def measure(recogniser: Wav2Vec2CTC, _: History) -> dict[str, Any]:
        return about | {"n_params": sum(p.numel() for p in recogniser.parameters())}

    return lambda trial: tuning.run_trial(
        trial, log, suggest(trial), trained, score, measure=measure, **how
    )


study_path = partial(tuning.study_path, 10)
"""The journal file of the study: `study_path(profile)`."""


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker: fills the study."""
    device, budget = pick_device(), BUDGET[profile]
    corpus = connected_words(profile, budget["train"])
    log = RunLogger(10, profile, corpus.name, device, COLUMNS)
    kept = keep(corpus, build(profile, device))
    tuning.search(
        study_path(profile),
        objective(log, profile, kept, budget["epochs"]),
        trials or budget["trials"],
        code=days.code_version(log.day.folder, notebooks=False),
    )
