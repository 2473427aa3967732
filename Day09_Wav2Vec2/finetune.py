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
from functools import cache
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
from utils.speech.connected_words import WaveAugmentation, connected_words, draw_sequences, speak_sequences
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

VALIDATED = ("val_loss", "val_wer", "val_cer", "val_blanks")

COLUMNS = (
    *PRETRAIN_COLUMNS, "init", "labels", "head_lr", "mask", "lessons", "speakers", "epochs",
    *VALIDATED, "wer", "cer", "accuracy", "substitutions", "deletions", "insertions", "decoder",
    "val_curve",
)  # fmt: skip

SHARES = {"random": (1.0, 0.3, 0.1), "pretrained": (1.0, 0.3, 0.1), "pretrained, full": (1.0, 0.1)}

CELLS = tuple((init, labels) for init, some in SHARES.items() for labels in some)
"""The grid: the initial weights (random, or pretrained by the study or the full profile), and the fraction of the
training speakers whose labels are used."""


def fraction_of_speakers(clips: Clips, fraction: float, seed: int = 0) -> Clips:
    """The clips of randomly chosen speakers, as many as make up a `fraction` of all clips."""
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
        noise = join_noises(words.train_noise).cpu() if self.noisy else None
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


def build(profile: str, init: str, seed: int = 0, mask: float = 0.0, dropout: float = 0.0) -> Wav2Vec2CTC:
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
    profile: str, init: str, labels: float, words: Words, corpus: SpeechCorpus, **how: Any
) -> tuple[Wav2Vec2CTC, History]:
    """One training run with the grid's recipe: the recogniser and its history. `how` goes to `fine_tune`."""
    recipe, recogniser = RECIPE[profile], build(profile, init)
    sets = recipe.curriculum(words, labels)
    history = fine_tune(recogniser, sets, corpus.validation, recipe.settings, **how)
    return recogniser, history


def configuration(profile: str, task: str, init: str, labels: float, recipe: Recipe) -> dict[str, Any]:
    """The settings of a training run, for its row."""
    return {
        "model": "wav2vec2-small" if profile != "quick" else "wav2vec2-tiny",
        "task": task, "init": init, "labels": labels, **recipe.identity,
    }  # fmt: skip


def material(profile: str) -> tuple[Words, SpeechCorpus, RunLogger]:
    """The words, their sequences, and the day's table."""
    words = corpora.speech_commands("quick" if profile == "quick" else "study")
    corpus = connected_words(profile, words=words)
    return words, corpus, RunLogger(9, profile, corpus.name, pick_device(), COLUMNS)


def finish(
    run: Run, recogniser: Wav2Vec2CTC, history: History, recipe: Recipe, speakers: Iterable[str],
    path: Path | None, data: str = "spoken words in a row",
) -> None:  # fmt: skip
    """Log the results of a training run without the test, and write the recogniser with its card to `path`."""
    end = history.epochs[-1]
    run.log_metrics(
        speakers=len(set(speakers)), epochs=end["epoch"], steps=len(history.steps["loss"]),
        final_loss=end["train_loss"], n_params=sum(p.numel() for p in recogniser.parameters()),
        val_curve=" ".join(f"{v:.4f}" for v in history.column("val_wer")),
        **{k: end[k] for k in ("grad_norm", *VALIDATED)},
    )  # fmt: skip
    if path:
        card = training_card(
            run.log, history, recipe, run.seed, data=run.log.dataset,
            metric={"val_wer": end["val_wer"]},
            what=f"wav2vec 2.0, {run.config['init']} weights, fine-tuned with CTC on {data}",
        )  # fmt: skip
        save_wav2vec2(path, recogniser, card)


def checkpoint(profile: str, name: str) -> Path:
    """A file of weights of the day."""
    return days.get(9).output(profile) / "checkpoints" / f"{name}.safetensors"


def shipped(profile: str, init: str) -> Path:
    """The file of the grid's recogniser with all labels."""
    return checkpoint(profile, f"connected_words_{init.replace(', ', '_')}")


def recogniser_path(profile: str, on: int | None = None) -> Path:
    """The file that `train_words` writes, or that `go_on` writes with the seed `on`."""
    return checkpoint(profile, "connected_words" if on is None else f"connected_words_on_{on}")


def sentences_path(profile: str) -> Path:
    """The file that `train_sentences` writes."""
    return checkpoint(profile, "sentences")


def run_worker(profile: str, trials: int | None = None) -> None:
    """One worker of the grid: trains the cells that no other worker has; `trials` bounds how many.

    A cell is tested once; with all labels its weights are saved.
    """
    words, corpus, log = material(profile)
    recipe, locks = RECIPE[profile], days.runs(profile, log.day.name, "cells")
    locks.mkdir(parents=True, exist_ok=True)
    for init, labels in CELLS[:trials]:
        row = configuration(profile, "connected words", init, labels, recipe)
        role = "baseline" if init == "random" else "sweep"  # the headline is LONG's
        run = log.run(role=role, **row)
        try:
            with FileLock(locks / f"{init}_{labels}.lock", timeout=0):
                if any((r["run"], r["role"]) == (run.id, run.role) for r in read_table(log.path)):
                    continue  # trained before
                print(f"{init} weights, {labels:.0%} of the labels", flush=True)
                with run:
                    trained = train(profile, init, labels, words, corpus, run=run, bar=False)
                    found = evaluate_ctc(trained[0], corpus.test).errors
                    run.log_metrics(
                        wer=found.wer, cer=found.cer, accuracy=found.word_accuracy, decoder="greedy",
                        substitutions=found.substitutions, deletions=found.deletions,
                        insertions=found.insertions,
                    )  # fmt: skip
                    speakers = fraction_of_speakers(words.train, labels).speakers
                    path = shipped(profile, init) if labels == 1.0 else None
                    finish(run, *trained, recipe, speakers, path)
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
    if seed not in FIRST + SECOND:
        raise ValueError(f"words-on has the seeds {FIRST + SECOND}, not {seed}.")
    init, recipes = ("connected words", ON) if seed in FIRST else ("connected words, mean", AGAIN)
    task, first = "connected words, gone on", 1000 * (1 + seed)
    return _train_words(profile, path, task, init, recipes[profile], seed, first)


def _train_words(
    profile: str, path: Path, task: str, init: str, recipe: Recipe, seed: int, first: int = 100
) -> History:
    """Train on connected words with all labels, log a row and save the weights."""
    words, corpus, log = material(profile)
    run = log.run(seed=seed, **configuration(profile, task, init, 1.0, recipe))
    sets = recipe.curriculum(words, 1.0, first)
    return _train_and_save(run, path, recipe, sets, corpus, words.train.speakers)


def _train_and_save(
    run: Run, path: Path, recipe: Recipe, sets: Sequence[Utterances], corpus: SpeechCorpus,
    speakers: Iterable[str], **about: str,
) -> History:  # fmt: skip
    """Fine-tune on a training set for each epoch, log the row of `run` and save the weights."""
    allow_tf32(run.log.device)
    with run:
        init, frozen = run.config["init"], run.config.get("frozen", False)
        recogniser = build(run.log.profile, init, run.seed, recipe.mask, recipe.dropout)
        settings = replace(recipe.settings, frozen=frozen)
        history = fine_tune(recogniser, sets, corpus.validation, settings, seed=run.seed, run=run)
        finish(run, recogniser, history, recipe, speakers, path, **about)
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
    end, machine = card["curve"][-1], card["machine"].split(" · ")[0]
    note = f"trained on {machine} at {card['commit']}"
    with log.run(seed=card["seed"], note=note, **key) as run:
        run.earlier_seconds = card["seconds"]
        run.log_metrics(
            **{k: before.get(k, "") for k in left}, **{k: end[k] for k in ("grad_norm", *VALIDATED)},
            epochs=len(card["curve"]), final_loss=end["train_loss"],
            wer=found.wer, cer=found.cer, accuracy=found.word_accuracy, decoder="greedy",
            wer_low=interval.low, wer_high=interval.high,
        )  # fmt: skip


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
    run = log.run(seed=seed, **sentences_row(profile))
    speakers = corpus.train.speakers
    return _train_and_save(run, path, recipe, sets, corpus, speakers, data="whole sentences")


def sentences_row(profile: str) -> dict[str, Any]:
    """The settings of `train_sentences`, for its row."""
    recipe = SENTENCES[profile]
    row = configuration(profile, "sentences", "pretrained, full", 1.0, recipe)
    lessons = f"{recipe.short}x the shortest quarter, {recipe.long}x all"
    return row | {"lessons": lessons, "frozen": True}


if __name__ == "__main__":
    jobs = {
        "words": (lambda profile, seed: recogniser_path(profile), train_words),
        "words-on": (recogniser_path, go_on),
        "sentences": (lambda profile, seed: sentences_path(profile), train_sentences),
    }
    sys.exit(training_command(jobs))
