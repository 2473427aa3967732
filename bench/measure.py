"""What the benchmarks share: calls per second, and races to an accuracy, by a plain loop and by the days' own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from utils.data import Batches, Split
from utils.device import autocast, gains_bf16, synchronize
from utils.training import evaluate, fit

CAP_SECONDS = 600.0
Race = tuple[float, float, bool]
"""Seconds of training, the accuracy then, and whether it reached the goal before the cap."""


def calls_per_second(
    work: Callable[[int], object], device: torch.device | None = None, seconds: float = 3.0
) -> float:
    """How often `work(i)`, i = 0, 1, ..., runs in a second: at least for `seconds`, after one to warm up."""
    device = device or torch.device("cpu")
    work(0)
    synchronize(device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work(count)
        synchronize(device)
        count += 1
    return count / (time.perf_counter() - began)


def images_per_second(
    batches: Iterable,
    device: torch.device,
    work: Callable[[torch.Tensor, torch.Tensor], object] = lambda x, y: None,
    seconds: float = 4.0,
) -> float:
    """Images that arrive on the device, and go through `work(x, y)`, per second, over and over."""
    endless = itertools.chain.from_iterable(batches for _ in itertools.count())
    sizes: list[int] = []

    def one(_: int) -> None:
        x, y = next(endless)
        work(x.to(device), y.to(device))
        sizes.append(len(y))

    calls = calls_per_second(one, device, seconds)
    return calls * sum(sizes[1:]) / len(sizes[1:])


def print_share(
    name: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor, mixed: bool, seconds: float = 3.0
) -> None:
    """Print a training step's share of the machine's peak, measured in this process.

    The peak is a product of two matrices of 2048 x 2048, in the arithmetic of the step. Counted as work are the
    step's convolutions and matrix products, forward and backward, by torch's own counter.
    """
    device = y.device
    dtype = torch.bfloat16 if mixed and gains_bf16(device) else torch.float32
    square = torch.randn(2048, 2048, device=device, dtype=dtype)
    peak = 2 * 2048**3 * calls_per_second(lambda _: square @ square, device, seconds)
    step = stock_step(model, torch.optim.AdamW(model.parameters(), 1e-3), mixed=mixed)
    with FlopCounterMode(display=False) as counter:
        step(x, y)
    done = counter.get_total_flops() * calls_per_second(lambda _: step(x, y), device, seconds)
    print(f"  step of {name}: {done / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s, {done / peak:.0%}", flush=True)


def stock_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable = F.cross_entropy,
    mixed: bool = False,
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """One step of the loop that every tutorial has; `mixed` in bfloat16 where the device gains."""

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        with autocast(y.device, mixed):
            logits = model(x)
        loss_fn(logits.float(), y).backward()
        optimizer.step()

    return step


def stock_race(
    step: Callable[[torch.Tensor, torch.Tensor], None],
    loader: Iterable,
    model: nn.Module,
    test: Split,
    goal: float,
    schedule: Any = None,
    epochs: int = 1000,
    cap: float = CAP_SECONDS,
) -> Race:
    """Train by `step(x, y)`, test after each epoch, which is not timed; `schedule` steps once an epoch."""
    spent, accuracy = 0.0, 0.0
    for number in range(epochs):
        model.train()
        began = time.perf_counter()
        for x, y in loader:
            step(x.to(test.y.device), y.to(test.y.device))
        synchronize(test.y.device)
        spent += time.perf_counter() - began
        if schedule:
            schedule.step()
        accuracy = evaluate(model, test)["accuracy"]
        print(f"  epoch {number + 1}: {accuracy:.2%} after {spent:.1f} s", flush=True)
        if accuracy >= goal or spent > cap:
            break
    return spent, accuracy, accuracy >= goal


def our_race(
    model: nn.Module, batches: Batches, test: Split, goal: float, epochs: int, lr: float, smoothing: float
) -> Race:
    """The days' own loop: AdamW, one cycle over the epochs, bfloat16 where the device gains."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.05)
    history = fit(
        model, batches, optimizer, epochs=epochs, mixed=True, bar=False,
        loss_fn=lambda logits, y: F.cross_entropy(logits, y, label_smoothing=smoothing),
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * len(batches)),
        validate=lambda m: evaluate(m, test),
        stop=lambda epoch: epoch["val_accuracy"] >= goal,
    )  # fmt: skip
    accuracy = history.epochs[-1]["val_accuracy"]
    print(f"  {accuracy:.2%} after {history.seconds:.1f} s", flush=True)
    return history.seconds, accuracy, accuracy >= goal


def slowest_of_three(ours: Callable[[int], Race]) -> float:
    """Seconds of the slowest of the races `ours(seed)`. Raises RuntimeError if one misses its goal."""
    races = [ours(seed) for seed in range(3)]
    if not all(arrived for _, _, arrived in races):
        raise RuntimeError("our own recipe did not reach its goal: there is no ratio to print")
    return max(seconds for seconds, _, _ in races)
