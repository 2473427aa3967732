"""Speech Commands: reading clips, log-mel features, seconds of training to 85 % on unseen speakers.

The stock way: one file at a time through `torchaudio.load` (with TorchCodec) or soundfile; librosa's
mel spectrogram, file by file; and torchaudio's tutorial: the M5 network (Dai et al., 2016) on the raw
wave at 8 kHz, files loaded one by one, batch 256, Adam at 0.01 with weight decay 1e-4, a tenth of the
rate after 20 epochs. Both sides train on the same clips and are tested on the same speakers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import nn

from Day07_Speech_Commands.networks import TCResNet
from utils import sources
from utils.data import Batches, Split
from utils.device import pick_device, seed_everything
from utils.features import SAMPLE_RATE, LogMel, as_float, fixed_length, resample
from utils.models.keyword_net import KeywordNet
from utils.sources import catalogue
from utils.speech import corpora

from .claims import Claim
from .measure import Race, calls_per_second, our_race, slowest_of_three, stock_race, stock_step

GOAL = 0.85
PROFILE = "study"


class M5(nn.Module):
    """Four convolutions over the raw wave and a mean over time: `(batch, 1, 8000)` to `(batch, classes)`."""

    def __init__(self, classes: int, channels: int = 32) -> None:
        super().__init__()
        c = channels
        layers: list[nn.Module] = []
        for before, after, kernel, stride in (
            (1, c, 80, 16), (c, c, 3, 1), (c, 2 * c, 3, 1), (2 * c, 2 * c, 3, 1),
        ):  # fmt: skip
            layers += [nn.Conv1d(before, after, kernel, stride=stride)]
            layers += [nn.BatchNorm1d(after), nn.ReLU(), nn.MaxPool1d(4)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * c, classes)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(wave).mean(2))


class Files(torch.utils.data.Dataset):
    """Clips read one by one, cut or filled to one second, as in the tutorial."""

    def __init__(self, clips: corpora.Clips, folder: Path) -> None:
        self.paths = [folder / name for name in clips.names]
        self.labels = clips.y.cpu().tolist()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return fixed_length(read_file(self.paths[i]), SAMPLE_RATE)[None], self.labels[i]


def read_file(path: Path) -> torch.Tensor:
    """One clip by soundfile, `(time,)`."""
    import soundfile

    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def reading(words: corpora.Words, folder: Path) -> list[Claim]:
    """Clips per second from disk (the files are in the system's cache for all)."""
    from utils.speech.pack import read_pack

    paths = [folder / name for name in words.train.names]
    packs = sorted(corpora.packs().glob(f"*_{PROFILE}_train.pack"))
    packed = read_pack(packs[0])
    order = np.random.default_rng(0).permutation(len(packed))

    def batch(i: int) -> None:
        packed.batch(order[(i * 128) % 3000 :][:128], SAMPLE_RATE)

    ours = 128 * calls_per_second(batch)
    stock = calls_per_second(lambda i: read_file(paths[i % len(paths)]))
    claims = [Claim("reading clips/s, soundfile per file", stock, ours, "1/s", 5, higher=True)]
    if not importlib.util.find_spec("torchcodec"):
        print("torchaudio.load: not measured, TorchCodec is not installed (make extras)")
        return claims
    import torchaudio

    slow = calls_per_second(lambda i: torchaudio.load(paths[i % len(paths)]))
    return [*claims, Claim("reading clips/s, torchaudio.load", slow, ours, "1/s", 100, higher=True)]


def mel(words: corpora.Words) -> Claim:
    """Log-mel features per second: librosa clip by clip against batches."""
    import librosa

    waves = as_float(words.train.x[:512])
    arrays, front = waves.cpu().numpy(), LogMel(64).to(waves.device)
    how = {"sr": SAMPLE_RATE, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 64}

    def stock(i: int) -> None:
        np.log(librosa.feature.melspectrogram(y=arrays[i % len(arrays)], **how) + 1e-6)

    theirs = calls_per_second(stock)
    ours = len(waves) * calls_per_second(lambda i: front(waves), waves.device)
    return Claim("log-mel clips/s, librosa per clip", theirs, ours, "1/s", 5, higher=True)


def stock(words: corpora.Words, folder: Path) -> Race:
    """The tutorial's pipeline, until 85 % or the cap."""
    seed_everything(0)
    device = words.test.y.device
    loader = torch.utils.data.DataLoader(Files(words.train, folder), 256, shuffle=True)
    model = M5(len(words.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.1)
    step = stock_step(model, optimizer)

    def resampled(x: torch.Tensor, y: torch.Tensor) -> None:
        step(resample(x, SAMPLE_RATE, 8000), y)

    slow = resample(as_float(words.test.x), SAMPLE_RATE, 8000).unsqueeze(1)
    test = Split(slow, words.test.y)
    return stock_race(resampled, loader, model, test, GOAL, schedule)


def ours(words: corpora.Words, seed: int, epochs: int = 5) -> Race:
    """Day 7's TC-ResNet on log-mels of the resident clips, one cycle over a few epochs."""
    seed_everything(seed)
    batches = Batches(words.train, 64, seed=seed, augment=lambda x, g: as_float(x))
    model = KeywordNet(LogMel(64), TCResNet(64, 1.5), len(words.classes), masks=(15, 5))
    model = model.to(words.test.y.device)
    return our_race(model, batches, words.test, GOAL, epochs, 0.01, smoothing=0.1)


def run() -> list[Claim]:
    """The claims on Speech Commands as it is on this disk; fetches it where it is missing."""
    words = corpora.speech_commands(PROFILE).to(pick_device())
    folder = catalogue.speech_commands_folder(sources.data_root())
    print(f"data: {words.name}")
    claims = [*reading(words, folder), mel(words)]
    print("stock recipe:")
    seconds, _, arrived = stock(words, folder)
    print("ours, three seeds:")
    slowest = slowest_of_three(lambda seed: ours(words, seed))
    what = "Speech Commands, training to 85 % on unseen speakers (ours: slowest of 3 seeds)"
    return [*claims, Claim(what, seconds, slowest, "s", 10, capped=not arrived)]
