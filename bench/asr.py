"""Speech recognition: what a frozen encoder's kept output, length buckets and bfloat16 bring to fine-tuning.

The stock way is the common recipe: utterances of any length beside each other, the frozen convolutions computed
anew in every step, float32. Both sides train the same network on the same bundled sentences with the same
optimizer, and are counted in seconds of real sound (padding is none) per second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from Day09_Wav2Vec2.pretrain import small_config
from utils.device import autocast, gains_bf16, pick_device, seed_everything
from utils.features import SAMPLE_RATE
from utils.models import ctc
from utils.models.wav2vec2_ctc import CTCDataset, Wav2Vec2CTC, ctc_losses, freeze_encoder, load_recogniser
from utils.speech.corpora import Utterances, librispeech

from .claims import Claim
from .measure import calls_per_second

BATCH = 16


class Fixture:
    """A network, by default with frozen convolutions, sentences, and the optimizer of one side."""

    def __init__(
        self, device: torch.device, sentences: Utterances, cached: bool, frozen: bool = True
    ) -> None:
        seed_everything(0)
        self.recogniser: Wav2Vec2CTC = load_recogniser(small_config(), device=device)
        freeze_encoder(self.recogniser, frozen)
        self.recogniser.train()
        self.examples = CTCDataset(sentences, self.recogniser, cached)
        trained = [p for p in self.recogniser.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 1e-4)

    def step(self, numbers: Sequence[int], mixed: bool = False) -> None:
        """One step of fine-tuning on these utterances."""
        batch = self.examples.batch(numbers)
        with autocast(self.recogniser.device, mixed):
            logits, frames = self.recogniser(batch.x, batch.lengths)
        blank = self.recogniser.vocabulary.blank
        loss = ctc_losses(logits, frames, batch, blank).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.recogniser.parameters(), 1.0)
        self.optimizer.step()


def sound_per_second(
    side: Fixture, batches: Sequence[Sequence[int]], mixed: bool = False, least: float = 10.0
) -> float:  # fmt: skip
    """Seconds of sound, without padding, that go through training in a second; whole passes, for `least` s."""
    sound = float(side.examples.utterances.lengths.sum() / SAMPLE_RATE)

    def whole_pass(_: int) -> None:
        for numbers in batches:
            side.step(numbers, mixed)

    return sound * calls_per_second(whole_pass, side.recogniser.device, least)


def claims(device: torch.device, sentences: Utterances, least: float = 10.0) -> list[Claim]:
    """The stock way against each saving alone and both together, and float32 against bfloat16."""
    g = torch.Generator().manual_seed(0)
    mixed_up = [some.tolist() for some in torch.randperm(len(sentences), generator=g).split(BATCH)]
    alike = ctc.length_batches(sentences.lengths, BATCH, g)
    plain, kept = (Fixture(device, sentences, cached) for cached in (False, True))
    stock = sound_per_second(plain, mixed_up, least=least)
    what = "fine-tuning, seconds of sound per second, random batches and convolutions each step, against"
    found = [
        Claim(f"{what} {saved}", stock, sound_per_second(side, batches, least=least), "s/s", goal, True)
        for saved, side, batches, goal in (
            ("length buckets", plain, alike, 1.1),
            ("convolutions kept", kept, mixed_up, 1.1),
            ("both", kept, alike, 1.5),
        )
    ]
    if gains_bf16(device):
        whole = Fixture(device, sentences, cached=False, frozen=False)
        single = sound_per_second(whole, alike, least=least)
        half = sound_per_second(whole, alike, mixed=True, least=least)
        what = "fine-tuning, convolutions too, float32 against bfloat16 in these"
        found.append(Claim(what, single, half, "s/s", 1.1, higher=True))
    else:
        print(f"float32 against bfloat16: not measured, {device.type} here does not gain from it")
    return found


def run() -> list[Claim]:
    """The claims, on this machine's device, with the bundled sentences."""
    return claims(pick_device(), librispeech("quick").train)
