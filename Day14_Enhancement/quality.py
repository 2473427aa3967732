"""How good enhanced speech is: SI-SDR, STOI, PESQ, by noise level, and how fast it was made."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.features import SAMPLE_RATE, as_float
from utils.metrics import Interval, bootstrap_mean

from .enhancer import HOP, Enhancer, EnhancerStream, si_sdr

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
            found[float(level)] = bootstrap_mean(scores[chosen], groups[chosen], resamples)
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
