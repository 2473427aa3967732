"""The speaker encoder that Day 13 trains and ships."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from utils import days
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE
from utils.logger import RunLogger
from utils.models import ecapa_tdnn
from utils.models.ecapa_tdnn import SpeakerNet, SpeakerSettings
from utils.models.ge2e import Embedder
from utils.models.weights import save_weights, training_card, training_command
from utils.speech.corpora import librispeech, noises
from utils.speech.pack import PackedSpeech
from utils.training import History, count_parameters

COLUMNS = (
    "model", "n_params", "optimizer", "lr", "batch_size", "margin", "steps", "speakers", "enrolment",
    "seconds_used", "scores", "loss", "eer", "eer_low", "eer_high", "min_dcf", "accuracy",
    "identification", "similarity", "threshold", "val_eer", "grad_norm",
)  # fmt: skip
"""Columns of Day 13's table."""

SETTINGS: dict[str, SpeakerSettings] = {
    "quick": SpeakerSettings(channels=16, batch_size=8, batches=4, epochs=2),
    "study": SpeakerSettings(channels=128, batches=50, epochs=20),
    "full": SpeakerSettings(channels=128, batch_size=128, batches=125, epochs=16),
}
"""How the shipped encoder is trained; full on a GPU."""


def train_encoder(
    profile: str,
    voices: PackedSpeech,
    validate: Callable[[Embedder], Mapping[str, float]] | None = None,
    seed: int = 0,
    **more: Any,
) -> tuple[SpeakerNet, History]:
    """Train the shipped encoder without keeping records: the same seed gives the same steps.

    `more` goes to `training.fit`: with `stop` after an epoch it checks the curve on the weights' card.
    """
    device = pick_device()
    seed_everything(seed)
    augment = ecapa_tdnn.voice_augmentation(noises(profile).train, device=device, seed=seed)
    more = {"label": f"encoder, seed {seed}", **more}
    return ecapa_tdnn.train_speaker_net(
        voices.to(device), validate, SETTINGS[profile], augment, seed=seed, **more
    )


def weights_path(profile: str, seed: int) -> Path:
    """Where the weights of a profile and seed are stored."""
    return days.get(13).output(profile) / "checkpoints" / ecapa_tdnn.weights_name(profile, seed)


def train(profile: str, path: Path, seed: int = 0) -> History:
    """Train the encoder that Day 13 ships and write it to `path` in float16; returns the history.

    `python -m Day13_Speaker_Verification.train` does this. The run is a row of the day's table; the card has data,
    settings, machine and the curve. Validated on LibriSpeech's four validation speakers.
    """
    settings, device = SETTINGS[profile], pick_device()
    corpus = librispeech(profile)
    voices = ecapa_tdnn.training_voices(profile, corpus)
    waves, names = ecapa_tdnn.waves_per_speaker(corpus.validation, 20)
    log = RunLogger(13, profile, voices.name, device, COLUMNS)
    steps = settings.batches * settings.epochs
    chosen = {k: getattr(settings, k) for k in ("optimizer", "lr", "batch_size", "margin")}
    with log.run(seed=seed, model="SpeakerNet, own", steps=steps, **chosen) as run:
        validate = partial(ecapa_tdnn.validation_eer, waves=waves, speakers=names)
        encoder, history = train_encoder(profile, voices, validate, seed, run=run)
        end, size = history.epochs[-1], count_parameters(encoder)
        run.log_metrics(n_params=size, speakers=len(set(voices.speakers)), loss=end["train_loss"])
        run.log_metrics(val_eer=end["val_eer"], grad_norm=end["grad_norm"])
    card = training_card(
        log, history, settings, seed, model="SpeakerNet", n_params=size, data=voices.name,
        what="speaker encoder trained from random weights with AAM-softmax",
        hours=round(len(voices.samples) / SAMPLE_RATE / 3600, 2),
        speakers=len(set(voices.speakers)), speeds=ecapa_tdnn.SPEEDS,
        metric={"val_eer": end["val_eer"]},
    )  # fmt: skip
    save_weights(path, encoder, card, half=True)
    return history


if __name__ == "__main__":
    sys.exit(training_command({"": (weights_path, train)}))
