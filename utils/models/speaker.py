"""Speaker encoders: from a voice to a unit vector.

`DVector` is the GE2E encoder whose trained weights come with the package `resemblyzer`; `SpeakerNet` is
a small ECAPA-type network to train oneself; `load_ecapa` opens SpeechBrain's. All three share
`Embedder`: `embed(waves)` gives `(utterances, dim)`, `partials(wave)` one vector for each window of it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import SAMPLE_RATE, LogMel, Spectrogram, as_float, spec_augment

HOP = 160
"""Samples from frame to frame: 10 ms."""


def slice_starts(
    samples: int, frames: int, rate: float = 1.3, coverage: float = 0.75
) -> list[int]:
    """First frames of the windows of `frames` frames that an utterance of `samples` samples is cut into.

    `rate` windows begin each second. The last one may reach over the end; it is left out when less
    than the share `coverage` of it holds sound, unless it is the only one. Raises ValueError where
    the windows would leave gaps.
    """
    step = round(SAMPLE_RATE / rate / HOP)
    if not 0 < step <= frames:
        raise ValueError(
            f"{rate} windows a second of {frames} frames leave gaps: raise the rate"
        )
    total = math.ceil((samples + 1) / HOP)
    starts = list(range(0, max(1, total - frames + step + 1), step))
    if len(starts) > 1 and (samples - starts[-1] * HOP) / (frames * HOP) < coverage:
        starts.pop()
    return starts


def normalise_volume(wave: Tensor, target_dbfs: float = -30.0) -> Tensor:
    """`(time,)` made louder until its RMS is `target_dbfs` dB of full scale; a louder one stays as it is."""
    rms = wave.square().mean().sqrt()
    gain = (10 ** (target_dbfs / 20) / rms.clamp(min=1e-9)).clamp(min=1)
    return wave * torch.where(rms > 0, gain, 1)


class Embedder(nn.Module):
    """Windows of one length in, one unit vector for each out; an utterance is the mean over its windows.

    A subclass sets `frames`, the length of a window in steps of 10 ms, and has `segments(wave)`, the
    samples of all windows, and `encode(segments)`.
    """

    frames: int
    rate = 1.3
    coverage = 0.75

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def segments(self, wave: Tensor) -> Tensor:
        """The samples that each window of `(time,)` needs: `(windows, samples)`."""
        raise NotImplementedError

    def encode(self, segments: Tensor) -> Tensor:
        """`(windows, samples)` to unit vectors `(windows, dim)`."""
        raise NotImplementedError

    def partials(self, wave: Tensor, batch: int = 64) -> Tensor:
        """Unit vectors of the windows of one utterance `(time,)`: `(windows, dim)`."""
        return self._windows([wave], batch)[0]

    def embed(self, waves: Sequence[Tensor], batch: int = 64) -> Tensor:
        """Unit vectors `(utterances, dim)` of waves `(time,)` at 16 kHz, float or int16, of any lengths.

        The windows of all utterances go through the network `batch` at a time, on its device, without
        gradient and in evaluation mode. Raises ValueError for a wave without samples.
        """
        means = [partials.mean(0) for partials in self._windows(waves, batch)]
        return F.normalize(torch.stack(means), dim=1)

    @torch.no_grad()
    def _windows(self, waves: Sequence[Tensor], batch: int) -> list[Tensor]:
        was_training = self.training
        self.eval()
        try:
            results, counts, waiting = [], [], []
            for i, wave in enumerate(waves):
                wave = torch.as_tensor(wave)
                if wave.ndim != 1 or not len(wave):
                    raise ValueError(f"wave {i} is {tuple(wave.shape)}, not (time,)")
                waiting.append(self.segments(as_float(wave.to(self.device))))
                counts.append(len(waiting[-1]))
                ready = sum(len(w) for w in waiting)
                if ready >= batch or i == len(waves) - 1:
                    rows = torch.cat(waiting)
                    full = len(rows) if i == len(waves) - 1 else ready // batch * batch
                    results += [self.encode(r) for r in rows[:full].split(batch)]
                    waiting = [rows[full:]]
        finally:
            self.train(was_training)
        return list(torch.cat(results).split(counts))


# --- the pretrained d-vector --------------------------------------------------------------------------


class DVector(Embedder):
    """GE2E speaker encoder (Wan et al., 2018, arXiv:1710.10467): three LSTM layers over 40 mel channels.

    The last hidden state through a linear layer and ReLU, scaled to length 1, is the d-vector of 1.6 s of
    speech (160 frames). The mel front end is librosa's `melspectrogram` with its defaults (Slaney's mel
    scale and area normalisation, power, no logarithm; windows of 400 samples) to within a relative 1e-3.
    What RTVC does besides, cutting long pauses out by webrtcvad, is left out: read speech has few of
    them, and the package needs a compiler.
    """

    frames = 160
    n_mels = 40
    margin = 200
    """Half a window in samples: a frame sees so much on either side of its centre."""

    def __init__(self, hidden: int = 256, dim: int = 256, layers: int = 3) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.spectrogram = Spectrogram(400, 400, HOP, centre=False)
        bank = melscale_fbanks(
            201, 0.0, SAMPLE_RATE / 2, self.n_mels, SAMPLE_RATE, "slaney", "slaney"
        )
        self.register_buffer("bank", bank, persistent=False)
        self.lstm = nn.LSTM(self.n_mels, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, dim)

    def mel(self, segments: Tensor) -> Tensor:
        """Mel power of waves that bring their margins: `(batch, samples)` to `(batch, frames, 40)`."""
        return self.spectrogram(segments).transpose(1, 2) @ self.bank

    def forward(self, mel: Tensor) -> Tensor:
        """`(batch, frames, 40)` to d-vectors `(batch, 256)` of length 1."""
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)

    def encode(self, segments: Tensor) -> Tensor:
        return self(self.mel(segments))

    def segments(self, wave: Tensor) -> Tensor:
        wave = normalise_volume(wave)
        starts = slice_starts(len(wave), self.frames, self.rate, self.coverage)
        size = (self.frames - 1) * HOP + 2 * self.margin
        missing = starts[-1] * HOP + size - self.margin - len(wave)
        padded = F.pad(wave, (self.margin, max(0, missing)))
        step = starts[1] if len(starts) > 1 else 1
        return padded.unfold(0, size, step * HOP)[: len(starts)]


def resemblyzer_weights() -> Path:
    """The file of trained weights inside the installed package, whose code is not imported.

    Raises FileNotFoundError with the command that installs it.
    """
    spec = importlib.util.find_spec("resemblyzer")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (Path(folder) / "pretrained.pt").is_file():
            return Path(folder) / "pretrained.pt"
    raise FileNotFoundError(
        "The trained speaker encoder comes with the package resemblyzer, which is not installed: "
        "pip install --no-deps resemblyzer==0.1.4"
    )


def pretrained_dvector(device: torch.device | str = "cpu") -> DVector:
    """The d-vector encoder with the weights of Real-Time Voice Cloning (1.6 million steps of GE2E)."""
    state = torch.load(resemblyzer_weights(), map_location="cpu", weights_only=True)
    weights = state["model_state"]
    model = DVector()
    # the scale and offset of the GE2E loss lie beside the network's weights
    model.load_state_dict(
        {k: v for k, v in weights.items() if not k.startswith("similarity_")}
    )
    return model.to(device).eval()


# --- a network of our own -----------------------------------------------------------------------------


def conv_block(before: int, after: int, kernel: int, dilation: int = 1) -> nn.Module:
    """Convolution over time that keeps the length, ReLU, batch norm."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv1d(before, after, kernel, dilation=dilation, padding=padding),
        nn.ReLU(),
        nn.BatchNorm1d(after),
    )


class SERes2Block(nn.Module):
    """Squeeze-excitation Res2 block: `(batch, channels, frames)` to the same.

    The channels are parted into `scale` groups; each is convolved after what the group before gave
    was added, so later groups see further (Gao et al., 2021). Then every channel is weighed by a gate that
    saw the mean over time (Hu et al., 2018).
    """

    def __init__(
        self, channels: int, dilation: int, scale: int = 8, squeeze: int = 64
    ) -> None:
        super().__init__()
        if channels % scale:
            raise ValueError(f"{channels} channels do not part into {scale} groups")
        width = channels // scale
        self.before = conv_block(channels, channels, 1)
        self.branches = nn.ModuleList(
            conv_block(width, width, 3, dilation) for _ in range(scale - 1)
        )
        self.after = conv_block(channels, channels, 1)
        self.gate = nn.Sequential(
            nn.Linear(channels, squeeze),
            nn.ReLU(),
            nn.Linear(squeeze, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.before(x).chunk(len(self.branches) + 1, 1)
        outputs = [first]
        for i, (part, branch) in enumerate(zip(others, self.branches, strict=True)):
            outputs.append(branch(part + outputs[-1] if i else part))
        y = self.after(torch.cat(outputs, 1))
        return x + y * self.gate(y.mean(2)).unsqueeze(2)


class AttentiveStatistics(nn.Module):
    """Mean and deviation over time, each frame weighed for each channel: `(batch, c, frames)` to `(batch, 2 c)`.

    Okabe et al., 2018; the weights see mean and deviation of the whole as well (Desplanques et al., 2020).
    """

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            conv_block(3 * channels, hidden, 1),
            nn.Tanh(),
            nn.Conv1d(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        even = torch.full_like(x[:, :1], 1 / x.shape[2])
        whole = self.statistics(x, even).unsqueeze(2).expand(-1, -1, x.shape[2])
        weights = self.weigh(torch.cat([x, whole], 1)).softmax(2)
        return self.statistics(x, weights)

    @staticmethod
    def statistics(x: Tensor, weights: Tensor) -> Tensor:
        mean = (weights * x).sum(2)
        square = (weights * (x - mean.unsqueeze(2)).square()).sum(2)
        return torch.cat([mean, square.clamp(min=1e-5).sqrt()], 1)


class SpeakerNet(Embedder):
    """A small ECAPA-TDNN (Desplanques et al., 2020, arXiv:2005.07143) on log-mel features.

    `(batch, time)` waves at 16 kHz, int16 or float, to embeddings `(batch, dim)`. Each mel channel is
    freed of its mean over time, and with it of what microphone and level add. `masks` are the most hidden
    frames and channels of SpecAugment while training. `embed` cuts utterances into windows of `frames`
    frames; a shorter one is repeated until it fills a window.
    """

    def __init__(
        self,
        channels: int = 256,
        pooled: int = 512,
        dim: int = 192,
        n_mels: int = 80,
        masks: tuple[int, int] = (10, 8),
        frames: int = 300,
        rate: float = 0.67,
    ) -> None:
        super().__init__()
        self.frames, self.rate, self.masks, self.dim = frames, rate, masks, dim
        self.front_end = LogMel(n_mels)
        self.first = conv_block(n_mels, channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(channels, d) for d in (2, 3, 4))
        self.join = conv_block(3 * channels, pooled, 1)
        self.pool = AttentiveStatistics(pooled)
        self.head = nn.Sequential(
            nn.BatchNorm1d(2 * pooled), nn.Linear(2 * pooled, dim), nn.BatchNorm1d(dim)
        )

    def features(self, wave: Tensor) -> Tensor:
        """What the network sees: `(batch, n_mels, frames)`, each channel with mean 0 over time."""
        features = self.front_end(as_float(wave))
        return features - features.mean(2, keepdim=True)

    def forward(self, wave: Tensor) -> Tensor:
        features = self.features(wave)
        if self.training and any(self.masks):
            features = spec_augment(features, None, *self.masks)
        x = self.first(features)
        outputs, total = [], x
        for block in self.blocks:  # each block sees the sum of all before it
            outputs.append(block(total))
            total = total + outputs[-1]
        return self.head(self.pool(self.join(torch.cat(outputs, 1))))

    def encode(self, segments: Tensor) -> Tensor:
        return F.normalize(self(segments).float(), dim=1)

    def segments(self, wave: Tensor) -> Tensor:
        return whole_windows(wave, self.frames, self.rate, self.coverage)


def whole_windows(wave: Tensor, frames: int, rate: float, coverage: float) -> Tensor:
    """Windows full of sound: a short wave is repeated, the last window ends where the wave does."""
    size = frames * HOP
    if len(wave) < size:
        wave = wave.repeat(math.ceil(size / len(wave)))[:size]
    starts = slice_starts(len(wave), frames, rate, coverage)
    last = len(wave) - size
    return torch.stack(
        [wave[s : s + size] for s in (min(i * HOP, last) for i in starts)]
    )


class SpeakerClassifier(nn.Module):
    """An encoder and one direction for each training speaker: `(batch, time)` to cosines `(batch, speakers)`."""

    def __init__(self, encoder: SpeakerNet, speakers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.directions = nn.Parameter(torch.empty(speakers, encoder.dim))
        nn.init.xavier_normal_(self.directions)

    def forward(self, wave: Tensor) -> Tensor:
        embedding = self.encoder(wave)
        with torch.autocast(wave.device.type, enabled=False):
            unit = F.normalize(embedding.float(), dim=1)
            return unit @ F.normalize(self.directions, dim=1).T


def aam_softmax(
    cosines: Tensor, labels: Tensor, margin: float = 0.2, scale: float = 30.0
) -> Tensor:
    """Additive angular margin loss (ArcFace, Deng et al., 2019, arXiv:1801.07698): a scalar.

    `cosines` `(batch, speakers)` between embeddings and the speakers' directions. The angle to the own
    speaker is made `margin` radians larger before the softmax, so the network must come nearer
    than it would need to. Where angle + margin would pass 180 degrees, the cosine goes on falling in a line.
    """
    own = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    sine = (1 - own.square()).sqrt()
    further = own * math.cos(margin) - sine * math.sin(margin)
    line = own - margin * math.sin(margin)
    further = torch.where(own > -math.cos(margin), further, line)
    return F.cross_entropy(scale * cosines.scatter(1, labels[:, None], further), labels)


# --- SpeechBrain's ECAPA ------------------------------------------------------------------------------


class SpeechBrainECAPA(Embedder):
    """SpeechBrain's `EncoderClassifier` behind the same two calls. Whole utterances, as it is meant to be used."""

    frames, rate = 300, 0.67

    def __init__(self, classifier) -> None:
        super().__init__()
        self.classifier = classifier

    @property
    def device(self) -> torch.device:
        return torch.device(self.classifier.device)

    def encode(self, segments: Tensor) -> Tensor:
        return F.normalize(self.classifier.encode_batch(segments)[:, 0].float(), dim=1)

    def segments(self, wave: Tensor) -> Tensor:
        return whole_windows(wave, self.frames, self.rate, self.coverage)

    @torch.no_grad()
    def embed(self, waves: Sequence[Tensor], batch: int = 1) -> Tensor:
        """Unit vectors `(utterances, dim)`, one utterance at a time: nothing is cut or padded."""
        waves = [as_float(torch.as_tensor(w).to(self.device)) for w in waves]
        return torch.cat([self.encode(w[None]) for w in waves])


def load_ecapa(
    source: str | Path = "speechbrain/spkrec-ecapa-voxceleb",
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> SpeechBrainECAPA:
    """SpeechBrain's ECAPA-TDNN by a hub name (84 MB) or from a local folder that holds the same files.

    `cache` is where the hub's files go. Raises OSError or RuntimeError of SpeechBrain's own where there is no
    network and no folder.
    """
    from speechbrain.inference.speaker import EncoderClassifier

    folder = Path(source)
    local = folder.is_dir()
    classifier = EncoderClassifier.from_hparams(
        source=str(folder.resolve() if local else source),
        savedir=str(cache or (folder.resolve() if local else "runs/ecapa")),
        overrides={"pretrained_path": str(folder.resolve())} if local else {},
        run_opts={"device": str(device)},
    )
    if classifier is None:
        raise RuntimeError(f"SpeechBrain made nothing of {source}")
    return SpeechBrainECAPA(classifier)


ECAPA_FILE = """\
pretrained_path: {folder}
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 80
    channels: [{c}, {c}, {c}, {c}, {pooled}]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: {attention}
    lin_neurons: 192
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 192
    out_neurons: 10
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        classifier: !ref <classifier>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
"""
"""A folder as `load_ecapa` reads it, in SpeechBrain's own language for settings."""


def save_random_ecapa(folder: Path, channels: int = 1024) -> Path:
    """A randomly initialised ECAPA-TDNN on disk in SpeechBrain's form, to exercise `load_ecapa` without network.

    It knows no voices. 1024 channels are the size of `speechbrain/spkrec-ecapa-voxceleb`.
    """
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"c": channels, "pooled": 3 * channels, "attention": max(8, channels // 8)}
    model = ECAPA_TDNN(
        80,
        channels=[channels] * 4 + [3 * channels],
        attention_channels=sizes["attention"],
        lin_neurons=192,
    )
    torch.save(model.state_dict(), folder / "embedding_model.ckpt")
    head = Classifier(192, out_neurons=10)
    torch.save(head.state_dict(), folder / "classifier.ckpt")
    text = ECAPA_FILE.format(folder=folder.resolve(), **sizes)
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return folder
