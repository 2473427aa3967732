"""Day 7's networks for spoken words of one second: three front ends, three networks, one frame around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..features import as_float, spec_augment, to_level

Activation = Callable[[], nn.Module]


class LearnedFrontEnd(nn.Module):
    """Raw waveform to frames by a convolution that is learned: `(batch, time)` to `(batch, channels, frames)`.

    One strided convolution with the window and hop of the other front ends (400 and 160 samples), then
    the logarithm of its squared output, smoothed over three frames: a filterbank with free filters
    (after Sainath et al., 2015).
    """

    def __init__(self, channels: int = 64, window: int = 400, hop: int = 160) -> None:
        super().__init__()
        self.out_channels = channels
        self.filters = nn.Conv1d(
            1, channels, window, stride=hop, padding=window // 2, bias=False
        )
        self.smooth = nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, wave: Tensor) -> Tensor:
        energy = self.filters(wave.float().unsqueeze(1)).square()
        return torch.log(self.smooth(energy) + 1e-5)


class CNN2d(nn.Module):
    """The spectrogram as an image: a 5 x 5 convolution with stride 2, three of 3 x 3, each halved by pooling.

    `(batch, channels, frames)` to `(batch, out_features)`: mean over time, the frequencies stay apart.
    A filter may move in frequency, so a higher voice is the same picture a little further up.
    """

    def __init__(
        self, channels: int, width: int = 24, activation: Activation = nn.ReLU
    ) -> None:
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


class ResidualBlock(nn.Module):
    """Two convolutions over time of 9 frames, the first with stride 2, beside a 1 x 1 shortcut."""

    def __init__(
        self, before: int, after: int, activation: Activation, separable: bool = False
    ) -> None:
        super().__init__()
        make = separable_conv if separable else full_conv
        self.main = nn.Sequential(
            make(before, after, 2),
            nn.BatchNorm1d(after),
            activation(),
            make(after, after, 1),
            nn.BatchNorm1d(after),
        )
        self.shortcut = nn.Sequential(
            nn.Conv1d(before, after, 1, stride=2, bias=False), nn.BatchNorm1d(after)
        )
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.main(x) + self.shortcut(x))


def full_conv(before: int, after: int, stride: int) -> nn.Module:
    """Convolution over 9 frames that mixes all channels."""
    return nn.Conv1d(before, after, 9, stride=stride, padding=4, bias=False)


def separable_conv(before: int, after: int, stride: int) -> nn.Module:
    """The same in two steps: each channel over 9 frames by itself, then all channels at each frame."""
    return nn.Sequential(
        nn.Conv1d(
            before, before, 9, stride=stride, padding=4, groups=before, bias=False
        ),
        nn.Conv1d(before, after, 1, bias=False),
    )


class TCResNet(nn.Module):
    """Convolutions over time alone, the mels as channels (TC-ResNet8, Choi et al., 2019, arXiv:1904.03814).

    `(batch, channels, frames)` to `(batch, out_features)`. `width` 1.0 is TC-ResNet8's 16, 24, 32, 48
    channels. With `separable` each 9-frame convolution is parted into depthwise and pointwise (MatchboxNet
    type, Majumdar & Ginsburg, 2020, arXiv:2004.08531): fewer weights, wider for the same work.
    """

    def __init__(
        self,
        channels: int,
        width: float = 1.0,
        activation: Activation = nn.ReLU,
        separable: bool = False,
    ) -> None:
        super().__init__()
        first, *rest = (round(width * c) for c in (16, 24, 32, 48))
        layers: list[nn.Module] = [
            nn.Conv1d(channels, first, 3, padding=1, bias=False),
            nn.BatchNorm1d(first),
            activation(),
        ]
        before = first
        for after in rest:
            layers.append(ResidualBlock(before, after, activation, separable))
            before = after
        self.layers = nn.Sequential(*layers)
        self.out_features = before

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).mean(2)


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


def count_parameters(model: nn.Module) -> int:
    """Weights that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
