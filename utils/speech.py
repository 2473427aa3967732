"""Sets of spoken words in memory: Speech Commands, or the bundled synthetic words."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from . import data, days
from .data import SPLITS, DataError, Part, read_lines
from .days import check_profile
from .features import SAMPLE_RATE, fixed_length, read_audio
from .pack import Item, pack

NINE_WORDS = ("right", "one", "go", "zero", "up", "down", "left", "five", "eight")
"""The words of the study profile: those with some 500 clips in the copy that the rows were made on."""
TRAIN_NOISES = ("doing_the_dishes", "dude_miaowing", "white_noise")
TEST_NOISES = ("running_tap", "exercise_bike", "pink_noise")
"""Recordings of `_background_noise_`: what is mixed in while training is not what is tested with."""


@dataclass
class Clips(Part):
    """Spoken words: `x` int16 `(clips, 16000)`, `y` class numbers, and for each clip its name and speaker."""

    names: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> Clips:
        return Clips(self.x.to(device), self.y.to(device), self.names, self.speakers)

    def take(self, index: torch.Tensor | slice) -> Clips:
        numbers = np.arange(len(self))[
            index.cpu().numpy() if torch.is_tensor(index) else index
        ]
        return Clips(
            self.x[index],
            self.y[index],
            [self.names[i] for i in numbers],
            [self.speakers[i] for i in numbers],
        )


@dataclass
class Words:
    """A set of spoken words in three parts, no speaker in two of them; `name` goes into the results table.

    `noises` are long recordings, float32 `(time,)` each: those to train with and those to test with.
    """

    name: str
    train: Clips
    validation: Clips
    test: Clips
    classes: list[str]
    train_noise: dict[str, torch.Tensor]
    test_noise: dict[str, torch.Tensor]

    def to(self, device: torch.device) -> Words:
        return Words(
            self.name, self.train.to(device), self.validation.to(device), self.test.to(device),
            self.classes, self.train_noise, self.test_noise,
        )  # fmt: skip


def speaker_of(name: str) -> str:
    """`right/a9abc695_nohash_1.wav` was spoken by `a9abc695`."""
    return Path(name).name.split("_nohash_")[0]


def speech_commands(profile: str) -> Words:
    """Words of one second at 16 kHz.

    quick: the bundled `sample-words` (12 words, 54 synthetic voices). study: nine words of Speech
    Commands (Warden, 2018, arXiv:1804.03209) by the committed lists `splits/speech_commands_*.txt`;
    full: all words by the lists that come with it. Packed on the first call. Raises DataError when the
    set cannot be had.
    """
    if check_profile(profile) == "quick":
        return sample_words()
    found = data.require("speech_commands")
    folder = data.speech_commands_folder(data.data_root())
    if profile == "study":
        lists = {
            p: read_lines(SPLITS / f"speech_commands_{p}.txt")
            for p in ("train", "validation", "test")
        }
        classes = sorted(NINE_WORDS)
    else:
        held_out = {
            p: read_lines(folder / f"{p}_list.txt") for p in ("validation", "testing")
        }
        every = sorted(
            f"{clip.parent.name}/{clip.name}" for clip in folder.glob("[!_]*/*.wav")
        )
        away = {name for names in held_out.values() for name in names}
        lists = {
            "train": [name for name in every if name not in away],
            "validation": held_out["validation"],
            "test": held_out["testing"],
        }
        classes = sorted({name.split("/")[0] for name in every})
    number = {word: i for i, word in enumerate(classes)}
    parts = []
    for part, names in lists.items():
        items = [
            Item(name, folder / name, name.split("/")[0], speaker_of(name))
            for name in names
            if (folder / name).is_file() and name.split("/")[0] in number
        ]
        if len(items) < 0.9 * len(names):
            raise DataError(
                f"{len(names) - len(items)} of {len(names)} clips of the {part} list are not in {folder.name}: "
                "delete the folder and run make fetch DAY=7."
            )
        packed = pack(packs() / f"{found}_{profile}_{part}.pack", items)
        y = torch.tensor([number[label] for label in packed.labels])
        x = packed.batch(range(len(packed)), SAMPLE_RATE)
        parts.append(Clips(x, y, packed.names, packed.speakers))
    noises = {
        p.stem: read_audio(p)
        for p in sorted((folder / "_background_noise_").glob("*.wav"))
    }
    name = (
        f"{found.rsplit('-', 1)[0]}-{len(classes)}w" if "other" not in found else found
    )
    return Words(
        name, *parts, classes,
        {n: noises[n] for n in TRAIN_NOISES if n in noises},
        {n: noises[n] for n in TEST_NOISES if n in noises},
    )  # fmt: skip


def packs() -> Path:
    """Where packs are written: beside the data, or under `runs/` where the data is read-only."""
    root = data.data_root()
    return (root if os.access(root, os.W_OK) else days.runs()) / "packed"


SAMPLE = Path(__file__).parent / "sample"


def read_sample(stem: str) -> tuple[list[dict[str, str]], np.ndarray]:
    """The index and the samples (int16) of a bundled file, `words` or `sentences`."""
    import soundfile

    with open(SAMPLE / f"{stem}.csv", encoding="utf-8", newline="") as f:
        index = list(csv.DictReader(f))
    samples, _ = soundfile.read(SAMPLE / f"{stem}.ogg", dtype="int16")
    return index, samples


def sample_words() -> Words:
    """The bundled synthetic words, by voice: 38 voices to train, 8 to validate, 8 to test."""
    index, samples = read_sample("words")
    classes = sorted({row["text"] for row in index})
    voices = list(dict.fromkeys(row["voice"] for row in index))
    parts = []
    for some in (voices[:38], voices[38:46], voices[46:]):
        rows = [row for row in index if row["voice"] in some]
        waves = [
            samples[int(r["start"]) : int(r["start"]) + int(r["length"])] for r in rows
        ]
        x = torch.stack([fixed_length(torch.from_numpy(w), SAMPLE_RATE) for w in waves])
        y = torch.tensor([classes.index(row["text"]) for row in rows])
        names = [f"{row['text']}/{row['voice']}" for row in rows]
        parts.append(Clips(x, y, names, [row["voice"] for row in rows]))
    g = torch.Generator().manual_seed(0)
    white = 0.1 * torch.randn(10 * SAMPLE_RATE, generator=g)
    spectrum = torch.fft.rfft(0.1 * torch.randn(10 * SAMPLE_RATE, generator=g))
    slope = torch.arange(1, len(spectrum) + 1).sqrt()
    pink = torch.fft.irfft(spectrum / slope, 10 * SAMPLE_RATE)
    return Words(
        "sample-words", *parts, classes,
        {"white_noise": white}, {"pink_noise": 0.1 * pink / pink.std()},
    )  # fmt: skip
