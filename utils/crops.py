"""Random stretches of packed utterances as training batches: for networks that learn from pieces of speech."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .features import add_noise, as_float, noise_segments, within_band

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Crops:
    """Batches of random crops `(batch, crop)` with labels `(batch,)`, in the place of `data.Batches`.

    `samples` int16 `(all samples,)` lies on the device; utterance i is `samples[starts[i] : starts[i] +
    lengths[i]]` and has the class `labels[i]`. An epoch is `batches` batches; what is in epoch e depends
    on `seed` and `e` alone, so a run that was killed goes on with the batches that it would have had.
    A class is drawn in proportion to its seconds raised to `power` (0: all classes alike, 1: as much as
    there is), an utterance of it in proportion to its length. An utterance shorter than the crop goes
    round. `augment(x, generator)` gets the int16 batch and returns floats.
    """

    def __init__(
        self,
        samples: Tensor,
        starts: Sequence[int] | np.ndarray,
        lengths: Sequence[int] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        *,
        crop: int,
        batch_size: int,
        batches: int,
        seed: int = 0,
        power: float = 0.5,
        augment: Augment | None = None,
    ) -> None:
        self.samples = samples
        self.starts, self.lengths, self.labels = (
            torch.as_tensor(np.asarray(x)).long() for x in (starts, lengths, labels)
        )
        if not len(self.starts) or not len(self.starts) == len(self.lengths) == len(
            self.labels
        ):
            raise ValueError(
                f"{len(self.starts)} starts, {len(self.lengths)} lengths, {len(self.labels)} labels"
            )
        if int(self.lengths.min()) < 1:
            raise ValueError("an utterance has no samples")
        self.crop, self.batch_size, self.batches = crop, batch_size, batches
        self.seed, self.augment = seed, augment or (lambda x, g: as_float(x))
        total = torch.zeros(int(self.labels.max()) + 1, dtype=torch.float64)
        total.index_add_(0, self.labels, self.lengths.double())
        self.weights = total[self.labels] ** (power - 1) * self.lengths
        self._next_epoch = 0

    def __len__(self) -> int:
        return self.batches

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number` (from 0), each `(x, y)`."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + number)
        device = self.samples.device
        step = torch.arange(self.crop, device=device)
        for _ in range(self.batches):
            drawn = torch.multinomial(
                self.weights, self.batch_size, replacement=True, generator=generator
            )
            length = self.lengths[drawn]
            # a long utterance is cut inside; a short one begins anywhere and goes round
            room = torch.where(length >= self.crop, length - self.crop + 1, length)
            offset = (
                torch.rand(self.batch_size, generator=generator, dtype=torch.float64)
                * room
            ).long()
            start, length, offset = (
                v.to(device)[:, None] for v in (self.starts[drawn], length, offset)
            )
            x = self.samples[start + (offset + step) % length]
            yield self.augment(x, generator), self.labels[drawn].to(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._next_epoch += 1
        return self.epoch(self._next_epoch - 1)


class Mixtures:
    """Noisy and clean speech `(batch, crop)` each, mixed anew for every batch: for learning to enhance.

    `speech` are crops of speech; `noise` is one long recording `(time,)` on the same device. SNR and
    level are drawn evenly from `snr_db` and `level_db` (dB below full scale, RMS of the clean speech);
    noisy and clean share one gain, so the task is to take the noise away and nothing else. `vary(x,
    generator)` gets the stretches of noise `(batch, crop)` before they are mixed in; `in_band` cuts them to the
    band of the speech (see `features.within_band`).
    """

    def __init__(
        self,
        speech: Crops,
        noise: Tensor,
        snr_db: tuple[float, float] = (-5.0, 20.0),
        level_db: tuple[float, float] = (-38.0, -18.0),
        vary: Augment | None = None,
        in_band: bool = False,
    ) -> None:
        if len(noise) < speech.crop:
            raise ValueError(
                f"{len(noise)} samples of noise are less than a crop of {speech.crop}"
            )
        self.speech, self.noise = speech, noise
        self.snr_db, self.level_db = snr_db, level_db
        self.vary, self.in_band = vary or (lambda x, g: x), in_band

    def __len__(self) -> int:
        return len(self.speech)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The mixtures of epoch `number` (from 0), each `(noisy, clean)`."""
        generator = torch.Generator().manual_seed(self.speech.seed * 99_991 + number)

        def between(limits: tuple[float, float], count: int) -> Tensor:
            low, high = limits
            return low + (high - low) * torch.rand(count, generator=generator)

        for clean, _ in self.speech.epoch(number):
            device, (count, length) = clean.device, clean.shape
            level = between(self.level_db, count).to(device)[:, None]
            rms = clean.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)
            clean = clean * (10 ** (level / 20) / rms)
            noise = noise_segments(self.noise, count, length, generator)
            noise = self.vary(noise, generator)
            if self.in_band:
                noise = within_band(noise, clean)
            snr = between(self.snr_db, count).to(device)
            yield add_noise(clean, noise, snr), clean
