"""Packed speech: all clips of a set in one memory-mapped file of int16 samples, with an index beside it.

Opening a file costs more than reading a second of sound, and decoding costs again: packed once, a clip
is a slice. `pack` writes `NAME.pack/` (samples.i16, index.csv, pack.json); `Pack` reads it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..features import SAMPLE_RATE, read_audio
from ..logger import progress
from ..sources.download import DataError, check_space

COLUMNS = ("name", "label", "speaker", "start", "length")


@dataclass(frozen=True)
class Item:
    """One sound file to pack: its name in the set, where it lies, and what is known of it."""

    name: str
    path: Path
    label: str = ""
    speaker: str = ""


class Pack:
    """Clips by number: `pack.wave(i)` is int16 `(time,)`; names, labels and speakers are lists beside it."""

    def __init__(self, folder: Path) -> None:
        with open(folder / "index.csv", encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
        self.folder = folder
        self.names = [r["name"] for r in rows]
        self.labels = [r["label"] for r in rows]
        self.speakers = [r["speaker"] for r in rows]
        self.starts = np.array([int(r["start"]) for r in rows], np.int64)
        self.lengths = np.array([int(r["length"]) for r in rows], np.int64)
        self.samples = np.memmap(folder / "samples.i16", "<i2", "r")
        if len(rows) and self.starts[-1] + self.lengths[-1] != len(self.samples):
            raise DataError(f"{folder.name} is damaged: delete it, it is made again.")

    def __len__(self) -> int:
        return len(self.names)

    def wave(self, i: int) -> np.ndarray:
        """The samples of clip `i`, int16 `(time,)`: a view into the file."""
        return self.samples[self.starts[i] : self.starts[i] + self.lengths[i]]

    def batch(self, numbers: Sequence[int], length: int) -> torch.Tensor:
        """Clips cut or filled with zeros to `length` samples: int16 `(batch, length)`."""
        out = np.zeros((len(numbers), length), np.int16)
        for row, i in zip(out, numbers, strict=True):
            wave = self.wave(i)[:length]
            row[: len(wave)] = wave
        return torch.from_numpy(out)


def fingerprint(items: Sequence[Item], sample_rate: int) -> str:
    """A digest of the files' names and sizes: another content makes another pack."""
    lines = [f"{i.name},{i.path.stat().st_size},{i.label},{i.speaker}" for i in items]
    return hashlib.sha256("\n".join([str(sample_rate), *lines]).encode()).hexdigest()


def pack(
    target: Path, items: Sequence[Item], sample_rate: int = SAMPLE_RATE, bar: bool = True
) -> Pack:
    """The pack at `target`, written first where it is not there or not of these files.

    A pack appears whole or not at all; a second process waits. Raises AudioError for a file that
    cannot be read, DataError for a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = fingerprint(items, sample_rate)
    with FileLock(str(target.with_name(f".{target.name}.lock"))):
        card = target / "pack.json"
        if card.exists() and json.loads(card.read_text())["fingerprint"] == mark:
            return Pack(target)
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
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        settings = {"fingerprint": mark, "sample_rate": sample_rate, "clips": len(rows)}
        (scratch / "pack.json").write_text(json.dumps(settings))
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    return Pack(target)


def to_int16(wave: torch.Tensor) -> np.ndarray:
    """Float in -1..1 as little-endian int16, clipped at full scale."""
    return (wave.clamp(-1, 1) * 32767).round().numpy().astype("<i2")
