"""`python -m tools ask words clip.wav`: a finished model answers about your recording.

A day offers a model by a function `load_kept()`; it returns a function that takes the files and yields the lines
of the answer.
"""

from __future__ import annotations

import importlib

from utils import days

KINDS = {
    "words": (7, "recognise", "which of nine words is said in each file"),
    "sentence": (9, "transcribe", "what is said in each file"),
    "clone": (11, "synthesize", "a text in the voice of a reference"),
    "verify": (13, "verify", "whether two files are of one speaker"),
    "enhance": (14, "enhancer", "a file without its noise"),
}
"""What can be asked: day, its module with `load_kept()`, and what the answer is."""


def ask(kind: str, files: list[str]) -> int:
    """Print the answer; 2 for a kind that its day does not offer yet."""
    number, module, what = KINDS[kind]
    name = f"{days.get(number).name}.{module}"
    load = getattr(importlib.import_module(name), "load_kept", None)
    if load is None:
        print(f"{kind} ({what}): Day {number} will add it to {name}.")
        return 2
    for line in load()(files):
        print(line)
    return 0
