"""Speech and noise of Day 14, mixtures of known SNR, and the training of the enhancer."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from utils import days, training
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE, as_float, fixed_length, to_level
from utils.logger import RunLogger
from utils.models.ecapa_tdnn import RandomSegments
from utils.models.weights import save_weights, training_card, training_command
from utils.speech import augment, corpora
from utils.speech.pack import PackedSpeech, Utterances

from .enhancer import LOSSES, Enhancer, si_sdr
from .quality import stoi_scores

# --- mixtures -----------------------------------------------------------------------------------------


@dataclass
class Mixtures:
    """Noisy and clean speech `(batch, crop)` each, mixed anew for every batch: to train on.

    `noise` is one long recording `(time,)` on the device of the segments. SNR and level are drawn from uniform
    distributions over `snr_db` and `level_db` (RMS of the clean speech, dB of full scale). Noisy and clean share
    one gain, so the task is to remove the noise and nothing else. With `varied` the noises are changed
    (`varied_noises`) and limited to the band of the speech (`within_band`).
    """

    segments: RandomSegments
    noise: Tensor
    snr_db: tuple[float, float] = (-5.0, 20.0)
    level_db: tuple[float, float] = (-38.0, -18.0)
    varied: bool = False

    def __len__(self) -> int:
        return len(self.segments)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The mixtures of epoch `number` (from 0), each `(noisy, clean)`.

        Raises ValueError when the noise is shorter than a segment.
        """
        generator = torch.Generator().manual_seed(self.segments.seed * 99_991 + number)
        for clean, _ in self.segments.epoch(number):
            device, (count, length) = clean.device, clean.shape
            low, high = self.level_db
            level = (low + (high - low) * torch.rand(count, 1, generator=generator)).to(device)
            clean = to_level(clean, level)
            noise = augment.noise_segments(self.noise, count, length, generator)
            if self.varied:
                noise = within_band(varied_noises(noise, generator), clean)
            low, high = self.snr_db
            snr = (low + (high - low) * torch.rand(count, generator=generator)).to(device)
            yield augment.add_noise(clean, noise, snr), clean


@dataclass(frozen=True)
class Mixed:
    """Test mixtures: `noisy` and `clean` `(items, time)`; SNR, number of the utterance and noise of each item."""

    noisy: Tensor
    clean: Tensor
    snr_db: np.ndarray
    item: np.ndarray
    noise: list[str]

    def __len__(self) -> int:
        return len(self.noisy)

    def to(self, device: torch.device) -> Mixed:
        return replace(self, noisy=self.noisy.to(device), clean=self.clean.to(device))


def fixed_mixtures(
    waves: Sequence[Tensor],
    noises: Mapping[str, Tensor],
    snr_db: Sequence[float] = (-5, 0, 5, 10, 15, 20),
    seconds: float = 4.0,
    level_db: float = -26.0,
    seed: int = 0,
) -> Mixed:
    """Every wave at every SNR, with the same piece of noise at each; the noises (`{name: (time,)}`) take turns.

    Utterances `(time,)` are cut or padded to `seconds` and scaled to `level_db` (RMS, dB of full scale). The
    same seed gives the same mixtures.
    """
    g = torch.Generator().manual_seed(seed)
    length, names = round(seconds * SAMPLE_RATE), list(noises)
    clean, noise, kinds = [], [], []
    for i, wave in enumerate(waves):
        clean.append(to_level(fixed_length(as_float(wave), length), level_db))
        kinds.append(names[i % len(names)])
        long = noises[kinds[-1]]
        long = long.repeat(-(-length // len(long)))  # a short recording is repeated
        noise.append(augment.noise_segments(long, 1, length, g)[0])
    clean, noise = torch.stack(clean), torch.stack(noise)
    return Mixed(
        torch.cat([augment.add_noise(clean, noise, float(s)) for s in snr_db]),
        clean.repeat(len(snr_db), 1),
        np.repeat(np.asarray(snr_db, float), len(clean)),
        np.tile(np.arange(len(clean)), len(snr_db)),
        kinds * len(snr_db),
    )


# --- training -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnhancerSettings:
    """How an Enhancer is trained; `loss` is a name in `LOSSES`, `seconds` the length of a mixture.

    `varied`: voices and noises are changed before they are mixed (`varied_voices`, `varied_noises`), and no noise
    exceeds the band of its speech.
    """

    optimizer: str = "AdamW"
    lr: float = 2e-3
    batch_size: int = 16
    loss: str = "both"
    seconds: float = 3.0
    batches: int = 100
    epochs: int = 10
    channels: int = 32
    varied: bool = False


def varied_voices(wave: Tensor, generator: torch.Generator) -> Tensor:
    """Speech `(batch, time)` up to a tenth faster or slower, pitch included, and coloured by other microphones."""
    wave = augment.change_speed(as_float(wave), generator, 0.1, groups=len(wave))
    return augment.change_microphone(wave, generator, deviation=2.0, muffled=0.0)


def varied_noises(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Noises `(batch, time)` up to a quarter faster or slower and coloured.

    Half of them are mixed with another noise of the batch, reversed in time and 0 to 20 dB softer.
    """
    noise = augment.change_speed(noise, generator, 0.25, groups=len(noise))
    chance, softer = torch.rand(2, len(noise), 1, generator=generator)  # (batch, 1) each
    gain = (chance < 0.5) * 10 ** (-softer)
    noise = noise + gain.to(noise.device) * noise.roll(1, 0).flip(1)
    return augment.change_microphone(noise, generator, deviation=3.0, muffled=0.1)


def validation_quality(model: Enhancer, mixed: Mixed) -> dict[str, float]:
    """`{"si_sdr", "gain", "stoi"}`: SI-SDR of the enhanced waves, its gain over the noisy ones (both dB), STOI."""
    enhanced = training.predict(model, mixed.noisy, 16)
    after = si_sdr(enhanced, mixed.clean).mean().item()
    gain = after - si_sdr(mixed.noisy, mixed.clean).mean().item()
    return {"si_sdr": after, "gain": gain, "stoi": stoi_scores(enhanced, mixed.clean).mean().item()}


def mixtures(
    speech: PackedSpeech, noises: Mapping[str, Tensor], settings: EnhancerSettings, seed: int = 0
) -> Mixtures:
    """The batches of a training run: segments of speech and noise, mixed on the fly."""
    segments = RandomSegments(
        speech, crop=round(settings.seconds * SAMPLE_RATE), batch_size=settings.batch_size,
        batches=settings.batches, seed=seed, power=1.0,
        augment=varied_voices if settings.varied else None,
    )  # fmt: skip
    noise = augment.join_noises(noises).to(speech.samples.device)
    return Mixtures(segments, noise, varied=settings.varied)


def train_enhancer(
    speech: PackedSpeech,
    noises: Mapping[str, Tensor],
    validate: Callable[[Enhancer], Mapping[str, float]] | None,
    settings: EnhancerSettings,
    *,
    seed: int = 0,
    **more: Any,
) -> tuple[Enhancer, training.History]:
    """Train an Enhancer from random weights on speech and noise that are mixed on the fly at -5 to 20 dB SNR.

    The device is that of the speech. `validate(model)` is called after each epoch; `more` goes to
    `training.fit` (run, checkpoint, stop, bar, label). The same call after a kill continues the run.
    """
    batches = mixtures(speech, noises, settings, seed)
    model = Enhancer(settings.channels).to(speech.samples.device)
    history = training.fit_one_cycle(
        model, batches, settings.optimizer, settings.lr, settings.epochs,
        loss_fn=LOSSES[settings.loss], validate=validate, **more,
    )  # fmt: skip
    return model, history


# --- the enhancer that Day 14 ships -------------------------------------------------------------------

COLUMNS = (
    "study", "trial", "state", "system", "optimizer", "lr", "batch_size", "loss", "margin", "snr_db",
    "final_loss", "val_si_sdr", "val_gain", "val_stoi", "val_eer", "similarity", "eer", "accuracy",
    "pesq_before", "pesq_after", "stoi_before", "stoi_after", "si_sdr_before", "si_sdr_after",
    "real_time_factor", "grad_norm", "epochs", "steps", "n_params", "val_curve",
)  # fmt: skip
"""Columns of Day 14's table."""

SETTINGS: dict[str, EnhancerSettings] = {
    "quick": EnhancerSettings(channels=8, batch_size=2, batches=3, epochs=2, seconds=1.0),
    "study": EnhancerSettings(
        "RAdam", 4.6e-3, batch_size=2, batches=750, epochs=22, seconds=2.0, varied=True
    ),
    "full": EnhancerSettings(batch_size=64, batches=500, epochs=40, varied=True),
}
"""How the shipped enhancer is trained; full on a GPU."""


def day14_noises(profile: str) -> corpora.Noises:
    """ESC-10 and Speech Commands' background noises, no recording in both splits; in quick the sample's."""
    some = corpora.noises(profile)
    if profile == "quick":
        return some
    words = corpora.speech_commands(profile)
    parts = (words.train_noise, words.test_noise)
    train_noise, test_noise = ({k: to_level(v, -20.0) for k, v in part.items()} for part in parts)
    name = f"{some.name}+{words.name.rsplit('-', 1)[0]}-noise"
    return corpora.Noises(name, some.train | train_noise, some.test | test_noise)


def split_tail(noise: Mapping[str, Tensor], fraction: float = 0.1) -> tuple[dict, dict]:
    """Each recording without its last fraction, and those ends: noises to train with and to validate with."""
    cut = {k: round(len(v) * (1 - fraction)) for k, v in noise.items()}
    return {k: v[: cut[k]] for k, v in noise.items()}, {k: v[cut[k] :] for k, v in noise.items()}


def validation_mixtures(
    part: Utterances, noise: Mapping[str, Tensor], n: int, snr_db: float = 5.0
) -> tuple[Mixed, list[str]]:
    """The first `n` utterances of each validation speaker in these noises, and the speaker of each."""
    chosen = part.first_n_per_speaker(n)
    mixed = fixed_mixtures([part.sound(i) for i in chosen], noise, [snr_db])
    return mixed, [part.speakers[i] for i in chosen]


def clean_clips(clips: corpora.Clips, least_db: float = 40.0) -> corpora.Clips:
    """The clips with little noise: their loudest 200 ms are at least `least_db` dB above a soft part.

    The soft part is 150 ms long and does not include the softest 50 ms, which may be digital silence.
    """
    pieces = as_float(clips.x)[:, : clips.x.shape[1] // 160 * 160].unflatten(1, (-1, 160))
    power = pieces.square().mean(2).sort(1).values
    ratio = power[:, -20:].mean(1) / power[:, 5:20].mean(1).clamp(min=1e-12)
    return clips.take(10 * ratio.log10() >= least_db)


def own_speech(profile: str, corpus: corpora.SpeechCorpus) -> tuple[str, Utterances, Utterances]:
    """Data of the shipped enhancer: name, training and validation utterances at 16 kHz.

    In quick the bundled sentences alone; else LibriSpeech, Kathleen, and the clean ones of Speech Commands'
    training clips. A copy of LibriSpeech that was compressed by MP3 has nothing above 6 kHz: a network that
    learns from it alone treats everything up there as noise.
    """
    if profile == "quick":
        return corpus.name, corpus.train, corpus.validation
    one, words = corpora.kathleen(profile), corpora.speech_commands(profile)
    name = f"{corpus.name}+{one.name}+{words.name}"
    spoken = clean_clips(words.train).utterances(words.classes)
    parts = [corpus.train, one.train.at(SAMPLE_RATE), spoken]
    held_out = [corpus.validation, one.validation.at(SAMPLE_RATE)]
    return name, Utterances.together(parts), Utterances.together(held_out)


def weights_path(profile: str, seed: int = 0) -> Path:
    """Where the enhancer of a profile is stored."""
    return days.get(14).output(profile) / "checkpoints" / "enhancer.safetensors"


def train(profile: str, path: Path, seed: int = 0) -> training.History:
    """Train the enhancer that Day 14 ships and write it to `path`; returns the history.

    `python -m Day14_Enhancement.train` does this. The run is a row of the day's table; the card has data,
    settings, machine and the curve. Validated at 5 dB with ends of noises that are not trained on, on
    LibriSpeech's validation speakers, who are not trained on either, and on other sentences by Kathleen.
    """
    settings, device = SETTINGS[profile], pick_device()
    corpus, noise = corpora.librispeech(profile), day14_noises(profile)
    train_noise, val_noise = split_tail(noise.train)
    name, spoken, held_out = own_speech(profile, corpus)
    mixed, _ = validation_mixtures(held_out, val_noise, 12)
    validate = partial(validation_quality, mixed=mixed.to(device))
    log = RunLogger(14, profile, f"{name}+{noise.name}", device, COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("optimizer", "lr", "batch_size", "loss")}
    steps = settings.batches * settings.epochs
    with log.run(seed=seed, system="Enhancer, own", steps=steps, **chosen) as run:
        seed_everything(seed)
        spoken = spoken.packed(device)
        model, history = train_enhancer(
            spoken, train_noise, validate, settings, seed=seed, run=run, label="enhancer"
        )
        # batch norm's running means cover the last ten batches, here of few segments: take more
        fresh = mixtures(spoken, train_noise, settings, seed).epoch(settings.epochs)
        update_bn(itertools.islice(fresh, 300), model)
        end, size = history.epochs[-1], training.count_parameters(model)
        measured = {f"val_{k}": v for k, v in validate(model).items()}
        end |= measured
        run.log_metrics(n_params=size, final_loss=end["train_loss"], grad_norm=end["grad_norm"])
        run.log_metrics(**measured, snr_db=5.0)
    card = training_card(
        log, history, settings, seed, model="Enhancer", n_params=size, data=log.dataset,
        what="causal enhancement by a complex mask", snr_db=(-5, 20),
        metric=measured,
        **{"never heard": "LibriSpeech's speakers of validation and test, their noises"},
    )  # fmt: skip
    save_weights(path, model, card)
    return history


def within_band(noise: Tensor, speech: Tensor, fraction: float = 1e-4) -> Tensor:
    """Noise `(batch, time)` limited to the band of the speech that it is mixed with.

    The band ends at the frequency above which the speech has less than `fraction` of its power. Speech that was
    compressed by MP3 or came by telephone has nothing up there: mixed with noise of the full band, it would
    teach the network that all high frequencies are noise.
    """
    # without a window the ends of the segment leak into the high frequencies
    window = torch.hann_window(speech.shape[1], device=speech.device)
    power = torch.fft.rfft(window * speech).abs().square()
    above = power.flip(1).cumsum(1).flip(1)
    inside = above >= fraction * above[:, :1]
    return torch.fft.irfft(torch.fft.rfft(noise) * inside, noise.shape[1])


if __name__ == "__main__":
    sys.exit(training_command({"": (weights_path, train)}))
