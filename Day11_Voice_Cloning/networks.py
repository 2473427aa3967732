"""Saving and loading the networks that Day 11 ships."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from utils.models.fastspeech import FastSpeech, FastSpeechConfig
from utils.models.tacotron2 import Tacotron2, TacotronConfig
from utils.training import load_weights, save_weights

from .waveglow import WaveGlow, WaveGlowConfig

# --- weights ------------------------------------------------------------------------------------------

NETWORKS = {
    "Tacotron2": (Tacotron2, TacotronConfig),
    "WaveGlow": (WaveGlow, WaveGlowConfig),
    "FastSpeech": (FastSpeech, FastSpeechConfig),
    "ParallelSynthesizer": (FastSpeech, FastSpeechConfig),  # its name in the shipped cards
}

Network = Tacotron2 | WaveGlow | FastSpeech


def save_network(path: Path, model: Network, **card: Any) -> int:
    """Write a synthesizer or vocoder as float16 safetensors; its sizes go into the card. Returns the bytes."""
    known = {"network": type(model).__name__, "config": asdict(model.config)}
    return save_weights(path, model, known | card, half=True)


def load_network(path: Path, device: torch.device | str = "cpu") -> tuple[Network, dict[str, Any]]:
    """What `save_network` wrote, in float32 and evaluation mode, and its card.

    Raises FileNotFoundError where weights or card are missing.
    """
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file.name} is not in {file.parent.name}: it comes with the repository, or run the "
                "notebook that trains it."
            )
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    network, config = NETWORKS[card["network"]]
    model = network(config(**card["config"]))
    load_weights(path, model)
    return model.to(device).eval(), card
