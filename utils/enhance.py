"""Day 14's workbench: mixtures of known SNR, quality before and after, real-time factor, and training."""

from __future__ import annotations

import importlib.util
import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from .crops import Crops, Mixtures
from .device import pick_device, seed_everything
from .features import (
    SAMPLE_RATE,
    add_noise,
    as_float,
    change_microphone,
    change_speed,
    fixed_length,
    joined,
    noise_segments,
    to_level,
)
from .logger import Run, RunLogger
from .metrics import Interval, bootstrap_mean, si_sdr
from .models.enhancement import HOP, LOSSES, Enhancer, EnhancerStream
from .models.keywords import count_parameters
from .speech import (
    Clips,
    Corpus,
    Noises,
    Sentences,
    kathleen,
    librispeech,
    noises,
    speech_commands,
)
from .training import History, fit_one_cycle, predict
from .weights import save_weights, training_card

NO_PESQ = (
    "PESQ: not measured, the package is not installed (pip install pesq, which needs a C compiler); "
    "its column stays empty"
)


# --- quality ------------------------------------------------------------------------------------------


def _checked(estimate: Tensor, clean: Tensor, rate: int) -> None:
    if rate != SAMPLE_RATE:
        raise ValueError(
            f"scores at {rate} Hz cannot be compared with those at {SAMPLE_RATE} Hz: resample first"
        )
    if estimate.shape != clean.shape or estimate.ndim != 2:
        raise ValueError(
            f"(items, time) twice is wanted: {tuple(estimate.shape)}, {tuple(clean.shape)}"
        )
    silent = clean.square().mean(1) < 1e-12
    if silent.any():
        raise ValueError(f"clean item {int(silent.nonzero()[0])} is silent: no score")


def has_pesq() -> bool:
    """Whether the optional package `pesq` is installed."""
    return importlib.util.find_spec("pesq") is not None


def stoi_scores(estimate: Tensor, clean: Tensor, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Short-time objective intelligibility, 0 to 1 (Taal et al., 2011; not the extended one): `(items,)`."""
    from pystoi import stoi

    _checked(estimate, clean, rate)
    pairs = zip(clean.cpu().numpy(), estimate.cpu().numpy(), strict=True)
    return np.array([stoi(c, e, rate) for c, e in pairs])


def pesq_scores(estimate: Tensor, clean: Tensor, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Wide-band PESQ (ITU-T P.862.2), 1.04 to 4.64: `(items,)`; nan where it finds no speech.

    Raises ImportError with the command to type where the optional package is missing.
    """
    if not has_pesq():
        raise ImportError(NO_PESQ)
    from pesq import PesqError, pesq

    _checked(estimate, clean, rate)
    scores = []
    for c, e in zip(clean.cpu().numpy(), estimate.cpu().numpy(), strict=True):
        try:
            scores.append(float(pesq(rate, c, e, "wb")))
        except PesqError:
            scores.append(float("nan"))
    return np.array(scores)


def quality(
    estimate: Tensor, clean: Tensor, rate: int = SAMPLE_RATE
) -> dict[str, np.ndarray | None]:
    """`{"pesq", "stoi", "si_sdr"}`, each `(items,)`, of waves `(items, time)` at 16 kHz against the clean ones.

    `pesq` is None, and a warning says so, where its package is not installed: leave the column empty.
    Raises ValueError for another rate, other shapes, or a silent reference.
    """
    _checked(estimate, clean, rate)
    estimate, clean = as_float(estimate).float(), as_float(clean).float()
    if not has_pesq():
        warnings.warn(NO_PESQ, stacklevel=2)
    return {
        "pesq": pesq_scores(estimate, clean, rate) if has_pesq() else None,
        "stoi": stoi_scores(estimate, clean, rate),
        "si_sdr": si_sdr(estimate, clean).cpu().numpy().astype(float),
    }


def by_snr(
    scores: Sequence[float],
    snr_db: Sequence[float],
    groups: Sequence | None = None,
    resamples: int = 1000,
) -> dict[float, Interval]:
    """Mean and 95 % interval at each SNR, drawn by `groups` (the items' speakers) where given; nan left out."""
    scores, snr_db = np.asarray(scores, float), np.asarray(snr_db, float)
    groups = np.arange(len(scores)) if groups is None else np.asarray(groups)
    found = {}
    for level in np.unique(snr_db):
        chosen = (snr_db == level) & np.isfinite(scores)
        if chosen.any():
            found[float(level)] = bootstrap_mean(
                scores[chosen], groups[chosen], resamples
            )
    return found


def real_time_factor(
    process: Callable[[Tensor], Any], seconds: float = 10.0, repeats: int = 3
) -> float:
    """Seconds of one core per second of sound, the best of `repeats`; below 1 is faster than real time.

    `process` gets a wave `(1, time)` on the CPU.
    """
    g = torch.Generator().manual_seed(0)
    wave = 0.05 * torch.randn(1, round(seconds * SAMPLE_RATE), generator=g)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            process(wave[:, :SAMPLE_RATE])
            spent = []
            for _ in range(repeats):
                began = time.perf_counter()
                process(wave)
                spent.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return min(spent) / seconds


def stream_through(model: Enhancer, wave: Tensor, chunk: int = HOP) -> Tensor:
    """`(1, time)` through the stream in pieces of `chunk` samples, `(1, time)`: what `real_time_factor` times."""
    stream = EnhancerStream(model)
    parts = [stream.push(piece) for piece in wave[0].split(chunk)]
    return torch.cat([*parts, stream.finish()])[None]


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
    samples: Tensor,
    starts: Sequence[int] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    noises: Mapping[str, Tensor],
    settings: EnhancerSettings,
    seed: int = 0,
) -> Mixtures:
    """The batches of a training: packed speech (see `train_enhancer`) and noise, mixed on the fly."""
    speech = Crops(
        samples, starts, lengths, np.zeros(len(starts), np.int64),
        crop=round(settings.seconds * SAMPLE_RATE), batch_size=settings.batch_size,
        batches=settings.batches, seed=seed, power=1.0,
        augment=varied_voices if settings.varied else None,
    )  # fmt: skip
    return Mixtures(
        speech,
        joined(noises).to(samples.device),
        vary=varied_noises if settings.varied else None,
        in_band=settings.varied,
    )


def train_enhancer(
    samples: Tensor,
    starts: Sequence[int] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    noises: Mapping[str, Tensor],
    validate: Callable[[Enhancer], Mapping[str, float]] | None,
    settings: EnhancerSettings,
    *,
    seed: int = 0,
    run: Run | None = None,
    mixed: bool = False,
    **more: Any,
) -> tuple[Enhancer, History]:
    """Train an Enhancer from random weights on mixtures of packed speech and noise made on the fly.

    `samples` int16 `(all samples,)` on the device to train on; utterance i begins at `starts[i]` and has
    `lengths[i]` samples. SNR -5 to 20 dB. `validate(model)` is asked after each epoch; `more` goes to
    `training.fit`. The same call after a kill goes on where it was.
    """
    if settings.loss not in LOSSES:
        raise ValueError(f"loss {settings.loss!r}: write one of {', '.join(LOSSES)}")
    batches = mixtures(samples, starts, lengths, noises, settings, seed)
    model = Enhancer(settings.channels).to(samples.device)
    history = fit_one_cycle(
        model, batches, settings.optimizer, settings.lr, settings.epochs, run=run,
        loss_fn=LOSSES[settings.loss], validate=validate, mixed=mixed, **more,
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
OWN: dict[str, EnhancerSettings] = {
    "quick": EnhancerSettings(
        channels=8, batch_size=2, batches=3, epochs=2, seconds=1.0
    ),
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
        {k: to_level(v, -20.0) for k, v in n.items()}
        for n in (words.train_noise, words.test_noise)
    ]
    name = f"{some.name}+{words.name.rsplit('-', 1)[0]}-noise"
    return Noises(name, some.train | more[0], some.test | more[1])


def parted(
    noise: Mapping[str, Tensor], share: float = 0.1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each recording without its last `share`, and those ends: noises to train with and to validate with."""
    cut = {k: round(len(v) * (1 - share)) for k, v in noise.items()}
    return {k: v[: cut[k]] for k, v in noise.items()}, {
        k: v[cut[k] :] for k, v in noise.items()
    }


def validation_mixtures(
    part: Sentences, noise: Mapping[str, Tensor], most: int, snr_db: float = 5.0
) -> tuple[Mixed, list[str]]:
    """The first `most` utterances of each validation speaker in these noises, and who speaks in each."""
    chosen = part.first_of_each(most)
    mixed = fixed_mixtures([part.sound(i) for i in chosen], noise, [snr_db])
    return mixed, [part.speakers[i] for i in chosen]


def clean_clips(clips: Clips, least_db: float = 40.0) -> Clips:
    """The clips with little noise in them: their loudest 200 ms are `least_db` dB above a soft part of them.

    That part is 150 ms long; softer still are only 50 ms, which may be digital silence.
    """
    pieces = as_float(clips.x)[:, : clips.x.shape[1] // 160 * 160].unflatten(
        1, (-1, 160)
    )
    power = pieces.square().mean(2).sort(1).values
    ratio = power[:, -20:].mean(1) / power[:, 5:20].mean(1).clamp(min=1e-12)
    return clips.take(10 * ratio.log10() >= least_db)


def own_speech(profile: str, corpus: Corpus) -> tuple[str, Sentences, Sentences]:
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
    return name, Sentences.together(parts), Sentences.together(held_out)


def train_own(profile: str, path: Path, seed: int = 0) -> History:
    """Train the enhancer that Day 14 ships and write it to `path`; returns the history.

    What `python -m utils pretrain --day 14` does. The run is a row of the day's table; the card has data,
    settings, machine and the curve. Validated at 5 dB in ends of noises that training never hears, on
    LibriSpeech's validation speakers, whom it never hears either, and on other sentences by Kathleen.
    """
    settings, device = OWN[profile], pick_device()
    corpus, noise = librispeech(profile), day14_noises(profile)
    heard, kept = parted(noise.train)
    name, spoken, held_out = own_speech(profile, corpus)
    mixed, _ = validation_mixtures(held_out, kept, 12)
    log = RunLogger(14, profile, f"{name}+{noise.name}", device, COLUMNS)
    chosen = {
        k: getattr(settings, k) for k in ("optimizer", "lr", "batch_size", "loss")
    }
    steps = settings.batches * settings.epochs
    with log.run(seed=seed, system="Enhancer, own", steps=steps, **chosen) as run:
        seed_everything(seed)
        validate = partial(
            validation_quality,
            noisy=mixed.noisy.to(device),
            clean=mixed.clean.to(device),
        )
        material = *spoken.packed(device), heard
        model, history = train_enhancer(
            *material, validate, settings, seed=seed, run=run, label="enhancer"
        )
        # batch norm's running means are those of the last ten batches, here of few crops: take more
        fresh = mixtures(*material, settings, seed).epoch(settings.epochs)
        update_bn(itertools.islice(fresh, 300), model)
        end = history.epochs[-1]
        end |= {f"val_{k}": v for k, v in validate(model).items()}
        size = count_parameters(model)
        run.result(
            n_params=size, final_loss=end["train_loss"], grad_norm=end["grad_norm"]
        )
        run.result(
            **{k: end[k] for k in ("val_si_sdr", "val_gain", "val_stoi")}, snr_db=5.0
        )
    card = training_card(
        log, history, settings, seed, model="Enhancer", n_params=size, data=log.dataset,
        what="causal enhancement by a complex mask", snr_db=(-5, 20),
        metric={k: end[k] for k in ("val_si_sdr", "val_gain", "val_stoi")},
        **{"never heard": "LibriSpeech's speakers of validation and test, their noises"},
    )  # fmt: skip
    save_weights(path, model, card)
    return history
