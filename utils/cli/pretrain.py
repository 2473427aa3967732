"""`python -m utils pretrain`: the small wav2vec 2.0 of Day 9 from sound alone; stop it, start it again."""

from __future__ import annotations

from pathlib import Path

from .. import days


def pretrain(profile: str, steps: int | None, output: str) -> int:
    """Pretrain by the profile's settings and write weights and card; 0 when they are written."""
    from ..models.wav2vec2 import pretrain_small

    folder = days.get(9).output(profile) / "checkpoints"
    path = Path(output) if output else folder / "wav2vec2_small.safetensors"
    history = pretrain_small(profile, path, steps)
    end = history.epochs[-1]
    print(
        f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {end['step']} steps, contrastive loss "
        f"{end['contrastive']:.3f}, perplexity {end['perplexity']:.0f}, {history.seconds:.0f} s"
    )
    return 0
