"""Speakers: d-vectors per second, the EER of 37,720 trials, and how fast the enhancer is on one core.

The stock way: `VoiceEncoder.embed_utterance` of resemblyzer, utterance by utterance; `EER` of SpeechBrain,
which tries every threshold; real time itself. The utterances are the bundled sentences, so that no data
set is needed; embeddings of both sides are the same (a test compares them).
"""

from __future__ import annotations

import sys
import time
import types

import numpy as np
import torch

from Day14_Enhancement.enhancer import Enhancer
from Day14_Enhancement.quality import real_time_factor
from utils.device import pick_device
from utils.models.ge2e import normalise_volume, pretrained_dvector
from utils.models.verification import eer
from utils.speech.corpora import read_sample

from .claims import Claim
from .measure import calls_per_second

TRIALS = 37_720
"""As many as VoxCeleb1's test list has."""


def their_encoder():
    """resemblyzer's VoiceEncoder on the CPU. Its package imports webrtcvad, which embedding does not use."""
    try:
        import webrtcvad  # noqa: F401
    except ImportError:
        sys.modules["webrtcvad"] = types.ModuleType("webrtcvad")
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def embeddings() -> list[Claim]:
    """Utterances per second; both get waves in memory, their volume already set."""
    index, samples = read_sample("sentences")
    waves = [torch.from_numpy(samples[int(r["start"]) :][: int(r["length"])].copy()) for r in index]
    waves = [normalise_volume(w.float() / 32768) for w in waves]
    arrays = [w.numpy() for w in waves]
    theirs, device = their_encoder(), pick_device()
    model = pretrained_dvector(device)
    resident = [w.to(device) for w in waves]

    batch = 512 if device.type == "cuda" else 128
    slow = calls_per_second(lambda _: [theirs.embed_utterance(w) for w in arrays])
    quick = calls_per_second(lambda _: model.embed(resident, batch=batch), device)
    what = f"d-vectors/s of {len(waves)} sentences, resemblyzer on the CPU, ours on {device.type}"
    return [Claim(what, len(waves) * slow, len(waves) * quick, "1/s", 3, higher=True)]


def equal_error_rate() -> list[Claim]:
    """Milliseconds for the EER of as many trials as VoxCeleb1 has."""
    from speechbrain.utils.metric_stats import EER

    rng = np.random.default_rng(0)
    same = np.arange(TRIALS) % 2 == 0
    scores = rng.normal(size=TRIALS) + 4 * same
    positive, negative = (torch.from_numpy(scores[m]) for m in (same, ~same))
    began = time.perf_counter()
    theirs, _ = EER(positive, negative)
    slow = time.perf_counter() - began
    ours = eer(scores, same).rate
    print(f"EER: SpeechBrain {theirs:.5f}, ours {ours:.5f}")
    quick = 1 / calls_per_second(lambda _: eer(scores, same))
    return [Claim(f"EER of {TRIALS:,} trials, SpeechBrain's EER", 1000 * slow, 1000 * quick, "ms", 100)]


def enhancement() -> list[Claim]:
    """Seconds of one core per second of sound, against real time; the weights do not matter for that."""
    model = Enhancer().eval()
    what = "enhancing 1000 s on one core, real time"
    return [Claim(what, 1000.0, 1000 * real_time_factor(model), "s", 10)]


def run() -> list[Claim]:
    """The claims of Days 13 and 14."""
    return [*embeddings(), *equal_error_rate(), *enhancement()]
