"""Speech enhancement by a small causal network that filters the spectrum, its streaming form and its losses.

All of it works on waves `(batch, time)` at 16 kHz. Frames of 512 samples, 256 apart, are multiplied by the square
root of a Hann window before the transform and after its inverse, so that overlapping frames add up to the wave
itself. The output depends on at most 32 ms of later input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.features import SAMPLE_RATE, as_float


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, `(..., time)` to `(...)`: higher is better.

    torchmetrics' implementation, with the mean of both waves removed (Le Roux et al., 2019, arXiv:1811.02508).
    Differentiable. Raises RuntimeError for two shapes.
    """
    # imported here: torchmetrics takes seconds
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    return scale_invariant_signal_distortion_ratio(estimate, reference, zero_mean=True)


N_FFT, HOP = 512, 256
BINS = N_FFT // 2 + 1


def sqrt_hann(device: torch.device | None = None) -> Tensor:
    """Square root of the periodic Hann window, `(512,)`: applied twice it sums to 1 at half overlap."""
    return torch.hann_window(N_FFT, device=device).sqrt()


def stft(wave: Tensor) -> Tensor:
    """`(batch, time)` to the complex spectrum `(batch, frames, 257)`, ceil(time / 256) + 1 frames.

    256 zeros are put before the wave, and as many as are needed after it.
    """
    size = -(-wave.shape[1] // HOP) * HOP
    padded = F.pad(wave, (HOP, size - wave.shape[1] + HOP))
    return torch.fft.rfft(padded.unfold(1, N_FFT, HOP) * sqrt_hann(wave.device))


def istft(spectrum: Tensor, length: int) -> Tensor:
    """The inverse of `stft`: `(batch, frames, 257)` to `(batch, length)`."""
    frames = torch.fft.irfft(spectrum, N_FFT) * sqrt_hann(spectrum.device)  # (batch, frames, 512)
    hops = frames[:, 1:, :HOP] + frames[:, :-1, HOP:]  # (batch, frames - 1, 256)
    return hops.flatten(1)[:, :length]


def erb_bank(low: int = 65, bands: int = 64) -> Tensor:
    """Bins to bands as overlapping triangles: `(257, low + bands)`; each bin's weights sum to 1.

    The lowest `low` bins stay as they are; above them the centres are evenly spaced in ERB numbers,
    21.4 log10(1 + 0.00437 f / Hz) (Glasberg & Moore, 1990).
    """
    hz = torch.arange(BINS, dtype=torch.float64) * SAMPLE_RATE / N_FFT
    erb = 21.4 * torch.log10(1 + 0.00437 * hz)  # (257,)
    centres = torch.linspace(float(erb[low]), float(erb[-1]), bands, dtype=torch.float64)
    bank = torch.zeros(BINS, low + bands, dtype=torch.float64)
    bank[:low, :low] = torch.eye(low)
    triangles = 1 - (erb[low:, None] - centres).abs() / (centres[1] - centres[0])
    bank[low:, low:] = triangles.clamp(min=0)  # (257 - low, bands)
    return (bank / bank.sum(1, keepdim=True)).float()


def compressed(spectrum: Tensor, power: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Magnitude, real and imaginary part of a spectrum whose magnitudes are raised to 0.3, given its power."""
    squeeze = power**-0.35  # |X| ** 0.3 / |X|
    return power**0.15, spectrum.real * squeeze, spectrum.imag * squeeze


class TimeBlock(nn.Module):
    """Dilated depthwise convolution over 3 frames (this and past ones) and 3 bands, between two 1 x 1; residual.

    `(batch, channels, frames, bands)` and the `past` frames before them, to the same and the new past.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        c, self.past = channels, 2 * dilation
        self.before = nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.PReLU(c))
        depth = nn.Conv2d(c, c, 3, dilation=(dilation, 1), padding=(0, 1), groups=c)
        self.depth = nn.Sequential(depth, nn.BatchNorm2d(c), nn.PReLU(c))
        self.after = nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([past.to(x.dtype), self.before(x)], 2)  # (batch, c, past + frames, bands)
        return x + self.after(self.depth(seen)), seen[:, :, -self.past :]


class DualPath(nn.Module):
    """An MLP across the bands of each frame, then a GRU forward in time along each band.

    `(batch, channels, frames, bands)` and the state `(1, batch * bands, hidden)`, to the same two. Like DPRNN (Luo
    et al., 2020), whose GRU across the bands would take 33 sequential steps in every frame.
    """

    def __init__(self, channels: int, bands: int, hidden: int) -> None:
        super().__init__()
        self.across = nn.Sequential(nn.Linear(bands, 2 * bands), nn.PReLU(), nn.Linear(2 * bands, bands))
        self.along = nn.GRU(channels, hidden, batch_first=True)
        self.out = nn.ModuleList(nn.Linear(n, channels) for n in (channels, hidden))
        self.norm = nn.ModuleList(nn.LayerNorm((bands, channels)) for _ in range(2))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, frames, bands = x.shape
        y = self.across(x).permute(0, 2, 3, 1)  # (batch, frames, bands, channels)
        x = x.permute(0, 2, 3, 1) + self.norm[0](self.out[0](y))
        rows = x.transpose(1, 2).reshape(batch * bands, frames, channels)
        y, state = self.along(rows, state)  # (batch * bands, frames, hidden)
        y = self.out[1](y).view(batch, bands, frames, channels).transpose(1, 2)
        x = x + self.norm[1](y)
        return x.permute(0, 3, 1, 2), state


def down_block(in_channels: int, out_channels: int) -> nn.Module:
    """Convolution over 5 bands with stride 2: half the bands."""
    conv = nn.Conv2d(in_channels, out_channels, (1, 5), stride=(1, 2), padding=(0, 2))
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.PReLU(out_channels))


class Enhancer(nn.Module):
    """Causal enhancement by a complex ratio mask, similar to GTCRN (Rong et al., 2024): 74 thousand weights.

    `(batch, time)` noisy, float or int16, to `(batch, time)` enhanced. The compressed spectrum (magnitude
    to the power 0.3, with real and imaginary part) is merged into 129 bands. Strided convolutions halve them
    twice; dilated convolutions (receptive field 33 frames) and two dual-path blocks work along time; transposed
    convolutions give 129 bands of a complex mask, which is spread over the 257 bins and multiplied with the
    noisy spectrum. Before training the mask is 1: the output is the input.
    """

    def __init__(self, channels: int = 32, hidden: int = 48) -> None:
        super().__init__()
        c, self.channels, self.hidden = channels, channels, hidden
        bank = erb_bank()
        self.register_buffer("merge", bank / bank.sum(0), persistent=False)
        self.register_buffer("spread", bank.T.contiguous(), persistent=False)
        self.bands = 33  # 129, halved twice
        self.down = nn.ModuleList([down_block(3, c), down_block(c, c)])
        self.encoder = nn.ModuleList(TimeBlock(c, d) for d in (1, 2, 5))
        self.paths = nn.ModuleList(DualPath(c, self.bands, hidden) for _ in range(2))
        self.decoder = nn.ModuleList(TimeBlock(c, d) for d in (5, 2, 1))
        shape = {"kernel_size": (1, 5), "stride": (1, 2), "padding": (0, 2)}
        self.up = nn.Sequential(nn.ConvTranspose2d(c, c, **shape), nn.BatchNorm2d(c), nn.PReLU(c))
        self.mask = nn.ConvTranspose2d(c, 2, **shape)
        nn.init.zeros_(self.mask.weight)
        with torch.no_grad():
            self.mask.bias.copy_(torch.tensor([1.0, 0.0]))

    def start(self, batch: int) -> list[Tensor]:
        """The state before the first frame, in the order of the blocks: silence and zeros."""
        new = self.mask.weight.new_zeros

        def past(blocks: nn.ModuleList) -> list[Tensor]:
            return [new(batch, self.channels, block.past, self.bands) for block in blocks]

        hidden = [new(1, batch * self.bands, self.hidden) for _ in self.paths]
        return past(self.encoder) + hidden + past(self.decoder)

    def filter(self, spectrum: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Noisy frames `(batch, frames, 257)` and the state before, to enhanced frames and the state after."""
        power = spectrum.real.square() + spectrum.imag.square() + 1e-10
        x = torch.stack(compressed(spectrum, power), 1) @ self.merge  # (batch, 3, frames, 129)
        first = self.down[0](x)  # (batch, c, frames, 65)
        second = x = self.down[1](first)  # (batch, c, frames, 33)
        states, after = iter(state), []

        def through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
            for block in blocks:
                x, new = block(x, next(states))
                after.append(new)
            return x

        x = through(self.encoder, x)
        x = through(self.paths, x) + x
        x = through(self.decoder, x)
        mask = self.mask(self.up(x + second) + first)  # (batch, 2, frames, 129)
        real, imag = (mask.float() @ self.spread).unbind(1)  # (batch, frames, 257)
        # the product by parts: complex autograd is slower
        out = torch.complex(
            spectrum.real * real - spectrum.imag * imag, spectrum.real * imag + spectrum.imag * real
        )
        return out, after

    def forward(self, wave: Tensor) -> Tensor:
        wave = as_float(wave)
        spectrum, _ = self.filter(stft(wave), self.start(len(wave)))
        return istft(spectrum, wave.shape[1])


class EnhancerStream:
    """The same network on sound as it arrives, frame by frame: the concatenated pieces equal the whole.

    `push((time,))` returns the samples that are complete, 256 to 511 behind the input; `finish()` the rest.
    One wave at a time, in evaluation mode, without gradient. Most of the time of a frame goes into calling many
    small operations: four frames at once cost little more than one.
    """

    def __init__(self, model: Enhancer) -> None:
        self.model = model.eval()
        self.window = sqrt_hann(model.mask.weight.device)
        self.reset()

    def reset(self) -> None:
        """Begin a new wave."""
        self.rest = self.tail = self.window.new_zeros(HOP)
        self.state = self.model.start(1)
        self.skip, self.missing = HOP, 0  # the first half frame lies before the wave

    @torch.inference_mode()
    def push(self, chunk: Tensor) -> Tensor:
        """Add samples `(time,)`, any number of them; returns the enhanced samples that they complete."""
        self.missing += len(chunk)
        self.rest = torch.cat([self.rest, as_float(chunk).to(self.rest)])
        frames = (len(self.rest) - N_FFT) // HOP + 1
        if frames <= 0:
            return self.rest.new_zeros(0)
        cut = self.rest.unfold(0, N_FFT, HOP)[:frames] * self.window  # (frames, 512)
        self.rest = self.rest[frames * HOP :]
        spectrum, self.state = self.model.filter(torch.fft.rfft(cut)[None], self.state)
        made = torch.fft.irfft(spectrum[0], N_FFT) * self.window  # (frames, 512)
        tails = torch.cat([self.tail[None], made[:-1, HOP:]])
        self.tail = made[-1, HOP:]
        out = (made[:, :HOP] + tails).flatten()[self.skip :]
        self.skip = 0
        self.missing -= len(out)
        return out

    def finish(self) -> Tensor:
        """The samples that still waited for later input; then ready for another wave."""
        missing = self.missing
        out = self.push(self.rest.new_zeros(N_FFT))[:missing]
        self.reset()
        return out


# --- losses -------------------------------------------------------------------------------------------


def si_sdr_loss(estimate: Tensor, clean: Tensor) -> Tensor:
    """Negative SI-SDR in dB, the mean over `(batch, time)`."""
    return -si_sdr(estimate, clean).mean()


def compressed_loss(estimate: Tensor, clean: Tensor) -> Tensor:
    """Distance of spectra whose magnitudes are raised to 0.3 (Braun & Tashev, 2021, arXiv:2009.12286).

    0.3 of the squared distance with phase, plus 0.7 of that without. Both waves `(batch, time)` are first
    divided by the RMS of the clean one, so that loud examples have no greater weight than soft ones.
    """
    rms = clean.square().mean(1, keepdim=True).sqrt().clamp(min=1e-4)
    parts = []
    for wave in (estimate, clean):
        spectrum = stft(wave / rms)
        power = spectrum.real.square() + spectrum.imag.square()
        # the floor keeps the gradient of the root finite at silence
        parts.append(compressed(spectrum, power.clamp(min=1e-6)))
    size, real, imag = (a - b for a, b in zip(*parts, strict=True))
    return (0.3 * (real.square() + imag.square()) + 0.7 * size.square()).mean()


def both_losses(estimate: Tensor, clean: Tensor) -> Tensor:
    """The compressed distance plus a hundredth of the negative SI-SDR (in dB)."""
    return compressed_loss(estimate, clean) + 0.01 * si_sdr_loss(estimate, clean)


LOSSES = {"si_sdr": si_sdr_loss, "compressed": compressed_loss, "both": both_losses}
"""Losses of `(estimate, clean)`, `(batch, time)` each, by the name that the searches use."""
