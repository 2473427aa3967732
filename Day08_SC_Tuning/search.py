"""Day 8's search: how to train Day 7's network. `python -m tools sweep --day 8`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, Trial
from torch import nn

from utils import days, tuning
from utils.data import Batches
from utils.device import pick_device, seed_everything
from utils.features import LogMel
from utils.logger import RunLogger
from utils.models.keyword_net import CNN2d, KeywordNet, augmentation
from utils.speech.corpora import Words, speech_commands
from utils.training import evaluate, fit
from utils.tuning import DONE

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU": nn.LeakyReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}

BUDGET = {
    "quick": {"trials": 4, "epochs": 2},
    "study": {"trials": 20, "epochs": 12},
    "full": {"trials": 100, "epochs": 30},
}
"""Trials of each of the two studies, and epochs of a trial that is not pruned."""

COLUMNS = (
    "sampler", "trial", "state", "lr", "batch_size", "activation", "width", "dropout",
    "strength", "final_loss", "val_loss", "val_accuracy", "accuracy", "grad_norm", "epochs",
    "n_params", "val_curve",
)  # fmt: skip


SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-3, 5e-2, log=True),
    "batch_size": CategoricalDistribution([32, 64, 128, 256]),
    "activation": CategoricalDistribution(list(ACTIVATIONS)),
    "width": CategoricalDistribution([8, 12, 16]),
    "dropout": FloatDistribution(0.0, 0.5),
    "strength": FloatDistribution(0.3, 1.5),
}
"""What may vary. `strength` scales Day 7's augmentations, SpecAugment included; 1 is Day 7's.

It begins at 0.3: a first search from 0 chose almost none, because a short trial has no time to overfit.
"""


suggest = partial(tuning.suggest, space=SPACE)
"""What a trial draws from the space: `suggest(trial)`."""


def build(words: Words, settings: dict, device: torch.device) -> KeywordNet:
    """The network of these settings, SpecAugment of their strength included."""
    masks = (round(20 * settings["strength"]), round(8 * settings["strength"]))
    network = CNN2d(64, settings["width"], ACTIVATIONS[settings["activation"]])
    model = KeywordNet(LogMel(64), network, len(words.classes), settings["dropout"], masks)
    return model.to(device)


def train(words: Words, settings: dict, epochs: int, seed: int = 0, run=None, stop=None, bar=True):
    """One training run with these settings; returns the model and its history."""
    device = words.train.y.device
    seed_everything(seed)
    model = build(words, settings, device)
    augment = augmentation(words.train_noise, settings["strength"])
    size = min(settings["batch_size"], len(words.train))
    batches = Batches(words.train, size, seed=seed, augment=augment)
    optimizer = torch.optim.AdamW(model.parameters(), settings["lr"], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["lr"], epochs * len(batches))
    history = fit(
        model, batches, optimizer, epochs=epochs, scheduler=schedule, mixed=True, run=run,
        loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1), stop=stop, bar=bar,
        validate=lambda m: evaluate(m, words.validation), label="training",
    )  # fmt: skip
    return model, history


def score(numbers: Mapping[str, float]) -> float:
    """What the search maximises: minus the validation loss, by which Day 7 chose its pair, too.

    With 455 clips accuracy has steps of 0.2 points, and their speakers are easy; the loss also shows confidence.
    """
    return -numbers["val_loss"]


def objective(log: RunLogger, words: Words, sampler: str, epochs: int) -> Callable[[Trial], float]:
    """A function of a trial: trains, leaves a row, and returns its score."""
    how = {"epochs": epochs, "curves": {"val_curve": "val_accuracy"}, "sampler": sampler}

    def trained(settings: dict, **hooks):
        return train(words, settings, epochs, bar=False, **hooks)

    return lambda trial: tuning.run_trial(trial, log, suggest(trial), trained, score, **how)


study_path = partial(tuning.study_path, 8)
"""The journal file of one study: `study_path(profile, sampler)`."""


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker: fills the study of blind search, then that of TPE, each with the same budget."""
    device, budget = pick_device(), BUDGET[profile]
    words = speech_commands(profile).to(device)
    log = RunLogger(8, profile, words.name, device, COLUMNS)
    for number, sampler in enumerate(tuning.SAMPLERS):
        tuning.search(
            study_path(profile, sampler),
            objective(log, words, sampler, budget["epochs"]),
            trials or budget["trials"],
            sampler,
            code=days.code_version(log.day.folder, notebooks=False),
            seed=1000 * number,  # or the two searches would begin with the same trials
        )


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Complete and pruned trials, in the order of their numbers."""
    return study.get_trials(deepcopy=False, states=DONE)


def best_so_far(values: list[float]) -> list[float]:
    """The largest value up to each trial: the curve by which two searches are compared."""
    return list(accumulate(values, max))
