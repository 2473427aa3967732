"""The training loop of Day 2 with clipping, gradient norms, checkpoints and resuming."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .data import Batches, Split
from .days import atomic
from .device import autocast, synchronize
from .logger import Run, progress
from .metrics import accuracy

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Diverged(FloatingPointError):
    """The loss is no longer a number."""


@dataclass
class History:
    """The numbers of a training run: one dict per epoch, and one list per quantity over the steps."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds of training alone, without validation."""
        return sum(e["seconds"] for e in self.epochs)

    def column(self, name: str) -> list[float]:
        """One quantity over the epochs, e.g. `val_accuracy`."""
        return [e[name] for e in self.epochs]


def gradient_norms(model: nn.Module) -> dict[str, torch.Tensor]:
    """Euclidean norm of each weight's gradient, `{parameter name: scalar tensor}`, without biases."""
    return {
        name: p.grad.detach().norm()
        for name, p in model.named_parameters()
        if p.grad is not None and p.ndim > 1
    }


def total_norm(model: nn.Module) -> torch.Tensor:
    """Euclidean norm of all gradients as one vector: the number that clipping compares."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def fit(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    loss_fn: Loss = F.cross_entropy,
    scheduler: Any = None,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    run: Run | None = None,
    clip: float | None = None,
    mixed: bool = False,
    layer_norms: bool = False,
    checkpoint: Path | None = None,
    stop: Callable[[Mapping[str, float]], bool] | None = None,
    label: str = "training",
    bar: bool = True,
) -> History:
    """Train `model` on `batches` for `epochs` and return the history.

    `loss_fn(logits, y)` returns a scalar. `scheduler` steps once per batch. `validate(model)` is called after each
    epoch; its numbers get the prefix `val_`. `clip` limits the total gradient norm (Pascanu et al., 2013); the
    logged norm is the one before clipping. `stop(numbers)` is called with the numbers of each epoch; True ends
    the training. `mixed` computes in bfloat16 where that is faster. `layer_norms` logs the gradient norm of each
    weight. With `run`, steps and epochs are logged, and the state is saved after each epoch, so that the same
    call after a kill continues with the same batches and random numbers; `checkpoint` names another file for
    that. Under `python -m tools run --resume` the state of a finished run is kept and loaded, not trained again.

    Raises Diverged at the end of the first epoch whose loss is not finite.
    """
    device = next(model.parameters()).device
    history, start = History(), 0
    checkpoint = checkpoint or (run.checkpoint if run else None)
    keep = run is not None and run.keeps_checkpoint
    if checkpoint and checkpoint.exists():
        history, start = resume(checkpoint, model, optimizer, scheduler, run)
    with progress(epochs * len(batches), label, start * len(batches), bar) as shown:
        for epoch in range(start, epochs):
            model.train()
            curves: dict[str, list] = {}
            began = time.perf_counter()
            for x, y in batches.epoch(epoch):
                with autocast(device, mixed):
                    logits = model(x)
                loss = loss_fn(logits.float(), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                step = {"loss": loss.detach(), "grad_norm": total_norm(model)}
                if layer_norms:
                    step |= {f"grad_norm/{k}": v for k, v in gradient_norms(model).items()}
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                step["lr"] = optimizer.param_groups[0]["lr"]
                optimizer.step()
                if scheduler:
                    scheduler.step()
                for name, value in step.items():
                    curves.setdefault(name, []).append(value)
                shown.update()
            synchronize(device)
            seconds = time.perf_counter() - began
            numbers = {k: _floats(v) for k, v in curves.items()}  # one copy per epoch, not per step
            for name, values in numbers.items():
                history.steps.setdefault(name, []).extend(values)
            if run:
                run.log_steps(epoch * len(batches), numbers)
            mean = {k: sum(v) / len(v) for k, v in numbers.items()}
            if not mean["loss"] < float("inf"):
                raise Diverged(f"the loss is {mean['loss']} in epoch {epoch + 1}: learning rate too large?")
            entry = {"epoch": epoch + 1, "train_loss": mean["loss"], "grad_norm": mean["grad_norm"]}
            entry |= {"lr": numbers["lr"][-1], "seconds": round(seconds, 3)}
            entry |= {f"val_{k}": v for k, v in validate(model).items()} if validate else {}
            history.epochs.append(entry)
            if run:
                run.log_epoch(**as_epoch_kwargs(entry))
            if checkpoint and (epoch + 1 < epochs or keep):
                save_checkpoint(checkpoint, model, optimizer, scheduler, history)
            if stop and stop(entry):
                break
            shown.set_postfix_str(", ".join(f"{k} {v:.4g}" for k, v in entry.items() if k != "epoch"))
    if checkpoint and not keep:
        checkpoint.unlink(missing_ok=True)
    return history


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": partial(torch.optim.AdamW, weight_decay=1e-2),
    "RAdam": partial(torch.optim.RAdam, weight_decay=1e-2, decoupled_weight_decay=True),
    "SGD": partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=1e-4),
}
"""Optimizers that the searches compare, called with parameters and learning rate."""


def fit_one_cycle(
    model: nn.Module, batches: Batches, optimizer: str, lr: float, epochs: int, **how: Any
) -> History:
    """`fit` with one of OPTIMIZERS, OneCycle up to `lr` over a fifth of the steps, gradients clipped at 5.

    `how` is passed to `fit`.
    """
    chosen = OPTIMIZERS[optimizer](model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(chosen, lr, epochs * len(batches), pct_start=0.2)
    return fit(model, batches, chosen, epochs=epochs, scheduler=schedule, clip=5.0, **how)


def _floats(values: list) -> list[float]:
    if values and isinstance(values[0], torch.Tensor):
        return torch.stack(values).float().cpu().tolist()
    return [float(v) for v in values]


@torch.inference_mode()
def predict(model: nn.Module, x: torch.Tensor, batch_size: int = 1000) -> torch.Tensor:
    """Logits `(items, classes)` in float32, in evaluation mode; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(part).float() for part in x.split(batch_size)])
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, split: Split, loss_fn: Loss = F.cross_entropy) -> dict[str, float]:
    """`{"loss", "accuracy"}` of the model on a split, the loss by `loss_fn` over all items at once."""
    logits = predict(model, split.x)
    return {"loss": loss_fn(logits, split.y).item(), "accuracy": accuracy(logits, split.y)}


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, history: History
) -> None:
    """Save everything that the next epoch depends on; atomic, so that a kill leaves the last complete state."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict() if scheduler else None,
        "epochs": history.epochs,
        "steps": history.steps,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with atomic(path) as scratch:
        torch.save(state, scratch)


def as_epoch_kwargs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One epoch of a history as keyword arguments of `Run.log_epoch`."""
    return {"number" if k == "epoch" else k: v for k, v in entry.items()}


def resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, run: Run | None = None
) -> tuple[History, int]:
    """Load a checkpoint; returns the history and the number of finished epochs, which `run` logs again.

    Raises RuntimeError when the file is damaged or of another model; the message names the file.
    """
    try:
        device = next(model.parameters()).device
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scheduler:
            scheduler.load_state_dict(state["scheduler"])
    except Exception as e:
        raise RuntimeError(
            f"The checkpoint {path.parent.name}/{path.name} does not fit this model ({e}). "
            f"Delete {path} to begin anew."
        ) from e
    torch.set_rng_state(state["rng"].cpu())
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
    history = History(state["epochs"], state["steps"])
    if run:
        run.earlier_seconds = history.seconds
        for entry in history.epochs:
            run.log_epoch(**as_epoch_kwargs(entry))
    return history, len(history.epochs)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
