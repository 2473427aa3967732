import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from Day14_Enhancement.enhancer import si_sdr
from utils.metrics import Interval, Spread, accuracy, bootstrap_difference, bootstrap_mean, spread


def test_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.75


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (2,)])
def test_accuracy_refuses_what_does_not_fit(shape):
    with pytest.raises(ValueError, match="accuracy needs"):
        accuracy(torch.zeros(shape), torch.zeros(2 if shape[0] else 0, dtype=torch.long))


def test_spread_by_hand():
    s = spread([1.0, 2.0, 3.0])
    assert (s.mean, s.std, s.n) == (2.0, 1.0, 3)
    assert f"{s:.1f}" == "2.0 ± 1.0 (n=3)"
    assert f"{spread([0.5]):.2f}" == "0.50"
    assert math.isnan(spread([1.0]).std)
    with pytest.raises(ValueError, match="at least one"):
        spread([])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_spread_agrees_with_numpy(values):
    s = spread(values)
    assert isinstance(s, Spread)
    assert s.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert s.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_bootstrap_finds_a_difference_and_the_lack_of_one():
    rng = np.random.default_rng(0)
    base = rng.random(2000) < 0.9
    better = base | (rng.random(2000) < 0.3)
    gap = bootstrap_difference(better, base)
    assert gap.real
    assert gap.low <= gap.mean <= gap.high
    same = bootstrap_difference(rng.random(2000) < 0.9, rng.random(2000) < 0.9)
    assert not same.real
    assert "no difference" in f"{same}"


def test_bootstrap_interval_has_the_textbook_width():
    x = np.random.default_rng(1).normal(0, 1, 4000)
    gap = bootstrap_difference(x, np.zeros(4000))
    assert (gap.high - gap.low) / 2 == pytest.approx(1.96 / 4000**0.5, rel=0.1)


def test_bootstrap_over_speakers_is_wider_than_over_clips():
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(20), 50)
    gain = rng.normal(0.05, 0.2, 20)[speaker] + rng.normal(0, 0.1, 1000)
    clips = bootstrap_difference(gain, np.zeros(1000))
    speakers = bootstrap_difference(gain, np.zeros(1000), groups=speaker)
    assert speakers.high - speakers.low > 3 * (clips.high - clips.low)


def test_bootstrap_refuses_other_items():
    with pytest.raises(ValueError, match="same items"):
        bootstrap_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="groups"):
        bootstrap_difference([1, 0], [1, 0], groups=[1])


def test_bootstrap_mean_is_the_mean_with_its_interval():
    x = np.random.default_rng(1).normal(3, 1, 4000)
    found = bootstrap_mean(x)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(x.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / 4000**0.5, rel=0.1)
    assert f"{Interval(1.0, 0.5, 1.5):.1f}" == "1.0 [0.5, 1.5]"


def test_si_sdr_by_hand():
    speech = torch.tensor([1.0, -1.0, 1.0, -1.0])
    noise = torch.tensor([1.0, 1.0, -1.0, -1.0])  # at right angles to the speech
    assert si_sdr(speech + 0.1 * noise, speech).item() == pytest.approx(20, abs=1e-4)
    assert si_sdr(speech + noise, speech).item() == pytest.approx(0, abs=1e-4)
    both = si_sdr(torch.stack([speech + noise, 2 * speech]), speech.expand(2, 4))
    assert both[1] > 60
    with pytest.raises(RuntimeError, match="same shape"):
        si_sdr(speech, speech[:2])


@given(st.floats(0.01, 100), st.floats(-1, 1))
def test_si_sdr_knows_no_scale_and_no_offset(scale, offset):
    g = torch.Generator().manual_seed(0)
    speech = torch.randn(500, generator=g, dtype=torch.float64)
    mixed = speech + 0.3 * torch.randn(500, generator=g, dtype=torch.float64)
    wanted = si_sdr(mixed, speech).item()
    assert si_sdr(scale * mixed + offset, speech).item() == pytest.approx(wanted)
    assert si_sdr(mixed, scale * speech).item() == pytest.approx(wanted)
