"""Networks and front ends that Day 7 compares with its 2-D CNN."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from utils.models.keyword_net import Activation


class LearnedFrontEnd(nn.Module):
    """A learned filterbank on the waveform: `(batch, time)` to `(batch, channels, frames)`.

    One strided convolution with the window and hop of the other front ends (400 and 160 samples), then
    the logarithm of its squared output, smoothed over three frames (after Sainath et al., 2015).
    """

    def __init__(self, channels: int = 64, window: int = 400, hop: int = 160) -> None:
        super().__init__()
        self.out_channels = channels
        self.filters = nn.Conv1d(1, channels, window, stride=hop, padding=window // 2, bias=False)
        self.smooth = nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, wave: Tensor) -> Tensor:
        energy = self.filters(wave.float().unsqueeze(1)).square()  # (batch, channels, frames)
        return torch.log(self.smooth(energy) + 1e-5)


class ResidualBlock(nn.Module):
    """Two convolutions over 9 frames, the first with stride 2, and a 1 x 1 convolution as shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, activation: Activation, separable: bool = False
    ) -> None:
        super().__init__()
        make = separable_conv if separable else full_conv
        self.main = nn.Sequential(
            make(in_channels, out_channels, 2),
            nn.BatchNorm1d(out_channels),
            activation(),
            make(out_channels, out_channels, 1),
            nn.BatchNorm1d(out_channels),
        )
        self.shortcut = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm1d(out_channels)
        )
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.main(x) + self.shortcut(x))


def full_conv(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Convolution over 9 frames that mixes all channels."""
    return nn.Conv1d(in_channels, out_channels, 9, stride=stride, padding=4, bias=False)


def separable_conv(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A depthwise convolution over 9 frames, then a pointwise one that mixes the channels."""
    return nn.Sequential(
        nn.Conv1d(in_channels, in_channels, 9, stride=stride, padding=4, groups=in_channels, bias=False),
        nn.Conv1d(in_channels, out_channels, 1, bias=False),
    )


class TCResNet(nn.Module):
    """Convolutions over time only, with the mels as channels (TC-ResNet8, Choi et al., 2019, arXiv:1904.03814).

    `(batch, channels, frames)` to `(batch, out_features)`. `width` 1.0 is TC-ResNet8's 16, 24, 32, 48
    channels. With `separable` each 9-frame convolution is depthwise separable (as in MatchboxNet, Majumdar &
    Ginsburg, 2020, arXiv:2004.08531): fewer weights, so a wider network for the same cost.
    """

    def __init__(
        self, channels: int, width: float = 1.0, activation: Activation = nn.ReLU, separable: bool = False
    ) -> None:
        super().__init__()
        first, *rest = (round(width * c) for c in (16, 24, 32, 48))
        layers: list[nn.Module] = [
            nn.Conv1d(channels, first, 3, padding=1, bias=False),
            nn.BatchNorm1d(first),
            activation(),
        ]
        for in_channels, out_channels in pairwise((first, *rest)):
            layers.append(ResidualBlock(in_channels, out_channels, activation, separable))
        self.layers = nn.Sequential(*layers)
        self.out_features = rest[-1]

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).mean(2)
