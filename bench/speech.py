"""Speech Commands: reading clips, log-mel features, seconds of training to 85 % on unseen speakers.

The stock way: one file at a time through `torchaudio.load` (with TorchCodec) or soundfile; librosa's
mel spectrogram, file by file; and torchaudio's tutorial: the M5 network (Dai et al., 2016) on the raw
wave at 8 kHz, files loaded one by one, batch 256, Adam at 0.01 with weight decay 1e-4, a tenth of the
rate after 20 epochs. Both sides train on the same clips and are tested on the same speakers.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from Day07_Speech_Commands.networks import TCResNet
from utils import sources
from utils.data import Batches, Split
from utils.device import pick_device, seed_everything, synchronize
from utils.features import SAMPLE_RATE, LogMel, as_float, fixed_length, resample
from utils.models.keyword_net import KeywordNet
from utils.sources import catalogue
from utils.speech import corpora

from .claims import Claim
from .measure import Trainer, race, slowest_of_three

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


def rate(work: Callable[[int], None], items: int, seconds: float = 3.0) -> float:
    """Items per second of `work(i)`, over and over through all of them, after one round to warm up."""
    for i in range(min(items, 50)):
        work(i)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work(count % items)
        count += 1
    return count / (time.perf_counter() - began)


def reading(words: corpora.Words, folder: Path) -> list[Claim]:
    """Clips per second from disk (the files are in the system's cache for all)."""
    from utils.speech.pack import read_pack

    paths = [folder / name for name in words.train.names]
    packs = sorted(corpora.packs().glob(f"*_{PROFILE}_train.pack"))
    packed = read_pack(packs[0])
    order = np.random.default_rng(0).permutation(len(packed))

    def batch(i: int) -> None:
        packed.batch(order[(i * 128) % 3000 :][:128], SAMPLE_RATE)

    ours = 128 * rate(batch, 1000)
    stock = rate(lambda i: read_file(paths[i]), len(paths))
    claims = [Claim("reading clips/s, soundfile per file", stock, ours, "1/s", 5, higher=True)]
    if importlib.util.find_spec("torchcodec"):
        import torchaudio

        slow = rate(lambda i: torchaudio.load(paths[i]), len(paths))
        claims.append(
            Claim("reading clips/s, torchaudio.load", slow, ours, "1/s", 100, higher=True)
        )
    else:
        print("torchaudio.load: not measured, TorchCodec is not installed (pip install torchcodec)")
    return claims


def mel(words: corpora.Words) -> Claim:
    """Log-mel features per second: librosa clip by clip against batches."""
    import librosa

    waves = as_float(words.train.x[:512])
    arrays = waves.cpu().numpy()

    def stock(i: int) -> None:
        power = librosa.feature.melspectrogram(
            y=arrays[i], sr=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160, n_mels=64
        )
        np.log(power + 1e-6)

    front = LogMel(64).to(waves.device)
    theirs = rate(stock, len(arrays))
    ours = len(waves) * rate(lambda i: front(waves), 1)
    return Claim("log-mel clips/s, librosa per clip", theirs, ours, "1/s", 5, higher=True)


def stock_race(words: corpora.Words, folder: Path) -> tuple[float, float, bool]:
    """The tutorial's pipeline, until 85 % or the cap."""
    device = words.test.y.device
    seed_everything(0)
    loader = torch.utils.data.DataLoader(Files(words.train, folder), 256, shuffle=True)
    model = M5(len(words.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.1)

    def epoch(_: int) -> None:
        model.train()
        for x, y in loader:
            x = resample(x.to(device), SAMPLE_RATE, 8000)
            loss = F.cross_entropy(model(x), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()

    slow = resample(as_float(words.test.x), SAMPLE_RATE, 8000).unsqueeze(1)
    return race(epoch, model, Split(slow, words.test.y), GOAL, epochs=1000)


def our_race(words: corpora.Words, seed: int, epochs: int = 5) -> tuple[float, float, bool]:
    """Day 7's TC-ResNet on log-mels of the resident clips, one cycle over a few epochs."""
    device = words.test.y.device
    seed_everything(seed)
    batches = Batches(words.train, 64, seed=seed, augment=lambda x, g: as_float(x))
    model = KeywordNet(LogMel(64), TCResNet(64, 1.5), len(words.classes), masks=(15, 5))
    trainer = Trainer(model.to(device), 0.01, True, epochs * len(batches), smoothing=0.1)

    def epoch(number: int) -> None:
        trainer.epoch(batches.epoch(number))

    return race(epoch, model, words.test, GOAL, epochs)


def whole_step(words: corpora.Words) -> None:
    """Clips per second from wave to logits, training, everything on the device."""
    device = words.test.y.device
    model = KeywordNet(LogMel(64), TCResNet(64, 1.5), len(words.classes)).to(device)
    trainer = Trainer(model, 1e-3, True)
    x, y = words.train.x[:512], words.train.y[:512]
    for _ in range(3):
        trainer.step(x, y)
    synchronize(device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 3:
        trainer.step(x, y)
        count += len(y)
    synchronize(device)
    seconds = time.perf_counter() - began
    print(f"wave to logits and back on {device.type}: {count / seconds:,.0f} clips/s")


def run() -> list[Claim]:
    """The claims on Speech Commands as it is on this disk; fetches it where it is missing."""
    words = corpora.speech_commands(PROFILE).to(pick_device())
    folder = catalogue.speech_commands_folder(sources.data_root())
    print(f"data: {words.name}")
    claims = [*reading(words, folder), mel(words)]
    whole_step(words)
    print("stock recipe:")
    stock, _, arrived = stock_race(words, folder)
    print("ours, three seeds:")
    ours = slowest_of_three(lambda seed: our_race(words, seed))
    what = "Speech Commands, training to 85 % on unseen speakers (ours: slowest of 3 seeds)"
    return [*claims, Claim(what, stock, ours, "s", 10, capped=not arrived)]
