"""Day 14's workbench: mixtures of known SNR, quality before and after, real-time factor, and training."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from utils import days
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE, as_float, fixed_length, to_level
from utils.logger import RunLogger
from utils.models.ecapa_tdnn import Augment, RandomSegments
from utils.speech.augment import (
    add_noise,
    change_microphone,
    change_speed,
    join_noises,
    noise_segments,
)
from utils.speech.corpora import (
    Clips,
    Noises,
    PackedSpeech,
    SpeechCorpus,
    Utterances,
    kathleen,
    librispeech,
    noises,
    speech_commands,
)
from utils.training import (
    History,
    count_parameters,
    fit_one_cycle,
    predict,
    save_weights,
    training_card,
    training_command,
)

from .enhancer import LOSSES, Enhancer, si_sdr
from .quality import stoi_scores


class Mixtures:
    """Noisy and clean speech `(batch, crop)` each, mixed anew for every batch: for learning to enhance.

    `speech` are random segments of speech; `noise` is one long recording `(time,)` on the same device. SNR and
    level are drawn evenly from `snr_db` and `level_db` (dB below full scale, RMS of the clean speech);
    noisy and clean share one gain, so the task is to take the noise away and nothing else. `vary(x,
    generator)` gets the stretches of noise `(batch, crop)` before they are mixed in; `in_band` cuts them to the
    band of the speech (see `features.within_band`).
    """

    def __init__(
        self,
        speech: RandomSegments,
        noise: Tensor,
        snr_db: tuple[float, float] = (-5.0, 20.0),
        level_db: tuple[float, float] = (-38.0, -18.0),
        vary: Augment | None = None,
        in_band: bool = False,
    ) -> None:
        if len(noise) < speech.crop:
            raise ValueError(f"{len(noise)} samples of noise are less than a crop of {speech.crop}")
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


# --- mixtures -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """Test mixtures: `noisy` and `clean` `(items, time)`, and for each item its SNR, utterance and noise."""

    noisy: Tensor
    clean: Tensor
    snr_db: np.ndarray
    item: np.ndarray
    noise: list[str]

    def __len__(self) -> int:
        return len(self.noisy)


def fixed_mixtures(
    waves: Sequence[Tensor],
    noises: Mapping[str, Tensor],
    snr_db: Sequence[float] = (-5, 0, 5, 10, 15, 20),
    seconds: float = 4.0,
    level_db: float = -26.0,
    seed: int = 0,
) -> Mixed:
    """Every wave at every SNR: the same noise stretch at each, the noises (`{name: (time,)}`) in turn.

    Utterances `(time,)` are cut or filled to `seconds` and brought to `level_db` (RMS, dB of full scale). The
    same seed gives the same mixtures.
    """
    g = torch.Generator().manual_seed(seed)
    length, names = round(seconds * SAMPLE_RATE), list(noises)
    clean, noise, kinds = [], [], []
    for i, wave in enumerate(waves):
        wave = fixed_length(as_float(torch.as_tensor(wave)), length)
        rms = wave.square().mean().sqrt().clamp(min=1e-6)
        clean.append(wave * 10 ** (level_db / 20) / rms)
        kinds.append(names[i % len(names)])
        long = noises[kinds[-1]]
        long = long.repeat(-(-length // len(long)))  # a short recording goes round
        noise.append(noise_segments(long, 1, length, g)[0])
    clean, noise = torch.stack(clean), torch.stack(noise)
    return Mixed(
        torch.cat([add_noise(clean, noise, float(s)) for s in snr_db]),
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
    goes beyond the band of its speech.
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
    """Speech `(batch, time)` as of other people before other microphones: up to a tenth faster or slower, pitch
    included, and coloured."""
    wave = change_speed(as_float(wave), generator, 0.1, groups=len(wave))
    return change_microphone(wave, generator, deviation=2.0, muffled=0.0)


def varied_noises(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Noises `(batch, time)` as of other recordings: up to a quarter faster or slower, coloured, and half of them
    with a second one of the batch, 0 to 20 dB softer, turned around in time, behind them."""
    noise = change_speed(noise, generator, 0.25, groups=len(noise))
    chance, softer = torch.rand(2, len(noise), 1, generator=generator)
    gain = (chance < 0.5) * 10 ** (-softer)
    noise = noise + gain.to(noise.device) * noise.roll(1, 0).flip(1)
    return change_microphone(noise, generator, deviation=3.0, muffled=0.1)


def validation_quality(
    model: Enhancer, noisy: Tensor, clean: Tensor, batch_size: int = 16
) -> dict[str, float]:
    """`{"si_sdr", "gain", "stoi"}`: SI-SDR enhanced, how much above the noisy waves it is (both dB), STOI."""
    enhanced = predict(model, noisy, batch_size)
    after = si_sdr(enhanced, clean).mean().item()
    gain = after - si_sdr(noisy, clean).mean().item()
    stoi = float(stoi_scores(enhanced, clean).mean())
    return {"si_sdr": after, "gain": gain, "stoi": stoi}


def mixtures(
    speech: PackedSpeech, noises: Mapping[str, Tensor], settings: EnhancerSettings, seed: int = 0
) -> Mixtures:
    """The batches of a training run: segments of speech and noise, mixed on the fly."""
    segments = RandomSegments(
        speech, crop=round(settings.seconds * SAMPLE_RATE), batch_size=settings.batch_size,
        batches=settings.batches, seed=seed, power=1.0,
        augment=varied_voices if settings.varied else None,
    )  # fmt: skip
    return Mixtures(
        segments,
        join_noises(noises).to(speech.samples.device),
        vary=varied_noises if settings.varied else None,
        in_band=settings.varied,
    )


def train_enhancer(
    speech: PackedSpeech,
    noises: Mapping[str, Tensor],
    validate: Callable[[Enhancer], Mapping[str, float]] | None,
    settings: EnhancerSettings,
    *,
    seed: int = 0,
    **more: Any,
) -> tuple[Enhancer, History]:
    """Train an Enhancer from random weights on speech and noise that are mixed on the fly at -5 to 20 dB SNR.

    The device is that of the speech. `validate(model)` is called after each epoch; `more` goes to
    `training.fit` (run, checkpoint, stop, bar, label). The same call after a kill continues the run.
    """
    if settings.loss not in LOSSES:
        raise ValueError(f"loss {settings.loss!r}: write one of {', '.join(LOSSES)}")
    batches = mixtures(speech, noises, settings, seed)
    model = Enhancer(settings.channels).to(speech.samples.device)
    history = fit_one_cycle(
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


def day14_noises(profile: str) -> Noises:
    """ESC-10 and Speech Commands' background noises, no recording in both parts; in quick the sample's."""
    some = noises(profile)
    if profile == "quick":
        return some
    words = speech_commands(profile)
    more = [
        {k: to_level(v, -20.0) for k, v in n.items()} for n in (words.train_noise, words.test_noise)
    ]
    name = f"{some.name}+{words.name.rsplit('-', 1)[0]}-noise"
    return Noises(name, some.train | more[0], some.test | more[1])


def split_tail(
    noise: Mapping[str, Tensor], share: float = 0.1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each recording without its last `share`, and those ends: noises to train with and to validate with."""
    cut = {k: round(len(v) * (1 - share)) for k, v in noise.items()}
    return {k: v[: cut[k]] for k, v in noise.items()}, {k: v[cut[k] :] for k, v in noise.items()}


def validation_mixtures(
    part: Utterances, noise: Mapping[str, Tensor], most: int, snr_db: float = 5.0
) -> tuple[Mixed, list[str]]:
    """The first `most` utterances of each validation speaker in these noises, and who speaks in each."""
    chosen = part.first_n_per_speaker(most)
    mixed = fixed_mixtures([part.sound(i) for i in chosen], noise, [snr_db])
    return mixed, [part.speakers[i] for i in chosen]


def clean_clips(clips: Clips, least_db: float = 40.0) -> Clips:
    """The clips with little noise in them: their loudest 200 ms are `least_db` dB above a soft part of them.

    That part is 150 ms long; softer still are only 50 ms, which may be digital silence.
    """
    pieces = as_float(clips.x)[:, : clips.x.shape[1] // 160 * 160].unflatten(1, (-1, 160))
    power = pieces.square().mean(2).sort(1).values
    ratio = power[:, -20:].mean(1) / power[:, 5:20].mean(1).clamp(min=1e-12)
    return clips.take(10 * ratio.log10() >= least_db)


def own_speech(profile: str, corpus: SpeechCorpus) -> tuple[str, Utterances, Utterances]:
    """What the shipped enhancer is trained on and validated with: name and two parts at 16 kHz.

    In quick the bundled sentences alone; else LibriSpeech, Kathleen, and Speech Commands' training clips as far
    as they are clean. A copy of LibriSpeech that came through MP3 has nothing above 6 kHz, and who learns from it
    alone takes everything up there for noise.
    """
    if profile == "quick":
        return corpus.name, corpus.train, corpus.validation
    one, words = kathleen(profile), speech_commands(profile)
    name = f"{corpus.name}+{one.name}+{words.name}"
    spoken = clean_clips(words.train).sentences(words.classes)
    parts = [corpus.train, one.train.at(SAMPLE_RATE), spoken]
    held_out = [corpus.validation, one.validation.at(SAMPLE_RATE)]
    return name, Utterances.together(parts), Utterances.together(held_out)


def weights_path(profile: str, seed: int = 0) -> Path:
    """Where the enhancer of a profile is kept."""
    return days.get(14).output(profile) / "checkpoints" / "enhancer.safetensors"


def train(profile: str, path: Path, seed: int = 0) -> History:
    """Train the enhancer that Day 14 ships and write it to `path`; returns the history.

    What `python -m Day14_Enhancement.train` does. The run is a row of the day's table; the card has data,
    settings, machine and the curve. Validated at 5 dB in ends of noises that training never hears, on
    LibriSpeech's validation speakers, whom it never hears either, and on other sentences by Kathleen.
    """
    settings, device = SETTINGS[profile], pick_device()
    corpus, noise = librispeech(profile), day14_noises(profile)
    heard, kept = split_tail(noise.train)
    name, spoken, held_out = own_speech(profile, corpus)
    mixed, _ = validation_mixtures(held_out, kept, 12)
    log = RunLogger(14, profile, f"{name}+{noise.name}", device, COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("optimizer", "lr", "batch_size", "loss")}
    steps = settings.batches * settings.epochs
    with log.run(seed=seed, system="Enhancer, own", steps=steps, **chosen) as run:
        seed_everything(seed)
        validate = partial(
            validation_quality, noisy=mixed.noisy.to(device), clean=mixed.clean.to(device)
        )
        spoken = spoken.packed(device)
        model, history = train_enhancer(
            spoken, heard, validate, settings, seed=seed, run=run, label="enhancer"
        )
        # batch norm's running means are those of the last ten batches, here of few crops: take more
        fresh = mixtures(spoken, heard, settings, seed).epoch(settings.epochs)
        update_bn(itertools.islice(fresh, 300), model)
        end = history.epochs[-1]
        end |= {f"val_{k}": v for k, v in validate(model).items()}
        size = count_parameters(model)
        run.log_metrics(n_params=size, final_loss=end["train_loss"], grad_norm=end["grad_norm"])
        run.log_metrics(**{k: end[k] for k in ("val_si_sdr", "val_gain", "val_stoi")}, snr_db=5.0)
    card = training_card(
        log, history, settings, seed, model="Enhancer", n_params=size, data=log.dataset,
        what="causal enhancement by a complex mask", snr_db=(-5, 20),
        metric={k: end[k] for k in ("val_si_sdr", "val_gain", "val_stoi")},
        **{"never heard": "LibriSpeech's speakers of validation and test, their noises"},
    )  # fmt: skip
    save_weights(path, model, card)
    return history


def within_band(noise: Tensor, speech: Tensor, share: float = 1e-4) -> Tensor:
    """Noise `(batch, time)` without what lies above the band of the speech it is to be mixed with.

    A band ends at the frequency above which there is less than `share` of the speech's power. Speech that
    came through MP3 or a telephone has nothing up there: mixed with noise of the full band, it would teach
    that whatever is high is noise.
    """
    # without a window the ends of the stretch leak into the top
    window = torch.hann_window(speech.shape[1], device=speech.device)
    power = torch.fft.rfft(window * speech).abs().square()
    above = power.flip(1).cumsum(1).flip(1)
    inside = above >= share * above[:, :1]
    return torch.fft.irfft(torch.fft.rfft(noise) * inside, noise.shape[1])


if __name__ == "__main__":
    sys.exit(training_command({"": (weights_path, train)}))
