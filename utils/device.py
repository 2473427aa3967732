"""The device: choosing and describing it, seeds, mixed precision."""

from __future__ import annotations

import contextlib
import os
import platform
import random
from pathlib import Path

import numpy as np
import torch


def pick_device(name: str | None = None) -> torch.device:
    """The device to compute on: `name`, else `$STUDY_DEVICE`, else CUDA, MPS, CPU in this order.

    Raises RuntimeError when this machine does not have the device that was named: it is never silently replaced by
    a slower one.
    """
    wish = name or os.environ.get("STUDY_DEVICE")
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not wish:
        return torch.device(next(kind for kind, there in have.items() if there))
    kind = wish.split(":")[0]
    if kind not in have:
        raise RuntimeError(f"STUDY_DEVICE={wish!r} is unknown: write cuda, mps or cpu.")
    index = int(wish.split(":")[1]) if ":" in wish else 0
    if not have[kind] or (kind == "cuda" and index >= torch.cuda.device_count()):
        there = ", ".join(kind for kind, ok in have.items() if ok)
        raise RuntimeError(
            f"STUDY_DEVICE={wish!r} is not available: torch {torch.__version__} sees only: {there}. "
            "Unset STUDY_DEVICE, or run `make doctor` to see why the device is missing."
        )
    return torch.device(wish)


def cores() -> int:
    """Number of CPU cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on a Mac
    return len(usable(0)) if usable else os.cpu_count() or 1


def device_name(device: torch.device | None = None) -> str:
    """The product name, e.g. `NVIDIA H100` or `Intel(R) Xeon(R) Processor`, for the results table."""
    device = device or pick_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine(device: torch.device | None = None) -> str:
    """Device, threads, arithmetic and versions in one line."""
    device = device or pick_device()
    gains = "bfloat16" if gains_bf16(device) else "float32"
    return (
        f"{device.type}: {device_name(device)} · {torch.get_num_threads()} CPU threads · "
        f"autocast {gains} · torch {torch.__version__} · Python {platform.python_version()} · "
        f"{platform.system()} {platform.machine()}"
    )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and every GPU).

    On one machine and one version the same seed gives the same numbers on the CPU. A GPU sums in a different order
    in each run, so the last digits may differ.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries that still use the global state
    torch.manual_seed(seed)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch: a run that was killed continues with the batches that it would have had."""
    return seed * 100_003 + epoch


def gains_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: GPUs from Ampere on, CPUs with AMX or AVX512-BF16.

    Measured on two cores: with AMX (Xeon) Day 3's network trains 1.5 times faster, with AVX512-BF16
    (EPYC) Day 4's networks 1.6 times. Other CPUs emulate bfloat16 and are slower with it; MPS stays in float32,
    where every operation exists.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return bool(has.get("amx_tile") or has.get("avx512_bf16"))
    return False


def autocast(device: torch.device, enabled: bool = True) -> contextlib.AbstractContextManager:
    """`torch.autocast` in bfloat16 where the device is faster with it, else a context that does nothing.

    bfloat16 keeps float32's range, so no gradient scaler is needed (Kalamkar et al., 2019,
    arXiv:1905.12322).
    """
    if enabled and gains_bf16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished; call it before you read a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
