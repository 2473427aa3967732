"""Networks and front ends that Day 7 compares with its 2-D CNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.models.keyword_net import Activation


class LearnedFrontEnd(nn.Module):
    """Raw waveform to frames by a convolution that is learned: `(batch, time)` to `(batch, channels, frames)`.

    One strided convolution with the window and hop of the other front ends (400 and 160 samples), then
    the logarithm of its squared output, smoothed over three frames: a filterbank with free filters
    (after Sainath et al., 2015).
    """

    def __init__(self, channels: int = 64, window: int = 400, hop: int = 160) -> None:
        super().__init__()
        self.out_channels = channels
        self.filters = nn.Conv1d(1, channels, window, stride=hop, padding=window // 2, bias=False)
        self.smooth = nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, wave: Tensor) -> Tensor:
        energy = self.filters(wave.float().unsqueeze(1)).square()
        return torch.log(self.smooth(energy) + 1e-5)


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
        nn.Conv1d(before, before, 9, stride=stride, padding=4, groups=before, bias=False),
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
