"""A small ECAPA-TDNN speaker encoder and its training (Desplanques et al., 2020, arXiv:2005.07143)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import days
from ..device import epoch_seed
from ..features import SAMPLE_RATE, LogMel, as_float, resample
from ..speech import augment
from ..speech.corpora import SpeechCorpus, speech_commands
from ..speech.pack import PackedSpeech, Utterances
from ..training import History, fit_one_cycle
from .ge2e import Embedder
from .verification import all_pairs, cosine_scores, eer
from .weights import load_weights

# --- the network --------------------------------------------------------------------------------------


def conv_block(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    """Convolution over time that keeps the length, ReLU, batch norm."""
    conv = nn.Conv1d(in_channels, out_channels, kernel, dilation=dilation, padding="same")
    return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm1d(out_channels))


class SERes2Block(nn.Module):
    """Squeeze-excitation Res2 block: `(batch, channels, frames)` to the same.

    The channels are split into `scale` groups. The output of each group is added to the input of the next, so
    later groups have a larger receptive field (Gao et al., 2021). Then each channel is scaled by a gate
    computed from the means over time (Hu et al., 2018).
    """

    def __init__(self, channels: int, dilation: int, scale: int = 8, squeeze: int = 64) -> None:
        super().__init__()
        width = channels // scale
        self.before = conv_block(channels, channels, 1)
        self.branches = nn.ModuleList(conv_block(width, width, 3, dilation) for _ in range(scale - 1))
        self.after = conv_block(channels, channels, 1)
        self.gate = nn.Sequential(
            nn.Linear(channels, squeeze), nn.ReLU(), nn.Linear(squeeze, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.before(x).chunk(len(self.branches) + 1, 1)  # (batch, width, frames)
        outputs = [first]
        for i, (part, branch) in enumerate(zip(others, self.branches, strict=True)):
            outputs.append(branch(part + outputs[-1] if i else part))
        y = self.after(torch.cat(outputs, 1))  # (batch, channels, frames)
        return x + y * self.gate(y.mean(2)).unsqueeze(2)


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, weighted: `(batch, channels, frames)` to `(batch, 2 * channels)`.

    Each frame has a weight for each channel (Okabe et al., 2018). They depend on the frame and on the unweighted
    statistics (Desplanques et al., 2020).
    """

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            conv_block(3 * channels, hidden, 1), nn.Tanh(), nn.Conv1d(hidden, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        even = torch.full_like(x[:, :1], 1 / x.shape[2])
        whole = self.statistics(x, even).unsqueeze(2).expand(-1, -1, x.shape[2])
        weights = self.weigh(torch.cat([x, whole], 1)).softmax(2)  # (batch, c, frames)
        return self.statistics(x, weights)

    @staticmethod
    def statistics(x: Tensor, weights: Tensor) -> Tensor:
        mean = (weights * x).sum(2)
        square = (weights * (x - mean.unsqueeze(2)).square()).sum(2)
        return torch.cat([mean, square.clamp(min=1e-5).sqrt()], 1)


class SpeakerNet(Embedder):
    """A small ECAPA-TDNN (Desplanques et al., 2020, arXiv:2005.07143) on log-mel features.

    `(batch, time)` waves at 16 kHz, int16 or float, to embeddings `(batch, dim)`. The mean over time is
    subtracted from each mel channel, which removes level and microphone. In training SpecAugment masks up to 10
    frames and 8 channels. `embed` cuts utterances into windows of `frames` frames, `rate` of them a second.
    """

    frames, rate = 300, 0.67

    def __init__(self, channels: int = 256, pooled: int = 512, dim: int = 192) -> None:
        super().__init__()
        self.dim = dim
        self.front_end = LogMel(80)
        self.first = conv_block(80, channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(channels, d) for d in (2, 3, 4))
        self.join = conv_block(3 * channels, pooled, 1)
        self.pool = AttentiveStatistics(pooled)
        self.head = nn.Sequential(nn.BatchNorm1d(2 * pooled), nn.Linear(2 * pooled, dim), nn.BatchNorm1d(dim))

    def forward(self, wave: Tensor) -> Tensor:
        features = self.front_end(as_float(wave))  # (batch, 80, frames)
        features = features - features.mean(2, keepdim=True)
        if self.training:
            features = augment.spec_augment(features, None, time=10, frequency=8)
        total = self.first(features)  # (batch, channels, frames)
        outputs = []
        for block in self.blocks:  # each block gets the sum of all outputs before it
            outputs.append(block(total))
            total = total + outputs[-1]
        x = self.join(torch.cat(outputs, 1))  # (batch, pooled, frames)
        return self.head(self.pool(x))  # (batch, dim)

    def encode(self, segments: Tensor) -> Tensor:
        return F.normalize(self(segments).float(), dim=1)


class SpeakerClassifier(nn.Module):
    """An encoder and one weight vector a training speaker: `(batch, time)` to cosines `(batch, speakers)`."""

    def __init__(self, encoder: SpeakerNet, speakers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_weights = nn.Parameter(torch.empty(speakers, encoder.dim))
        nn.init.xavier_normal_(self.class_weights)

    def forward(self, wave: Tensor) -> Tensor:
        embedding = self.encoder(wave)
        with torch.autocast(wave.device.type, enabled=False):
            unit = F.normalize(embedding.float(), dim=1)
            return unit @ F.normalize(self.class_weights, dim=1).T


def aam_softmax(cosines: Tensor, labels: Tensor, margin: float = 0.2, scale: float = 30.0) -> Tensor:
    """Additive angular margin loss (ArcFace, Deng et al., 2019, arXiv:1801.07698): a scalar.

    `cosines` `(batch, speakers)` are those between embeddings and class weights. `margin` (radians) is added to
    the angle of the true speaker before the softmax, so embeddings of one speaker come closer together than
    plain softmax needs. Where angle + margin exceeds 180 degrees, the cosine is continued as a falling line.
    """
    own = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)  # (batch, 1)
    sine = (1 - own.square()).sqrt()
    further = own * math.cos(margin) - sine * math.sin(margin)
    line = own - margin * math.sin(margin)
    further = torch.where(own > -math.cos(margin), further, line)
    return F.cross_entropy(scale * cosines.scatter(1, labels[:, None], further), labels)


Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass
class RandomSegments:
    """Batches of random segments `(batch, crop)` with speaker numbers `(batch,)`, in the place of `data.Batches`.

    Speakers are numbered in the order of their sorted names. An epoch has `batches` batches; epoch e depends
    on `seed` and `e` alone, so a run that was killed continues with the batches that it would have had.
    A speaker is drawn in proportion to its seconds raised to `power` (0: all speakers alike, 1: in proportion
    to their speech), an utterance in proportion to its length. An utterance shorter than the crop is repeated
    (circular padding). `augment(x, generator)` gets the int16 batch and returns floats.
    """

    speech: PackedSpeech
    crop: int
    batch_size: int
    batches: int
    seed: int = 0
    power: float = 0.5
    augment: Augment | None = None

    def __post_init__(self) -> None:
        names, labels = np.unique(self.speech.speakers, return_inverse=True)
        arrays = (self.speech.starts, self.speech.lengths, labels)
        self.starts, self.lengths, self.labels = (torch.as_tensor(x).long() for x in arrays)
        if not len(names) or self.lengths.min() < 1:
            raise ValueError("an utterance has no samples")
        self.n_speakers = len(names)
        total = torch.zeros(len(names), dtype=torch.float64)
        total.index_add_(0, self.labels, self.lengths.double())
        self.weights = total[self.labels] ** (self.power - 1) * self.lengths

    def __len__(self) -> int:
        return self.batches

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number` (from 0), each `(x, y)`."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, number))
        samples, size, change = self.speech.samples, self.batch_size, self.augment
        device = samples.device
        step = torch.arange(self.crop, device=device)
        for _ in range(self.batches):
            drawn = torch.multinomial(self.weights, size, replacement=True, generator=generator)
            length = self.lengths[drawn]
            # a long utterance is cut inside; a short one starts anywhere and is repeated
            room = torch.where(length >= self.crop, length - self.crop + 1, length)
            offset = (torch.rand(size, generator=generator, dtype=torch.float64) * room).long()
            start, length, offset = (v.to(device)[:, None] for v in (self.starts[drawn], length, offset))
            x = samples[start + (offset + step) % length]  # (batch, crop)
            x = change(x, generator) if change else as_float(x)
            yield x, self.labels[drawn].to(device)


# --- training -----------------------------------------------------------------------------------------


def voice_augmentation(
    noises: Mapping[str, Tensor],
    noisy: float = 0.5,
    wet: float = 0.3,
    snr_db: tuple[float, float] = (0.0, 20.0),
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Augment:
    """Reverberation in a fraction `wet` of the segments, then noise in a fraction `noisy`.

    From int16 to float `(batch, time)`. The responses of 200 rooms are made once. Reverberation times from 0.15 to
    0.8 s and `snr_db` in dB are drawn from uniform distributions.
    """
    noise = augment.join_noises(noises).to(device)
    g = torch.Generator().manual_seed(seed)
    times = 0.15 + 0.65 * torch.rand(200, generator=g)
    responses = augment.room_response(times, g).to(device)

    def change(wave: Tensor, generator: torch.Generator) -> Tensor:
        wave = as_float(wave).clone()
        count = len(wave)
        chosen = torch.rand(count, generator=generator).lt(wet).to(wave.device)
        room = torch.randint(len(responses), (count,), generator=generator).to(wave.device)
        if chosen.any():
            wave[chosen] = augment.reverberate(wave[chosen], responses[room[chosen]])
        chosen = torch.rand(count, generator=generator).lt(noisy).to(wave.device)
        snr = torch.rand(count, generator=generator).to(wave.device)
        snr = snr_db[0] + (snr_db[1] - snr_db[0]) * snr
        if len(noise) and chosen.any():
            segments = augment.noise_segments(noise, int(chosen.sum()), wave.shape[1], generator)
            wave[chosen] = augment.add_noise(wave[chosen], segments, snr[chosen])
        return wave

    return change


def validation_eer(encoder: Embedder, waves: Sequence[Tensor], speakers: Sequence[str]) -> dict[str, float]:
    """`{"eer", "similarity"}` over all pairs of these utterances: EER, mean cosine of same-speaker trials."""
    pairs, same = all_pairs(speakers)
    scores = cosine_scores(encoder.embed(waves), pairs)
    return {"eer": eer(scores, same).rate, "similarity": float(scores[same].mean())}


@dataclass(frozen=True)
class SpeakerSettings:
    """How a SpeakerNet is trained. `seconds` of a segment; `power` balances the speakers (see RandomSegments)."""

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
    speech: PackedSpeech,
    validate: Callable[[Embedder], Mapping[str, float]] | None,
    settings: SpeakerSettings,
    augment: Augment | None = None,
    *,
    encoder: SpeakerNet | None = None,
    class_weights: Tensor | None = None,
    seed: int = 0,
    **more: Any,
) -> tuple[SpeakerNet, History]:
    """Train a SpeakerNet with AAM-softmax on random segments, from random weights or from those of `encoder`.

    The device is that of the speech; the schedule is OneCycle. With an `encoder`, also give `class_weights`
    `(speakers, dim)` in the order of the sorted names, e.g. each speaker's mean embedding: with random ones the
    first steps spoil good weights. `validate(encoder)` is called after each epoch, e.g. `validation_eer`;
    `more` goes to `training.fit` (run, checkpoint, stop, bar, label). The same call after a kill continues the
    run. Seed the random numbers first (`seed_everything`).
    """
    batches = RandomSegments(
        speech, crop=round(settings.seconds * SAMPLE_RATE), batch_size=settings.batch_size,
        batches=settings.batches, seed=seed, power=settings.power, augment=augment,
    )  # fmt: skip
    encoder = encoder or SpeakerNet(settings.channels)
    model = SpeakerClassifier(encoder, batches.n_speakers).to(speech.samples.device)
    if class_weights is not None:
        with torch.no_grad():
            model.class_weights.copy_(class_weights)
    history = fit_one_cycle(
        model, batches, settings.optimizer, settings.lr, settings.epochs,
        loss_fn=partial(aam_softmax, margin=settings.margin, scale=settings.scale),
        validate=(lambda m: validate(m.encoder)) if validate else None, **{"mixed": True, **more},
    )  # fmt: skip
    return encoder, history


SPEEDS = (1.0, 0.9, 1.1)
"""A voice played at another speed counts as another speaker (Yamamoto et al., 2019): pitch and formants move."""


def training_voices(profile: str, corpus: SpeechCorpus, speeds: Sequence[float] = SPEEDS) -> PackedSpeech:
    """The training speech: LibriSpeech's and Speech Commands' training splits, each at all `speeds`.

    In quick the voices of the bundled sentences and words.
    """
    words = speech_commands(profile)
    spoken = words.train.utterances(words.classes)
    # the bundled words and sentences share voices
    held_out = {*corpus.validation.speakers, *corpus.test.speakers}
    spoken = spoken.take([s not in held_out for s in spoken.speakers])
    waves, speakers = [], []
    for speed in speeds:
        for part in (corpus.train, spoken):
            for i, speaker in enumerate(part.speakers):
                wave = torch.from_numpy(np.array(part.wave(i)))
                if speed != 1:
                    faster = resample(as_float(wave), round(SAMPLE_RATE * speed))
                    wave = (faster.clamp(-1, 1) * 32767).short()
                waves.append(wave)
                speakers.append(f"{speaker} x{speed}")
    lengths = np.array([len(w) for w in waves])
    starts = lengths.cumsum() - lengths
    return PackedSpeech(torch.cat(waves), starts, lengths, speakers, f"{corpus.name}+{words.name}")


def waves_per_speaker(part: Utterances, n: int, seconds: float = 4.0) -> tuple[list[Tensor], list[str]]:
    """The first `n` utterances of each speaker, cut to `seconds`, and their speakers: to validate with."""
    chosen = part.first_n_per_speaker(n)
    waves = [part.sound(i)[: round(seconds * SAMPLE_RATE)] for i in chosen]
    return waves, [part.speakers[i] for i in chosen]


def weights_name(profile: str, seed: int) -> str:
    """File name of the weights: `speaker_net_0.safetensors`, in full `speaker_net_full_0.safetensors`."""
    return f"speaker_net_{'full_' * (profile == 'full')}{seed}.safetensors"


def load_speaker_net(seed: int = 0, device: torch.device | str = "cpu", profile: str = "study") -> SpeakerNet:
    """Day 13's shipped encoder on `device`, in evaluation mode.

    `profile` says by which profile it was trained: study on a CPU, full on a GPU. Raises FileNotFoundError
    with the command that trains it.
    """
    path = days.get(13).folder / "checkpoints" / weights_name(profile, seed)
    if not path.is_file():
        raise FileNotFoundError(
            f"Day 13's {path.name} is not here: "
            f"python -m Day13_Speaker_Verification.train --seed {seed} --profile {profile}"
        )
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    encoder = SpeakerNet(card["settings"]["channels"])
    load_weights(path, encoder)
    return encoder.to(device).eval()
