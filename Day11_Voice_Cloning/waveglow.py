"""A compact WaveGlow (Prenger et al., 2019, arXiv:1811.00002): a normalising flow between sound and noise.

A wave is folded into groups of samples. Each flow mixes the channels with an invertible 1 x 1 convolution
(Kingma & Dhariwal, 2018, arXiv:1807.03039), then scales and shifts one half of them by the output of a small
WaveNet on the other half and the mel. Every step is invertible with a known log-determinant, so the
likelihood of a wave is known: it is the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.device import epoch_seed
from utils.features import as_float
from utils.models.tts_mel import SynthesisMel
from utils.speech.pack import to_int16


@dataclass(frozen=True)
class WaveGlowConfig:
    """Layer sizes, for one hour of one speaker and a file under 25 MB. The paper has 12 flows, group 8, 2 channels
    out after every 4 flows, WaveNets of 8 layers with 512 channels (256 in NVIDIA's code)."""

    flows: int = 8
    group: int = 16
    early_every: int = 4
    early_size: int = 4
    layers: int = 6
    channels: int = 96
    condition: int = 96
    n_mels: int = 80
    hop: int = 256


class Invertible1x1(nn.Module):
    """Mixes the channels of `(batch, channels, time)` by a square matrix, initialised as a rotation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        self.weight = nn.Parameter(rotation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed channels, and log |det| for each point in time (a scalar)."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for an inverse
            return self.weight @ x, torch.linalg.slogdet(self.weight).logabsdet

    def inverse(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.weight, x)


class SmallWaveNet(nn.Module):
    """Gated dilated convolutions (van den Oord et al., 2016, arXiv:1609.03499), not causal.

    Half the channels `(batch, half, time)` and the conditioning frames to `log s` and `t`, each `(batch, half,
    time)`. The last layer is initialised with 0, so that each flow starts as the identity.
    """

    def __init__(self, half: int, config: WaveGlowConfig) -> None:
        super().__init__()
        c, n = config.channels, config.layers
        self.start = nn.Conv1d(half, c, 1)
        self.condition = nn.Conv1d(config.condition, 2 * c * n, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(c, 2 * c, 3, dilation=2**i, padding=2**i) for i in range(n))
        self.mix = nn.ModuleList(nn.Conv1d(c, 2 * c if i < n - 1 else c, 1) for i in range(n))
        self.end = nn.Conv1d(c, 2 * half, 1)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)

    def forward(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        size, dtype, x = x.shape[2], x.dtype, self.start(x)
        total = torch.zeros_like(x)
        # 1 x 1 convolution before the upsampling: both are linear, and this order needs 16 times fewer products
        conditions = self.condition(frames).chunk(len(self.dilated), 1)
        layers = zip(self.dilated, self.mix, conditions, strict=True)
        for dilated, mix, condition in layers:
            gate, value = (dilated(x) + upsample(condition, size)).chunk(2, 1)
            out = mix(gate.sigmoid() * value.tanh())
            if out.shape[1] > x.shape[1]:
                out, more = out.chunk(2, 1)
                x = x + more
            total = total + out
        log_s, t = self.end(total).chunk(2, 1)
        return log_s.to(dtype), t.to(dtype)


def upsample(frames: Tensor, size: int) -> Tensor:
    """Linear upsampling of frames `(batch, channels, n + 1)` to `size` points; frame t is at `t * size / n`."""
    x = F.interpolate(frames, size + 1, mode="linear", align_corners=True)
    return x[:, :, :-1]


class WaveGlow(nn.Module):
    """Sound `(batch, frames * hop)` and normalised mel `(batch, n_mels, frames + 1)` to noise, and back.

    `forward` returns noise of the sound's shape and the log-determinant of each item; `decode` returns sound.
    """

    def __init__(self, config: WaveGlowConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or WaveGlowConfig()
        self.encode_mel = nn.Sequential(
            nn.Conv1d(c.n_mels, c.condition, 5, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv1d(c.condition, c.condition, 3, padding=1),
        )
        sizes = [c.group - c.early_size * (i // c.early_every) for i in range(c.flows)]
        if c.hop % c.group or c.group % 2 or c.early_size % 2 or sizes[-1] < 2:
            raise ValueError(f"sizes do not fit: hop {c.hop}, group {c.group}, channels of the flows {sizes}")
        self.mixers = nn.ModuleList(Invertible1x1(n) for n in sizes)
        self.nets = nn.ModuleList(SmallWaveNet(n // 2, c) for n in sizes)

    def _early(self, flow: int) -> bool:
        """Whether some channels are output before this flow, which gives them a shorter path for the gradient."""
        return flow > 0 and flow % self.config.early_every == 0

    def _fold(self, wave: Tensor, mel: Tensor) -> Tensor:
        c = self.config
        frames = mel.shape[2] - 1
        if wave.shape[1] != frames * c.hop:
            raise ValueError(f"{mel.shape[2]} frames go with {frames * c.hop} samples, not {wave.shape[1]}")
        return wave.unflatten(1, (-1, c.group)).transpose(1, 2)

    def forward(self, wave: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Noise `(batch, frames * hop)` and log |det| `(batch,)`. Raises ValueError where sizes do not fit."""
        x, frames = self._fold(wave, mel), self.encode_mel(mel)
        out, log_det = [], wave.new_zeros(len(wave))
        for i, (mixer, net) in enumerate(zip(self.mixers, self.nets, strict=True)):
            if self._early(i):
                out.append(x[:, : self.config.early_size])
                x = x[:, self.config.early_size :]
            x, each = mixer(x)  # (batch, channels, time)
            still, moved = x.chunk(2, 1)
            log_s, t = net(still, frames)
            x = torch.cat([still, moved * log_s.exp() + t], 1)
            log_det = log_det + log_s.sum((1, 2)) + each * x.shape[2]
        z = torch.cat([*out, x], 1)
        return z.transpose(1, 2).flatten(1), log_det

    def inverse(self, z: Tensor, mel: Tensor) -> Tensor:
        """The sound of the noise `z`: the inverse of `forward`, from the last flow to the first."""
        c = self.config
        x, frames = self._fold(z, mel), self.encode_mel(mel)
        early = [c.early_size for i in range(c.flows) if self._early(i)]
        *parts, x = x.split([*early, self.nets[-1].end.out_channels], 1)
        for i in reversed(range(c.flows)):
            still, moved = x.chunk(2, 1)
            log_s, t = self.nets[i](still, frames)
            x = self.mixers[i].inverse(torch.cat([still, (moved - t) / log_s.exp()], 1))
            if self._early(i):
                x = torch.cat([parts.pop(), x], 1)
        return x.transpose(1, 2).flatten(1)

    @torch.no_grad()
    def decode(self, mel: Tensor, sigma: float = 0.7, seed: int = 0) -> Tensor:
        """Sound `(batch, (frames - 1) * hop)` in -1..1 of a mel `(batch, n_mels, frames)`.

        From noise of standard deviation `sigma` (from `seed`, the same on every device); a value below the 1 of
        training makes the sound cleaner and duller.
        """
        if mel.shape[2] < 2:
            raise ValueError(f"{mel.shape[2]} frames are no sound: at least two are needed")
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(len(mel), (mel.shape[2] - 1) * self.config.hop, generator=g)
        return self.inverse(sigma * z.to(mel.device), mel).clamp(-1, 1)


class WaveGlowLoss(nn.Module):
    """Negative log-likelihood of a wave in nats per sample, for noise of standard deviation `sigma`."""

    def __init__(self, model: WaveGlow, sigma: float = 1.0) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        z, log_det = self.model(*batch)
        nll = z.square() / (2 * self.sigma**2) + math.log(self.sigma * math.sqrt(2 * math.pi))
        return nll.mean() - log_det.mean() / z.shape[1]


@dataclass
class Segments:
    """Random segments of sound with their mels, to train a vocoder: `(wave, mel)` in batches.

    `waves` `(time,)` each at the mel's rate, stored end to end on its device as int16. A segment has
    `frames * hop` samples and `frames + 1` mel frames, computed from a longer segment so that the frames at
    its ends are exact. Raises ValueError when no wave is long enough.
    """

    waves: InitVar[Sequence[Tensor]]
    mel: SynthesisMel
    batch_size: int
    frames: int = 32
    steps: int = 100
    seed: int = 0

    def __post_init__(self, waves: Sequence[Tensor]) -> None:
        s = self.mel.settings
        self.margin = -(-s.n_fft // 2 // s.hop)  # frames whose window crosses the edge
        self.need = (self.frames + 2 * self.margin) * s.hop
        sounds = [torch.from_numpy(to_int16(as_float(w).cpu())) for w in waves]
        sounds = [w for w in sounds if len(w) >= self.need]
        if not sounds:
            raise ValueError(f"no wave has the {self.need} samples that a segment needs")
        sizes = torch.tensor([len(w) for w in sounds])
        self.starts, self.room = sizes.cumsum(0) - sizes, sizes - self.need + 1
        self.samples = torch.cat(sounds).to(self.mel.hann.device)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int) -> Iterator[tuple[tuple[Tensor, Tensor], None]]:
        """The batches of epoch `number`; waves are drawn in proportion to their length."""
        g = torch.Generator().manual_seed(epoch_seed(self.seed, number))
        cut = self.margin * self.mel.settings.hop
        for _ in range(self.steps):
            which = torch.multinomial(self.room.double(), self.batch_size, True, generator=g)
            draw = torch.rand(self.batch_size, generator=g, dtype=torch.float64)
            start = self.starts[which] + (draw * self.room[which]).long()
            index = start[:, None] + torch.arange(self.need)
            wide = as_float(self.samples[index.to(self.samples.device)])
            yield (wide[:, cut:-cut], self.mel(wide)[:, :, self.margin : -self.margin]), None
