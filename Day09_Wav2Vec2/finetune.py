"""Day 9's fine-tuning: the grid (`python -m tools sweep --day 9`) and the recognisers that the day ships.

The grid is no search: eight training runs with one recipe compare random with pretrained weights at three
fractions of the labels. Each takes about a quarter of an hour on a CPU core.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from utils import days
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE
from utils.logger import Run, RunLogger, read_table
from utils.metrics import Interval
from utils.models.ctc import Errors
from utils.models.wav2vec2_ctc import (
    FineTuning,
    Wav2Vec2CTC,
    evaluate_ctc,
    fine_tune,
    load_recogniser,
    tiny_config,
)
from utils.models.weights import training_card, training_command
from utils.speech import corpora
from utils.speech.augment import join_noises
from utils.speech.connected_words import (
    WaveAugmentation,
    connected_words,
    draw_sequences,
    speak_sequences,
)
from utils.speech.corpora import Clips, SpeechCorpus, Words
from utils.speech.pack import Utterances
from utils.training import History

from .pretrain import (
    FULL_WEIGHTS,
    PRETRAIN_COLUMNS,
    SMALL_WEIGHTS,
    allow_tf32,
    average_weights,
    save_wav2vec2,
    small_config,
)

COLUMNS = (
    *PRETRAIN_COLUMNS, "init", "labels", "head_lr", "mask", "lessons", "speakers", "epochs",
    "val_loss", "val_wer", "val_cer", "val_blanks", "wer", "cer", "accuracy", "substitutions",
    "deletions", "insertions", "decoder", "val_curve",
)  # fmt: skip

SHARES = {"random": (1.0, 0.3, 0.1), "pretrained": (1.0, 0.3, 0.1), "pretrained, full": (1.0, 0.1)}

CELLS = tuple((init, labels) for init, some in SHARES.items() for labels in some)
"""The grid: the initial weights (random, or pretrained by the study or the full profile), and the fraction of the
training speakers whose labels are used."""


def fraction_of_speakers(clips: Clips, fraction: float, seed: int = 0) -> Clips:
    """The clips of randomly chosen speakers, as many as make up a `fraction` of all clips."""
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction must be between 0 and 1, not {fraction}")
    speakers = sorted(set(clips.speakers))
    random.Random(seed).shuffle(speakers)
    size, chosen = Counter(clips.speakers), set()
    while sum(size[s] for s in chosen) < fraction * len(clips):
        chosen.add(speakers[len(chosen)])
    return clips.take(torch.tensor([s in chosen for s in clips.speakers]))


@dataclass(frozen=True)
class Recipe:
    """A curriculum and its settings: `short` epochs of sequences of one or two words, then `long` of three to six.

    `sequences` are the sequences in an epoch of either kind. A batch holds at most `seconds` of sound, padding
    included. Nothing is frozen, and the grid has no dropout: so few steps cannot overfit. `mask` is SpecAugment's
    fraction of frames, `head_lr` the learning rate of the output layer. After `different` epochs of a kind its
    first sequences come again; `speed`, `noisy` and `microphone` are those of `WaveAugmentation`, `dropout` that
    of the hidden layers.
    """

    short: int = 5
    long: int = 3
    sequences: tuple[int, int] = (1000, 500)
    seconds: float = 15.0
    lr: float = 1e-3
    head_lr: float = 1e-2
    batch_size: int = 16
    mask: float = 0.0
    dropout: float = 0.0
    different: int = 8
    speed: float = 0.0
    noisy: float = 0.0
    microphone: float = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that distinguish the rows of two recipes."""
        (first, second), (short, long) = self.sequences, (self.short, self.long)
        lessons = f"{short}x{first} short, {long}x{second} long"
        if self.different < max(short, long):
            lessons += f", {self.different} different"
        extras = {k: getattr(self, k) for k in ("speed", "noisy", "microphone", "dropout")}
        lessons += "".join(f", {k} {v:g}" for k, v in extras.items() if v)
        columns = {k: getattr(self, k) for k in ("lr", "head_lr", "batch_size", "mask")}
        return columns | {"lessons": lessons}

    def curriculum(self, words: Words, labels: float = 1.0, first: int = 100) -> list[Utterances]:
        """A training set for each epoch, from the clips of a fraction `labels` of the training speakers.

        `first` is the seed of the first epoch of each kind; an epoch that comes again is the same object.
        """
        clips = fraction_of_speakers(words.train, labels)
        variation = None
        if self.speed or self.noisy or self.microphone:
            noise = join_noises(words.train_noise).cpu()
            variation = WaveAugmentation(self.speed, self.noisy, noise, self.microphone)

        @cache
        def spoken(count: int, length: tuple[int, int], seed: int) -> Utterances:
            drawn = draw_sequences(clips, count, seed, length)
            return speak_sequences(clips, words.classes, drawn, seed, variation)

        kinds = zip((self.short, self.long), self.sequences, ((1, 2), (3, 6)), strict=True)
        return [
            spoken(count, length, first + epoch % self.different)
            for epochs, count, length in kinds
            for epoch in range(epochs)
        ]

    @property
    def settings(self) -> FineTuning:
        return FineTuning(
            epochs=self.short + self.long, batch_size=self.batch_size, lr=self.head_lr,
            encoder_lr=self.lr, frozen=False, mixed=True,
            max_samples=round(self.seconds * SAMPLE_RATE),
        )  # fmt: skip


RECIPE = {
    "quick": Recipe(short=1, long=1, sequences=(24, 12), batch_size=8),
    "study": Recipe(),
    "full": Recipe(short=10, long=30, sequences=(6000, 3000), seconds=120.0, batch_size=64),
}
"""The recipe of the grid."""

LONG = {
    "quick": Recipe(short=1, long=2, sequences=(24, 12), batch_size=8, speed=0.15, noisy=0.3),
    "study": Recipe(short=18, long=30, dropout=0.1, different=100, speed=0.15, noisy=0.3),
    "full": Recipe(
        short=6, long=24, sequences=(4000, 4000), seconds=240.0, batch_size=64,
        dropout=0.1, different=20, speed=0.15, noisy=0.3, microphone=1.0,
    ),
}  # fmt: skip
"""The recogniser that Day 9 ships: the pretrained weights, all labels, and many more or larger batches.

Without augmentation (16 and 24 epochs, eight of each kind different, no dropout) it overfitted: training loss
0.05, validation loss 0.51 and rising, WER 16 %. No masks in study: at least two spans of 200 ms are a quarter of a
short sequence, and learning started late."""

ON = {
    "quick": Recipe(
        short=0, long=2, sequences=(0, 12), batch_size=8, speed=0.2, noisy=0.5, microphone=1.5,
    ),
    "study": Recipe(
        short=0, long=14, sequences=(0, 1000), seconds=30.0, lr=3e-4, head_lr=3e-3,
        dropout=0.1, different=100, speed=0.2, noisy=0.5, microphone=1.5,
    ),
}  # fmt: skip
"""Stage 2, from what LONG's full profile left: three quarters of an hour on a CPU core, a third of the learning
rates, new sequences, more augmentation. Four in ten errors on validation were those of one voice with little power
around 1 and 3 kHz, so the sequences sound through microphones of less even responses (`microphone`)."""

ON["full"] = ON["study"]
AGAIN = {k: replace(recipe, lr=1e-4, head_lr=1e-3) for k, recipe in ON.items()}
"""Stage 3, from the mean of the weights that ON left, with a third of its learning rates."""

SENTENCES = {
    "quick": Recipe(short=1, long=1, batch_size=4),
    "study": Recipe(short=8, long=16, seconds=30.0, mask=0.1, dropout=0.1),
    "full": Recipe(short=8, long=40, seconds=120.0, batch_size=32, mask=0.1, dropout=0.1),
}  # fmt: skip
"""Whole sentences of LibriSpeech: `short` epochs of the shortest quarter of them, then `long` epochs of all, with
frozen convolutions."""

FIRST, SECOND = (0, 1), (2, 3)
"""The seeds of ON and of AGAIN, each with other sequences; the weights of the two networks of a stage are averaged
(Wortsman et al., 2022, arXiv:2203.05482)."""


def build(
    profile: str, init: str, seed: int = 0, mask: float = 0.0, dropout: float = 0.0
) -> Wav2Vec2CTC:
    """The recogniser at the start of a training run.

    `init` is `random`, `pretrained` (by the study profile, on a CPU), `pretrained, full` (on a GPU),
    `connected words` (from `train_words`) or `connected words, mean` (of what `go_on` left by ON); in quick it is
    tiny and random.
    """
    seed_everything(seed)
    weights: dict[str, list[Any]] = {
        "random": [small_config()], "pretrained": [SMALL_WEIGHTS], "pretrained, full": [FULL_WEIGHTS],
        "connected words": [recogniser_path(profile)],
        "connected words, mean": [recogniser_path(profile, on) for on in FIRST],
    }  # fmt: skip
    sources = [tiny_config()] if profile == "quick" else weights[init]
    changes = {"hidden_dropout": dropout, "final_dropout": dropout, "mask_time_prob": mask}
    return average_weights([load_recogniser(source, **changes) for source in sources])


def train(
    profile: str,
    init: str,
    labels: float,
    words: Words,
    corpus: SpeechCorpus,
    seed: int = 0,
    **how: Any,
) -> tuple[Wav2Vec2CTC, History]:
    """One training run with the grid's recipe: the recogniser and its history. `how` goes to `fine_tune`."""
    recipe = RECIPE[profile]
    recogniser, sets = build(profile, init, seed), recipe.curriculum(words, labels)
    history = fine_tune(recogniser, sets, corpus.validation, recipe.settings, seed=seed, **how)
    return recogniser, history


def configuration(
    profile: str, task: str, init: str, labels: float, recipe: Recipe
) -> dict[str, Any]:
    """The settings of a training run, for its row."""
    return {
        "model": "wav2vec2-small" if profile != "quick" else "wav2vec2-tiny",
        "task": task, "init": init, "labels": labels, **recipe.identity,
    }  # fmt: skip


def results(recogniser: Wav2Vec2CTC, history: History, speakers: Iterable[str]) -> dict[str, Any]:
    """The results of a training run, for its row, without the test."""
    end = history.epochs[-1]
    return {
        "speakers": len(set(speakers)),
        "epochs": end["epoch"], "steps": len(history.steps["loss"]), "final_loss": end["train_loss"],
        "grad_norm": end["grad_norm"], "n_params": sum(p.numel() for p in recogniser.parameters()),
        "val_curve": " ".join(f"{v:.4f}" for v in history.column("val_wer")),
        **{k: end[k] for k in ("val_loss", "val_wer", "val_cer", "val_blanks")},
    }  # fmt: skip


def save_with_card(
    path: Path, log: RunLogger, recogniser: Wav2Vec2CTC, history: History, recipe: Recipe,
    init: str, seed: int, data: str = "spoken words in a row",
) -> None:  # fmt: skip
    """Write a recogniser with its card."""
    card = training_card(
        log, history, recipe, seed, data=log.dataset,
        metric={"val_wer": history.epochs[-1]["val_wer"]},
        what=f"wav2vec 2.0, {init} weights, fine-tuned with CTC on {data}",
    )  # fmt: skip
    save_wav2vec2(path, recogniser, card)


def material(profile: str) -> tuple[Words, SpeechCorpus, RunLogger]:
    """The words, their sequences, and the day's table."""
    words = corpora.speech_commands("quick" if profile == "quick" else "study")
    corpus = connected_words(profile, words=words)
    return words, corpus, RunLogger(9, profile, corpus.name, pick_device(), COLUMNS)


def test(recogniser: Wav2Vec2CTC, corpus: SpeechCorpus, run: Run) -> None:
    """Log the word errors of greedy decoding on the committed test sequences."""
    found = evaluate_ctc(recogniser, corpus.test).errors
    run.log_metrics(
        wer=found.wer, cer=found.cer, accuracy=found.word_accuracy, decoder="greedy",
        substitutions=found.substitutions, deletions=found.deletions, insertions=found.insertions,
    )  # fmt: skip


def shipped(profile: str, init: str) -> Path:
    """The file of the grid's recogniser with all labels."""
    return _checkpoint(profile, f"_{init.replace(', ', '_')}")


def cell(
    log: RunLogger, profile: str, init: str, labels: float, words: Words, corpus: SpeechCorpus, seed: int = 0
) -> None:  # fmt: skip
    """Train one cell of the grid, test it once and log its row; with all labels also save its weights."""
    recipe = RECIPE[profile]
    chosen = configuration(profile, "connected words", init, labels, recipe)
    role = "baseline" if init == "random" else "sweep"  # the headline is LONG's
    run = log.run(role=role, seed=seed, **chosen)
    if any(row["run"] == run.id and row["role"] == role for row in read_table(log.path)):
        return  # trained before
    with run:
        recogniser, history = train(profile, init, labels, words, corpus, seed, run=run, bar=False)
        used = fraction_of_speakers(words.train, labels).speakers
        run.log_metrics(**results(recogniser, history, used))
        test(recogniser, corpus, run)
        if labels == 1.0:
            save_with_card(shipped(profile, init), log, recogniser, history, recipe, init, seed)


def recogniser_path(profile: str, on: int | None = None) -> Path:
    """The file that `train_words` writes, or that `go_on` writes with the seed `on`."""
    return _checkpoint(profile, "" if on is None else f"_on_{on}")


def _checkpoint(profile: str, suffix: str) -> Path:
    name = f"connected_words{suffix}.safetensors"
    return days.get(9).output(profile) / "checkpoints" / name


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker of the grid: trains the cells that no other worker has; `trials` bounds how many."""
    words, corpus, log = material(profile)
    locks = days.runs(profile, log.day.name, "cells")
    locks.mkdir(parents=True, exist_ok=True)
    run_cell = partial(cell, log, profile, words=words, corpus=corpus)
    for init, labels in CELLS[:trials]:
        lock = FileLock(locks / f"{init}_{labels}.lock")
        try:
            with lock.acquire(blocking=False):
                print(f"{init} weights, {labels:.0%} of the labels", flush=True)
                run_cell(init=init, labels=labels)
        except Timeout:
            continue  # another worker has it


def train_words(profile: str, path: Path, seed: int = 0) -> History:
    """Fine-tune the pretrained weights on connected words by LONG, and write them to `path`.

    `python -m Day09_Wav2Vec2.finetune words`: hours of a CPU core; a stopped run continues. The row has the
    validation only; the notebook tests the recogniser once.
    """
    init = "pretrained, full" if profile == "full" else "pretrained"
    return _train_words(profile, path, "connected words, shipped", init, LONG[profile], seed)


def go_on(profile: str, path: Path, seed: int = 0) -> History:
    """Continue training from what `train_words` left (seeds FIRST), or from the mean of the two networks that came
    of that (seeds SECOND), and write the weights to `path`.

    `python -m Day09_Wav2Vec2.finetune words-on`: three quarters of an hour of a CPU core a seed; a stopped run
    continues. Each seed has its own sequences. Raises ValueError for another seed.
    """
    if seed in FIRST:
        init, recipe = "connected words", ON[profile]
    elif seed in SECOND:
        init, recipe = "connected words, mean", AGAIN[profile]
    else:
        raise ValueError(f"words-on has the seeds {FIRST + SECOND}, not {seed}.")
    task, first = "connected words, gone on", 1000 * (1 + seed)
    return _train_words(profile, path, task, init, recipe, seed, first)


def _train_words(
    profile: str, path: Path, task: str, init: str, recipe: Recipe, seed: int, first: int = 100
) -> History:
    """Train on connected words with all labels, log a row and save the weights."""
    words, corpus, log = material(profile)
    row = configuration(profile, task, init, 1.0, recipe)
    sets = recipe.curriculum(words, 1.0, first)
    return _train_and_save(log, path, row, recipe, sets, corpus, words.train.speakers, seed)


def _train_and_save(
    log: RunLogger, path: Path, row: dict[str, Any], recipe: Recipe, sets: Sequence[Utterances],
    corpus: SpeechCorpus, speakers: list[str], seed: int, data: str = "spoken words in a row",
) -> History:  # fmt: skip
    """Fine-tune on a training set for each epoch, log a row and save the weights."""
    allow_tf32(log.device)
    with log.run(role="sweep", seed=seed, **row) as run:
        recogniser = build(log.profile, row["init"], seed, recipe.mask, recipe.dropout)
        plan = replace(recipe.settings, frozen=row.get("frozen", False))
        history = fine_tune(recogniser, sets, corpus.validation, plan, seed=seed, run=run)
        run.log_metrics(**results(recogniser, history, speakers))
    save_with_card(path, log, recogniser, history, recipe, row["init"], seed, data)
    return history


def record_tested(
    log: RunLogger, key: dict[str, Any], card: dict[str, Any], found: Errors, interval: Interval
) -> None:  # fmt: skip
    """Log the row of a saved recogniser.

    Its training comes from its `card` and the training's own row, its test from the errors `found` by greedy
    decoding and the `interval` of their rate.
    """
    same = [r for r in read_table(log.path) if r["lessons"] == key["lessons"]]
    before = next((r for r in same if r["val_curve"]), {})
    left = ("steps", "speakers", "n_params", "val_curve")
    end = card["curve"][-1]
    with log.run(seed=card["seed"], **key) as run:
        run.earlier_seconds = card["seconds"]
        machine = card["machine"].split(" · ")[0]
        run.note = f"trained on {machine} at {card['commit']}"
        run.log_metrics(**{k: before.get(k, "") for k in left}, epochs=len(card["curve"]))
        run.log_metrics(final_loss=end["train_loss"], grad_norm=end["grad_norm"])
        validated = ("val_loss", "val_wer", "val_cer", "val_blanks")
        run.log_metrics(**{k: end[k] for k in validated})
        run.log_metrics(
            wer=found.wer, cer=found.cer, accuracy=found.word_accuracy, decoder="greedy",
            wer_low=interval.low, wer_high=interval.high,
        )  # fmt: skip


def sentences_path(profile: str) -> Path:
    """The file that `train_sentences` writes."""
    return days.get(9).output(profile) / "checkpoints" / "sentences.safetensors"


def train_sentences(profile: str, path: Path, seed: int = 0) -> History:
    """Fine-tune the pretrained weights on whole sentences (LibriSpeech) by SENTENCES, and write them to `path`.

    `python -m Day09_Wav2Vec2.finetune sentences`: an hour or two of a CPU; a stopped run continues. The row has
    the validation only; the notebook tests the recogniser once.
    """
    corpus, recipe = corpora.librispeech(profile), SENTENCES[profile]
    log = RunLogger(9, profile, corpus.test_name, pick_device(), COLUMNS)
    if profile == "quick":
        corpus = replace(corpus, train=corpus.train.take(range(8)))
    shortest = np.argsort(corpus.train.lengths)[: len(corpus.train) // 4]
    sets = [corpus.train.take(shortest)] * recipe.short + [corpus.train] * recipe.long
    row, speakers = sentences_row(profile), corpus.train.speakers
    data = "whole sentences"
    return _train_and_save(log, path, row, recipe, sets, corpus, speakers, seed, data)


def sentences_row(profile: str) -> dict[str, Any]:
    """The settings of `train_sentences`, for its row."""
    recipe = SENTENCES[profile]
    row = configuration(profile, "sentences", "pretrained, full", 1.0, recipe)
    lessons = f"{recipe.short}x the shortest quarter, {recipe.long}x all"
    return row | {"lessons": lessons, "frozen": True}


if __name__ == "__main__":
    sys.exit(
        training_command(
            {
                "words": (lambda profile, seed: recogniser_path(profile), train_words),
                "words-on": (recogniser_path, go_on),
                "sentences": (lambda profile, seed: sentences_path(profile), train_sentences),
            }
        )
    )
