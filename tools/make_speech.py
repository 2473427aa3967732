"""Makes the bundled speech: `words.ogg` and `sentences.ogg` with an index each. Run once, its output is committed.

    apt-get install flite espeak-ng && python -m tools.make_speech

Twelve words by 54 synthetic voices and 150 short sentences by 15 of them, 16 kHz, Ogg Vorbis. The voices
are those of flite (CMU, BSD-like licence) and of espeak-ng (a program under the GPL; what it speaks is
not), with pitch and tempo changed; the sentences were written for this repository. CC0.
"""

from __future__ import annotations

import csv
import itertools
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from utils.features import SAMPLE_RATE, read_audio

HERE = Path(__file__).parent.parent / "utils" / "sample"

WORDS = ["right", "one", "go", "zero", "up", "down", "left", "five", "eight", "yes", "no", "stop"]
GAP = 800  # samples of silence between two clips of the file: 50 ms
Command = Callable[[str, str], list[str]]
"""From a text and a file to a program and its arguments."""


def flite(voice: str, hertz: int, tempo: float) -> tuple[str, Command]:
    """A voice of flite: its name and how to call it."""
    how = ["flite", "-voice", voice, "--setf", f"int_f0_target_mean={hertz}"]
    how += ["--setf", f"duration_stretch={1 / tempo}"]
    return f"flite-{voice}-{hertz}", lambda text, wav: [*how, "-t", text, "-o", wav]


def espeak(voice: str, pitch: int, tempo: float) -> tuple[str, Command]:
    """A voice of espeak-ng: its name and how to call it; `pitch` from 0 to 99."""
    how = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(round(160 * tempo))]
    name = f"espeak-{voice}-{pitch}".replace("+", "-")
    return name, lambda text, wav: [*how, "-w", wav, text]


def voices() -> list[tuple[str, Command]]:
    """54 voices, in an order that mixes programs, sexes and accents."""
    hertz = {"rms": (75, 95, 120), "awb": (95, 120, 145), "kal16": (80, 105, 130), "slt": (150, 180, 215)}
    tempos = (0.92, 1.0, 1.1)
    mixed = [flite(v, f, t) for v, fs in hertz.items() for f, t in zip(fs, tempos, strict=True)]
    accents = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
    pairs = itertools.product(("m1", "m3", "m4", "m7", "f1", "f2", "f4"), accents)
    for i, (kind, accent) in enumerate(pairs):
        mixed.append(espeak(f"{accent}+{kind}", 30 + 7 * (i % 6), 0.9 + 0.05 * (i % 5)))
    random.Random(0).shuffle(mixed)
    return mixed


def say(command: Command, text: str) -> np.ndarray:
    """The text as mono float32 at 16 kHz, without the silence around it."""
    with tempfile.TemporaryDirectory() as scratch:
        wav = f"{scratch}/said.wav"
        subprocess.run(command(text, wav), check=True, capture_output=True)
        return trimmed(read_audio(wav).numpy())


def sentences(count: int) -> list[str]:
    """Short sentences of a little grammar, each once, in an order that is drawn once."""
    parts = (
        "the teacher|my brother|a small bird|a neighbour|the old sailor|this young doctor|your sister|the farmer",
        "carries|paints|finds|watches|remembers|opens|repairs|follows",
        "a yellow box|the heavy door|seven letters|the quiet river|an empty house|two silver keys|the garden wall",
        "in the morning|after the storm|near the station|without a word|every winter|before lunch",
    )
    every = [" ".join(p) for p in itertools.product(*(p.split("|") for p in parts))]
    return random.Random(1).sample(every, count)


def trimmed(wave: np.ndarray, under_db: float = 40.0, keep: int = 800) -> np.ndarray:
    """The wave from its first to its last sample above -`under_db` dB of its peak, and 50 ms around."""
    loud = np.flatnonzero(np.abs(wave) > np.abs(wave).max() * 10 ** (-under_db / 20))
    return wave[max(0, loud[0] - keep) : loud[-1] + keep]


def write(stem: str, clips: list[tuple[str, str, np.ndarray]]) -> None:
    """One Ogg file with all clips, one after another, and a CSV: text, voice, start and length in samples."""
    at, pieces, index = 0, [], []
    for text, voice, wave in clips:
        wave = 0.5 * wave / np.abs(wave).max()
        index.append((text, voice, at, len(wave)))
        pieces += [wave, np.zeros(GAP, np.float32)]
        at += len(wave) + GAP
    whole = np.concatenate(pieces).astype(np.float32)
    how = {"samplerate": SAMPLE_RATE, "channels": 1, "subtype": "VORBIS", "compression_level": 0.7}
    with soundfile.SoundFile(HERE / f"{stem}.ogg", "w", **how) as f:
        for start in range(0, len(whole), SAMPLE_RATE):  # libsndfile chokes on one long write
            f.write(whole[start : start + SAMPLE_RATE])
    with open(HERE / f"{stem}.csv", "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("text", "voice", "start", "length"))
        writer.writerows(index)
    size = (HERE / f"{stem}.ogg").stat().st_size / 1e6
    print(f"{stem}: {len(clips)} clips, {at / SAMPLE_RATE:.0f} s, {size:.2f} MB")


def main() -> None:
    everyone = voices()
    write("words", [(w, name, say(command, w)) for name, command in everyone for w in WORDS])
    turns = zip(sentences(150), itertools.cycle(everyone[:15]), strict=False)
    write("sentences", [(t, name, say(command, t)) for t, (name, command) in turns])


if __name__ == "__main__":
    main()
