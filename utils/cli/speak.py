"""`python -m utils speak`: the audio files that a day publishes, from text and the shipped weights."""

from __future__ import annotations

import sys


def speak(day: int, profile: str) -> int:
    """Write the files of Day 11's `audio/`, each named; 0 when all are there, 2 where weights are missing.

    Raises ValueError for another day.
    """
    if day != 11:
        raise ValueError(f"Day {day} publishes no speech from text: Day 11 does.")
    from ..speaking import publish

    try:
        written = publish(profile)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    for path in written:
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
    total = sum(path.stat().st_size for path in written)
    print(f"{len(written)} files, {total / 1e6:.1f} MB, in {written[0].parent.name}/")
    return 0
