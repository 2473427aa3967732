import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.metrics import Spread, accuracy, bootstrap_difference, spread


def test_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.75


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (2,)])
def test_accuracy_refuses_what_does_not_fit(shape):
    with pytest.raises(ValueError, match="accuracy needs"):
        accuracy(
            torch.zeros(shape), torch.zeros(2 if shape[0] else 0, dtype=torch.long)
        )


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
