"""Day 7's augmentation and its recogniser, for the days that build on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from . import days
from .features import (
    SAMPLE_RATE,
    LogMel,
    add_noise,
    as_float,
    change_microphone,
    change_speed,
    fixed_length,
    joined,
    noise_segments,
    play_at,
    read_audio,
    time_shift,
    to_mono,
)
from .models.keywords import CNN2d, KeywordNet
from .training import predict
from .weights import load_weights

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def augmentation(
    noises: Mapping[str, torch.Tensor], strength: float = 1.0, noisy: float = 0.3
) -> Augment:
    """Speed, shift, microphone and noise on a whole batch, scaled by one number; 0 is no change.

    At strength 1: speed by up to 15 %, shift by up to 100 ms, another microphone (see
    `features.change_microphone`), and in a share `noisy` of the clips noise at 0 to 25 dB. The noises are
    brought to one level and joined.
    """
    noise = joined(noises)

    def augment(wave: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        wave = change_speed(as_float(wave), generator, 0.15 * min(strength, 1.5))
        wave = time_shift(wave, generator, round(0.1 * SAMPLE_RATE * strength))
        wave = change_microphone(wave, generator, 4.0 * strength, 0.3 * strength)
        chosen = torch.rand(len(wave), generator=generator) < noisy * strength
        count = int(chosen.sum())
        if count and len(noise):
            segments = noise_segments(noise, count, wave.shape[1], generator)
            snr = 25 * torch.rand(count, generator=generator)
            chosen = chosen.to(wave.device)
            wave[chosen] = add_noise(wave[chosen], segments, snr.to(wave.device))
        return wave

    return augment


def one_second(sound: str | Path | np.ndarray | torch.Tensor, rate: int = SAMPLE_RATE):
    """A recording as one second `(16000,)`: cut around its loudest half second, or filled with zeros.

    `sound` is a file, or samples at `rate` Hz. Raises AudioError for what is no sound.
    """
    wave = read_audio(sound) if isinstance(sound, (str, Path)) else to_mono(sound, rate)
    if len(wave) > SAMPLE_RATE:
        half = SAMPLE_RATE // 2
        energy = torch.nn.functional.avg_pool1d(wave.square()[None], half, 160)[0]
        centre = int(energy.argmax()) * 160 + half // 2
        start = min(max(0, centre - half), len(wave) - SAMPLE_RATE)
        wave = wave[start:]
    return fixed_length(wave, SAMPLE_RATE)


SPEEDS = (1.0, 0.92, 1.08)
"""At which a recording is played to the recogniser, as a share of its own speed."""


def probabilities(
    model: KeywordNet, wave: torch.Tensor, speeds: Sequence[float] = SPEEDS
) -> torch.Tensor:
    """Probabilities `(batch, classes)` of `(batch, time)` waves, the mean over several playing speeds.

    A slower playing is a longer vocal tract: the same word by somebody else. Averaging such answers costs
    as many times the work (test-time augmentation).
    """
    wave = as_float(wave)
    answers = [predict(model, play_at(wave, s)).softmax(1) for s in speeds]
    return torch.stack(answers).mean(0)


def recognise(
    model: KeywordNet,
    classes: list[str],
    sound: str | Path | np.ndarray | torch.Tensor,
    rate: int = SAMPLE_RATE,
    top: int = 3,
) -> list[tuple[str, float]]:
    """The `top` words and their probabilities for one recording, the likeliest first.

    It answers with one of the words that it knows, whatever was said.
    """
    device = next(model.parameters()).device
    answer = probabilities(model, one_second(sound, rate)[None].to(device))[0]
    values, numbers = answer.cpu().topk(min(top, len(classes)))
    return [
        (classes[i], float(p)) for p, i in zip(values, numbers.tolist(), strict=True)
    ]


def load_kept(
    device: torch.device | str = "cpu",
) -> tuple[KeywordNet, list[str]]:
    """The recogniser that Day 7 keeps and its words, on `device` in evaluation mode.

    Raises FileNotFoundError when the day was not run, ValueError when its card names another network than the
    2-D CNN over log-mel.
    """
    path = days.get(7).folder / "checkpoints" / "keywords.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"Day 7's {path.name} is not here: make day DAY=7")
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    kind = card["network"], card["front_end"]
    if kind != ("2-D CNN", "log-mel"):
        raise ValueError(
            f"{path.name} is a {kind[0]} over {kind[1]}, not a 2-D CNN over log-mel"
        )
    front = LogMel(64)
    network = CNN2d(front.out_channels, round(8 * card["width"]))
    model = KeywordNet(front, network, len(card["classes"]), level=card["level"])
    load_weights(path, model)
    return model.to(device).eval(), card["classes"]
