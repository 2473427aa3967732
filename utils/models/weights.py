"""Weights that are shipped with the repository: files with a model card, and the command that trains them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from ..days import PROFILES, atomic
from ..device import describe_machine
from ..logger import RunLogger
from ..training import History

LIMIT = 25_000_000
"""Largest size of a file in the repository (bytes)."""


def save_weights(path: Path, model: nn.Module, card: Mapping[str, Any], half: bool = False) -> int:
    """Write the model's state, with `half` in float16, and the card as `NAME.json`. Returns the size in bytes.

    Raises ValueError when the file would be too large for the repository.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        state[name] = tensor.half() if half and tensor.is_floating_point() else tensor.clone()
    size = sum(t.numel() * t.element_size() for t in state.values())
    if size > LIMIT:
        raise ValueError(f"{path.name} would have {size / 1e6:.0f} MB, {LIMIT / 1e6:.0f} at most: half=True?")
    with atomic(path) as scratch:
        save_file(state, scratch)
    text = json.dumps(dict(card), indent=1, ensure_ascii=False, default=str)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path.stat().st_size


def training_card(log: RunLogger, history: History, settings: Any, seed: int, **said: Any) -> dict[str, Any]:
    """The model card of a network: what is `said`, then settings (a dataclass), machine, commit and curve."""
    return said | {
        "seed": seed, "settings": asdict(settings), "seconds": round(history.seconds, 1),
        "machine": describe_machine(log.device), "commit": log.commit,
        "curve": [
            {k: round(v, 4) for k, v in e.items() if not isinstance(v, str)}
            for e in history.epochs
        ],
    }  # fmt: skip


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Load the weights into `model`, on its device and in its precision; returns the card.

    Raises RuntimeError for weights of another network; the message names what differs.
    """
    state = load_file(path)
    own = model.state_dict()
    for name, tensor in state.items():
        if name in own:
            state[name] = tensor.to(own[name].dtype)
    model.load_state_dict(state)
    card = path.with_suffix(".json")
    return json.loads(card.read_text(encoding="utf-8")) if card.exists() else {}


def training_command(
    jobs: Mapping[str, tuple[Callable[[str, int], Path], Callable[[str, Path, int], History]]],
    argv: list[str] | None = None,
) -> int:
    """The command line of a day's `train.py`: `python -m DayNN_Name.train [JOB] --profile study --seed 0`.

    `jobs` maps a job's name (one nameless job: "") to two functions: `path(profile, seed)`, where its weights
    belong, and `train(profile, path, seed)`. The same command continues a run that was stopped. Returns the exit
    status: 0, or 2 after a message where something is missing.
    """
    p = argparse.ArgumentParser()
    if "" not in jobs:
        p.add_argument("job", choices=list(jobs))
    p.add_argument("--profile", choices=PROFILES, default="study")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, help="another .safetensors file")
    args = p.parse_args(argv)
    where, train = jobs[getattr(args, "job", "")]
    try:
        path = args.output or where(args.profile, args.seed)
        history = train(args.profile, path, args.seed)
    except (ValueError, RuntimeError, FileNotFoundError) as e:
        print(e, file=sys.stderr)
        return 2
    end = {k: v for k, v in history.epochs[-1].items() if not isinstance(v, str)}
    numbers = ", ".join(f"{k} {v:.4g}" for k, v in end.items())
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {numbers}; {history.seconds:.0f} s")
    return 0
