"""Speech in memory: the recordings of a set as one row of int16 samples, memory-mapped from a packed file.

Opening a file costs more than reading a second of sound, and decoding costs again; packed once, a recording is a
slice. `pack` writes `NAME.pack/` (samples.i16, index.csv, pack.json).
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..features import SAMPLE_RATE, as_float, read_audio, resample
from ..logger import progress
from ..sources.download import DataError, check_space


def to_int16(wave: torch.Tensor) -> np.ndarray:
    """Float in -1..1 as little-endian int16, clipped at full scale."""
    return (wave.clamp(-1, 1) * 32767).round().numpy().astype("<i2")


@dataclass
class Utterances:
    """Recordings of any length: one row of samples, and the text, speaker and name of each.

    `samples` is int16 `(all samples,)`, a view into a packed file where there is one; utterance i is
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
        """Several parts of one sample rate as one. Raises ValueError for several rates."""
        rates = {part.rate for part in parts}
        if len(rates) != 1:
            raise ValueError(f"parts at {sorted(rates)} Hz: bring them to one rate first")
        waves = [part.wave(i) for part in parts for i in range(len(part))]
        fields = ("texts", "speakers", "names")
        labels = ([x for part in parts for x in getattr(part, field)] for field in fields)
        return cls.of(waves, *labels, rates.pop())

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
        """Utterance `i` as float32 `(time,)` in -1..1, at `rate` Hz (default: its own)."""
        sound = as_float(torch.from_numpy(np.array(self.wave(i))))
        return resample(sound, self.rate, rate).clamp(-1, 1) if rate else sound

    def batch(self, numbers: Sequence[int], length: int) -> torch.Tensor:
        """Utterances cut or filled with zeros to `length` samples: int16 `(batch, length)`."""
        out = np.zeros((len(numbers), length), np.int16)
        for row, i in zip(out, numbers, strict=True):
            wave = self.wave(i)[:length]
            row[: len(wave)] = wave
        return torch.from_numpy(out)

    def take(self, which: Sequence[int] | np.ndarray) -> Utterances:
        """The utterances of these numbers (or of a mask of booleans), in this order; the samples stay shared."""
        numbers = np.arange(len(self))[np.asarray(which)]
        fields = ("texts", "speakers", "names")
        labels = ([getattr(self, field)[i] for i in numbers] for field in fields)
        return Utterances(self.samples, self.starts[numbers], self.lengths[numbers], *labels, self.rate)

    def first_n_per_speaker(self, n: int) -> list[int]:
        """The numbers of the first `n` utterances of every speaker."""
        seen = defaultdict(count)
        return [i for i, speaker in enumerate(self.speakers) if next(seen[speaker]) < n]

    def joined(self) -> torch.Tensor:
        """These utterances alone, one after another: int16 `(samples,)`."""
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


# --- packs on disk --------------------------------------------------------------------------------

COLUMNS = ("name", "label", "speaker", "start", "length")


@dataclass(frozen=True)
class Item:
    """One sound file to pack: its name in the set, its path, and what is known of it."""

    name: str
    path: Path
    label: str = ""
    speaker: str = ""


def read_pack(folder: Path) -> Utterances:
    """The utterances of a pack; their labels are the texts. Raises DataError for a damaged one."""
    with open(folder / "index.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    starts, lengths = (np.array([int(r[k]) for r in rows], np.int64) for k in COLUMNS[3:])
    samples = np.memmap(folder / "samples.i16", "<i2", "r")
    if len(rows) and starts[-1] + lengths[-1] != len(samples):
        raise DataError(f"{folder.name} is damaged: delete it, it is made again.")
    rate = json.loads((folder / "pack.json").read_text())["sample_rate"]
    labels = ([r[k] for r in rows] for k in ("label", "speaker", "name"))
    return Utterances(samples, starts, lengths, *labels, rate)


def pack(target: Path, items: Sequence[Item], sample_rate: int = SAMPLE_RATE, bar: bool = True) -> Utterances:
    """The pack at `target`, written first where there is none of these files (by their names and sizes).

    A pack appears whole or not at all; a second process waits. Raises AudioError for a file that
    cannot be read, DataError for a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{i.name},{i.path.stat().st_size},{i.label},{i.speaker}" for i in items]
    mark = hashlib.sha256("\n".join([str(sample_rate), *lines]).encode()).hexdigest()
    with FileLock(str(target.with_name(f".{target.name}.lock"))):
        card = target / "pack.json"
        if card.exists() and json.loads(card.read_text())["fingerprint"] == mark:
            return read_pack(target)
        check_space(target.parent, 4 * sum(i.path.stat().st_size for i in items))
        scratch = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        at, rows = 0, []
        with (
            open(scratch / "samples.i16", "wb") as f,
            progress(len(items), f"packing {target.stem}", enabled=bar) as shown,
        ):
            for item in items:
                samples = to_int16(read_audio(item.path, sample_rate))
                f.write(samples.tobytes())
                rows.append((item.name, item.label, item.speaker, at, len(samples)))
                at += len(samples)
                shown.update()
        with open(scratch / "index.csv", "w", encoding="utf-8", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows([COLUMNS, *rows])
        settings = {"fingerprint": mark, "sample_rate": sample_rate, "clips": len(rows)}
        (scratch / "pack.json").write_text(json.dumps(settings))
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    return read_pack(target)
