"""Quality of enhanced speech (SI-SDR, STOI, PESQ), means by noise level, and the real-time factor."""

from __future__ import annotations

import importlib.util
import timeit
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from utils.features import SAMPLE_RATE, as_float
from utils.metrics import Interval, bootstrap_mean

from .enhancer import HOP, Enhancer, EnhancerStream, si_sdr

NO_PESQ = (
    "PESQ: not measured, the package is not installed (pip install pesq, which needs a C compiler); "
    "its column stays empty"
)


def _refuse_silence(clean: Tensor) -> None:
    silent = clean.square().mean(1) < 1e-12
    if silent.any():
        raise ValueError(f"clean item {int(silent.nonzero()[0])} is silent: no score")


def has_pesq() -> bool:
    """Whether the optional package `pesq` is installed."""
    return importlib.util.find_spec("pesq") is not None


def stoi_scores(estimate: Tensor, clean: Tensor) -> np.ndarray:
    """Short-time objective intelligibility, 0 to 1 (Taal et al., 2011; not the extended one): `(items,)`.

    Waves `(items, time)` at 16 kHz. Raises ValueError for a silent reference, RuntimeError for two shapes.
    """
    from torchmetrics.functional.audio import short_time_objective_intelligibility

    _refuse_silence(clean)
    return short_time_objective_intelligibility(estimate, clean, SAMPLE_RATE).cpu().numpy()


def pesq_scores(estimate: Tensor, clean: Tensor) -> np.ndarray:
    """Wide-band PESQ (ITU-T P.862.2), 1.04 to 4.64: `(items,)`; nan where it finds no speech.

    Raises ImportError with the command to type where the optional package is missing.
    """
    if not has_pesq():
        raise ImportError(NO_PESQ)
    from pesq import PesqError, pesq

    _refuse_silence(clean)
    scores = []
    for c, e in zip(clean.cpu().numpy(), estimate.cpu().numpy(), strict=True):
        try:
            scores.append(float(pesq(SAMPLE_RATE, c, e, "wb")))
        except PesqError:
            scores.append(float("nan"))
    return np.array(scores)


def quality(estimate: Tensor, clean: Tensor) -> dict[str, np.ndarray | None]:
    """`{"pesq", "stoi", "si_sdr"}`, each `(items,)`, of waves `(items, time)` at 16 kHz against the clean ones.

    `pesq` is None, with a warning, where its package is not installed: leave the column empty.
    Raises ValueError for a silent reference, RuntimeError for two shapes.
    """
    estimate, clean = as_float(estimate).float(), as_float(clean).float()
    if not has_pesq():
        warnings.warn(NO_PESQ, stacklevel=2)
    return {
        "pesq": pesq_scores(estimate, clean) if has_pesq() else None,
        "stoi": stoi_scores(estimate, clean),
        "si_sdr": si_sdr(estimate, clean).cpu().numpy().astype(float),
    }


def by_snr(scores: ArrayLike, snr_db: ArrayLike, groups: ArrayLike) -> dict[float, Interval]:
    """Mean and 95 % interval at each SNR, resampled by `groups` (each item's speaker); nan is left out."""
    scores, snr_db, groups = np.asarray(scores, float), np.asarray(snr_db), np.asarray(groups)
    found = {}
    for level in np.unique(snr_db):
        chosen = (snr_db == level) & np.isfinite(scores)
        if chosen.any():
            found[float(level)] = bootstrap_mean(scores[chosen], groups[chosen], 1000)
    return found


def real_time_factor(process: Callable[[Tensor], Any], seconds: float = 10.0, repeats: int = 3) -> float:
    """Seconds of one core per second of sound, the best of `repeats`; below 1 is faster than real time.

    `process` is called with a wave `(1, time)` on the CPU.
    """
    g = torch.Generator().manual_seed(0)
    wave = 0.05 * torch.randn(1, round(seconds * SAMPLE_RATE), generator=g)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            process(wave[:, :SAMPLE_RATE])
            spent = timeit.repeat(lambda: process(wave), number=1, repeat=repeats)
    finally:
        torch.set_num_threads(threads)
    return min(spent) / seconds


def stream_through(model: Enhancer, wave: Tensor, chunk: int = HOP) -> Tensor:
    """`(1, time)` through an EnhancerStream in pieces of `chunk` samples: `(1, time)`."""
    stream = EnhancerStream(model)
    parts = [stream.push(piece) for piece in wave[0].split(chunk)]
    return torch.cat([*parts, stream.finish()])[None]
