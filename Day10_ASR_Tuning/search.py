"""Day 10's search for the settings of fine-tuning with the lowest WER: `python -m tools sweep --day 10`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
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
"""The starting point of each trial: the recogniser of Day 9's grid, pretrained by the full profile, all labels."""
GRID = FineTuning(lr=1e-2, encoder_lr=1e-3, frozen=False, mixed=True)
DAY9 = {
    "quick": replace(GRID, epochs=2, batch_size=8, max_samples=240_000),
    "study": replace(GRID, epochs=8, batch_size=16, max_samples=240_000),
    "full": replace(GRID, epochs=40, batch_size=64, max_samples=1_920_000),
}
"""The settings of Day 9's grid, the baseline of the search."""

BUDGET = {
    "quick": {"trials": 2, "epochs": 2, "train": 24},
    "study": {"trials": 16, "epochs": 6, "train": 400},
    "full": {"trials": 48, "epochs": 20, "train": 2000},
}
"""Trials of the study, epochs of a trial that is not pruned, and training sequences."""

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
"""The search space: `lr` is the head's learning rate, `encoder_lr` that of the transformer below it."""

SGD_FACTOR = 30.0
"""SGD's step is the gradient times the learning rate, Adam's about the rate itself: SGD's range is higher."""


suggest = partial(tuning.suggest, space=SPACE, sgd_factor=SGD_FACTOR)
"""What a trial draws from the space: `suggest(trial)`."""


def build(profile: str, device: torch.device) -> Wav2Vec2CTC:
    """The recogniser to tune: Day 9's short fine-tuning of the weights that a GPU pretrained.

    With a new head and so few sequences a trial would put out blanks only. It was trained without dropout and
    masks; here both are on, since Day 9's long training overfitted. In quick a tiny random network replaces it.
    """
    seed_everything(0)
    source = tiny_config() if profile == "quick" else WEIGHTS
    return load_recogniser(source, device=device, hidden_dropout=0.1, final_dropout=0.1, mask_time_prob=0.05)


@dataclass(frozen=True)
class Kept:
    """The output of the frozen convolutions for training and validation part, computed once for many trials."""

    train: CTCDataset
    validation: CTCDataset


def keep(corpus: SpeechCorpus, recogniser: Wav2Vec2CTC) -> Kept:
    """The parts of a corpus as cached data sets; every recogniser of `build` has the same convolutions."""
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
    """Fine-tune with these settings, with frozen convolutions whose output is cached; returns the history."""
    names = set(asdict(FineTuning()))
    chosen = {k: v for k, v in settings.items() if k in names}
    plan = FineTuning(epochs=epochs, cached=True, **chosen)
    return fine_tune(recogniser, corpus.train, corpus.validation, plan, seed=seed, **how)


def score(numbers: Mapping[str, float]) -> float:
    """The score to maximise: minus the WER on validation, and minus a hundredth of the loss to break ties.

    While a network puts out blanks only, the WER of all trials is 1, and the loss still separates them.
    """
    return -numbers["val_wer"] - 0.01 * min(numbers["val_loss"], 10.0)


def objective(
    log: RunLogger, profile: str, corpus: SpeechCorpus | Kept, epochs: int
) -> Callable[[Trial], float]:
    """A function of a trial that fine-tunes, writes a row, and returns its score."""
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

    return lambda trial: tuning.run_trial(trial, log, suggest(trial), trained, score, measure=measure, **how)


study_path = partial(tuning.study_path, 10)
"""The journal file of the study: `study_path(profile)`."""


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker of the search: runs trials until the study is full."""
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
