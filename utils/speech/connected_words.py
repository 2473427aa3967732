"""Connected words: single words of Speech Commands in a row, a small corpus for CTC."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..days import check_profile
from ..features import as_float
from ..sources.catalogue import SPLITS, read_lines
from .augment import add_noise, change_microphone
from .corpora import Clips, SpeechCorpus, Utterances, Words, speech_commands

# --- connected words ----------------------------------------------------------------------------------


def draw_sequences(
    clips: Clips, count: int, seed: int, words: tuple[int, int] = (3, 6)
) -> list[list[str]]:
    """`count` sequences of clip names, 3 to 6 each, of one speaker where there are enough clips, else of few.

    A speaker comes as often as there are clips of that speaker. The same seed gives the same sequences.
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
        wanted, chosen = rng.randint(*words), []
        while len(chosen) < wanted:
            left = sorted(set(by_speaker[rng.choices(speakers, weights)[0]]) - set(chosen))
            chosen += rng.sample(left, min(len(left), wanted - len(chosen)))
        rng.shuffle(chosen)
        sequences.append(chosen)
    return sequences


@dataclass(frozen=True)
class WaveAugmentation:
    """How training rows are varied: each word played up to the share `speed` faster or slower (pitch and vocal
    tract go with it), each row as through another microphone (`microphone` 1, see `features.change_microphone`;
    0 for none), and in a share `noisy` of the rows one of the recordings `noise` (joined, `(time,)`) at 5 to
    30 dB."""

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
        """One row `(time,)`, perhaps by another microphone, perhaps in noise."""
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

    Each clip loses the silence at its ends and is brought to a level of its own (within 6 dB); the
    gaps of 50 to 400 ms hold noise as loud as the quietest 100 ms of the clip before. With a `variation` the
    words are varied, too, for training. Raises KeyError for a name that is not among the clips.
    """
    at = {name: i for i, name in enumerate(clips.names)}
    rng = np.random.default_rng(seed)
    waves, texts, speakers = [], [], []
    for sequence in sequences:
        numbers = [at[name] for name in sequence]
        pieces = []
        for i in numbers:
            clip = as_float(clips.x[i].cpu())
            word = _without_ends(clip)
            word = variation.word(word, rng) if variation else word
            gain = 0.05 * 10 ** (rng.uniform(-3, 3) / 20) / word.square().mean().sqrt()
            quietest = clip.unfold(0, 1600, 160).square().mean(1).min().sqrt()
            if not pieces:
                pieces.append(_gap(rng, gain * quietest))
            pieces += [gain * word, _gap(rng, gain * quietest)]
        wave = torch.cat(pieces)
        wave = variation.row(wave, rng) if variation else wave
        wave *= min(1.0, 0.95 / wave.abs().max().item())
        waves.append((wave * 32767).round().numpy().astype(np.int16))
        texts.append(" ".join(classes[int(clips.y[i])].upper() for i in numbers))
        speakers.append("+".join(dict.fromkeys(clips.speakers[i] for i in numbers)))
    return Utterances.of(waves, texts, speakers)


def _without_ends(wave: Tensor, under_db: float = 30.0, keep: int = 800) -> Tensor:
    """From the first to the last 10 ms within `under_db` dB of the loudest, and 50 ms around."""
    level = wave[: len(wave) // 160 * 160].view(-1, 160).square().mean(1)
    loud = torch.nonzero(level > level.max() * 10 ** (-under_db / 10)).flatten()
    if not len(loud):
        return wave
    return wave[max(0, int(loud[0]) * 160 - keep) : int(loud[-1] + 1) * 160 + keep]


def _gap(rng: np.random.Generator, rms: Tensor) -> Tensor:
    noise = rng.standard_normal(rng.integers(800, 6400)).astype(np.float32)
    return torch.from_numpy(noise) * rms


def connected_words(
    profile: str, train: int | None = None, labels: float = 1.0, words: Words | None = None
) -> SpeechCorpus:
    """Spoken words in a row, 3 to 6, no speaker in two parts: the corpus `NAME-connected`.

    `train` sequences are drawn from the training clips (by default 2,000; quick 160), of the share
    `labels` of their speakers alone and as much fewer. Validation and test are, in study and full, the
    200 and 600 sequences of the committed lists `splits/connected_*.txt`, in quick 40 and 40 drawn ones.
    Pass `words` where they are loaded already.
    """
    quick = check_profile(profile) == "quick"
    words = words or speech_commands(profile if quick else "study")
    count = max(1, round((train or (160 if quick else 2000)) * labels))
    some = fraction_of_speakers(words.train, labels)
    sequences = {"train": draw_sequences(some, count, seed=1)}
    for seed, part in ((2, "validation"), (3, "test")):
        sequences[part] = (
            draw_sequences(getattr(words, part), 40, seed)
            if quick
            else [s.split() for s in read_lines(SPLITS / f"connected_{part}.txt")]
        )
    parts = [
        speak_sequences(getattr(words, part), words.classes, names, seed)
        for seed, (part, names) in enumerate(sequences.items())
    ]
    name = f"{words.name}-connected"
    return SpeechCorpus(name, *parts, name)


def curriculum(
    words: Words,
    epochs: Sequence[tuple[int, tuple[int, int]]],
    labels: float = 1.0,
    different: int = 8,
    variation: WaveAugmentation | None = None,
    first: int = 100,
) -> list[Utterances]:
    """A training set for each epoch: so many sequences of so many words, e.g. `[(1000, (1, 2)), (500, (3, 6))]`.

    From the clips of the share `labels` of the training speakers. Epochs of one kind differ, until the
    ninth hears the first one's sequences again (`different`): a set that is held twice is held once.
    `variation` is that of `speak_sequences`; `first` is the seed of the first lesson of each kind.
    """
    some = fraction_of_speakers(words.train, labels)
    made: dict[tuple, Utterances] = {}
    lessons, seen = [], Counter()
    for count, lengths in epochs:
        seed = first + seen[count, lengths] % different
        seen[count, lengths] += 1
        key = (count, lengths, seed)
        if key not in made:
            drawn = draw_sequences(some, count, seed, lengths)
            made[key] = speak_sequences(some, words.classes, drawn, seed, variation)
        lessons.append(made[key])
    return lessons


def fraction_of_speakers(clips: Clips, share: float, seed: int = 0) -> Clips:
    """The clips of randomly chosen speakers until the share `share` of all clips is reached."""
    if not 0 < share <= 1:
        raise ValueError(f"a share between 0 and 1 is wanted, not {share}")
    speakers = sorted(set(clips.speakers))
    random.Random(seed).shuffle(speakers)
    size, chosen = Counter(clips.speakers), set()
    while sum(size[s] for s in chosen) < share * len(clips):
        chosen.add(speakers[len(chosen)])
    return clips.take(torch.tensor([s in chosen for s in clips.speakers]))
