"""What the benchmarks share: images per second, a training step, and a race to an accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from utils.data import Split
from utils.device import autocast, synchronize
from utils.training import evaluate

CAP_SECONDS = 600.0


def images_per_second(
    batches: Iterator,
    device: torch.device,
    work: Callable[[torch.Tensor, torch.Tensor], None] = lambda x, y: None,
    seconds: float = 4.0,
) -> float:
    """Images that arrive on the device, and go through `work(x, y)`, per second.

    The first batch is not timed; then measured for at least `seconds`, or until the batches end.
    """
    x, y = next(batches)
    work(x.to(device), y.to(device))
    synchronize(device)
    count, began = 0, time.perf_counter()
    for x, y in batches:
        work(x.to(device), y.to(device))
        count += len(y)
        if time.perf_counter() - began > seconds:
            break
    synchronize(device)
    return count / (time.perf_counter() - began)


class Trainer:
    """One network, its optimizer, and a step; `mixed` uses bfloat16 where the device gains.

    With `steps`: AdamW with one cycle over so many steps; without: Adam at a constant rate.
    """

    def __init__(
        self, model: nn.Module, lr: float, mixed: bool, steps: int = 0, smoothing: float = 0.0
    ) -> None:
        self.model, self.mixed, self.smoothing = model, mixed, smoothing
        weights = [p for p in model.parameters() if p.requires_grad]
        if steps:
            self.optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.05)
            self.cycle = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, steps)
        else:
            self.optimizer, self.cycle = torch.optim.Adam(weights, lr), None

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        with autocast(y.device, self.mixed):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.cycle:
            self.cycle.step()

    def epoch(self, batches: Iterable) -> None:
        """One pass over `batches`, in training mode."""
        device = next(self.model.parameters()).device
        self.model.train()
        for x, y in batches:
            self.step(x.to(device), y.to(device))


def slowest_of_three(ours: Callable[[int], tuple[float, float, bool]]) -> float:
    """Seconds of the slowest of the races `ours(seed)`. Raises RuntimeError if one did not arrive."""
    races = [ours(seed) for seed in range(3)]
    if not all(arrived for _, _, arrived in races):
        raise RuntimeError(
            "our own recipe did not reach its goal: the benchmark has no ratio to print"
        )
    return max(seconds for seconds, _, _ in races)


def forever(batches: Callable[[], Iterator]) -> Iterator:
    """One epoch after another, without end."""
    while True:
        yield from batches()


def race(
    epoch: Callable[[int], None],
    model: nn.Module,
    test: Split,
    goal: float,
    epochs: int,
    cap: float = CAP_SECONDS,
) -> tuple[float, float, bool]:
    """Seconds of training until `goal`, the accuracy then, and whether it arrived before the cap.

    `epoch(number)` trains one epoch; the test after each is not timed.
    """
    spent, accuracy = 0.0, 0.0
    for number in range(epochs):
        began = time.perf_counter()
        epoch(number)
        synchronize(test.y.device)
        spent += time.perf_counter() - began
        accuracy = evaluate(model, test)["accuracy"]
        print(f"  epoch {number + 1}: {accuracy:.2%} after {spent:.1f} s", flush=True)
        if accuracy >= goal:
            return spent, accuracy, True
        if spent > cap:
            break
    return spent, accuracy, False
