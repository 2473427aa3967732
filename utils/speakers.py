"""Day 13's verifier: augmentation and training of a speaker encoder, calibration, and `verify(a, b)`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import days
from .crops import Augment, Crops
from .device import pick_device, seed_everything
from .features import (
    SAMPLE_RATE,
    AudioError,
    add_noise,
    as_float,
    joined,
    noise_segments,
    read_audio,
    resample,
    reverberate,
    room_response,
    to_mono,
)
from .logger import Run, RunLogger
from .models.keywords import count_parameters
from .models.speaker import Embedder, SpeakerClassifier, SpeakerNet, aam_softmax
from .speech import Corpus, Sentences, librispeech, noises, speech_commands
from .training import History, fit_one_cycle
from .verification import (
    Calibration,
    all_pairs,
    calibrate,
    cosine_scores,
    eer,
    mean_embeddings,
)
from .weights import load_weights, save_weights, training_card

SHORTEST = 0.5
"""Seconds: a recording that is shorter says too little of a voice."""
SILENCE_DB = -60.0
"""RMS in dB of full scale under which a recording counts as silent."""


# --- training -----------------------------------------------------------------------------------------


def voice_augmentation(
    noises: Mapping[str, Tensor],
    noisy: float = 0.5,
    wet: float = 0.3,
    snr_db: tuple[float, float] = (0.0, 20.0),
    rt60: tuple[float, float] = (0.15, 0.8),
    rooms: int = 200,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Augment:
    """Reverberation in a share `wet` of the crops, then noise in a share `noisy`: int16 to float `(batch, time)`.

    The rooms are made once and drawn from. `rt60` in s, `snr_db` in dB, both drawn evenly.
    """
    noise = joined(noises).to(device)
    g = torch.Generator().manual_seed(seed)
    times = rt60[0] + (rt60[1] - rt60[0]) * torch.rand(rooms, generator=g)
    responses = room_response(times, g).to(device)

    def augment(wave: Tensor, generator: torch.Generator) -> Tensor:
        wave = as_float(wave).clone()
        count = len(wave)
        chosen = torch.rand(count, generator=generator).lt(wet).to(wave.device)
        room = torch.randint(rooms, (count,), generator=generator).to(wave.device)
        if wet > 0 and chosen.any():
            wave[chosen] = reverberate(wave[chosen], responses[room[chosen]])
        chosen = torch.rand(count, generator=generator).lt(noisy).to(wave.device)
        snr = torch.rand(count, generator=generator).to(wave.device)
        snr = snr_db[0] + (snr_db[1] - snr_db[0]) * snr
        if len(noise) and noisy > 0 and chosen.any():
            some = int(chosen.sum())
            segments = noise_segments(noise, some, wave.shape[1], generator)
            wave[chosen] = add_noise(wave[chosen], segments, snr[chosen])
        return wave

    return augment


def validation_eer(
    encoder: Embedder, waves: Sequence[Tensor], speakers: Sequence[str]
) -> dict[str, float]:
    """`{"eer", "similarity"}` over all pairs of these utterances: EER, mean cosine of same-speaker trials."""
    pairs, same = all_pairs(speakers)
    scores = cosine_scores(encoder.embed(waves), pairs)
    return {"eer": eer(scores, same).rate, "similarity": float(scores[same].mean())}


@dataclass(frozen=True)
class SpeakerSettings:
    """How a SpeakerNet is trained. `seconds` of a crop; `power` balances the speakers (see Crops)."""

    optimizer: str = "AdamW"
    lr: float = 2e-3
    batch_size: int = 64
    margin: float = 0.2
    scale: float = 30.0
    seconds: float = 2.0
    batches: int = 100
    epochs: int = 10
    power: float = 0.5
    channels: int = 256


def train_speaker_net(
    samples: Tensor,
    starts: Sequence[int] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    speakers: Sequence[str],
    validate: Callable[[Embedder], Mapping[str, float]] | None,
    settings: SpeakerSettings,
    augment: Augment | None = None,
    *,
    encoder: SpeakerNet | None = None,
    directions: Tensor | None = None,
    seed: int = 0,
    run: Run | None = None,
    mixed: bool = True,
    **more: Any,
) -> tuple[SpeakerNet, History]:
    """Train a SpeakerNet with AAM-softmax on crops of packed utterances: from random weights, or `encoder` on.

    An encoder that is trained on should be given `directions` `(speakers, dim)`, in the order of the sorted names,
    such as `voice_directions` finds: random ones pull at weights that were good.

    `samples` int16 `(all samples,)` on the device to train on; utterance i begins at `starts[i]`, has
    `lengths[i]` samples and is by `speakers[i]`. `validate(encoder)` is asked after each epoch, e.g. with
    `validation_eer`; `more` goes to `training.fit` (checkpoint, stop, bar, label). OneCycle schedule.
    The same call after a kill goes on where it was. Seed the random numbers before (`seed_everything`).
    """
    names = sorted(set(speakers))
    number = {name: i for i, name in enumerate(names)}
    batches = Crops(
        samples, starts, lengths, [number[s] for s in speakers],
        crop=round(settings.seconds * SAMPLE_RATE), batch_size=settings.batch_size,
        batches=settings.batches, seed=seed, power=settings.power, augment=augment,
    )  # fmt: skip
    encoder = encoder or SpeakerNet(settings.channels)
    model = SpeakerClassifier(encoder, len(names)).to(samples.device)
    if directions is not None:
        with torch.no_grad():
            model.directions.copy_(directions)
    history = fit_one_cycle(
        model, batches, settings.optimizer, settings.lr, settings.epochs, run=run,
        loss_fn=partial(aam_softmax, margin=settings.margin, scale=settings.scale),
        validate=(lambda m: validate(m.encoder)) if validate else None, mixed=mixed, **more,
    )  # fmt: skip
    return encoder, history


def voice_directions(
    encoder: SpeakerNet,
    samples: Tensor,
    starts: Sequence[int] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    speakers: Sequence[str],
    most: int = 4,
    seconds: float = 4.0,
) -> Tensor:
    """Where the encoder already puts each training speaker: unit vectors `(speakers, dim)`, by sorted names.

    The mean over the first `seconds` of up to `most` utterances of each; the arguments are those of
    `train_speaker_net`.
    """
    who, size = np.asarray(speakers), round(seconds * SAMPLE_RATE)
    own = [np.flatnonzero(who == name)[:most] for name in sorted(set(speakers))]
    waves = [
        samples[starts[i] : starts[i] + min(lengths[i], size)]
        for some in own
        for i in some
    ]
    vectors = encoder.embed(waves).split([len(some) for some in own])
    return torch.stack([mean_embeddings(some) for some in vectors])


# --- the encoder that Day 13 ships --------------------------------------------------------------------

COLUMNS = (
    "model", "n_params", "optimizer", "lr", "batch_size", "margin", "steps", "speakers", "enrolment",
    "seconds_used", "scores", "loss", "eer", "eer_low", "eer_high", "min_dcf", "accuracy",
    "identification", "similarity", "threshold", "val_eer", "grad_norm",
)  # fmt: skip
"""Columns of Day 13's table."""
OWN: dict[str, SpeakerSettings] = {
    "quick": SpeakerSettings(channels=16, batch_size=8, batches=4, epochs=2),
    "study": SpeakerSettings(channels=128, batches=50, epochs=20),
    "full": SpeakerSettings(channels=128, batch_size=128, batches=125, epochs=16),
}
"""How the encoder of our own is trained; full on a GPU."""
SPEEDS = (1.0, 0.9, 1.1)
"""A voice played at another speed is another voice: three training speakers from each."""


@dataclass(frozen=True)
class Voices:
    """Training utterances of many speakers, packed: see `train_speaker_net`."""

    name: str
    samples: Tensor
    starts: np.ndarray
    lengths: np.ndarray
    speakers: list[str]


def training_voices(
    profile: str, corpus: Corpus, speeds: Sequence[float] = SPEEDS
) -> Voices:
    """The speakers to train with: LibriSpeech's and Speech Commands' training parts, each at all `speeds`.

    In quick the bundled sentences' and words' voices. A voice at another speed counts as another speaker
    (Yamamoto et al., 2019): pitch and formants move together.
    """
    words = speech_commands(profile)
    spoken = words.train.sentences(words.classes)
    # the bundled words and sentences share voices
    held_out = {*corpus.validation.speakers, *corpus.test.speakers}
    spoken = spoken.take([s not in held_out for s in spoken.speakers])
    parts = [corpus.train, spoken]
    waves, speakers = [], []
    for speed in speeds:
        for part in parts:
            for i, speaker in enumerate(part.speakers):
                wave = torch.from_numpy(np.array(part.wave(i)))
                if speed != 1:
                    faster = resample(as_float(wave), round(SAMPLE_RATE * speed))
                    wave = (faster.clamp(-1, 1) * 32767).short()
                waves.append(wave)
                speakers.append(f"{speaker} x{speed}")
    lengths = np.array([len(w) for w in waves])
    return Voices(
        f"{corpus.name}+{words.name}", torch.cat(waves), lengths.cumsum() - lengths, lengths, speakers
    )  # fmt: skip


def few_of_each(
    part: Sentences, most: int, seconds: float = 4.0
) -> tuple[list[Tensor], list[str]]:
    """The first `most` utterances of each speaker, cut to `seconds`: waves and speakers, to validate with."""
    chosen = part.first_of_each(most)
    waves = [part.sound(i)[: round(seconds * SAMPLE_RATE)] for i in chosen]
    return waves, [part.speakers[i] for i in chosen]


def fit_own(
    profile: str,
    voices: Voices,
    validate: Callable[[Embedder], Mapping[str, float]] | None = None,
    seed: int = 0,
    **more: Any,
) -> tuple[SpeakerNet, History]:
    """The training of the encoder that Day 13 ships, alone: the same seed gives the same steps.

    `more` goes on to `training.fit`: with `stop` after an epoch it is the check that the weights' card is true.
    """
    device = pick_device()
    seed_everything(seed)
    return train_speaker_net(
        voices.samples.to(device), voices.starts, voices.lengths, voices.speakers,
        validate, OWN[profile],
        voice_augmentation(noises(profile).train, device=device, seed=seed),
        seed=seed, label=f"encoder, seed {seed}", **more,
    )  # fmt: skip


def train_own(profile: str, path: Path, seed: int = 0) -> History:
    """Train the encoder that Day 13 ships and write it to `path` in float16; returns the history.

    What `python -m utils pretrain --day 13` does. The run is a row of the day's table; the card has data,
    settings, machine and the curve. Stopped and validated on LibriSpeech's four validation speakers.
    """
    settings, device = OWN[profile], pick_device()
    corpus = librispeech(profile)
    voices = training_voices(profile, corpus)
    waves, names = few_of_each(corpus.validation, 20)
    log = RunLogger(13, profile, voices.name, device, COLUMNS)
    steps = settings.batches * settings.epochs
    chosen = {
        k: getattr(settings, k) for k in ("optimizer", "lr", "batch_size", "margin")
    }
    with log.run(seed=seed, model="SpeakerNet, own", steps=steps, **chosen) as run:
        validate = partial(validation_eer, waves=waves, speakers=names)
        encoder, history = fit_own(profile, voices, validate, seed, run=run)
        end = history.epochs[-1]
        size = count_parameters(encoder)
        run.result(
            n_params=size, speakers=len(set(voices.speakers)), loss=end["train_loss"]
        )
        run.result(val_eer=end["val_eer"], grad_norm=end["grad_norm"])
    card = training_card(
        log, history, settings, seed, model="SpeakerNet", n_params=size, data=voices.name,
        what="speaker encoder trained from random weights with AAM-softmax",
        hours=round(len(voices.samples) / SAMPLE_RATE / 3600, 2),
        speakers=len(set(voices.speakers)), speeds=SPEEDS, metric={"val_eer": end["val_eer"]},
    )  # fmt: skip
    save_weights(path, encoder, card, half=True)
    return history


def own_weights(profile: str, seed: int) -> str:
    """The file's name: `speaker_net_0.safetensors`, of the full profile `speaker_net_full_0.safetensors`."""
    return f"speaker_net_{'full_' * (profile == 'full')}{seed}.safetensors"


def load_own(
    seed: int = 0, device: torch.device | str = "cpu", profile: str = "study"
) -> SpeakerNet:
    """The encoder of Day 13 that this repository ships, on `device` in evaluation mode: for every profile.

    That of the study profile, trained on a CPU; with `profile` full the one trained on a GPU. Raises
    FileNotFoundError with the command that makes it.
    """
    path = days.get(13).folder / "checkpoints" / own_weights(profile, seed)
    if not path.is_file():
        raise FileNotFoundError(
            f"Day 13's {path.name} is not here: "
            f"python -m utils pretrain --day 13 --seed {seed} --profile {profile}"
        )
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    encoder = SpeakerNet(card["settings"]["channels"])
    load_weights(path, encoder)
    return encoder.to(device).eval()


# --- one's own recordings -----------------------------------------------------------------------------


def agreement(partials: Tensor, least: int = 2) -> float:
    """How alike the two halves of a recording's voice are: the cosine between two groups of its windows.

    `partials` `(windows, dim)` unit vectors, parted by k-means with k = 2 on the sphere from the two least
    alike. Near 1 for one speaker, low where two take turns. 1.0 where that cannot be seen: fewer than four
    windows, or a group of fewer than `least` (one odd window is a cough, no second speaker).
    """
    if len(partials) < 2 * least:
        return 1.0
    alike = partials @ partials.T
    pair = divmod(int(alike.argmin()), len(partials))
    centres = partials[list(pair)]
    for _ in range(10):
        group = (partials @ centres.T).argmax(1)
        if int(group.bincount(minlength=2).min()) < least:
            return 1.0
        means = [partials[group == k].mean(0) for k in (0, 1)]
        centres = F.normalize(torch.stack(means), dim=1)
    return float(centres[0] @ centres[1])


def calibrate_encoder(
    encoder: Embedder,
    waves: Sequence[Tensor],
    speakers: Sequence[str],
    centre: Tensor | None = None,
) -> Calibration:
    """Threshold, logistic fit and least agreement from utterances of other speakers than those to verify.

    All pairs of the utterances are the trials. With a `centre` `(dim,)`, the mean embedding of many people, these
    and what is verified later are centred first; that of few people may make things worse. An agreement lower
    than that of 99 % of these recordings, each by one speaker, is what `verify` warns of.
    """
    pairs, same = all_pairs(speakers)
    scores = cosine_scores(encoder.embed(waves), pairs, centre)
    halves = [agreement(encoder.partials(wave)) for wave in waves]
    least = float(np.quantile(halves, 0.01))
    return replace(calibrate(scores, same), agreement=least, centre=centre)


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. `probability` that one speaker said both; `warnings` are reasons to doubt it."""

    score: float
    threshold: float
    probability: float
    warnings: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return self.score >= self.threshold

    @property
    def sure(self) -> float:
        """Probability of the decision that was taken."""
        return self.probability if self.same else 1 - self.probability

    def __str__(self) -> str:
        who = "the same speaker" if self.same else "different speakers"
        line = f"{who}, {self.sure:.0%} sure (cosine {self.score:.3f}, threshold {self.threshold:.3f})"
        return "\n".join([line, *(f"  but: {w}" for w in self.warnings)])


Sound = str | Path | np.ndarray | Tensor


def verify(
    encoder: Embedder,
    calibration: Calibration,
    a: Sound,
    b: Sound,
    rate: int = SAMPLE_RATE,
) -> Verdict:
    """Did one speaker say both? `a` and `b` are files of any rate, or samples at `rate` Hz.

    `calibration` comes from `calibrate_encoder` on other speakers. Raises AudioError, naming the recording, for
    what says nothing of a voice: no samples, silence, less than half a second. Two voices in one
    recording, a narrow band (telephone, 8 kHz) and little speech give an answer with a warning.
    """
    warnings: list[str] = []
    waves = [_checked(x, rate, name, warnings) for x, name in ((a, "a"), (b, "b"))]
    for wave, name in zip(waves, ("a", "b"), strict=True):
        halves = agreement(encoder.partials(wave))
        if halves < calibration.agreement:
            warnings.append(
                f"recording {name} seems to hold two voices (agreement {halves:.3f}, one voice has at "
                f"least {calibration.agreement:.3f}): cut it to one speaker"
            )
    score = float(cosine_scores(encoder.embed(waves), [[0, 1]], calibration.centre)[0])
    return Verdict(
        score,
        calibration.threshold,
        calibration.probability(score),
        tuple(warnings),
    )


def _checked(sound: Sound, rate: int, name: str, warnings: list[str]) -> Tensor:
    """The recording at 16 kHz; adds what makes an answer doubtful to `warnings`."""
    if isinstance(sound, (str, Path)):
        import soundfile

        wave = read_audio(
            sound
        )  # says what is wrong with the file before its header is asked
        rate = soundfile.info(sound).samplerate
    else:
        wave = to_mono(sound, rate, name=f"recording {name}")
    seconds = len(wave) / SAMPLE_RATE
    if seconds < SHORTEST:
        raise AudioError(
            f"Recording {name} has {len(wave)} samples at 16 kHz ({seconds:.2f} s): at least "
            f"{SHORTEST} s of speech are needed, 5 s are good."
        )
    level = 20 * float(wave.square().mean().sqrt().clamp(min=1e-10).log10())
    if level < SILENCE_DB:
        raise AudioError(
            f"Recording {name} is silent ({level:.0f} dB of full scale): is the microphone on?"
        )
    if seconds < 1.6:
        warnings.append(f"recording {name} has {seconds:.1f} s only: 5 s are good")
    if rate < SAMPLE_RATE:
        warnings.append(
            f"recording {name} has {rate} Hz: what a voice has above {rate // 2} Hz is missing, and the "
            "threshold was learnt on wide-band speech"
        )
    return wave
