"""Recognise the word in a recording of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from utils.features import SAMPLE_RATE, fixed_length, read_audio, to_mono
from utils.models import keyword_net
from utils.models.keyword_net import KeywordNet, probabilities


def one_second(sound: str | Path | np.ndarray | torch.Tensor, rate: int = SAMPLE_RATE):
    """A recording as one second `(16000,)`: cut around its loudest half second, or filled with zeros.

    `sound` is a file, or samples at `rate` Hz. Raises AudioError when there is no sound in it.
    """
    wave = read_audio(sound) if isinstance(sound, (str, Path)) else to_mono(sound, rate)
    if len(wave) > SAMPLE_RATE:
        half = SAMPLE_RATE // 2
        energy = torch.nn.functional.avg_pool1d(wave.square()[None], half, 160)[0]
        centre = int(energy.argmax()) * 160 + half // 2
        start = min(max(0, centre - half), len(wave) - SAMPLE_RATE)
        wave = wave[start:]
    return fixed_length(wave, SAMPLE_RATE)


def recognise(
    model: KeywordNet,
    classes: list[str],
    sound: str | Path | np.ndarray | torch.Tensor,
    rate: int = SAMPLE_RATE,
    top: int = 3,
) -> list[tuple[str, float]]:
    """The `top` words and their probabilities for one recording, the likeliest first.

    The network knows only its own words: any other word gets one of these, too.
    """
    device = next(model.parameters()).device
    found = probabilities(model, one_second(sound, rate)[None].to(device))[0]
    values, numbers = found.cpu().topk(min(top, len(classes)))
    return [(classes[i], float(p)) for p, i in zip(values, numbers.tolist(), strict=True)]


def load_kept() -> Callable[[Iterable[str]], Iterator[str]]:
    """The day's published recogniser for `python -m tools ask words`: from files to a line for each."""
    model, classes = keyword_net.load_kept()

    def answer(files: Iterable[str]) -> Iterator[str]:
        for file in files:
            words = recognise(model, classes, file)
            yield f"{file}: " + ", ".join(f"{word} {100 * p:.0f} %" for word, p in words)

    return answer
