"""The sets of speech: words (Speech Commands), sentences (LibriSpeech, Kathleen), noises, bundled samples."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from .. import days, sources
from ..data import Split
from ..days import ROOT, check_profile
from ..features import SAMPLE_RATE, fixed_length, read_audio, to_level
from ..sources import DataError, catalogue
from ..sources.catalogue import SPLITS, read_lines
from .pack import Item, Utterances, pack

NINE_WORDS = ("right", "one", "go", "zero", "up", "down", "left", "five", "eight")
"""The words of the study profile: those with some 500 clips in the copy that the published rows come from."""

PARTS = ("train", "validation", "test")

TRAIN_NOISES = ("doing_the_dishes", "dude_miaowing", "white_noise")
TEST_NOISES = ("running_tap", "exercise_bike", "pink_noise")
"""Recordings of `_background_noise_` for training, and others for the test."""


@dataclass
class Clips(Split):
    """Spoken words: `x` int16 `(clips, 16000)`, `y` class numbers, and for each clip its name and speaker."""

    names: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> Clips:
        return Clips(self.x.to(device), self.y.to(device), self.names, self.speakers)

    def take(self, index: torch.Tensor | slice) -> Clips:
        numbers = np.arange(len(self))[index.cpu().numpy() if torch.is_tensor(index) else index]
        names, speakers = ([x[i] for i in numbers] for x in (self.names, self.speakers))
        return Clips(self.x[index], self.y[index], names, speakers)

    @classmethod
    def of(cls, utterances: Utterances, classes: Sequence[str]) -> Clips:
        """Utterances of one word each, cut or filled to one second."""
        number = {word: i for i, word in enumerate(classes)}
        x = utterances.batch(range(len(utterances)), SAMPLE_RATE)
        y = torch.tensor([number[text] for text in utterances.texts])
        return cls(x, y, utterances.names, utterances.speakers)

    def utterances(self, classes: Sequence[str]) -> Utterances:
        """The clips as utterances of one word each."""
        words = [classes[i] for i in self.y]
        return Utterances.of(list(self.x.numpy()), words, self.speakers)


@dataclass
class Words:
    """A set of spoken words in three parts, no speaker in two of them; `name` goes into the results table.

    The noises are long recordings, float32 `(time,)` each.
    """

    name: str
    train: Clips
    validation: Clips
    test: Clips
    classes: list[str]
    train_noise: dict[str, torch.Tensor]
    test_noise: dict[str, torch.Tensor]

    def to(self, device: torch.device) -> Words:
        parts = {part: getattr(self, part).to(device) for part in PARTS}
        return replace(self, **parts)


def speaker_of(name: str) -> str:
    """`right/a9abc695_nohash_1.wav` was spoken by `a9abc695`."""
    return Path(name).name.split("_nohash_")[0]


def speech_commands(profile: str) -> Words:
    """Words of one second at 16 kHz.

    quick: the bundled `sample-words` (12 words, 54 synthetic voices). study: nine words of Speech
    Commands (Warden, 2018, arXiv:1804.03209) by the committed lists `splits/speech_commands_*.txt`;
    full: all words by the lists that come with the set. Packed on the first call. Raises DataError when the
    set is not here and cannot be downloaded.
    """
    if check_profile(profile) == "quick":
        return sample_words()
    found = sources.ensure_available("speech_commands")
    folder = catalogue.speech_commands_folder(sources.data_root())
    if profile == "study":
        lists = committed_lists("speech_commands", *PARTS)
        classes = sorted(NINE_WORDS)
    else:
        validation, test = (read_lines(folder / f"{p}_list.txt") for p in ("validation", "testing"))
        every = sorted(f"{clip.parent.name}/{clip.name}" for clip in folder.glob("[!_]*/*.wav"))
        held_out = {*validation, *test}
        train = [name for name in every if name not in held_out]
        lists = {"train": train, "validation": validation, "test": test}
        classes = sorted({name.split("/")[0] for name in every})
    parts = []
    for part, names in lists.items():
        items = [
            Item(name, folder / name, name.split("/")[0], speaker_of(name))
            for name in names
            if (folder / name).is_file() and name.split("/")[0] in classes
        ]
        check_complete(items, names, part, folder, day=7)
        packed = pack(packs() / f"{found}_{profile}_{part}.pack", items)
        parts.append(Clips.of(packed, classes))
    noises = {p.stem: read_audio(p) for p in sorted((folder / "_background_noise_").glob("*.wav"))}
    name = f"{found.rsplit('-', 1)[0]}-{len(classes)}w" if "other" not in found else found
    both = ({n: noises[n] for n in some if n in noises} for some in (TRAIN_NOISES, TEST_NOISES))
    return Words(name, *parts, classes, *both)


def committed_lists(stem: str, *parts: str) -> dict[str, list[str]]:
    """The names of each part, from the committed lists `splits/STEM_PART.txt`."""
    return {part: read_lines(SPLITS / f"{stem}_{part}.txt") for part in parts}


def check_complete(items: Sequence[Item], names: Sequence[str], part: str, folder: Path, day: int) -> None:
    """Raise DataError when more than a tenth of a list's recordings is missing."""
    if not items or len(items) < 0.9 * len(names):
        raise DataError(
            f"{len(names) - len(items)} of {len(names)} utterances of the {part} list are not in "
            f"{folder.name}: delete the folder and run make fetch DAY={day}."
        )


def packs() -> Path:
    """Where packs are written: beside the data, or under `runs/` where the data is read-only."""
    root = sources.data_root()
    return (root if os.access(root, os.W_OK) else days.runs()) / "packed"


SAMPLE = ROOT / "utils" / "sample"


def read_sample(stem: str) -> tuple[list[dict[str, str]], np.ndarray]:
    """The index and the samples (int16) of a bundled file, `words` or `sentences`."""
    import soundfile

    with open(SAMPLE / f"{stem}.csv", encoding="utf-8", newline="") as f:
        index = list(csv.DictReader(f))
    samples, _ = soundfile.read(SAMPLE / f"{stem}.ogg", dtype="int16")
    return index, samples


def sample_utterances(stem: str) -> Utterances:
    """The recordings of a bundled file, `words` or `sentences`; the names are `word-000` and so on."""
    index, samples = read_sample(stem)
    starts, lengths = (np.array([int(r[k]) for r in index], np.int64) for k in ("start", "length"))
    texts, voices = ([row[k] for row in index] for k in ("text", "voice"))
    names = [f"{stem[:-1]}-{i:03d}" for i in range(len(index))]
    return Utterances(samples, starts, lengths, texts, voices, names)


def sample_words() -> Words:
    """The bundled synthetic words, by voice: 38 voices to train, 8 to validate, 8 to test."""
    every = sample_utterances("words")
    every.names = [f"{w}/{voice}" for w, voice in zip(every.texts, every.speakers, strict=True)]
    classes = sorted(set(every.texts))
    parts = [Clips.of(part, classes) for part in split_by(every, every.speakers, 38, 46)]
    g = torch.Generator().manual_seed(0)
    white = 0.1 * torch.randn(10 * SAMPLE_RATE, generator=g)
    spectrum = torch.fft.rfft(0.1 * torch.randn(10 * SAMPLE_RATE, generator=g))
    slope = torch.arange(1, len(spectrum) + 1).sqrt()
    pink = torch.fft.irfft(spectrum / slope, 10 * SAMPLE_RATE)
    both = {"white_noise": white}, {"pink_noise": 0.1 * pink / pink.std()}
    return Words("sample-words", *parts, classes, *both)


# --- sentences ---------------------------------------------------------------------------------------


@dataclass
class SpeechCorpus:
    """Utterances in three parts; for tables, `name` is the training set and `test_name` the test set."""

    name: str
    train: Utterances
    validation: Utterances
    test: Utterances
    test_name: str


def librispeech(profile: str) -> SpeechCorpus:
    """Read sentences at 16 kHz, no speaker in two parts, transcripts in capitals with apostrophes.

    quick: the bundled `sample-sentences` by voice (11, 2 and 2 voices, lower case). study: LibriSpeech
    (Panayotov et al., 2015): dev-clean to train, but for the four speakers of the validation part, and
    test-clean to test, by the committed lists `splits/librispeech_*.txt`. full: all that is on disk of
    the same two parts, validated on the same four speakers. Packed on the first call. Raises DataError
    when the set is not here and cannot be downloaded.
    """
    if check_profile(profile) == "quick":
        return _sample_sentences("speakers", 11, 13)
    found = {p: sources.ensure_available(f"librispeech_{p}") for p in ("dev", "test")}
    root = sources.data_root()
    lists = committed_lists("librispeech", *PARTS)
    if profile == "full":
        dev = catalogue.librispeech_names(root, "dev-clean")
        held_out = {n.split("-")[0] for n in lists["validation"]}
        lists = {
            "train": [n for n in dev if n.split("-")[0] not in held_out],
            "validation": [n for n in dev if n.split("-")[0] in held_out],
            "test": catalogue.librispeech_names(root, "test-clean"),
        }
    parts = []
    for part, names in lists.items():
        source = "test" if part == "test" else "dev"
        folder = root / "LibriSpeech" / f"{source}-clean"
        lines = [line for file in folder.glob("*/*/*.trans.txt") for line in read_lines(file)]
        texts = dict(line.split(" ", 1) for line in lines if " " in line)
        files = {n: folder.joinpath(*n.split("-")[:2], f"{n}.flac") for n in names if n in texts}
        items = [Item(n, f, texts[n], n.split("-")[0]) for n, f in files.items() if f.is_file()]
        check_complete(items, names, part, folder, day=9)
        parts.append(pack(packs() / f"{found[source]}_{profile}_{part}.pack", items))
    return SpeechCorpus(found["dev"], *parts, found["test"])


KATHLEEN_RATE = 22_050
"""Samples per second (Hz) of the Kathleen recordings."""


def kathleen(profile: str) -> SpeechCorpus:
    """One speaker who reads CMU ARCTIC's prompts, 22.05 kHz, no text in two parts.

    quick: the bundled `sample-sentences` by text (130, 10 and 10 of them, many voices, 16 kHz). study,
    full: the recordings of `data/kathleen`, those of 40 texts to validate and of 60 to test by the
    committed lists `splits/kathleen_*.txt`, all others to train. Raises DataError when the set is not here and
    cannot be downloaded.
    """
    if check_profile(profile) == "quick":
        return _sample_sentences("texts", 130, 140)
    found = sources.ensure_available("kathleen")
    files = catalogue.kathleen_files(sources.data_root())
    lists = committed_lists("kathleen", "validation", "test")
    held_out = {files[n][0] for names in lists.values() for n in names if n in files}
    train = [name for name, (text, _) in files.items() if text not in held_out]
    parts = []
    for part, names in {"train": train, **lists}.items():
        items = [Item(n, files[n][1], files[n][0], "kathleen") for n in names if n in files]
        check_complete(items, names, part, sources.data_root() / "kathleen", day=11)
        parts.append(pack(packs() / f"{found}_{part}.pack", items, KATHLEEN_RATE))
    return SpeechCorpus(found, *parts, found)


def split_by(utterances: Utterances, keys: Sequence[str], *ends: int) -> list[Utterances]:
    """Parts without a common key (speaker or text): those of the first `ends[0]` keys, and so on."""
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    part = np.searchsorted(ends, [order[key] for key in keys], side="right")
    return [utterances.take(part == i) for i in range(len(ends) + 1)]


def _sample_sentences(by: str, *ends: int) -> SpeechCorpus:
    every = sample_utterances("sentences")
    name = "sample-sentences"
    return SpeechCorpus(name, *split_by(every, getattr(every, by), *ends), name)


# --- noises ---------------------------------------------------------------------------------------


@dataclass
class Noises:
    """Long recordings by kind, float32 `(time,)` at 16 kHz with a mean square of 0.01; none is in both parts."""

    name: str
    train: dict[str, torch.Tensor]
    test: dict[str, torch.Tensor]


def noises(profile: str) -> Noises:
    """Environmental sounds to mix into speech, other recordings for training than for the test.

    quick: generated white noise to train, pink noise to test (`sample-noise`). study, full: the ten
    kinds of ESC-10 (Piczak, 2015), each kind's clips joined to one recording, by the committed lists
    `splits/noise_*.txt`. Silence is left out: at a given SNR it would be amplified.
    Raises DataError when the set is not here and cannot be downloaded.
    """
    if check_profile(profile) == "quick":
        words = sample_words()
        both = words.train_noise, words.test_noise
        parts = ({kind: to_level(x, -20.0) for kind, x in noise.items()} for noise in both)
        return Noises("sample-noise", *parts)
    found = sources.ensure_available("noise")
    files = catalogue.noise_files(sources.data_root())
    parts = []
    for part, names in committed_lists("noise", "train", "test").items():
        items = [Item(n, files[n]) for n in names if n in files]
        check_complete(items, names, part, sources.data_root() / "noise", day=10)
        by_kind: dict[str, list[torch.Tensor]] = {}
        for item in items:
            wave = to_level(without_silence(read_audio(item.path)), -20.0)
            by_kind.setdefault(item.name.split("/")[0], []).append(wave)
        parts.append({kind: torch.cat(waves) for kind, waves in by_kind.items()})
    return Noises(found, *parts)


def loud_pieces(wave: torch.Tensor, size: int, under_db: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A wave `(time,)` in pieces `(pieces, size)`, and which of them are within `under_db` dB of the loudest."""
    pieces = fixed_length(wave, -(-len(wave) // size) * size).view(-1, size)
    level = pieces.square().mean(1)  # (pieces,)
    return pieces, level > level.max() * 10 ** (-under_db / 10)


def without_silence(wave: torch.Tensor, under_db: float = 40.0) -> torch.Tensor:
    """`(time,)` without its pieces of 100 ms that are `under_db` dB or more below the loudest one."""
    pieces, loud = loud_pieces(wave, SAMPLE_RATE // 10, under_db)
    return pieces[loud].flatten()
