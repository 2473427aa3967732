"""Find the words in a recording of your own, a file or a microphone, and refuse what is none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.features import SAMPLE_RATE, fixed_length, read_audio, to_mono
from utils.models import keyword_net
from utils.models.keyword_net import KeywordNet, probabilities

SILENCE = -60.0
"""Level in dB of full scale below which nothing was said."""
HOP = SAMPLE_RATE // 10
"""Samples between two windows of one second."""

Sound = str | Path | np.ndarray | Tensor
Found = tuple[str, float, float]
"""A word, its probability, and the time of its middle (s)."""


def scores(model: KeywordNet, windows: Tensor) -> Tensor:
    """Probabilities `(windows, classes)` of `(windows, 16000)`; zeros where a window is silent."""
    level = 10 * torch.log10(windows.square().mean(1, keepdim=True) + 1e-12)
    device = next(model.parameters()).device
    return probabilities(model, windows.to(device)).cpu() * (level > SILENCE)


def search(model: KeywordNet, sound: Sound, rate: int = SAMPLE_RATE) -> tuple[Tensor, Tensor]:
    """Probabilities `(windows, classes)` of each second of a recording, every 0.1 s, and their middles (s).

    `sound` is a file, or samples at `rate` Hz. A shorter recording is filled with zeros, and a longer one gets a
    quarter of a second of zeros on both sides, for words at its ends. Raises AudioError when it has no samples.
    """
    wave = read_audio(sound) if isinstance(sound, (str, Path)) else to_mono(sound, rate)
    edge = SAMPLE_RATE // 4 if len(wave) > SAMPLE_RATE else 0
    wave = F.pad(fixed_length(wave, max(len(wave), SAMPLE_RATE)), (edge, edge))
    wave = F.pad(wave, (0, -(len(wave) - SAMPLE_RATE) % HOP))  # the end is in a window, too
    found = torch.cat([scores(model, some) for some in wave.unfold(0, SAMPLE_RATE, HOP).split(600)])
    return found, 0.5 + (torch.arange(len(found)) * HOP - edge) / SAMPLE_RATE


def recognise(
    model: KeywordNet, classes: list[str], sound: Sound, rate: int = SAMPLE_RATE, top: int = 3
) -> list[tuple[str, float]]:
    """The `top` words and their probabilities in the clearest second of a recording, the likeliest first.

    No word is refused here, but silence has the probability 0.
    """
    found, _ = search(model, sound, rate)
    values, numbers = found[found.amax(1).argmax()].topk(min(top, len(classes)))
    return [(classes[i], float(p)) for p, i in zip(values, numbers.tolist(), strict=True)]


def peaks(scored: Iterable[tuple[float, Tensor]], classes: list[str], threshold: float) -> Iterator[Found]:
    """Words from the probabilities `(classes,)` at increasing times: the clearest window of each half second.

    Below `threshold` nothing is a word. The next word is 0.6 s after the last one at the earliest, the same word
    1 s, since a window that contains a part of it may still name it.
    """
    best: Found | None = None
    last, since = ("", 0.0, -1.0), 0.0
    for time, row in scored:
        if best and time > since + 0.45:
            yield best
            best, last = None, best
        p, i = row.max(0)
        word = classes[int(i)]
        later = time - last[2] > (0.95 if word == last[0] else 0.55)
        if p >= threshold and later and (best is None or p > best[1]):
            best, since = (word, float(p), time), since if best else time
    if best:
        yield best


def spot(
    model: KeywordNet, classes: list[str], sound: Sound, rate: int = SAMPLE_RATE, threshold: float = 0.5
) -> list[Found]:
    """All words of a recording of any length with probability and time; empty where there is none."""
    found, times = search(model, sound, rate)
    return list(peaks(zip(times.tolist(), found, strict=True), classes, threshold))


def stream(
    model: KeywordNet, classes: list[str], blocks: Iterable[np.ndarray | Tensor], threshold: float = 0.5
) -> Iterator[Found]:
    """The same while the sound arrives, in blocks `(time,)` of some 0.1 s at 16 kHz, e.g. from a microphone."""

    def scored() -> Iterator[tuple[float, Tensor]]:
        heard, samples = torch.zeros(SAMPLE_RATE), 0
        for block in blocks:
            block = to_mono(block, SAMPLE_RATE)
            heard, samples = torch.cat([heard, block])[-SAMPLE_RATE:], samples + len(block)
            if samples >= 0.75 * SAMPLE_RATE:
                yield samples / SAMPLE_RATE - 0.5, scores(model, heard[None])[0]

    yield from peaks(scored(), classes, threshold)


def load_kept() -> Callable[[Iterable[str]], Iterator[str]]:
    """The day's published recogniser for `python -m tools ask words`: from files to a line for each."""
    model, classes = keyword_net.load_kept()

    def answer(files: Iterable[str]) -> Iterator[str]:
        for file in files:
            words = spot(model, classes, file, threshold=model.threshold)
            found = ", ".join(f"{word} {100 * p:.0f} % at {time:.1f} s" for word, p, time in words)
            guess, p = recognise(model, classes, file)[0]
            refused = f"none of my words (best guess: {guess}, {100 * p:.0f} %)" if p else "silence"
            yield f"{file}: {found or refused}"

    return answer
