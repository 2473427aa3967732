"""Day 7's networks for spoken words of one second: three front ends, three networks, one frame around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .. import days
from ..features import SAMPLE_RATE, LogMel, as_float, to_level
from ..speech.augment import (
    add_noise,
    change_microphone,
    change_speed,
    join_noises,
    noise_segments,
    play_at,
    spec_augment,
    time_shift,
)
from ..training import load_weights, predict

Activation = Callable[[], nn.Module]


class CNN2d(nn.Module):
    """The spectrogram as an image: a 5 x 5 convolution with stride 2, three of 3 x 3, each halved by pooling.

    `(batch, channels, frames)` to `(batch, out_features)`: mean over time, the frequencies stay apart.
    A filter may move in frequency, so a higher voice is the same picture a little further up.
    """

    def __init__(self, channels: int, width: int = 24, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(width),
            activation(),
        ]
        for before, after in ((1, 2), (2, 3), (3, 4)):
            layers += [
                nn.Conv2d(before * width, after * width, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(after * width),
                activation(),
            ]
        layers = nn.Sequential(*layers)
        self.layers = layers.to(memory_format=torch.channels_last)
        self.out_features = 4 * width * (channels // 16)

    def forward(self, features: Tensor) -> Tensor:
        image = features.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        return self.layers(image).mean(3).flatten(1)


class KeywordNet(nn.Module):
    """One level for all, front end, normalisation, SpecAugment (in training), network, dropout, linear layer.

    `(batch, time)` waves, float in -1..1 or int16, to logits `(batch, classes)`. `masks` are the most
    hidden frames and channels of SpecAugment, (0, 0) for none; `level` is what each wave is brought to, in dB
    of full scale, None for as it is. Works for any length of wave.
    """

    def __init__(
        self,
        front_end: nn.Module,
        network: nn.Module,
        classes: int,
        dropout: float = 0.0,
        masks: tuple[int, int] = (0, 0),
        level: float | None = -26.0,
    ) -> None:
        super().__init__()
        self.front_end, self.network, self.masks = front_end, network, masks
        self.level = level
        self.normalise = nn.BatchNorm1d(front_end.out_channels, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(network.out_features, classes)

    def features(self, wave: Tensor) -> Tensor:
        """The normalised features that the network sees, `(batch, channels, frames)`."""
        wave = as_float(wave)
        if self.level is not None:
            wave = to_level(wave, self.level)
        return self.normalise(self.front_end(wave))

    def forward(self, wave: Tensor) -> Tensor:
        features = self.features(wave)
        if self.training and any(self.masks):
            features = spec_augment(features, None, *self.masks)
        return self.head(self.dropout(self.network(features)))


Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def augmentation(
    noises: Mapping[str, torch.Tensor], strength: float = 1.0, noisy: float = 0.3
) -> Augment:
    """Speed, shift, microphone and noise on a whole batch, scaled by one number; 0 is no change.

    At strength 1: speed by up to 15 %, shift by up to 100 ms, another microphone (see
    `features.change_microphone`), and in a share `noisy` of the clips noise at 0 to 25 dB. The noises are
    brought to one level and joined.
    """
    noise = join_noises(noises)

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


def load_kept(device: torch.device | str = "cpu") -> tuple[KeywordNet, list[str]]:
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
        raise ValueError(f"{path.name} is a {kind[0]} over {kind[1]}, not a 2-D CNN over log-mel")
    front = LogMel(64)
    network = CNN2d(front.out_channels, round(8 * card["width"]))
    model = KeywordNet(front, network, len(card["classes"]), level=card["level"])
    load_weights(path, model)
    return model.to(device).eval(), card["classes"]
