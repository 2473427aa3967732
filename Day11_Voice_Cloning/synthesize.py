"""Day 11's `audio/`: each file is made from a committed list of texts and voices and the shipped weights.

`python -m Day11_Voice_Cloning.synthesize` writes the files, the notebook measures them. Each line is synthesised
alone, free-running, with its own random seed, on the CPU, so the result does not depend on the other lines.
Without the data sets, the recordings and d-vectors in `audio/` are used.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils import days
from utils.features import SAMPLE_RATE, as_float, read_audio, resample, to_level
from utils.models import tts
from utils.models.fastspeech import FastSpeech
from utils.models.ge2e import DVector, pretrained_dvector
from utils.models.tacotron2 import SynthesisOutput, Tacotron2
from utils.models.tts import Vocoder
from utils.models.tts_mel import LIBRISPEECH, SynthesisMel, trim_silence
from utils.models.tts_text import encode
from utils.sources.catalogue import SPLITS
from utils.sources.download import DataError
from utils.speech import corpora
from utils.speech.pack import to_int16

from . import train
from .adaptation import ADAPTING, Adapting, Learned, learn
from .evaluate import check_reference

LINES = SPLITS / "cloning_lines.csv"
"""The committed list: what is said, in whose voice, beside which recording."""

VOCODERS = ("griffin_lim", "waveglow")


def speakers_of(part: str) -> dict[str, str]:
    """The synthesizers that speak the lines of a part, by the kind of system they make: its own, and the parallel
    one, for strangers `adapted` to their reference."""
    return {"speech": part, "parallel" if part == "kathleen" else "adapted": "parallel"}


def systems(part: str) -> tuple[str, ...]:
    """What the lines of a part are heard as: recorded; its mel and a synthesizer's through a vocoder."""
    kinds = ("copy", *speakers_of(part))
    return ("recording", *(f"{kind}_{v}" for kind in kinds for v in VOCODERS))


SYSTEMS = systems("voices")
"""What every line is heard as."""

GRIFFIN_LIM = {"quick": 4, "study": 60, "full": 60}
"""Iterations by profile."""


class ConsentError(ValueError):
    """A voice was to be cloned of which nobody said that its owner agrees."""


@dataclass(frozen=True)
class Line:
    """One text to be spoken by the synthesizer `part` in the voice of `speaker`.

    `recording` is the utterance in which the speaker says the same; `references` are the utterances, others than
    that one, whose mean d-vector is the voice, and `said` is the text of the first, for who learns from it. The
    files of `published` lines are kept in `audio/`.
    """

    name: str
    part: str
    speaker: str
    recording: str
    references: tuple[str, ...]
    published: bool
    text: str
    said: str = ""


def lines(profile: str, published: bool = False) -> list[Line]:
    """The committed list; in quick a few bundled sentences. `published` leaves out what is only measured."""
    if days.check_profile(profile) == "quick":
        found = _sample_lines()
    else:
        with open(LINES, encoding="utf-8", newline="") as f:
            found = [_line(row) for row in csv.DictReader(f)]
    return [line for line in found if line.published or not published]


def _line(row: Mapping[str, str]) -> Line:
    texts = {k: row[k] for k in ("name", "part", "speaker", "recording", "text", "said")}
    return Line(
        **texts, references=tuple(row["references"].split()), published=row["published"] == "yes"
    )


def _sample_lines() -> list[Line]:
    """Two held-out texts, and one text in each of the four voices that are not in LibriSpeech's quick part."""
    one, many = corpora.kathleen("quick"), corpora.librispeech("quick")
    found = []
    for k in range(2):
        speaker = one.test.speakers[k]
        own = [n for n, s in zip(one.train.names, one.train.speakers, strict=True) if s == speaker]  # fmt: skip
        name, text = one.test.names[k], one.test.texts[k]
        found.append(
            Line(f"kathleen_{k + 1}", "kathleen", speaker, name, tuple(own[:3]), True, text)
        )  # fmt: skip
    for part in (many.validation, many.test):
        for speaker in dict.fromkeys(part.speakers):
            said, reference = (i for i in part.first_n_per_speaker(2) if part.speakers[i] == speaker)  # fmt: skip
            found.append(
                Line(
                    f"{speaker}_1", "voices", speaker, part.names[said], (part.names[reference],), True,
                    part.texts[said], part.texts[reference],
                )
            )  # fmt: skip
    return found


# --- recordings and voices ----------------------------------------------------------------------------


@dataclass
class Material:
    """What the lines need of real speech, at 16 kHz: `recordings` by line, `references` and d-vectors `(256,)` by
    speaker. `elsewhere` is the other utterances of each speaker, to enrol with (none without the data sets)."""

    recordings: dict[str, Tensor] = field(default_factory=dict)
    references: dict[str, Tensor] = field(default_factory=dict)
    voices: dict[str, Tensor] = field(default_factory=dict)
    elsewhere: dict[str, list[Tensor]] = field(default_factory=dict)


def as_filed(wave: Tensor, rate: int = SAMPLE_RATE) -> Tensor:
    """Silence trimmed, level made equal as in training, rounded as a 16-bit file holds it: `(time,)` at 16 kHz."""
    wave = resample(as_float(wave), rate, SAMPLE_RATE).clamp(-1, 1)
    wave = to_level(trim_silence(wave, SAMPLE_RATE), -25.0, peak=0.99)
    return as_float(torch.from_numpy(to_int16(wave)))


def material(
    wanted: Sequence[Line], profile: str, encoder: DVector | None = None, enrol: int = 5
) -> Material:
    """Recordings, references and d-vectors of these lines, and `enrol` other utterances of each speaker.

    From the data sets; where one cannot be had, from the day's `audio/`, which serves the published lines alone.
    Raises DataError when neither has them.
    """
    try:
        parts = [
            part
            for corpus in (corpora.kathleen(profile), corpora.librispeech(profile))
            for part in (corpus.train, corpus.validation, corpus.test)
        ]
    except DataError as error:
        return filed_material(wanted, days.get(11).output(profile) / "audio", error)
    encoder = encoder or pretrained_dvector()
    place = {name: (part, i) for part in reversed(parts) for i, name in enumerate(part.names)}  # fmt: skip
    found = Material()

    def sound(name: str) -> Tensor:
        part, i = place[name]
        return part.sound(i, SAMPLE_RATE)

    for line in wanted:
        found.recordings[line.name] = as_filed(sound(line.recording))
        if line.speaker in found.voices:
            continue
        some = [sound(name) for name in line.references]
        vectors = encoder.embed(some).float().cpu()
        found.voices[line.speaker] = F.normalize(vectors.mean(0), dim=0)
        found.references[line.speaker] = as_filed(some[0])
    used = {n for line in wanted for n in (line.recording, *line.references)}
    for speaker in found.voices:
        some = [
            name
            for name, (part, i) in place.items()
            if part.speakers[i] == speaker and name not in used
        ]
        found.elsewhere[speaker] = [as_filed(sound(n)) for n in some[:enrol]]
    return found


def filed_material(
    wanted: Sequence[Line], folder: Path, error: Exception | None = None
) -> Material:
    """The same from `audio/`: recordings and references as WAV, d-vectors in `voices.npz`."""
    found = Material()
    try:
        with np.load(folder / "voices.npz") as kept:
            for line in wanted:
                found.voices[line.speaker] = torch.from_numpy(kept[line.speaker])
                found.recordings[line.name] = read_audio(folder / f"{line.name}_recording.wav")
                reference = folder / f"{line.speaker}_reference.wav"
                if reference.is_file():
                    found.references[line.speaker] = read_audio(reference)
    except (OSError, KeyError, ValueError) as missing:
        raise error or DataError(
            f"{folder.name} lacks what these lines need: {missing}"
        ) from missing
    return found


# --- networks -----------------------------------------------------------------------------------------


@dataclass
class Networks:
    """What speaks: synthesizers by part, vocoders by name, the mel between them, the cards of all weights, and how
    the parallel synthesizer learns a voice."""

    synthesizers: dict[str, Tacotron2 | FastSpeech]
    vocoders: dict[str, Vocoder]
    mel: SynthesisMel
    cards: dict[str, dict[str, Any]]
    adapting: Adapting


def networks(profile: str, device: torch.device | str = "cpu") -> Networks:
    """The shipped networks. Raises FileNotFoundError, with the command that trains it, for a missing one."""
    loaded, cards = {}, {}
    for part in train.PARTS:
        path = train.weights_path(part, profile)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.name} is not here: python -m Day11_Voice_Cloning.train {part} --profile {profile}"
            )
        loaded[part], cards[part] = train.load_network(path, device)
    mel = SynthesisMel(LIBRISPEECH).to(device)
    glow = loaded.pop("vocoder")
    guess = partial(mel.griffin_lim, iterations=GRIFFIN_LIM[profile])
    vocoders = {"griffin_lim": guess, "waveglow": glow.decode}
    return Networks(loaded, vocoders, mel, cards, ADAPTING[profile])


# --- speaking -----------------------------------------------------------------------------------------


@dataclass
class Spoken:
    """All that was made of some lines: `waves` by `(line, system)`, what the synthesizers gave by `(line, kind)`,
    the seconds that each wave took to make (of speech both networks together), and of each voice that was learned
    what it is and how long that took."""

    waves: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    speech: dict[tuple[str, str], SynthesisOutput] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    learned: dict[str, Learned] = field(default_factory=dict)
    learning: dict[str, float] = field(default_factory=dict)


def say(nets: Networks, part: str, text: str, voice: Tensor) -> SynthesisOutput:
    """One text by one synthesizer in one voice `(256,)`, alone. Raises TextError for what cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `stopped` says it
        return tts.speak(nets.synthesizers[part], [text], voice)


def learn_voice(nets: Networks, wave: Tensor, said: str, voice: Tensor) -> Learned:
    """The voice of a recording `(time,)` at 16 kHz of the words `said`; its letters are timed by `voices`."""
    parallel, teacher = nets.synthesizers["parallel"], nets.synthesizers["voices"]
    return learn(parallel, teacher, wave, said, voice, nets.mel, nets.adapting)


def perform(wanted: Iterable[Line], found: Material, nets: Networks) -> Spoken:
    """Every line as every one of its `systems`, each timed."""
    made, hop = Spoken(), nets.mel.settings.hop
    for line in wanted:
        recording = found.recordings[line.name]
        voice = found.voices[line.speaker]
        made.waves[line.name, "recording"] = recording
        mel = nets.mel(recording[None].to(nets.mel.hann.device))
        for name, vocoder in nets.vocoders.items():
            copy = (line.name, f"copy_{name}")
            began = time.perf_counter()
            made.waves[copy] = vocoder(mel)[0].float().cpu()
            made.seconds[copy] = time.perf_counter() - began
        for kind, part in speakers_of(line.part).items():
            if kind == "adapted" and line.speaker not in made.learned:
                reference, began = found.references[line.speaker], time.perf_counter()
                learned = learn_voice(nets, reference, line.said, voice)
                made.learned[line.speaker] = learned
                made.learning[line.speaker] = time.perf_counter() - began
            began = time.perf_counter()
            spoken = (
                made.learned[line.speaker].say(line.text)
                if kind == "adapted"
                else say(nets, part, line.text, voice)
            )
            thought = time.perf_counter() - began
            made.speech[line.name, kind] = spoken
            for name, vocoder in nets.vocoders.items():
                system = (line.name, f"{kind}_{name}")
                began = time.perf_counter()
                (made.waves[system],) = tts.to_waves(spoken, vocoder, hop)
                made.seconds[system] = thought + time.perf_counter() - began
    return made


def write(made: Spoken, wanted: Iterable[Line], found: Material, folder: Path) -> list[Path]:
    """The files of the published lines as 16-bit WAV, their d-vectors in `voices.npz`; returns the WAV files."""
    written, voices = [], {}

    def keep(name: str, wave: Tensor) -> None:
        written.append(folder / f"{name}.wav")
        # read again, a recording is to be the same to the last bit
        tts.write_wav(written[-1], wave * (32768 / 32767), SAMPLE_RATE)

    for line in wanted:
        if not line.published:
            continue
        for system in systems(line.part):
            keep(f"{line.name}_{system}", made.waves[line.name, system])
        if line.part == "voices" and line.speaker not in voices:
            keep(f"{line.speaker}_reference", found.references[line.speaker])
        voices[line.speaker] = found.voices[line.speaker].numpy()
    np.savez(folder / "voices.npz", **voices)
    return written


def publish(profile: str) -> list[Path]:
    """All files of Day 11's `audio/` anew: what `python -m Day11_Voice_Cloning.synthesize` does."""
    wanted, nets = lines(profile, published=True), networks(profile)
    found = material(wanted, profile)
    made = perform(wanted, found, nets)
    return write(made, wanted, found, days.get(11).output(profile) / "audio")


def clone(
    recording: str | Path | Tensor,
    text: str,
    nets: Networks,
    *,
    consent: bool,
    rate: int = SAMPLE_RATE,
    vocoder: str = "griffin_lim",
    encoder: DVector | None = None,
    said: str = "",
) -> Tensor:
    """A text in the voice of a recording (a file, or samples at `rate` Hz): sound `(time,)` at 16 kHz.

    By its d-vector alone; where the words that are `said` in it are given, the voice is learned from them.

    Raises ConsentError unless `consent` is True, TextError for what cannot be read, AudioError for a recording
    that cannot be used: a file that is none, silence, less than a second of speech.
    """
    if consent is not True:
        raise ConsentError(
            "consent is not given: clone a voice only when it is your own, or when the person agreed to this "
            "use; then say consent=True."
        )
    if vocoder not in nets.vocoders:
        raise ValueError(f"vocoder {vocoder!r}: write one of {', '.join(nets.vocoders)}")
    encode(text)  # checked before anything is computed
    if isinstance(recording, (str, Path)):
        recording, rate = read_audio(recording), SAMPLE_RATE
    reference = check_reference(recording, rate)
    device = nets.mel.hann.device
    voice = (encoder or pretrained_dvector(device)).embed([reference])[0]
    spoken = (
        learn_voice(nets, reference, said, voice).say(text)
        if said
        else say(nets, "voices", text, voice)
    )
    (wave,) = tts.to_waves(spoken, nets.vocoders[vocoder], nets.mel.settings.hop)
    return wave


def main(argv: list[str] | None = None) -> int:
    """Write the files of `audio/` and name them; 2 with a message where weights are missing."""
    arguments = argparse.ArgumentParser(
        description="Write the files of audio/ from text and weights."
    )
    arguments.add_argument("--profile", choices=days.PROFILES, default="study")
    try:
        written = publish(arguments.parse_args(argv).profile)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    for file in written:
        print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
