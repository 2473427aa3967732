"""`python -m utils pretrain`: the trainings too long for a notebook, whose weights a day ships."""

from __future__ import annotations

from pathlib import Path

from .. import days


def pretrain(
    day: int, profile: str, seed: int, steps: int | None, output: str, part: str = ""
) -> int:
    """Train the day's own network by the profile's settings and write weights and card; 0 when they are written.

    Day 9: the small wav2vec 2.0, from sound alone, or (`part` words) its fine-tuning on connected words,
    (words-on) how that goes on, or (sentences) its fine-tuning on whole sentences.
    Day 11: the `part` of `cloning.PARTS`. Day 13: the speaker encoder. Day 14: the enhancer. Stopped, the
    same command goes on where it was. Raises ValueError for another day or part.
    """
    folder = days.get(day).output(profile) / "checkpoints"
    if day == 9 and part == "words":
        from ..sweeps.day09 import recogniser_path, train_words

        path = Path(output) if output else recogniser_path(profile)
        history = train_words(profile, path, seed)
    elif day == 9 and part == "words-on":
        from ..sweeps.day09 import go_on, recogniser_path

        path = Path(output) if output else recogniser_path(profile, on=seed)
        history = go_on(profile, path, seed)
    elif day == 9 and part == "sentences":
        from ..sweeps.day09 import sentences_path, train_sentences

        path = Path(output) if output else sentences_path(profile)
        history = train_sentences(profile, path, seed)
    elif day == 9 and not part:
        from ..models.wav2vec2 import FULL_WEIGHTS, SMALL_WEIGHTS, pretrain_small

        weights = FULL_WEIGHTS if profile == "full" else SMALL_WEIGHTS
        path = Path(output) if output else folder / weights.name
        history = pretrain_small(profile, path, steps, seed)
    elif day == 11:
        from .. import cloning

        path = Path(output) if output else cloning.weights_path(part, profile)
        history = cloning.train_own(part, profile, path, seed)
    elif day == 13:
        from ..speakers import own_weights, train_own

        path = Path(output) if output else folder / own_weights(profile, seed)
        history = train_own(profile, path, seed)
    elif day == 14:
        from ..enhance import train_own

        path = Path(output) if output else folder / "enhancer.safetensors"
        history = train_own(profile, path, seed)
    else:
        raise ValueError(
            f"Day {day} ships no weights of its own (9, 11, 13 and 14 do), or none for part {part!r}."
        )
    numbers = {k: v for k, v in history.epochs[-1].items() if not isinstance(v, str)}
    end = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
    print(
        f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {end}; {history.seconds:.0f} s"
    )
    return 0
