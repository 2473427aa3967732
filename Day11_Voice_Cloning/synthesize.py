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
from collections.abc import Callable, Iterable, Sequence
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
from utils.models.tts_mel import LIBRISPEECH_MEL, SynthesisMel, trim_silence
from utils.models.tts_text import encode
from utils.sources.catalogue import SPLITS
from utils.sources.download import DataError
from utils.speech import corpora
from utils.speech.pack import to_int16

from . import train
from .adaptation import ADAPTING, Adapting, Learned, adapt, pace_of, timed_recording
from .evaluate import check_reference

VOCODERS = ("griffin_lim", "waveglow")


def speakers_of(part: str) -> dict[str, str]:
    """The synthesizers of a part's lines by kind: `speech` by its Tacotron 2, and the parallel one, which is
    `adapted` to the reference of an unseen speaker."""
    return {"speech": part, "parallel" if part == "kathleen" else "adapted": "parallel"}


def systems(part: str) -> tuple[str, ...]:
    """The systems that are compared on a part's lines: the recording, copy-synthesis and each synthesizer with
    each vocoder."""
    kinds = ("copy", *speakers_of(part))
    return ("recording", *(f"{kind}_{v}" for kind in kinds for v in VOCODERS))


SYSTEMS = systems("voices")
"""The systems of cloned voices."""

GRIFFIN_LIM = {"quick": 4, "study": 60, "full": 60}
"""Iterations by profile."""


class ConsentError(ValueError):
    """Nobody confirmed that the owner of the voice agrees to be cloned."""


@dataclass(frozen=True)
class Line:
    """A text to be spoken by the synthesizer `part` in the voice of `speaker`.

    `recording` is the utterance in which the speaker says the same text. `references` are other utterances, whose
    mean d-vector is the voice; `said` is the text of the first. The files of `published` lines are in `audio/`.
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
    """The committed list, in quick that of the bundled voices. `published` selects the lines in `audio/`."""
    quick = days.check_profile(profile) == "quick"
    file = SPLITS / ("cloning_lines_quick.csv" if quick else "cloning_lines.csv")
    found = []
    with open(file, encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            row["references"] = tuple(row["references"].split())
            row["published"] = row["published"] == "yes"
            found.append(Line(**row))
    return [line for line in found if line.published or not published]


# --- recordings and voices ----------------------------------------------------------------------------


@dataclass
class Material:
    """Real speech of the lines, at 16 kHz: `recordings` by line; `references`, d-vectors `(256,)` and other
    utterances (`elsewhere`, to enrol with; none without the data sets) by speaker."""

    recordings: dict[str, Tensor] = field(default_factory=dict)
    references: dict[str, Tensor] = field(default_factory=dict)
    voices: dict[str, Tensor] = field(default_factory=dict)
    elsewhere: dict[str, list[Tensor]] = field(default_factory=dict)


def as_filed(wave: Tensor, rate: int = SAMPLE_RATE) -> Tensor:
    """Trimmed, equal in level as in training, and rounded to 16 bits like a file: `(time,)` at 16 kHz."""
    wave = resample(as_float(wave), rate, SAMPLE_RATE).clamp(-1, 1)
    wave = to_level(trim_silence(wave, SAMPLE_RATE), -25.0, peak=0.99)
    return as_float(torch.from_numpy(to_int16(wave)))


def material(
    selected: Sequence[Line], profile: str, encoder: DVector | None = None, enrol: int = 5
) -> Material:
    """Recordings, references and d-vectors of these lines, and `enrol` other utterances of each speaker.

    From the data sets; where one is missing, from the day's `audio/`, which has the published lines only.
    Raises DataError when neither has them.
    """
    try:
        sets = [corpora.kathleen(profile), corpora.librispeech(profile)]
    except DataError as error:
        return filed_material(selected, days.get(11).output(profile) / "audio", error)
    encoder = encoder or pretrained_dvector()
    parts = [part for corpus in sets for part in (corpus.train, corpus.validation, corpus.test)]
    place = {name: (part, i) for part in reversed(parts) for i, name in enumerate(part.names)}
    used = {n for line in selected for n in (line.recording, *line.references)}
    found = Material()

    def sound(name: str) -> Tensor:
        part, i = place[name]
        return part.sound(i, SAMPLE_RATE)

    for line in selected:
        speaker = line.speaker
        found.recordings[line.name] = as_filed(sound(line.recording))
        if speaker in found.voices:
            continue
        some = [sound(name) for name in line.references]
        found.voices[speaker] = F.normalize(encoder.embed(some).float().cpu().mean(0), dim=0)
        found.references[speaker] = as_filed(some[0])
        own = (n for n, (part, i) in place.items() if part.speakers[i] == speaker)
        others = [n for n in own if n not in used][:enrol]
        found.elsewhere[speaker] = [as_filed(sound(n)) for n in others]
    return found


def filed_material(selected: Sequence[Line], folder: Path, error: DataError) -> Material:
    """The same from `audio/`: recordings and references as WAV, d-vectors in `voices.npz`; else raises `error`."""
    found = Material()
    try:
        with np.load(folder / "voices.npz") as voices:
            for line in selected:
                found.voices[line.speaker] = torch.from_numpy(voices[line.speaker])
                found.recordings[line.name] = read_audio(folder / f"{line.name}_recording.wav")
                reference = folder / f"{line.speaker}_reference.wav"
                if reference.is_file():
                    found.references[line.speaker] = read_audio(reference)
    except (OSError, KeyError, ValueError) as missing:
        raise error from missing
    return found


# --- networks -----------------------------------------------------------------------------------------


@dataclass
class Networks:
    """Synthesizers by part, vocoders by name, the mel between them, the cards of all weights, and the settings of
    the adaptation to a voice."""

    synthesizers: dict[str, Tacotron2 | FastSpeech]
    vocoders: dict[str, Vocoder]
    mel: SynthesisMel
    cards: dict[str, dict[str, Any]]
    adapting: Adapting


def networks(profile: str, device: torch.device | str = "cpu") -> Networks:
    """The shipped networks. Raises FileNotFoundError, with the command that trains it, for a missing one."""
    loaded, cards = {}, {}
    for part in train.PARTS:
        loaded[part], cards[part] = train.load_network(train.trained_weights(part, profile), device)
    mel = SynthesisMel(LIBRISPEECH_MEL).to(device)
    griffin_lim = partial(mel.griffin_lim, iterations=GRIFFIN_LIM[profile])
    vocoders = {"griffin_lim": griffin_lim, "waveglow": loaded.pop("vocoder").decode}
    return Networks(loaded, vocoders, mel, cards, ADAPTING[profile])


# --- speaking -----------------------------------------------------------------------------------------


@dataclass
class Spoken:
    """Everything made from some lines: `waves` and the `seconds` that each took by `(line, system)`, the output of
    the synthesizers by `(line, kind)`, and the adapted voices and their seconds by speaker."""

    waves: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    speech: dict[tuple[str, str], SynthesisOutput] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    learned: dict[str, Learned] = field(default_factory=dict)
    learning: dict[str, float] = field(default_factory=dict)


def say(nets: Networks, part: str, text: str, voice: Tensor) -> SynthesisOutput:
    """One text by one synthesizer in one voice `(256,)`. Raises TextError for a text that cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see `stopped`
        return tts.speak(nets.synthesizers[part], [text], voice)


def learn_voice(nets: Networks, wave: Tensor, said: str, voice: Tensor) -> Learned:
    """Adapt to a recording `(time,)` at 16 kHz of the words `said`, with durations from `voices`.

    `voice` `(256,)` is its d-vector. Raises as `adaptation.timed_recording`.
    """
    model, settings = nets.synthesizers["parallel"], nets.adapting
    recording = timed_recording(wave, said, voice, nets.mel, nets.synthesizers["voices"])
    pace = pace_of(model, recording)
    return Learned(adapt(model, recording, settings), recording, settings, pace)


def timed(make: Callable[..., Any], *inputs: Any) -> tuple[Any, float]:
    """What `make(*inputs)` returns, and the seconds that it took."""
    began = time.perf_counter()
    made = make(*inputs)
    return made, time.perf_counter() - began


def perform(selected: Iterable[Line], found: Material, nets: Networks) -> Spoken:
    """Synthesise each line with each of its `systems`, and measure the time."""
    made, hop = Spoken(), nets.mel.settings.hop
    for line in selected:
        speaker, voice = line.speaker, found.voices[line.speaker]
        recording = made.waves[line.name, "recording"] = found.recordings[line.name]
        mel = nets.mel(recording[None].to(nets.mel.hann.device))
        for name, vocoder in nets.vocoders.items():
            copy = line.name, f"copy_{name}"
            waves, made.seconds[copy] = timed(vocoder, mel)
            made.waves[copy] = waves[0].float().cpu()
        for kind, part in speakers_of(line.part).items():
            if kind != "adapted":
                spoken, seconds = timed(say, nets, part, line.text, voice)
            else:
                if speaker not in made.learned:
                    known = found.references[speaker], line.said, voice
                    made.learned[speaker], made.learning[speaker] = timed(learn_voice, nets, *known)
                spoken, seconds = timed(made.learned[speaker].say, line.text)
            made.speech[line.name, kind] = spoken
            for name, vocoder in nets.vocoders.items():
                system = line.name, f"{kind}_{name}"
                (made.waves[system],), more = timed(tts.to_waves, spoken, vocoder, hop)
                made.seconds[system] = seconds + more
    return made


def write(made: Spoken, selected: Iterable[Line], found: Material, folder: Path) -> list[Path]:
    """Write the published lines as 16-bit WAV and their d-vectors as `voices.npz`; returns the WAV files."""
    waves, voices = {}, {}
    for line in (line for line in selected if line.published):
        for system in systems(line.part):
            waves[folder / f"{line.name}_{system}.wav"] = made.waves[line.name, system]
        if line.part == "voices":
            waves[folder / f"{line.speaker}_reference.wav"] = found.references[line.speaker]
        voices[line.speaker] = found.voices[line.speaker].numpy()
    for path, wave in waves.items():
        # scaled so that a recording that is read again is the same to the last bit
        tts.write_wav(path, wave * (32768 / 32767), SAMPLE_RATE)
    np.savez(folder / "voices.npz", **voices)
    return list(waves)


def publish(profile: str) -> list[Path]:
    """Write all files of Day 11's `audio/`, as `python -m Day11_Voice_Cloning.synthesize` does."""
    selected, nets = lines(profile, published=True), networks(profile)
    found = material(selected, profile)
    made = perform(selected, found, nets)
    return write(made, selected, found, days.get(11).output(profile) / "audio")


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

    From its d-vector alone; with the words that are `said` in it the synthesizer is adapted to the recording.
    Raises ConsentError unless `consent` is True, TextError for a text that cannot be read, ValueError for an
    unknown vocoder, AudioError for a recording that cannot be used: no sound file, silence, less than a
    second of speech.
    """
    if consent is not True:
        raise ConsentError(
            "consent is missing: clone a voice only when it is your own, or when the person agreed to this "
            "use; then pass consent=True."
        )
    if vocoder not in nets.vocoders:
        raise ValueError(f"vocoder {vocoder!r}: write one of {', '.join(nets.vocoders)}")
    for words in (text, said or text):  # checked before anything is computed
        encode(words)
    if isinstance(recording, (str, Path)):
        recording, rate = read_audio(recording), SAMPLE_RATE
    reference = check_reference(recording, rate)
    device = nets.mel.hann.device
    voice = (encoder or pretrained_dvector(device)).embed([reference])[0]
    spoken = learn_voice(nets, reference, said, voice).say(text) if said else say(nets, "voices", text, voice)
    (wave,) = tts.to_waves(spoken, nets.vocoders[vocoder], nets.mel.settings.hop)
    return wave


def main(argv: list[str] | None = None) -> int:
    """Write the files of `audio/` and list them; returns 2 after a message where weights are missing."""
    arguments = argparse.ArgumentParser(description="Write the files of audio/.")
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
