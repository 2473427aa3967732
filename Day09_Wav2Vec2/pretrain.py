"""Pretrain a small wav2vec 2.0 on sound alone (Baevski et al., 2020, arXiv:2006.11477).

On one device `python -m Day09_Wav2Vec2.pretrain`, on several `accelerate launch -m Day09_Wav2Vec2.pretrain`.
"""

from __future__ import annotations

import copy
import io
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from utils import days
from utils.device import autocast, epoch_seed, pick_device, seed_everything
from utils.features import SAMPLE_RATE, as_float
from utils.logger import Run, RunLogger, progress
from utils.models import ctc
from utils.models.ctc import Vocabulary
from utils.models.wav2vec2_ctc import (
    Wav2Vec2CTC,
    change_config,
    make_config,
    num_frames,
    read_card,
    schedule_factor,
    tiny_config,
)
from utils.models.weights import load_weights, save_weights, training_card, training_command
from utils.speech import corpora
from utils.training import Diverged, History, as_epoch_kwargs, resume, save_checkpoint


def allow_tf32(device: torch.device) -> None:
    """Let a GPU multiply float32 matrices in TF32 (10 bits of fraction), several times as fast.

    No effect elsewhere. For networks whose gradients bfloat16 spoils.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


SMALL_WEIGHTS = days.get(9).folder / "checkpoints" / "wav2vec2_small.safetensors"
FULL_WEIGHTS = SMALL_WEIGHTS.with_name("wav2vec2_small_full.safetensors")
"""This repository's own pretrained weights: by the study profile on a CPU, by the full profile on a GPU."""

# --- the network ------------------------------------------------------------------------------------


def small_config(vocabulary: Vocabulary | None = None, **changes: Any) -> Wav2Vec2Config:
    """3.1 million weights: 7 convolutions (50 frames a second), 6 layers of 192; a CPU core pretrains it in hours.

    Layer norm in the convolutions and before each block, as in wav2vec2-large-lv60: it trains stably, and padding
    does not change it. Few channels at the high frame rates, 30 distractors instead of 100 and no dropout inside
    the blocks save time on a CPU. `changes` override any field of `Wav2Vec2Config`.
    """
    size: dict[str, Any] = {
        "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4,
        "intermediate_size": 768, "conv_dim": (64, 64, 96, 128, 128, 128, 128),
        "num_conv_pos_embeddings": 64, "num_codevectors_per_group": 64, "codevector_dim": 128,
        "proj_codevector_dim": 128, "num_negatives": 30, "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }  # fmt: skip
    return make_config(vocabulary, size | changes)


def receptive_field(config: Wav2Vec2Config) -> tuple[int, int]:
    """Receptive field and hop of a frame, in samples: 400 and 320 in wav2vec2-base."""
    field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field, hop = field + (kernel - 1) * hop, hop * stride
    return field, hop


def average_weights(recognisers: Sequence[Wav2Vec2CTC]) -> Wav2Vec2CTC:
    """A recogniser whose weights are the mean of theirs; they have the same layout and vocabulary.

    It helps when all were fine-tuned from the same weights: then they lie in one basin of the loss
    (Wortsman et al., 2022, arXiv:2203.05482).
    """
    states = [r.state_dict() for r in recognisers]
    together = copy.deepcopy(recognisers[0])
    together.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})
    return together


def save_wav2vec2(
    path: Path, model: Wav2Vec2CTC | Wav2Vec2ForPreTraining, card: dict[str, Any], half: bool = True
) -> int:
    """Write weights in float16 and their card with the configuration; returns the bytes.

    A recogniser is written with its head and vocabulary, a pretrained model with its quantiser.
    """
    network = model.model if isinstance(model, Wav2Vec2CTC) else model
    whole = {**card, "config": network.config.to_diff_dict()}
    if isinstance(model, Wav2Vec2CTC):
        whole["symbols"] = model.vocabulary.symbols
    return save_weights(path, network, whole, half)


def load_pretraining(path: Path) -> tuple[Wav2Vec2ForPreTraining, dict[str, Any]]:
    """The pretrained network with its quantiser, in evaluation mode, and its card."""
    model = Wav2Vec2ForPreTraining(change_config(read_card(path)["config"], {}))
    card = load_weights(path, model)
    return model.eval(), card


# --- pretraining --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pretraining:
    """How a network is pretrained: `batch_size` crops of `crop` s a step; logged and saved every `every` steps.

    `mask_prob` 0.65 in spans of 10 frames masks about half of them. The Gumbel temperature falls from 2
    to 0.5 over the first 70 % of the steps.
    """

    steps: int = 7600
    batch_size: int = 8
    crop: float = 2.0
    lr: float = 7e-4
    mask_prob: float = 0.65
    mask_length: int = 10
    weight_decay: float = 0.01
    clip: float = 5.0
    every: int = 100
    mixed: bool = False


PRETRAINING = {
    "quick": Pretraining(steps=20, batch_size=4, crop=1.0, every=10),
    "study": Pretraining(),
    "full": Pretraining(steps=7500, batch_size=64, crop=4.0),
}
"""quick trains `tiny_config`; study is for a CPU in the background or a small GPU; full is for one GPU."""


def pretraining_sound(profile: str) -> tuple[Tensor, dict[str, float]]:
    """All speech for pretraining, one after another: int16 `(samples,)` at 16 kHz, and the hours of each set.

    Training parts only, so no speaker of a validation or test part. Neighbours are of one speaker, so a crop
    across two clips sounds like one recording. The words come twice: they are fewer hours but of hundreds of
    voices, and they are what Day 9 fine-tunes on.
    """
    corpus = corpora.librispeech(profile)
    # full, too: the sets' own training list holds speakers of the committed test list
    words = corpora.speech_commands("quick" if profile == "quick" else "study")
    order = np.argsort(np.array(words.train.speakers), kind="stable")
    parts = {corpus.name: corpus.train.joined(), words.name: words.train.x[torch.from_numpy(order)].flatten()}
    hours = {name: round(len(x) / SAMPLE_RATE / 3600, 2) for name, x in parts.items()}
    return torch.cat([*parts.values(), parts[words.name]]), hours


def draw_masks(
    batch_size: int,
    frames: int,
    config: Wav2Vec2Config,
    settings: Pretraining,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """The masked frames, `(batch, frames)`, and the negatives of each frame, `(batch, frames, negatives)`.

    `mask_prob * frames / mask_length` spans a crop (rounded up or down at random, at least 2) begin at
    different frames and may overlap. Negatives are other masked frames of the same crop, as indices into all
    frames of the batch. The random numbers are torch's, drawn on `device`: the library's loop over the crops in
    NumPy would keep a GPU waiting.
    """
    length = settings.mask_length
    spans = max(2, int(settings.mask_prob * frames / length + torch.rand(()).item()))
    chance = torch.rand(batch_size, frames - length + 1, device=device)
    starts = chance.argsort(1)[:, :spans, None]  # (batch, spans, 1)
    places = (starts + torch.arange(length, device=device)).flatten(1)  # (batch, spans x length)
    mask = torch.zeros(batch_size, frames, dtype=torch.bool, device=device)
    mask.scatter_(1, places, True)
    masked_first = (~mask).byte().argsort(dim=1, stable=True)  # (batch, frames)
    others = mask.sum(1)[:, None, None] - 1
    drawn = torch.rand(batch_size, frames, config.num_negatives, device=device)
    drawn = torch.minimum((drawn * others).long(), others - 1)
    drawn += drawn >= mask.cumsum(1)[..., None] - 1  # skip the frame itself
    negatives = masked_first.gather(1, drawn.flatten(1)).view_as(drawn)
    first = frames * torch.arange(batch_size, device=device)
    return mask, negatives + first[:, None, None]


def make_accelerator() -> Accelerator:
    """The process group that `accelerate launch` started, or this process alone, on `pick_device`'s device."""
    return Accelerator(mixed_precision="no", cpu=pick_device().type == "cpu")


def pretrain(
    model: Wav2Vec2ForPreTraining,
    sound: Tensor,
    settings: Pretraining,
    *,
    seed: int = 0,
    run: Run | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[Mapping[str, Any]], bool] | None = None,
    label: str = "pretraining",
    bar: bool = True,
) -> History:
    """Train the model to identify each masked frame's code among those of other masked frames.

    `sound` is int16 `(samples,)` on the model's device; crops are cut there. Loss per masked frame:
    contrastive (-log softmax of cosine similarities over the true code and `num_negatives` others,
    temperature 0.1) plus 0.1 times diversity (1 - perplexity / codes). The history has one entry for every
    `settings.every` steps: `loss`, `contrastive`, `diversity`, `perplexity` (codes in use, at most 128
    in `small_config`), `grad_norm`. After each entry the state is saved, and the same call after a kill
    continues there; `stop(entry)` may end the training.

    Under `accelerate launch` the crops of each batch are divided among the processes, and only the main process
    writes. All processes draw the whole batch, so the crops and masks do not depend on their number; codes in
    use are counted for each process's own crops. Raises ValueError when a crop is longer than the sound or the
    batch cannot be divided, Diverged for a loss that is not finite.
    """
    accelerator, device, config = make_accelerator(), model.device, model.config
    ranks, main = accelerator.num_processes, accelerator.is_main_process
    size = settings.batch_size // ranks
    mine = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
    if settings.batch_size % ranks:
        raise ValueError(f"{settings.batch_size} crops cannot be divided among {ranks} processes")
    length = round(settings.crop * SAMPLE_RATE)
    if len(sound) < length:
        raise ValueError(f"{len(sound)} samples of sound are less than one crop")
    frames = num_frames(length, config)
    checkpoint = checkpoint or (run.checkpoint if run else None)
    (checkpoint,) = broadcast_object_list([checkpoint])
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, (0.9, 0.98), weight_decay=settings.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor("linear", step, settings.steps)
    )
    history, start = History(), 0
    if checkpoint and checkpoint.exists():
        history, start = resume(checkpoint, model, optimizer, scheduler, run)
    network = accelerator.prepare(model)
    network.train()
    inside = torch.arange(length, device=device)
    all_samples = torch.full((size,), length, device=device)
    with progress(settings.steps, label, start * settings.every, bar and main) as shown:
        for period in range(start, math.ceil(settings.steps / settings.every)):
            seed_everything(epoch_seed(seed, period))
            first = period * settings.every
            last = min(first + settings.every, settings.steps)
            curves: dict[str, list[Tensor]] = {}
            began = time.perf_counter()
            for step in range(first, last):
                mask, negatives = draw_masks(settings.batch_size, frames, config, settings, device)
                at = torch.randint(0, len(sound) - length + 1, (settings.batch_size, 1))
                crops = as_float(sound[at[mine].to(device) + inside])  # (batch, length)
                elapsed = min(1.0, step / (0.7 * settings.steps))
                model.set_gumbel_temperature(2.0 * 0.25**elapsed)
                with autocast(device, settings.mixed):
                    out = network(
                        ctc.normalise_waves(crops, all_samples),
                        mask_time_indices=mask[mine],
                        sampled_negative_indices=negatives[mine] - mine.start * frames,
                    )
                masked = mask.sum() / ranks  # the mean over processes then is per masked frame
                loss = out.loss / masked
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                optimizer.step()
                scheduler.step()
                step_numbers = {
                    "loss": loss, "contrastive": out.contrastive_loss / masked,
                    "diversity": out.diversity_loss / masked,
                    "perplexity": out.codevector_perplexity, "grad_norm": norm,
                }  # fmt: skip
                for name, value in step_numbers.items():
                    curves.setdefault(name, []).append(value.detach().float())
                shown.update()
            numbers = {k: accelerator.reduce(torch.stack(v), "mean").cpu() for k, v in curves.items()}
            seconds = time.perf_counter() - began
            entry = {
                "epoch": period + 1, "step": last, **{k: v.mean().item() for k, v in numbers.items()},
                "lr": scheduler.get_last_lr()[0], "seconds": round(seconds, 3),
            }  # fmt: skip
            for name, values in numbers.items():
                history.steps.setdefault(name, []).extend(values.tolist())
            if run:
                run.log_steps(first, {k: v.tolist() for k, v in numbers.items()})
            if not math.isfinite(entry["loss"]):
                raise Diverged(f"the loss is not finite near step {last}: a lower lr?")
            history.epochs.append(entry)
            if run:
                run.log_epoch(**as_epoch_kwargs(entry))
            if checkpoint and main:
                save_checkpoint(checkpoint, model, optimizer, scheduler, history)
            accelerator.wait_for_everyone()
            if stop and stop(entry):
                break
            shown.set_postfix_str(f"loss {entry['loss']:.3f}, perplexity {entry['perplexity']:.0f}")
    model.eval()
    return history


@torch.no_grad()
def code_numbers(model: Wav2Vec2ForPreTraining, waves: Tensor) -> Tensor:
    """The quantiser's choice for each frame of normalised waves `(batch, time)`: `(batch, frames, groups)`."""
    features = model.wav2vec2.feature_extractor(waves).transpose(1, 2)  # (batch, frames, channels)
    _, normed = model.wav2vec2.feature_projection(features)
    scores = model.quantizer.weight_proj(normed)  # (batch, frames, groups x codes)
    return scores.unflatten(-1, (model.quantizer.num_groups, -1)).argmax(-1)


PRETRAIN_COLUMNS = (
    "model", "task", "n_params", "steps", "batch_size", "crop", "lr", "final_loss",
    "contrastive", "perplexity", "grad_norm",
)  # fmt: skip


def weights_path(profile: str, seed: int = 0) -> Path:
    """The file of a profile's pretrained weights."""
    name = FULL_WEIGHTS.name if profile == "full" else SMALL_WEIGHTS.name
    return days.get(9).output(profile) / "checkpoints" / name


def pretrain_small(profile: str, path: Path, seed: int = 0) -> History:
    """Pretrain the small network on the training sets and write it to `path`; returns the history.

    The run is a row of Day 9's table; the card has data, settings, device and the curve. Of several processes
    only the main one writes.
    """
    settings = PRETRAINING[profile]
    accelerator, device = make_accelerator(), pick_device()
    sound, hours = pretraining_sound(profile)
    allow_tf32(device)
    seed_everything(seed)
    config = tiny_config() if profile == "quick" else small_config()
    model = Wav2Vec2ForPreTraining(config).to(device)
    size = sum(p.numel() for p in model.parameters())
    log = RunLogger(9, profile, "+".join(hours), device, PRETRAIN_COLUMNS)
    chosen = {k: getattr(settings, k) for k in ("steps", "batch_size", "crop", "lr")}
    row = {"role": "sweep", "seed": seed, "model": path.stem, "task": "pretraining", **chosen}
    with log.run(**row) if accelerator.is_main_process else nullcontext() as run:
        history = pretrain(model, sound.to(device), settings, seed=seed, run=run)
        if run:
            end = history.epochs[-1]
            results = {k: end[k] for k in ("contrastive", "perplexity", "grad_norm")}
            run.log_metrics(n_params=size, final_loss=end["loss"], **results)
            card = training_card(
                log, history, settings, seed, model=path.stem, n_params=size, hours=hours,
                what="wav2vec 2.0 pretrained without labels",
                **{"never heard": "speakers of validation and test"},
            )  # fmt: skip
            save_wav2vec2(path, model, card)
    accelerator.wait_for_everyone()  # for the file
    return history


if __name__ == "__main__":
    quiet = nullcontext() if make_accelerator().is_main_process else redirect_stdout(io.StringIO())
    with quiet:
        sys.exit(training_command({"": (weights_path, pretrain_small)}))
