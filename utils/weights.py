"""Trained weights on disk: safetensors with a JSON card beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from .device import describe_machine
from .logger import RunLogger
from .training import History

LIMIT = 25_000_000
"""Bytes that a file in the repository may have."""


def save_weights(
    path: Path, model: nn.Module, card: Mapping[str, Any], half: bool = False
) -> int:
    """Write the model's state and `NAME.json` with the card; `half` in float16. Returns the bytes.

    Raises ValueError when the file would be too large for the repository.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        state[name] = (
            tensor.half() if half and tensor.is_floating_point() else tensor.clone()
        )
    size = sum(t.numel() * t.element_size() for t in state.values())
    if size > LIMIT:
        raise ValueError(
            f"{path.name} would have {size / 1e6:.0f} MB, {LIMIT / 1e6:.0f} at most: half=True?"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.tmp")
    save_file(state, scratch)
    scratch.replace(path)
    text = json.dumps(dict(card), indent=1, ensure_ascii=False, default=str)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path.stat().st_size


def training_card(
    log: RunLogger, history: History, settings: Any, seed: int, **said: Any
) -> dict[str, Any]:
    """The card of a network that was trained here: what is `said` of it, then settings, machine, commit and curve.

    `settings` is the dataclass that the training was called with.
    """
    return said | {
        "seed": seed, "settings": asdict(settings), "seconds": round(history.seconds, 1),
        "machine": describe_machine(log.device), "commit": log.commit,
        "curve": [
            {k: round(v, 4) for k, v in e.items() if not isinstance(v, str)}
            for e in history.epochs
        ],
    }  # fmt: skip


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Put the weights into `model`, on its device and in its precision; returns the card.

    Raises RuntimeError when they are of another network: the message names what differs.
    """
    state = load_file(path)
    own = model.state_dict()
    for name, tensor in state.items():
        if name in own:
            state[name] = tensor.to(own[name].dtype)
    model.load_state_dict(state)
    card = path.with_suffix(".json")
    return json.loads(card.read_text(encoding="utf-8")) if card.exists() else {}
