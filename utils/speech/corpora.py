"""Sets of speech: words (Speech Commands), sentences (LibriSpeech, Kathleen), noises, and the bundled sample."""

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
from ..features import SAMPLE_RATE, as_float, fixed_length, read_audio, resample, to_level
from ..sources import DataError, catalogue
from ..sources.catalogue import SPLITS, read_lines
from .pack import Item, pack, to_int16

NINE_WORDS = ("right", "one", "go", "zero", "up", "down", "left", "five", "eight")
"""The words of the study profile: those with some 500 clips in the copy that the rows were made on."""

TRAIN_NOISES = ("doing_the_dishes", "dude_miaowing", "white_noise")
TEST_NOISES = ("running_tap", "exercise_bike", "pink_noise")
"""Recordings of `_background_noise_`: what is mixed in while training is not what is tested with."""


@dataclass
class Clips(Split):
    """Spoken words: `x` int16 `(clips, 16000)`, `y` class numbers, and for each clip its name and speaker."""

    names: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> Clips:
        return Clips(self.x.to(device), self.y.to(device), self.names, self.speakers)

    def take(self, index: torch.Tensor | slice) -> Clips:
        numbers = np.arange(len(self))[index.cpu().numpy() if torch.is_tensor(index) else index]
        return Clips(
            self.x[index],
            self.y[index],
            [self.names[i] for i in numbers],
            [self.speakers[i] for i in numbers],
        )

    def sentences(self, classes: Sequence[str]) -> Utterances:
        """The clips as sentences of one word each, which is the clip's of `classes`."""
        words = [classes[i] for i in self.y]
        return Utterances.of(list(self.x.numpy()), words, self.speakers)


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
    found = sources.ensure_available("speech_commands")
    folder = catalogue.speech_commands_folder(sources.data_root())
    if profile == "study":
        lists = {
            p: read_lines(SPLITS / f"speech_commands_{p}.txt")
            for p in ("train", "validation", "test")
        }
        classes = sorted(NINE_WORDS)
    else:
        held_out = {p: read_lines(folder / f"{p}_list.txt") for p in ("validation", "testing")}
        every = sorted(f"{clip.parent.name}/{clip.name}" for clip in folder.glob("[!_]*/*.wav"))
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
    noises = {p.stem: read_audio(p) for p in sorted((folder / "_background_noise_").glob("*.wav"))}
    name = f"{found.rsplit('-', 1)[0]}-{len(classes)}w" if "other" not in found else found
    return Words(
        name, *parts, classes,
        {n: noises[n] for n in TRAIN_NOISES if n in noises},
        {n: noises[n] for n in TEST_NOISES if n in noises},
    )  # fmt: skip


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


def sample_words() -> Words:
    """The bundled synthetic words, by voice: 38 voices to train, 8 to validate, 8 to test."""
    index, samples = read_sample("words")
    classes = sorted({row["text"] for row in index})
    voices = list(dict.fromkeys(row["voice"] for row in index))
    parts = []
    for some in (voices[:38], voices[38:46], voices[46:]):
        rows = [row for row in index if row["voice"] in some]
        waves = [samples[int(r["start"]) : int(r["start"]) + int(r["length"])] for r in rows]
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


# --- sentences: utterances of any length with their transcripts -------------------------------------


@dataclass
class Utterances:
    """Utterances of any length: one row of samples, and for each utterance its text, speaker and name.

    `samples` int16 `(all samples,)`, a view into a packed file where there is one; utterance i is
    `samples[starts[i] : starts[i] + lengths[i]]` at `rate` Hz.
    """

    samples: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    texts: list[str]
    speakers: list[str]
    names: list[str]
    rate: int = SAMPLE_RATE

    @classmethod
    def of(
        cls,
        waves: Sequence[np.ndarray],
        texts: Sequence[str],
        speakers: Sequence[str],
        names: Sequence[str] | None = None,
        rate: int = SAMPLE_RATE,
    ) -> Utterances:
        """From int16 waves `(time,)`, one after another; without `names` they are numbered."""
        if not len(waves) == len(texts) == len(speakers):
            raise ValueError(f"{len(waves)} waves, {len(texts)} texts and {len(speakers)} speakers")
        lengths = np.array([len(w) for w in waves], np.int64)
        samples = np.concatenate([*waves, np.zeros(0, np.int16)]).astype(np.int16)
        names = list(names or (str(i) for i in range(len(waves))))
        starts = np.cumsum(lengths) - lengths
        return cls(samples, starts, lengths, list(texts), list(speakers), names, rate)

    @classmethod
    def together(cls, parts: Sequence[Utterances]) -> Utterances:
        """Several parts of one rate as one. Raises ValueError for several rates."""
        rates = {part.rate for part in parts}
        if len(rates) != 1:
            raise ValueError(f"parts at {sorted(rates)} Hz: bring them to one rate first")
        return cls.of(
            [part.wave(i) for part in parts for i in range(len(part))],
            [text for part in parts for text in part.texts],
            [speaker for part in parts for speaker in part.speakers],
            [name for part in parts for name in part.names],
            rates.pop(),
        )

    def at(self, rate: int) -> Utterances:
        """The same utterances at `rate` Hz."""
        if self.rate == rate:
            return self
        waves = [to_int16(self.sound(i, rate)) for i in range(len(self))]
        return self.of(waves, self.texts, self.speakers, self.names, rate)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def seconds(self) -> float:
        """Length of all utterances together (s)."""
        return int(self.lengths.sum()) / self.rate

    def wave(self, i: int) -> np.ndarray:
        """The samples of utterance `i`, int16 `(time,)`: a view."""
        return self.samples[self.starts[i] : self.starts[i] + self.lengths[i]]

    def sound(self, i: int, rate: int | None = None) -> torch.Tensor:
        """Utterance `i` as float32 `(time,)` in -1..1, at `rate` Hz or as it is."""
        sound = as_float(torch.from_numpy(np.array(self.wave(i))))
        return resample(sound, self.rate, rate).clamp(-1, 1) if rate else sound

    def take(self, which: Sequence[int] | np.ndarray) -> Utterances:
        """The utterances of these numbers (or of a mask of booleans), in this order; the samples stay shared."""
        numbers = np.arange(len(self))[np.asarray(which)]
        return Utterances(
            self.samples, self.starts[numbers], self.lengths[numbers],
            [self.texts[i] for i in numbers], [self.speakers[i] for i in numbers],
            [self.names[i] for i in numbers], self.rate,
        )  # fmt: skip

    def first_n_per_speaker(self, most: int) -> list[int]:
        """The numbers of the first `most` utterances of every speaker."""
        seen: dict[str, int] = {}
        chosen = []
        for i, speaker in enumerate(self.speakers):
            seen[speaker] = seen.get(speaker, 0) + 1
            if seen[speaker] <= most:
                chosen.append(i)
        return chosen

    def joined(self) -> torch.Tensor:
        """These utterances alone, one after another: int16 `(samples,)`, to be laid on a device."""
        waves = [self.wave(i) for i in range(len(self))]
        return torch.from_numpy(np.concatenate([*waves, np.zeros(0, np.int16)]))

    def packed(self, device: torch.device | str = "cpu", name: str = "") -> PackedSpeech:
        """These utterances alone, on a device."""
        starts = self.lengths.cumsum() - self.lengths
        return PackedSpeech(self.joined().to(device), starts, self.lengths, self.speakers, name)


@dataclass(frozen=True)
class PackedSpeech:
    """Utterances to train on: int16 `samples` `(all samples,)` on one device; `name` is for tables.

    Utterance i is `samples[starts[i] : starts[i] + lengths[i]]`, by `speakers[i]`.
    """

    samples: torch.Tensor
    starts: np.ndarray
    lengths: np.ndarray
    speakers: list[str]
    name: str = ""

    def to(self, device: torch.device) -> PackedSpeech:
        return replace(self, samples=self.samples.to(device))


@dataclass
class SpeechCorpus:
    """Utterances in three parts; `name` is what is trained on, `test_name` what is tested on, for the table."""

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
    when the set cannot be had.
    """
    if check_profile(profile) == "quick":
        return _sample_sentences("voice", (11, 13))
    found = {p: sources.ensure_available(f"librispeech_{p}") for p in ("dev", "test")}
    root = sources.data_root()
    lists = {
        p: read_lines(SPLITS / f"librispeech_{p}.txt") for p in ("train", "validation", "test")
    }
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
        texts: dict[str, str] = {}
        for path in sorted(folder.glob("*/*/*.trans.txt")):
            lines = path.read_text(encoding="utf-8").splitlines()
            texts |= dict(line.split(" ", 1) for line in lines if " " in line)
        files = {n: folder.joinpath(*n.split("-")[:2], f"{n}.flac") for n in names}
        items = [
            Item(n, file, texts[n], n.split("-")[0])
            for n, file in files.items()
            if n in texts and file.is_file()
        ]
        _check_complete(items, names, part, folder, day=9)
        parts.append(_packed(f"{found[source]}_{profile}_{part}", items))
    return SpeechCorpus(found["dev"], *parts, found["test"])


def kathleen(profile: str) -> SpeechCorpus:
    """One speaker who reads CMU ARCTIC's prompts, 22.05 kHz, no text in two parts.

    quick: the bundled `sample-sentences` by text (130, 10 and 10 of them, many voices, 16 kHz). study,
    full: the recordings of `data/kathleen`, those of 40 texts to validate and of 60 to test by the
    committed lists `splits/kathleen_*.txt`, all others to train. Raises DataError when the set cannot
    be had.
    """
    if check_profile(profile) == "quick":
        return _sample_sentences("text", (130, 140))
    found = sources.ensure_available("kathleen")
    files = catalogue.kathleen_files(sources.data_root())
    lists = {p: read_lines(SPLITS / f"kathleen_{p}.txt") for p in ("validation", "test")}
    held_out = {files[n][0] for names in lists.values() for n in names if n in files}
    train = [name for name, (text, _) in files.items() if text not in held_out]
    parts = []
    for part, names in {"train": train, **lists}.items():
        items = [Item(n, files[n][1], files[n][0], "kathleen") for n in names if n in files]
        _check_complete(items, names, part, sources.data_root() / "kathleen", day=11)
        parts.append(_packed(f"{found}_{part}", items, KATHLEEN_RATE))
    return SpeechCorpus(found, *parts, found)


KATHLEEN_RATE = 22_050
"""Samples per second (Hz) of the Kathleen recordings."""


def _check_complete(
    items: Sequence[Item], names: Sequence[str], part: str, folder: Path, day: int
) -> None:
    if not items or len(items) < 0.9 * len(names):
        raise DataError(
            f"{len(names) - len(items)} of {len(names)} utterances of the {part} list are not in "
            f"{folder.name}: delete the folder and run make fetch DAY={day}."
        )


def _packed(stem: str, items: Sequence[Item], rate: int = SAMPLE_RATE) -> Utterances:
    """The pack of these items, whose labels are the texts, as utterances."""
    p = pack(packs() / f"{stem}.pack", items, rate)
    return Utterances(p.samples, p.starts, p.lengths, p.labels, p.speakers, p.names, rate)


def _sample_sentences(by: str, ends: tuple[int, int]) -> SpeechCorpus:
    """The bundled sentences, their voices (or texts) parted at these two places of the list."""
    index, samples = read_sample("sentences")
    starts = np.array([int(row["start"]) for row in index], np.int64)
    lengths = np.array([int(row["length"]) for row in index], np.int64)
    voices = [row["voice"] for row in index]
    every = Utterances(
        samples, starts, lengths, [row["text"] for row in index], voices,
        [f"sentence-{i:03d}" for i in range(len(index))],
    )  # fmt: skip
    order = {key: i for i, key in enumerate(dict.fromkeys(row[by] for row in index))}
    number = np.array([order[row[by]] for row in index])
    masks = (number < ends[0], (number >= ends[0]) & (number < ends[1]), number >= ends[1])
    name = "sample-sentences"
    return SpeechCorpus(name, *(every.take(mask) for mask in masks), name)


# --- noises ---------------------------------------------------------------------------------------


@dataclass
class Noises:
    """Long recordings by kind, float32 `(time,)` at 16 kHz with a mean square of 0.01; none is in both parts."""

    name: str
    train: dict[str, torch.Tensor]
    test: dict[str, torch.Tensor]


def noises(profile: str) -> Noises:
    """Environmental sounds to mix into speech: what is trained with and, other recordings, what is tested with.

    quick: generated white noise to train, pink noise to test (`sample-noise`). study, full: the ten
    kinds of ESC-10 (Piczak, 2015), each kind's clips joined to one recording, by the committed lists
    `splits/noise_*.txt`. Stretches of silence are left out: at a wanted SNR they would be blown up.
    Raises DataError when the set cannot be had.
    """
    if check_profile(profile) == "quick":
        words = sample_words()
        train, test = words.train_noise, words.test_noise
        return Noises(
            "sample-noise", *({k: to_level(v, -20.0) for k, v in n.items()} for n in (train, test))
        )
    found = sources.ensure_available("noise")
    files = catalogue.noise_files(sources.data_root())
    parts = []
    for part in ("train", "test"):
        names = read_lines(SPLITS / f"noise_{part}.txt")
        there = [Item(n, files[n]) for n in names if n in files]
        _check_complete(there, names, part, sources.data_root() / "noise", day=10)
        by_kind: dict[str, list[torch.Tensor]] = {}
        for item in there:
            wave = to_level(without_silence(read_audio(item.path)), -20.0)
            by_kind.setdefault(item.name.split("/")[0], []).append(wave)
        parts.append({kind: torch.cat(waves) for kind, waves in by_kind.items()})
    return Noises(found, *parts)


def without_silence(wave: torch.Tensor, under_db: float = 40.0) -> torch.Tensor:
    """`(time,)` without its pieces of 100 ms that are `under_db` dB or more below the loudest one."""
    piece = SAMPLE_RATE // 10
    pieces = fixed_length(wave, -(-len(wave) // piece) * piece).view(-1, piece)
    level = pieces.square().mean(1)
    return pieces[level > level.max() * 10 ** (-under_db / 10)].flatten()
