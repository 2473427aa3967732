"""Speech synthesis: mel frames per second in training and speaking, vocoders.

The stock way: torchaudio's Tacotron2 (NVIDIA's, one frame a decoder step, everything inside the loop) of the
same sizes, on the same sentences with the same optimizer; librosa's `mel_to_audio`, wave by wave. Speed
depends on sizes and lengths alone, so the sentences are random: nothing is fetched.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import librosa
import torch
from torch import Tensor
from torch.nn import functional as F

from Day11_Voice_Cloning.evaluate import real_time_factor
from utils.device import autocast, pick_device, seed_everything
from utils.models.tacotron2 import Tacotron2, TacotronConfig, TacotronLoss
from utils.models.tts import TTSDataset, capture_cuda_graph
from utils.models.tts_mel import KATHLEEN_MEL, SILENCE, SynthesisMel

from .claims import Claim
from .measure import calls_per_second

BATCH, LETTERS, FRAMES = 16, 60, 300
"""A batch of sentences of 3.5 s, about 60 letters each: Kathleen's mean."""

WAVES, SECONDS = 4, 3.0
"""What the vocoders are given: so many waves of so many seconds."""


def stock_tacotron(config: TacotronConfig, steps: int):
    """torchaudio's Tacotron2 with the sizes of ours; never stops before `steps` frames."""
    from torchaudio.models import Tacotron2 as Stock

    return Stock(
        n_symbol=config.symbols, symbol_embedding_dim=config.encoder,
        encoder_embedding_dim=config.encoder, decoder_rnn_dim=config.decoder,
        attention_rnn_dim=config.decoder, attention_hidden_dim=config.attention,
        prenet_dim=config.prenet, postnet_embedding_dim=config.postnet,
        decoder_max_step=steps, gate_threshold=1.0,
    )  # fmt: skip


def sentences(device: torch.device) -> TTSDataset:
    """One batch of random sentences, all of one length."""
    g = torch.Generator().manual_seed(0)
    text = torch.randint(2, 36, (BATCH, LETTERS), generator=g)
    mel = torch.randn(BATCH, 80, FRAMES, generator=g).clamp(min=SILENCE)
    every = TTSDataset(
        text, torch.full((BATCH,), LETTERS), torch.randn(BATCH, 256, generator=g), mel,
        torch.full((BATCH,), FRAMES), list(range(BATCH)),
    )  # fmt: skip
    return every.to(device)


def training(device: torch.device, config: TacotronConfig) -> Claim:
    """Mel frames per second through one training step: forward, backward, clipping, AdamW."""
    seed_everything(0)
    every = sentences(device)
    batch = every.batch(range(BATCH), config.r)
    stock = stock_tacotron(config, FRAMES).to(device)
    ours = TacotronLoss(Tacotron2(config)).to(device)
    if device.type == "cuda":
        capture_cuda_graph(ours, batch)

    def step(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[int], None]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

        def work(_: int) -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, device.type == "cuda"):
                value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return work

    def stock_loss() -> Tensor:
        before, after, gate, _ = stock(every.text, every.text_lengths, every.mel, every.mel_lengths)
        target = torch.zeros_like(gate)
        target[:, -1] = 1
        errors = F.mse_loss(before, every.mel) + F.mse_loss(after, every.mel)
        return errors + F.binary_cross_entropy_with_logits(gate, target)

    theirs = BATCH * FRAMES * calls_per_second(step(stock.train(), stock_loss), device, 5)
    mine = BATCH * FRAMES * calls_per_second(step(ours.train(), lambda: ours(batch)), device, 5)
    what = f"training mel frames/s, torchaudio's Tacotron2 of the same sizes (r = {config.r})"
    return Claim(what, theirs, mine, "1/s", 2, higher=True)


def speaking(device: torch.device, config: TacotronConfig) -> Claim:
    """Mel frames per second in free running, the whole batch at once in both."""
    seed_everything(0)
    every = sentences(device)
    stock = stock_tacotron(config, FRAMES).to(device).eval()
    ours = Tacotron2(config).to(device).eval()
    args = (every.text, every.text_lengths)

    def generate(_: int) -> None:
        ours.generate(*args, every.d_vectors, threshold=1.0, max_frames=FRAMES)

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # random weights never stop, which is fine here
        theirs = BATCH * FRAMES * calls_per_second(lambda _: stock.infer(*args), device, 5)
        mine = BATCH * FRAMES * calls_per_second(generate, device, 5)
    what = f"synthesis mel frames/s, torchaudio's Tacotron2 of the same sizes (r = {config.r})"
    return Claim(what, theirs, mine, "1/s", 2, higher=True)


def vocoders(device: torch.device, iterations: int = 32) -> list[Claim]:
    """Seconds of sound per second of computing, by Griffin-Lim (WaveGlow has no stock of its kind)."""
    s, front = KATHLEEN_MEL, SynthesisMel().to(device)
    g = torch.Generator().manual_seed(0)
    waves = 0.1 * torch.randn(WAVES, round(SECONDS * s.sample_rate), generator=g)
    mel = front(waves.to(device))
    mine = real_time_factor(lambda: front.griffin_lim(mel, iterations), s.sample_rate, device)
    power = front.power(mel).cpu().numpy()
    how = {"sr": s.sample_rate, "n_fft": s.n_fft, "hop_length": s.hop, "n_iter": iterations}
    how |= {"fmin": s.f_min, "fmax": s.f_max, "htk": True, "norm": None}

    def stock() -> list[Tensor]:
        return [torch.from_numpy(librosa.feature.inverse.mel_to_audio(m, **how)) for m in power]

    theirs = real_time_factor(stock, s.sample_rate, torch.device("cpu"), 1)
    what = f"Griffin-Lim, seconds of sound per second, librosa wave by wave ({iterations} iterations)"
    return [Claim(what, 1 / theirs, 1 / mine, "s/s", 2, higher=True)]


def run() -> list[Claim]:
    """The claims, on this machine's device."""
    device, config = pick_device(), TacotronConfig()
    return [training(device, config), speaking(device, config), *vocoders(device)]
