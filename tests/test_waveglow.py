"""WaveGlow: it undoes itself, its log-determinant is autograd's, and its loss is a likelihood that falls."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from Day11_Voice_Cloning.waveglow import (
    Invertible1x1,
    Segments,
    WaveGlow,
    WaveGlowConfig,
    WaveGlowLoss,
    upsample,
)
from utils.models import tts
from utils.models.tts_mel import MelSettings, SynthesisMel

TINY = WaveGlowConfig(
    flows=5, group=8, early_every=2, early_size=2, layers=2, channels=6, condition=5,
    n_mels=3, hop=16,
)  # fmt: skip


def tiny(seed: int = 0) -> WaveGlow:
    """A network whose flows are far from the identity at which they begin."""
    torch.manual_seed(seed)
    model = WaveGlow(TINY).double()
    for net in model.nets:
        torch.nn.init.normal_(net.end.weight, std=0.3)
        torch.nn.init.normal_(net.end.bias, std=0.3)
    for mixer in model.mixers:
        mixer.weight.data += 0.2 * torch.randn_like(mixer.weight)
    return model


def test_decoding_undoes_encoding():
    model = tiny()
    wave = torch.randn(3, 5 * 16, dtype=torch.float64)
    mel = torch.randn(3, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        z, _ = model(wave, mel)
        assert z.shape == wave.shape
        assert (z - wave).abs().max() > 0.1
        torch.testing.assert_close(model.inverse(z, mel), wave)
        again, _ = model(model.inverse(wave, mel), mel)
    torch.testing.assert_close(again, wave)


def test_the_default_size_undoes_itself_in_float32():
    torch.manual_seed(0)
    model = WaveGlow()
    for net in model.nets:
        torch.nn.init.normal_(net.end.weight, std=0.01)
    assert sum(p.numel() for p in model.parameters()) * 2 < 25_000_000  # as float16
    wave, mel = 0.1 * torch.randn(1, 4 * 256), torch.randn(1, 80, 5)
    with torch.no_grad():
        z, _ = model(wave, mel)
        torch.testing.assert_close(model.inverse(z, mel), wave, atol=1e-4, rtol=1e-3)


def test_the_log_determinant_is_that_of_autograds_jacobian():
    model = tiny()
    wave = torch.randn(1, 2 * 16, dtype=torch.float64)
    mel = torch.randn(1, 3, 3, dtype=torch.float64)
    matrix = jacobian(lambda w: model(w[None], mel)[0][0], wave[0])
    _, log_det = model(wave, mel)
    assert abs(log_det.item()) > 0.5
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, log_det[0])


def test_mixing_is_a_rotation_at_first():
    mixer = Invertible1x1(6)
    x = torch.randn(2, 6, 7)
    y, log_det = mixer(x)
    assert log_det.item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(mixer.inverse(y), x, atol=1e-5, rtol=1e-4)


def test_frames_lie_where_their_windows_are():
    points = upsample(torch.tensor([[[0.0, 4.0, 0.0]]]), 8)
    assert points[0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]


def test_the_loss_is_a_likelihood():
    """An untrained WaveGlow only turns the wave around, so the loss is that of a standard normal."""
    model, wave = WaveGlow(TINY), torch.randn(2, 64)
    loss = WaveGlowLoss(model)((wave, torch.randn(2, 3, 5)))
    expected = -torch.distributions.Normal(0, 1).log_prob(wave).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert WaveGlowLoss(model, 2.0)((wave * 0, torch.zeros(2, 3, 5))).item() == pytest.approx(
        math.log(2 * math.sqrt(2 * math.pi)), rel=1e-4
    )  # fmt: skip


def test_the_loss_falls_in_training_and_sound_comes_out():
    rate = 8000
    front = SynthesisMel(MelSettings(rate, 256, 256, 64, 16, 20, 4000))
    t = torch.arange(rate) / rate
    waves = [0.3 * torch.sin(2 * math.pi * f * t) for f in (220, 330, 440)]
    batches = Segments(waves, front, 4, frames=8, steps=12)
    config = WaveGlowConfig(
        flows=4, group=8, early_every=2, early_size=2, layers=2, channels=16, condition=8,
        n_mels=16, hop=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WaveGlow(config)
    history = tts.train(WaveGlowLoss(model), batches, epochs=3, lr=3e-3, bar=False)
    losses = history.column("train_loss")
    assert losses[-1] < losses[0] - 0.5
    mel = front(waves[0][None, :640])
    sound = model.decode(mel)
    assert sound.shape == (1, 640)
    assert torch.equal(sound, model.decode(mel))
    assert not torch.equal(sound, model.decode(mel, seed=1))
    assert sound.abs().max() <= 1


def test_segments_have_the_mel_of_the_whole_wave():
    front = SynthesisMel(MelSettings(8000, 256, 256, 64, 16, 20, 4000))
    g = torch.Generator().manual_seed(0)
    whole = 0.1 * torch.randn(4096, generator=g)
    batches = Segments([whole], front, 3, frames=6, steps=1, seed=2)
    (wave, mel), _ = next(batches.epoch(0))
    assert wave.shape == (3, 6 * 64)
    assert mel.shape == (3, 16, 7)
    for cut, frames in zip(wave, mel, strict=True):
        rounded = (whole * 32767).round() / 32768
        start = int((rounded.unfold(0, 384, 1) - cut).abs().sum(1).argmin())
        torch.testing.assert_close(rounded[start : start + 384], cut, atol=1e-4, rtol=0)
        at = front(rounded[None, start - 128 : start + 384 + 128])[0][:, 2:-2]
        torch.testing.assert_close(frames, at, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="no wave has the"):
        Segments([whole[:100]], front, 3)


def test_sizes_that_do_not_fit_are_named():
    model = WaveGlow(TINY)
    with pytest.raises(ValueError, match="5 frames go with 64 samples, not 70"):
        model(torch.zeros(1, 70), torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match="at least two"):
        model.decode(torch.zeros(1, 3, 1))
    with pytest.raises(ValueError, match="sizes do not fit"):
        WaveGlow(WaveGlowConfig(group=24))
    with pytest.raises(ValueError, match="sizes do not fit"):
        WaveGlow(WaveGlowConfig(flows=12, early_every=2))
