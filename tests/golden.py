"""Golden values: what every shipped network answers to fixed inputs, and what the quick profile prints.

    python -m tests.golden save golden.json          # before a change
    python -m tests.golden compare golden.json       # after it: on one machine every bit must be the same

Both take, where they are there, the tables of `runs/quick` (`make run`) and the files of Day 11's `audio`
(`python -m Day11_Voice_Cloning.synthesize`), without times and commits.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
VOLATILE = {"seconds", "finished", "commit", "note", "device"}
VOLATILE |= {"clips_per_s", "images_per_s", "matmul_gflops", "real_time_factor"}
"""Columns that another moment or machine changes."""


def waves(batch: int, samples: int, seed: int = 0) -> Tensor:
    """Fixed sounds `(batch, samples)` at 16 kHz: vowels of rising pitch, three syllables a second, in noise."""
    t = torch.arange(samples) / 16_000
    noise = torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))
    pitch = 120 + 60 * torch.arange(batch)[:, None]
    syllables = torch.sin(2 * torch.pi * 3 * t)
    return 0.3 * torch.sin(2 * torch.pi * pitch * t) * syllables + 0.05 * noise


def checkpoints(day: int) -> list[Path]:
    return sorted(next(ROOT.glob(f"Day{day:02d}_*")).glob("checkpoints/*.safetensors"))


@torch.inference_mode()
def answers() -> dict[str, Tensor]:
    """What each shipped network gives for fixed inputs, by day and name."""
    from Day09_Wav2Vec2.pretrain import load_pretraining
    from Day11_Voice_Cloning.train import load_network
    from Day14_Enhancement.enhancer import Enhancer
    from utils.models.ecapa_tdnn import load_speaker_net as load_speaker_net
    from utils.models.ge2e import pretrained_dvector
    from utils.models.keyword_net import load_kept
    from utils.models.tts_text import encode_batch
    from utils.models.wav2vec2_ctc import load_recogniser
    from utils.models.weights import load_weights

    out = {"day07 keywords": load_kept()[0](waves(2, 16_000))}
    for path in checkpoints(9):
        if path.stem.startswith("wav2vec2"):  # pretrained: no head
            hidden = load_pretraining(path)[0].wav2vec2(waves(2, 24_000)).last_hidden_state
            out[f"day09 {path.stem}"] = hidden
        else:
            out[f"day09 {path.stem}"] = load_recogniser(path).model(waves(2, 24_000)).logits
    (folder,) = ROOT.glob("Day15_Summary/templates/*/day4_wav2vec2_asr/fine_tuned_model")
    out["template4 fine_tuned_model"] = load_recogniser(folder).model(waves(2, 24_000)).logits
    text, lengths = encode_batch(["The boat sailed at ten.", "Hello."])
    voices = torch.nn.functional.normalize(torch.arange(512.0).reshape(2, 256).sin(), dim=1)
    for path in checkpoints(11):
        model, _ = load_network(path)
        torch.manual_seed(0)
        if path.stem == "waveglow":
            out["day11 waveglow"] = model.decode(torch.arange(80 * 21.0).reshape(1, 80, 21).sin())
        else:
            out[f"day11 {path.stem}"] = model.generate(text, lengths, voices).mel
    for profile in ("study", "full"):
        for seed in range(3):
            sounds = [waves(1, 32_000, seed)[0], waves(1, 16_000, seed + 1)[0]]
            vectors = load_speaker_net(seed, profile=profile).embed(sounds)
            out[f"day13 speaker_net {profile} {seed}"] = vectors
    out["ge2e"] = pretrained_dvector().embed([waves(1, 32_000)[0]])
    (path,) = checkpoints(14)
    enhancer = Enhancer()
    load_weights(path, enhancer)
    out["day14 enhancer"] = enhancer.eval()(waves(2, 16_000))
    return {name: value.detach().float() for name, value in out.items()}


def exact() -> dict[str, str]:
    """A hash for each golden thing: answers, tables of the quick profile, Day 11's sound files."""
    torch.set_num_threads(1)
    found = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in answers().items()}
    for table in sorted(ROOT.glob("runs/quick/*/*.csv")):
        with open(table, encoding="utf-8", newline="") as f:
            rows = [{k: v for k, v in r.items() if k not in VOLATILE} for r in csv.DictReader(f)]
        text = json.dumps([sorted(r.items()) for r in rows])
        found[table.name] = hashlib.sha256(text.encode()).hexdigest()
    for wav in sorted(ROOT.glob("Day11_Voice_Cloning/audio/*.wav")):
        found[wav.name] = hashlib.sha256(wav.read_bytes()).hexdigest()
    return found


def main(command: str, path: str) -> int:
    found = exact()
    if command == "save":
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found)} golden values in {path}")
        return 0
    before = json.loads(Path(path).read_text(encoding="utf-8"))
    differ = [k for k in before if before[k] != found.get(k)]
    print(
        *(f"differs: {k}" for k in differ), f"{len(before) - len(differ)} of {len(before)} the same", sep="\n"
    )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
