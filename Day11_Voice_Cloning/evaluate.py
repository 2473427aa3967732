"""Evaluation of cloned voices: speaker similarity, intelligibility, and speed.

Compare each value with the same measure of real speech and of copy-synthesis.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import get_context

import jiwer
import numpy as np
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn import functional as F

from utils.device import synchronize
from utils.features import SAMPLE_RATE, AudioError, resample, to_mono
from utils.models.tts_mel import speech_bounds
from utils.models.tts_text import expand_text
from utils.models.verification import mean_embeddings
from utils.speech.pack import to_int16

LEAST_SECONDS = 1.0
"""Speech that a reference recording must contain; 5 seconds are better."""


class MissingRecogniser(RuntimeError):
    """pocketsphinx is not installed; the message says how to install it."""


def check_reference(wave: Tensor | np.ndarray, rate: int, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """A recording of a voice to clone, as mono `(time,)` at `sample_rate` Hz without silence around it.

    `wave` `(time,)` or `(channels, time)` at `rate` Hz. Raises AudioError for input that is no sound, for silence,
    and for less than a second of speech.
    """
    wave = to_mono(wave, rate, sample_rate, "the reference")
    first, last = speech_bounds(wave, sample_rate)
    seconds = (last - first) / sample_rate
    if seconds < LEAST_SECONDS:
        raise AudioError(
            f"the reference has {seconds:.1f} s of speech, {LEAST_SECONDS:g} s at least are needed: "
            "record about 5 seconds of one person speaking."
        )
    return wave[first:last]


# --- speaker similarity -------------------------------------------------------------------------------


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of d-vectors `(..., d)`, pair by pair."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def nearest_voice(d_vectors: Tensor, enrolled: Mapping[str, Tensor]) -> list[str]:
    """For each d-vector `(n, d)` the enrolled speaker with the most similar one (cosine).

    `enrolled` has one d-vector `(d,)` or several `(utterances, d)` a speaker; the mean of the normalised ones is
    used. Use another encoder than the one that conditioned the synthesizer.
    """
    names = list(enrolled)
    means = [mean_embeddings(torch.atleast_2d(enrolled[n]).float()) for n in names]
    scores = similarity(d_vectors[:, None], torch.stack(means).to(d_vectors.device))
    return [names[i] for i in scores.argmax(1).tolist()]


def identification_rate(d_vectors: Tensor, speakers: Sequence[str], enrolled: Mapping[str, Tensor]) -> float:
    """Top-1 accuracy of `nearest_voice` for d-vectors `(n, d)` of `speakers`, 0 to 1.

    Raises ValueError when a speaker is not enrolled.
    """
    if unknown := sorted(set(speakers) - set(enrolled)):
        raise ValueError(f"not enrolled: {unknown}")
    return accuracy_score(list(speakers), nearest_voice(d_vectors, enrolled))


# --- speed --------------------------------------------------------------------------------------------


def real_time_factor(
    make: Callable[[], Tensor | Sequence[Tensor]], sample_rate: int, device: torch.device, repeats: int = 3
) -> float:
    """Seconds of computing per second of the sound that `make()` returns (one wave, a batch, or several waves).

    The fastest of `repeats` runs after a warm-up. Below 1 is faster than real time.
    """
    make()
    times = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        waves = make()
        synchronize(device)
        times.append(time.perf_counter() - began)
    parts = [waves] if isinstance(waves, Tensor) else waves
    return min(times) / (sum(w.numel() for w in parts) / sample_rate)


# --- intelligibility ----------------------------------------------------------------------------------


def plain_words(text: str) -> str:
    """The words of a text as a recogniser writes them: expanded, without punctuation."""
    return " ".join(re.findall(r"[a-z](?:[a-z']*[a-z])?", expand_text(text)))


def recogniser_is_here() -> bool:
    """Whether pocketsphinx is installed."""
    return find_spec("pocketsphinx") is not None


@lru_cache(maxsize=1)
def _decoder():
    if not recogniser_is_here():
        raise MissingRecogniser(
            "The independent recogniser is an extra: pip install pocketsphinx (it brings its model and "
            "needs no network afterwards). Without it the word error rate is not measured."
        )
    from pocketsphinx import Decoder

    return Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")


def _transcribe(wave: Tensor) -> str:
    """One wave `(time,)` at 16 kHz, scaled so that its peak is at half of full scale."""
    decoder = _decoder()
    decoder.reinit_feat()  # otherwise the answer depends on earlier waves
    decoder.start_utt()
    scaled = 0.5 * wave / wave.abs().max().clamp(min=1e-6)
    decoder.process_raw(to_int16(scaled).tobytes(), full_utt=True)
    decoder.end_utt()
    best = decoder.hyp()
    return best.hypstr if best else ""


def hear_all(waves: Sequence[Tensor], sample_rate: int, processes: int = 1) -> list[str]:
    """Transcripts of waves `(time,)` by pocketsphinx, offline, in at most `processes` processes.

    Processes and not threads, because pocketsphinx holds Python's lock. Raises MissingRecogniser.
    """
    _decoder()
    waves = [resample(wave.cpu().float(), sample_rate, SAMPLE_RATE) for wave in waves]
    processes = min(processes, len(waves) // 8)  # each starts with seconds of imports
    if processes <= 1:
        return [_transcribe(wave) for wave in waves]
    # spawned: a forked process may wait for ever for the locks of running threads
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(_transcribe, waves))


def asr_wer(
    waves: Sequence[Tensor], texts: Sequence[str], sample_rate: int, processes: int = 1
) -> tuple[float, list[str]]:
    """Word error rate of pocketsphinx on waves of `texts`, over all words, and its transcripts.

    It includes the recogniser's own errors: compare with real speech and copy-synthesis. Raises MissingRecogniser.
    """
    transcripts = hear_all(waves, sample_rate, processes)
    return jiwer.wer([plain_words(t) for t in texts], transcripts), transcripts
