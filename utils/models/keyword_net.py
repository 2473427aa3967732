"""A network for spoken words of one second: a 2-D CNN over log-mel, its augmentation, its shipped weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .. import days
from ..features import SAMPLE_RATE, LogMel, as_float, to_level
from ..speech import augment
from ..training import predict
from .weights import load_weights

Activation = Callable[[], nn.Module]


class CNN2d(nn.Module):
    """The spectrogram as an image: a 5 x 5 convolution with stride 2, then three 3 x 3 ones, each with pooling.

    `(batch, channels, frames)` to `(batch, out_features)`: the mean over time, frequencies kept separate.
    Filters are shared over frequency, so a higher voice is the same pattern a little further up.
    """

    def __init__(self, channels: int, width: int = 24, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        conv = nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False)
        layers = [conv, nn.BatchNorm2d(width), activation()]
        for before in (width, 2 * width, 3 * width):
            after = before + width
            conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers += [conv, nn.MaxPool2d(2), nn.BatchNorm2d(after), activation()]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.out_features = 4 * width * (channels // 16)

    def forward(self, features: Tensor) -> Tensor:
        image = features.unsqueeze(1)  # (batch, 1, channels, frames)
        image = image.contiguous(memory_format=torch.channels_last)
        return self.layers(image).mean(3).flatten(1)  # (batch, 4 width x channels / 16)


class KeywordNet(nn.Module):
    """Level, front end, normalisation, SpecAugment (in training), network, dropout, linear layer.

    Waves `(batch, time)` of any length, float in -1..1 or int16, to logits `(batch, classes)`. `masks` are the
    largest numbers of frames and channels that SpecAugment masks, (0, 0) for none. `level` is the level that each
    wave is brought to (dB of full scale); None leaves it.
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
        """The network's input: normalised features `(batch, channels, frames)`."""
        wave = as_float(wave)
        if self.level is not None:
            wave = to_level(wave, self.level)
        return self.normalise(self.front_end(wave))

    def forward(self, wave: Tensor) -> Tensor:
        features = self.features(wave)
        if self.training and any(self.masks):
            features = augment.spec_augment(features, None, *self.masks)
        return self.head(self.dropout(self.network(features)))


Augment = Callable[[Tensor, torch.Generator], Tensor]


def augmentation(noises: Mapping[str, Tensor], strength: float = 1.0, noisy: float = 0.3) -> Augment:
    """Augmentation by speed, shift, microphone and noise on a whole batch; `strength` 0 changes nothing.

    At strength 1: speed by up to 15 %, shift by up to 100 ms, another microphone (see
    `augment.change_microphone`), and noise at 0 to 25 dB in a fraction `noisy` of the clips.
    """
    noise = augment.join_noises(noises)

    def change(wave: Tensor, generator: torch.Generator) -> Tensor:
        wave = augment.change_speed(as_float(wave), generator, 0.15 * min(strength, 1.5))
        wave = augment.time_shift(wave, generator, round(0.1 * SAMPLE_RATE * strength))
        wave = augment.change_microphone(wave, generator, 4.0 * strength, 0.3 * strength)
        chosen = torch.rand(len(wave), generator=generator) < noisy * strength
        count = int(chosen.sum())
        if count and len(noise):
            segments = augment.noise_segments(noise, count, wave.shape[1], generator)
            snr = 25 * torch.rand(count, generator=generator)
            chosen = chosen.to(wave.device)
            wave[chosen] = augment.add_noise(wave[chosen], segments, snr.to(wave.device))
        return wave

    return change


SPEEDS = (1.0, 0.92, 1.08)
"""Playing speeds that `probabilities` averages over."""


def probabilities(model: KeywordNet, wave: Tensor, speeds: Sequence[float] = SPEEDS) -> Tensor:
    """Probabilities `(batch, classes)` of waves `(batch, time)`, the mean over several playing speeds.

    Test-time augmentation: played slower, a voice has a longer vocal tract. Costs one pass per speed.
    """
    wave = as_float(wave)
    outputs = [predict(model, augment.play_at(wave, s)).softmax(1) for s in speeds]
    return torch.stack(outputs).mean(0)


def load_kept(device: torch.device | str = "cpu") -> tuple[KeywordNet, list[str]]:
    """Day 7's shipped recogniser, in evaluation mode on `device`, and its words.

    Raises FileNotFoundError when Day 7 has not run, ValueError when its card is of another network than the
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
