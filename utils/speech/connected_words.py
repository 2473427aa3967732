"""Connected words: single words of Speech Commands in a row, a small corpus for CTC."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..days import check_profile
from ..features import as_float
from .augment import add_noise, change_microphone
from .corpora import Clips, SpeechCorpus, Words, committed_lists, loud_pieces, speech_commands
from .pack import Utterances, to_int16


def draw_sequences(clips: Clips, count: int, seed: int, words: tuple[int, int] = (3, 6)) -> list[list[str]]:
    """`count` sequences of clip names, 3 to 6 each, of one speaker where there are enough clips, else of few.

    Speakers are drawn in proportion to their clips. The same seed gives the same sequences.
    """
    by_speaker: dict[str, list[str]] = {}
    for name, speaker in zip(clips.names, clips.speakers, strict=True):
        by_speaker.setdefault(speaker, []).append(name)
    if words[1] > len(clips.names):
        raise ValueError(f"{len(clips.names)} clips are too few for {words[1]} words")
    speakers = sorted(by_speaker)
    weights = [len(by_speaker[s]) for s in speakers]
    rng = random.Random(seed)
    sequences = []
    for _ in range(count):
        length, chosen = rng.randint(*words), []
        while len(chosen) < length:
            left = sorted(set(by_speaker[rng.choices(speakers, weights)[0]]) - set(chosen))
            chosen += rng.sample(left, min(len(left), length - len(chosen)))
        rng.shuffle(chosen)
        sequences.append(chosen)
    return sequences


@dataclass(frozen=True)
class WaveAugmentation:
    """Augmentation of connected words.

    Each word is played up to the fraction `speed` faster or slower (pitch and formants follow), each row sounds
    through another microphone (`microphone` 1: as in `augment.change_microphone`; 0: none), and a fraction `noisy`
    of the rows has a part of the recording `noise` `(time,)` in it, at 5 to 30 dB.
    """

    speed: float = 0.0
    noisy: float = 0.0
    noise: Tensor | None = None
    microphone: float = 0.0

    def word(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """One word `(time,)` at a speed of its own."""
        if not self.speed:
            return wave
        length = round(len(wave) / (1 + self.speed * rng.uniform(-1, 1)))
        return F.interpolate(wave[None, None], length, mode="linear")[0, 0]

    def row(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """One row `(time,)`, through another microphone and in noise, both at random."""
        if self.microphone:
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            strength = 4.0 * self.microphone, 0.3 * self.microphone
            wave = change_microphone(wave[None], generator, *strength)[0]
        room = 0 if self.noise is None else len(self.noise) - len(wave)
        if room <= 0 or rng.random() >= self.noisy:
            return wave
        start = int(rng.integers(room))
        noise = self.noise[start : start + len(wave)]
        return add_noise(wave[None], noise[None], rng.uniform(5, 30))[0]


def speak_sequences(
    clips: Clips,
    classes: Sequence[str],
    sequences: Sequence[Sequence[str]],
    seed: int,
    variation: WaveAugmentation | None = None,
) -> Utterances:
    """The clips of each sequence one after another, as utterances.

    Each clip loses the silence at its ends and gets a level of its own (within 6 dB); the gaps of 50 to 400 ms
    hold noise as loud as the quietest 100 ms of the clip before. `variation` is for training. Raises KeyError
    for a name that is not among the clips.
    """
    variation = variation or WaveAugmentation()
    at = {name: i for i, name in enumerate(clips.names)}
    rng = np.random.default_rng(seed)
    waves, texts, speakers = [], [], []
    for sequence in sequences:
        numbers = [at[name] for name in sequence]
        pieces = []
        for i in numbers:
            clip = as_float(clips.x[i].cpu())
            word = variation.word(_without_ends(clip), rng)
            gain = 0.05 * 10 ** (rng.uniform(-3, 3) / 20) / word.square().mean().sqrt()
            quietest = clip.unfold(0, 1600, 160).square().mean(1).min().sqrt()
            if not pieces:
                pieces.append(_gap(rng, gain * quietest))
            pieces += [gain * word, _gap(rng, gain * quietest)]
        wave = variation.row(torch.cat(pieces), rng)
        wave *= min(1.0, 0.95 / wave.abs().max().item())
        waves.append(to_int16(wave))
        texts.append(" ".join(classes[int(clips.y[i])].upper() for i in numbers))
        speakers.append("+".join(dict.fromkeys(clips.speakers[i] for i in numbers)))
    return Utterances.of(waves, texts, speakers)


def _without_ends(wave: Tensor) -> Tensor:
    """From the first to the last 10 ms within 30 dB of the loudest, and 50 ms on both sides."""
    _, loud = loud_pieces(wave, 160, 30.0)
    places = torch.nonzero(loud).flatten().tolist()
    return wave[max(0, places[0] * 160 - 800) : (places[-1] + 1) * 160 + 800] if places else wave


def _gap(rng: np.random.Generator, rms: Tensor) -> Tensor:
    noise = rng.standard_normal(rng.integers(800, 6400)).astype(np.float32)
    return torch.from_numpy(noise) * rms


def connected_words(profile: str, train: int | None = None, words: Words | None = None) -> SpeechCorpus:
    """Spoken words in a row, 3 to 6, no speaker in two parts: the corpus `NAME-connected`.

    `train` sequences (by default 2,000; quick 160) are drawn from the training clips. Validation and test are, in
    study and full, the 200 and 600 sequences of the committed lists `splits/connected_*.txt`, in quick 40 and
    40 drawn ones. Pass `words` where they are loaded already.
    """
    quick = check_profile(profile) == "quick"
    words = words or speech_commands(profile if quick else "study")
    sequences = {"train": draw_sequences(words.train, train or (160 if quick else 2000), seed=1)}
    if quick:
        for seed, part in ((2, "validation"), (3, "test")):
            sequences[part] = draw_sequences(getattr(words, part), 40, seed)
    else:
        for part, lines in committed_lists("connected", "validation", "test").items():
            sequences[part] = [line.split() for line in lines]
    parts = [
        speak_sequences(getattr(words, part), words.classes, names, seed)
        for seed, (part, names) in enumerate(sequences.items())
    ]
    name = f"{words.name}-connected"
    return SpeechCorpus(name, *parts, name)
