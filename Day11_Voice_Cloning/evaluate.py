"""How good is a cloned voice: whose it is, what one understands, how far it is from a recording, how fast it came.

A number means little alone: put the same measure of real speech and of copy-synthesis beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.device import synchronize
from utils.features import SAMPLE_RATE, AudioError, resample, to_mono
from utils.models.tts_mel import speech_bounds
from utils.models.tts_text import expand_text
from utils.models.verification import mean_embeddings
from utils.speech.pack import to_int16

LEAST_SECONDS = 1.0
"""Speech that a reference recording must hold; 5 seconds are better."""


class MissingRecogniser(RuntimeError):
    """pocketsphinx is not installed; the message says how to have it."""


def check_reference(wave: Tensor | np.ndarray, rate: int, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """A recording of a voice to clone, as mono `(time,)` at `sample_rate` Hz without silence around it.

    `wave` `(time,)` or `(channels, time)` at `rate` Hz. Raises AudioError for what is no sound, for silence,
    and for less than a second of speech.
    """
    wave = to_mono(wave, rate, sample_rate, "the reference")
    first, last = speech_bounds(wave, sample_rate)
    seconds = (last - first) / sample_rate
    if seconds < LEAST_SECONDS:
        raise AudioError(
            f"the reference holds {seconds:.1f} s of speech, {LEAST_SECONDS:g} s at least are wanted: "
            "record about 5 seconds of one person speaking."
        )
    return wave[first:last]


# --- whose voice it is --------------------------------------------------------------------------------


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between d-vectors `(..., d)`, pair by pair: 1 is the same direction."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def nearest_voice(d_vectors: Tensor, enrolled: Mapping[str, Tensor]) -> list[str]:
    """For each d-vector `(n, d)` the enrolled speaker whose own is nearest by cosine.

    `enrolled` gives each speaker's d-vector `(d,)` or several `(utterances, d)`, which are averaged after they
    are brought to length 1. Score with another encoder than the one that conditioned the synthesizer.
    """
    names = list(enrolled)
    means = [mean_embeddings(torch.atleast_2d(enrolled[n]).float()) for n in names]
    scores = similarity(d_vectors[:, None], torch.stack(means).to(d_vectors.device))
    return [names[i] for i in scores.argmax(1).tolist()]


def identification_rate(
    d_vectors: Tensor, speakers: Sequence[str], enrolled: Mapping[str, Tensor]
) -> float:
    """Share of d-vectors `(n, d)` that are nearest to the speaker they are meant to be (top-1), 0 to 1.

    Raises ValueError when there is none, or a speaker is not enrolled.
    """
    unknown = sorted(set(speakers) - set(enrolled))
    if unknown or not len(speakers) or len(speakers) != len(d_vectors):
        raise ValueError(
            f"{len(d_vectors)} d-vectors, {len(speakers)} speakers, not enrolled: {unknown or 'none'}"
        )
    found = nearest_voice(d_vectors, enrolled)
    return sum(a == b for a, b in zip(found, speakers, strict=True)) / len(speakers)


# --- how fast -----------------------------------------------------------------------------------------


def real_time_factor(
    make: Callable[[], Tensor | Sequence[Tensor]],
    sample_rate: int,
    device: torch.device,
    repeats: int = 3,
) -> float:
    """Seconds of computing per second of sound that `make()` gives (one wave, a batch, or several waves).

    The fastest of `repeats` runs, after one that is not timed. Below 1 is faster than real time.
    """
    make()
    best, seconds = math.inf, 0.0
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        waves = make()
        synchronize(device)
        best = min(best, time.perf_counter() - began)
        parts = [waves] if isinstance(waves, Tensor) else waves
        seconds = sum(w.numel() for w in parts) / sample_rate
    return best / seconds


# --- what one understands -----------------------------------------------------------------------------


def plain_words(text: str) -> str:
    """The words of a text as a recogniser writes them: normalised, without punctuation."""
    kept = "".join(c if c.isalpha() or c == "'" else " " for c in expand_text(text))
    return " ".join(w.strip("'") for w in kept.split() if w.strip("'"))


@lru_cache(maxsize=1)
def _decoder():
    try:
        from pocketsphinx import Decoder
    except ImportError as e:
        raise MissingRecogniser(
            "The independent recogniser is an extra: pip install pocketsphinx (it brings its model and "
            "needs no network afterwards). Without it the word error rate is not measured."
        ) from e
    return Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")


def recogniser_is_here() -> bool:
    """Whether pocketsphinx can be used."""
    try:
        _decoder()
    except MissingRecogniser:
        return False
    return True


def _pcm(wave: Tensor, sample_rate: int) -> bytes:
    """A wave as pocketsphinx wants it: 16 kHz, 16 bits, its peak at half of full scale."""
    wave = resample(wave.cpu().float(), sample_rate, SAMPLE_RATE)
    return to_int16(0.5 * wave / wave.abs().max().clamp(min=1e-6)).tobytes()


def _listen(pcm: bytes) -> str:
    decoder = _decoder()
    decoder.reinit_feat()  # or an answer depends a little on what was heard before
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    best = decoder.hyp()
    return best.hypstr if best else ""


def hear(wave: Tensor, sample_rate: int) -> str:
    """What pocketsphinx understands of a wave `(time,)`, offline. Raises MissingRecogniser where it is not."""
    return _listen(_pcm(wave, sample_rate))


def hear_all(waves: Sequence[Tensor], sample_rate: int, processes: int = 1) -> list[str]:  # fmt: skip
    """`hear` of many waves, shared among at most so many processes; the answers are the same for any number.

    Processes and not threads, since pocketsphinx keeps Python's lock while it listens. Raises
    MissingRecogniser.
    """
    _decoder()
    pcm = [_pcm(wave, sample_rate) for wave in waves]
    processes = min(processes, len(pcm) // 8)  # each begins with seconds of imports
    if processes <= 1:
        return [_listen(one) for one in pcm]
    # spawned: a fork of a process whose threads are at work may wait for them for ever
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(_listen, pcm))


def asr_wer(
    waves: Sequence[Tensor], texts: Sequence[str], sample_rate: int, processes: int = 1
) -> tuple[float, list[str]]:
    """Word error rate of pocketsphinx on waves that should say `texts`, over all words, and what it heard.

    Its own errors are in it: compare with real speech and copy-synthesis. `processes` as in `hear_all`. Raises
    MissingRecogniser.
    """
    import jiwer

    heard = hear_all(waves, sample_rate, processes)
    return jiwer.wer([plain_words(t) for t in texts], heard), heard
