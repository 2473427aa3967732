"""Enhancement: causal, small, streamed as offline; losses, baselines, quality, mixtures, training, searches."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from Day08_SC_Tuning import search
from Day14_Enhancement import enhancer
from Day14_Enhancement import quality as day14_quality
from Day14_Enhancement import search as day14_search
from Day14_Enhancement import train as day14_train
from Day14_Enhancement.classical import rnnoise, spectral_subtraction, wiener
from Day14_Enhancement.enhancer import (
    HOP,
    LOSSES,
    Enhancer,
    EnhancerStream,
    compressed_loss,
    erb_bank,
    istft,
    si_sdr,
    stft,
)
from Day14_Enhancement.quality import (
    by_snr,
    pesq_scores,
    quality,
    real_time_factor,
    stoi_scores,
    stream_through,
)
from Day14_Enhancement.train import (
    EnhancerSettings,
    Mixtures,
    fixed_mixtures,
    train_enhancer,
    validation_quality,
)
from utils import sources, tuning
from utils.features import SAMPLE_RATE, fixed_length
from utils.logger import RunLogger, read_table
from utils.models.ecapa_tdnn import RandomSegments
from utils.models.weights import load_weights
from utils.speech import corpora
from utils.speech.corpora import read_sample
from utils.training import count_parameters


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=gen(seed))


def trained_like(channels: int = 8) -> Enhancer:
    """A small network whose every layer matters: random mask, random statistics."""
    torch.manual_seed(0)
    model = Enhancer(channels, hidden=8)
    torch.nn.init.normal_(model.mask.weight, std=0.3)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def sentences() -> list[torch.Tensor]:
    """Six bundled sentences by as many voices, float `(time,)`."""
    index, samples = read_sample("sentences")
    return [
        torch.from_numpy(samples[int(r["start"]) :][: int(r["length"])].copy()) / 32768.0 for r in index[:6]
    ]


# --- the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 255, 256, 257, 512, 5000])
def test_synthesis_undoes_analysis(length):
    wave = noise(2, length)
    spectrum = stft(wave)
    assert spectrum.shape == (2, -(-length // HOP) + 1, 257)
    torch.testing.assert_close(istft(spectrum, length), wave, rtol=0, atol=1e-6)


def test_a_bin_is_shared_among_its_bands():
    bank = erb_bank()
    assert bank.shape == (257, 129)
    assert torch.allclose(bank.sum(1), torch.ones(257))
    assert torch.equal(bank[:65, :65], torch.eye(65))
    assert (bank.sum(0) > 0.5).all()  # no band is empty
    assert bank[65:, 65:].gt(0).sum(1).max() <= 2


def test_before_training_what_goes_in_comes_out():
    wave = noise(2, 4000)
    model = Enhancer()
    torch.testing.assert_close(model.eval()(wave), wave, rtol=0, atol=1e-5)
    loss = LOSSES["both"](model.train()(wave), wave + noise(2, 4000, seed=1))
    loss.backward()
    assert model.mask.weight.grad.norm() > 0


def test_the_network_has_at_most_100_000_weights():
    assert 50_000 < count_parameters(Enhancer()) <= 100_000


def test_later_samples_change_nothing_earlier():
    model, wave = trained_like(), noise(1, 6000)
    before = model(wave)
    assert (before - wave).abs().max() > 0.01
    for at in (1024, 3001):
        changed = wave.clone()
        changed[:, at:] = noise(1, 6000 - at, seed=2)
        after = model(changed)
        safe = at // HOP * HOP - HOP  # 32 ms at most are looked ahead
        assert torch.equal(after[:, :safe], before[:, :safe]) or (
            (after - before)[:, :safe].abs().max() < 1e-6
        )
        assert (after - before)[:, at:].abs().max() > 0.01


@settings(deadline=None, max_examples=8)
@given(cuts=st.lists(st.integers(0, 1300), min_size=1, max_size=6))
def test_the_stream_equals_the_whole(cuts):
    model = trained_like()
    chunks = [noise(n, seed=i) for i, n in enumerate(cuts)] + [noise(3, seed=9)]
    whole = model(torch.cat(chunks)[None])[0].detach()
    stream = EnhancerStream(model)
    for _ in range(2):  # a finished stream is ready for the next wave
        parts, pushed = [], 0
        for chunk in chunks:
            parts.append(stream.push(chunk))
            pushed += len(chunk)
            given_ = sum(len(p) for p in parts)
            assert pushed < HOP or HOP <= pushed - given_ < 2 * HOP
        joined = torch.cat([*parts, stream.finish()])
        assert joined.shape == whole.shape
        assert (joined - whole).abs().max() < 1e-5


def test_frame_by_frame_equals_offline():
    model, wave = trained_like(), noise(1, 8000)
    out = stream_through(model, wave)
    assert (out - model(wave)).abs().max() < 1e-5


def test_int16_is_taken_as_it_is():
    model, wave = trained_like(), (1000 * torch.randn(1, 2000)).to(torch.int16)
    torch.testing.assert_close(model(wave), model(wave / 32768.0))


# --- losses and baselines -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_are_least_at_the_clean_wave(name):
    clean = noise(2, 4000)
    noisy = (clean + noise(2, 4000, seed=1)).requires_grad_()
    loss = LOSSES[name]
    assert loss(clean, clean) < loss(clean + noise(2, 4000, seed=2) / 10, clean)
    value = loss(noisy, clean)
    assert loss(clean + noise(2, 4000, seed=2) / 10, clean) < value
    value.backward()
    assert torch.isfinite(noisy.grad).all()
    assert torch.isfinite(loss(torch.zeros(2, 4000), clean))


def test_the_compressed_loss_knows_no_common_level():
    clean, noisy = noise(2, 4000), noise(2, 4000, seed=1)
    a, b = compressed_loss(noisy, clean), compressed_loss(5 * noisy, 5 * clean)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    silent = torch.zeros(1, 2000, requires_grad=True)
    compressed_loss(silent, noise(1, 2000)).backward()
    assert torch.isfinite(silent.grad).all()


@pytest.mark.parametrize("method", [spectral_subtraction, wiener])
def test_baselines_take_steady_noise_away(method, sentences):
    before = torch.zeros(8000)  # half a second of noise alone
    clean = [fixed_length(torch.cat([before, s]), 40_000) for s in sentences[:3]]
    clean = torch.stack(clean)
    clean = clean / clean.square().mean(1, keepdim=True).sqrt() * 0.1
    noisy = clean + noise(3, 40_000) * 10 ** (-5 / 20)
    out = method(noisy)
    assert out.shape == noisy.shape
    gain = si_sdr(out, clean) - si_sdr(noisy, clean)
    assert gain.min() > 2
    assert method(noisy * 3).sub(3 * out).abs().max() < 1e-3  # level does not matter
    quiet = method(noise(1, 32_000))[:, 16_000:]
    assert quiet.square().mean() < 0.2 * 0.1**2  # noise alone falls by 7 dB or more
    assert torch.isfinite(method(torch.zeros(1, 3000))).all()


def test_rnnoise_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrnnoise", None)
    with pytest.raises(ImportError, match="pip install pyrnnoise"):
        rnnoise(noise(1, 4000))


def test_rnnoise_is_fed_48_khz_and_its_delay_is_undone(monkeypatch):
    class Library:
        """Stands in for the package: gives each frame back two frames later."""

        SAMPLE_RATE, FRAME_SIZE = 48_000, 480
        create = staticmethod(lambda: [np.zeros(480, np.int16)] * 2)
        destroy = staticmethod(lambda state: state.clear())

        @staticmethod
        def process_mono_frame(state, frame):
            assert frame.dtype == np.int16
            state.append(frame.copy())
            return state.pop(0), 0.5

    package = types.ModuleType("pyrnnoise")
    package.rnnoise = Library
    monkeypatch.setitem(sys.modules, "pyrnnoise", package)
    t = torch.arange(5000) / SAMPLE_RATE
    wave = 0.3 * torch.sin(2 * torch.pi * torch.tensor([[440.0], [900.0]]) * t)
    out = rnnoise(wave)
    assert out.shape == wave.shape
    assert (out - wave)[:, 300:-300].abs().max() < 2e-3


# --- quality ------------------------------------------------------------------------------------------


def test_quality_before_and_after(sentences):
    clean = torch.stack([fixed_length(s, 24_000) for s in sentences[:2]])
    noisy = clean + 0.3 * noise(2, 24_000)
    if day14_quality.has_pesq():
        good, bad = quality(clean, clean), quality(noisy, clean)
        assert (good["pesq"] > 4.5).all()
        assert (bad["pesq"] < 4).all()
    else:
        with pytest.warns(UserWarning, match="PESQ: not measured"):
            good, bad = quality(clean, clean), quality(noisy, clean)
        assert good["pesq"] is None
    assert good["stoi"] == pytest.approx([1, 1], abs=1e-3)
    assert (bad["stoi"] < 0.99).all()
    wanted = si_sdr(noisy, clean).tolist()
    assert bad["si_sdr"] == pytest.approx(wanted)


def test_pesq_is_an_extra(monkeypatch):
    monkeypatch.setattr(day14_quality, "has_pesq", lambda: False)
    with pytest.raises(ImportError, match="pip install pesq"):
        pesq_scores(noise(1, 8000), noise(1, 8000))


def test_pesq_of_known_scores(monkeypatch):
    package = types.ModuleType("pesq")
    package.PesqError = type("PesqError", (RuntimeError,), {})

    def score(rate, clean, estimate, mode):
        assert (rate, mode) == (16_000, "wb")
        if not clean.any():
            raise package.PesqError("no speech")
        return 4.64 if np.array_equal(clean, estimate) else 2.0

    package.pesq = score
    monkeypatch.setitem(sys.modules, "pesq", package)
    monkeypatch.setattr(day14_quality, "has_pesq", lambda: True)
    clean = noise(2, 8000)
    estimate = torch.stack([clean[0], clean[0]])
    assert pesq_scores(estimate, clean).tolist() == [4.64, 2.0]


def test_a_silent_reference_and_two_shapes_are_refused():
    with pytest.raises(ValueError, match="item 0 is silent"):
        stoi_scores(noise(2, 8000), torch.zeros(2, 8000))
    with pytest.raises(RuntimeError, match="same shape"):
        stoi_scores(noise(1, 8000), noise(2, 8000))


def test_means_by_snr_have_intervals_over_speakers():
    snr = np.repeat([0.0, 5.0], 40)
    speakers = np.tile(np.repeat(np.arange(8), 5), 2)
    scores = snr + np.random.default_rng(0).normal(size=80)
    scores[3] = np.nan
    found = by_snr(scores, snr, speakers)
    assert list(found) == [0.0, 5.0]
    for interval in found.values():
        assert interval.low < interval.mean < interval.high
    assert found[5.0].mean == pytest.approx(scores[40:].mean())


def test_real_time_factor_is_seconds_per_second():
    def slow(wave):
        import time

        time.sleep(0.1 * wave.shape[1] / SAMPLE_RATE)

    threads = torch.get_num_threads()
    assert 0.1 <= real_time_factor(slow, seconds=1.0, repeats=2) < 0.3
    assert torch.get_num_threads() == threads


# --- mixtures and training ----------------------------------------------------------------------------


def test_fixed_mixtures_have_their_snr(sentences):
    noises = {"hiss": noise(9000), "hum": torch.sin(torch.arange(60_000) / 20)}
    mixed = fixed_mixtures(sentences[:3], noises, (-5, 10), seconds=1.0)
    assert mixed.noisy.shape == (6, SAMPLE_RATE)
    assert mixed.noise == ["hiss", "hum", "hiss"] * 2
    assert mixed.item.tolist() == [0, 1, 2, 0, 1, 2]
    added = mixed.noisy - mixed.clean
    ratio = 10 * (mixed.clean.square().mean(1) / added.square().mean(1)).log10()
    assert ratio.numpy() == pytest.approx(mixed.snr_db, abs=1e-2)
    again = fixed_mixtures(sentences[:3], noises, (-5, 10), seconds=1.0)
    assert torch.equal(again.noisy, mixed.noisy)
    # the same stretch at each SNR, only louder
    scale = added[0].norm() / added[3].norm()
    torch.testing.assert_close(added[0], added[3] * scale, rtol=1e-3, atol=1e-5)


def packed(waves):
    """Float waves of six speakers as packed speech."""
    arrays = [(w * 32767).round().short().numpy() for w in waves]
    return corpora.Utterances.of(arrays, [""] * 6, list("aabbcc")).packed()


def test_mixtures_on_the_fly(sentences):
    speech_ = RandomSegments(packed(sentences), crop=8000, batch_size=5, batches=2, power=1.0)
    batches = Mixtures(speech_, noise(20_000), snr_db=(-5, 20), level_db=(-30, -30))
    for noisy, clean in batches.epoch(0):
        added = noisy - clean
        ratio = 10 * (clean.square().mean(1) / added.square().mean(1)).log10()
        assert ratio.min() > -5.01
        assert ratio.max() < 20.01
        level = 10 * clean.square().mean(1).log10()
        assert torch.allclose(level, torch.full((5,), -30.0), atol=0.01)
    first = next(batches.epoch(3))
    assert torch.equal(first[0], next(batches.epoch(3))[0])
    with pytest.raises(ValueError, match="7999 samples of noise"):
        next(Mixtures(speech_, noise(7999)).epoch(0))


def test_varied_mixtures_have_their_snr_too(sentences):
    crops = {"crop": 8000, "batch_size": 6, "batches": 1, "power": 1.0}
    for augment in (None, day14_train.varied_voices):
        segments = RandomSegments(packed(sentences), **crops, augment=augment)
        ((noisy, clean),) = Mixtures(segments, noise(20_000), (5, 5), varied=True).epoch(0)
        ratio = clean.square().mean(1) / (noisy - clean).square().mean(1)
        assert torch.allclose(10 * ratio.log10(), torch.full((6,), 5.0), atol=0.01)


def test_varied_noises_are_other_noises_and_repeat():
    some = noise(64, 8000)
    out = day14_train.varied_noises(some, gen())
    assert out.shape == some.shape
    assert torch.equal(out, day14_train.varied_noises(some, gen()))
    alike = torch.nn.functional.cosine_similarity(out, some)
    assert alike.abs().mean() < 0.5
    level = out.square().mean(1) / some.square().mean(1)
    assert (level > 1.0).float().mean() > 0.2  # a second one behind it


def test_clean_clips_are_those_with_quiet_around_them():
    word = torch.zeros(16_000)
    word[4000:9000] = noise(5000)
    waves = torch.stack([word, word + 0.001 * noise(16_000), word + noise(16_000)])
    clips = corpora.Clips(
        (waves * 32767).short(), torch.zeros(3, dtype=torch.long), ["a", "b", "c"],
        ["x", "y", "z"],
    )  # fmt: skip
    kept = day14_train.clean_clips(clips)
    assert kept.speakers == ["x", "y"]
    assert day14_train.clean_clips(clips, 70.0).speakers == ["x"]


TINY = EnhancerSettings(batch_size=4, seconds=0.5, batches=10, epochs=4, channels=8, lr=5e-3, loss="si_sdr")


@pytest.mark.slow
def test_a_small_training_learns_and_resumes(sentences, tmp_path):
    speech = packed(sentences)
    noises = {"hiss": noise(30_000)}
    mixed = fixed_mixtures(sentences[:2], noises, (0,), seconds=1.0)

    def train(plan, **more):
        torch.manual_seed(0)
        return train_enhancer(
            speech, noises, lambda m: validation_quality(m, mixed), plan,
            bar=False, **more,
        )  # fmt: skip

    _, varied = train(replace(TINY, varied=True))
    assert varied.epochs[-1]["val_gain"] > 0.5
    _, history = train(TINY)
    losses = history.column("train_loss")
    assert losses[-1] < losses[0]
    assert history.epochs[-1]["val_gain"] > 1.0

    short = replace(TINY, batches=2, epochs=2)
    losses = train(short)[1].column("train_loss")

    def killed(numbers):
        if numbers["epoch"] == 1:
            raise KeyboardInterrupt

    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        train(short, checkpoint=path, stop=killed)
    _, resumed = train(short, checkpoint=path)
    assert resumed.column("train_loss") == pytest.approx(losses, rel=1e-3)


def test_the_searches_leave_rows(sentences, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    noises = {"hiss": noise(60_000)}
    mixed = fixed_mixtures(sentences, noises, (day14_search.SNR_DB,), seconds=1.5)
    speech = replace(packed(sentences), name="sample-test")
    data = day14_search.Speech(speech, speech, noises, mixed, speech.speakers)
    monkeypatch.setattr(day14_search, "load", lambda profile, device: data)
    small = {"batch_size": day14_search.CategoricalDistribution([2, 4])}
    for name, space in day14_search.SPACES.items():
        monkeypatch.setitem(day14_search.SPACES, name, space | small)
    monkeypatch.setitem(day14_search.BUDGET, "quick", day14_search.BUDGET["quick"] | {"width": 0.125})
    day14_search.run_worker("quick", 1)
    log = RunLogger(14, "quick", speech.name, torch.device("cpu"), day14_train.COLUMNS)
    rows = read_table(log.path)
    assert [r["study"] for r in rows] == ["enhancer", "verifier"]
    for row in rows:
        assert row["state"] == "complete"
        assert float(row["grad_norm"]) > 0
        assert row["optimizer"] in day14_search.OPTIMIZERS
    assert 0 < float(rows[0]["val_stoi"]) < 1
    assert rows[0]["loss"] in LOSSES
    assert rows[0]["margin"] == ""
    assert 0 <= float(rows[1]["val_eer"]) <= 1
    assert 0 <= float(rows[1]["margin"]) <= 0.5
    study = tuning.open_study(day14_search.study_path("quick", "verifier"))
    assert len(search.finished(study)) == 1


def test_the_searches_see_the_bundled_sample():
    data = day14_search.load("quick", torch.device("cpu"))
    assert len(data.mixed) == len(data.mixed_speakers)
    heard = {name.split(" x")[0] for name in data.voices.speakers}
    assert len(heard) > 10
    assert not heard & set(data.mixed_speakers)
    assert enhancer.N_FFT == 512


@pytest.mark.slow
def test_the_shipped_enhancer_is_made_by_one_command(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "e.safetensors"
    history = day14_train.train("quick", path)
    plan = day14_train.SETTINGS["quick"]
    model = Enhancer(plan.channels)
    card = load_weights(path, model)
    assert model.mask.weight.abs().sum() > 0
    assert [e["epoch"] for e in card["curve"]] == list(range(1, plan.epochs + 1))
    assert card["metric"]["val_stoi"] == history.epochs[-1]["val_stoi"]
    log = RunLogger(14, "quick", "sample-x", torch.device("cpu"), day14_train.COLUMNS)
    (row,) = read_table(log.path)
    assert row["system"] == "Enhancer, own"
    assert int(row["steps"]) == plan.batches * plan.epochs


def test_noise_is_parted_in_time():
    heard, kept = day14_train.split_tail({"a": torch.arange(100.0), "b": torch.arange(7.0)})
    assert heard["a"][-1] < kept["a"][0]
    assert len(heard["a"]) == 90
    assert torch.equal(torch.cat([heard["b"], kept["b"]]), torch.arange(7.0))


@pytest.mark.skipif(
    not sources.is_here("noise") or not sources.is_here("speech_commands"),
    reason="the real noises are not here",
)
def test_the_noises_of_day_14_are_other_recordings_in_the_test():
    some = day14_train.day14_noises("study")
    assert re.fullmatch(r"esc10.*\+speech_commands_v\d.*-noise", some.name)
    for part in (some.train, some.test):
        assert len(part) > 10
        for wave in part.values():
            assert wave.square().mean().item() == pytest.approx(0.01, rel=0.05)
    assert not {"white_noise"} & set(some.train) & set(some.test)
