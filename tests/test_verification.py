"""EER by hand and under monotone maps; minDCF, AS-norm, calibration, trials, intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from Day13_Speaker_Verification import trials as day13_trials
from Day13_Speaker_Verification.trials import (
    as_norm,
    calibrate,
    committed_trials,
    identify,
    make_trials,
    min_dcf,
    read_trials,
    write_trials,
)
from utils.models.verification import (
    accuracy_at,
    all_pairs,
    centred,
    cosine_scores,
    eer,
    eer_difference,
    eer_interval,
    rates_at,
)


def normal_trials(n: int = 2000, apart: float = 2.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.4
    return rng.normal(size=n) + apart * same, same


# --- EER ----------------------------------------------------------------------------------------------


def test_eer_by_hand():
    # same: 0.2 0.6 0.7 0.9   different: 0.1 0.3 0.4 0.65 0.5
    scores = [0.2, 0.6, 0.7, 0.9, 0.1, 0.3, 0.4, 0.65, 0.5]
    same = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    # accept from 0.60: false alarms 1/5 (0.65), misses 1/4 (0.2)
    # accept from 0.50: false alarms 2/5, misses 1/4. Between the two points misses stay at 1/4,
    # so the line crosses miss = false alarm at 1/4
    found = eer(scores, same)
    assert found.rate == pytest.approx(0.25)
    assert found.threshold == pytest.approx(0.55)  # half way between 0.5 and 0.6
    assert rates_at(scores, same, found.threshold) == (pytest.approx(0.2), 0.25)
    assert accuracy_at(scores, same, found.threshold) == pytest.approx(7 / 9)


def test_eer_between_two_points_is_interpolated():
    # all at one score: the only points are (1, 0) and (0, 1), the line crosses at one half
    assert eer([1.0, 1.0, 1.0], [1, 0, 0]).rate == 0.5
    # a tie of both kinds: from 2: (0, 1/2); from 1: (1/2, 0); crossing at 1/4
    assert eer([2.0, 1.0, 1.0, 0.0], [1, 1, 0, 0]).rate == pytest.approx(0.25)


def test_parted_scores_have_no_error_and_a_threshold_half_way():
    found = eer([0.9, 0.8, 0.4, 0.2], [1, 1, 0, 0])
    assert found.rate == 0
    assert found.threshold == pytest.approx(0.6)
    assert eer([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0]).rate == 1


def from_roc_curve(scores, same) -> float:
    """The crossing of scikit-learn's curve with miss = false alarm."""
    from sklearn.metrics import roc_curve

    false_alarm, hit, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = (1 - hit) - false_alarm
    k = int(np.argmax(gap <= 0))
    share = gap[k - 1] / (gap[k - 1] - gap[k])
    return false_alarm[k - 1] + share * (false_alarm[k] - false_alarm[k - 1])


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=40))
def test_eer_is_where_the_curve_crosses_and_keeps_under_monotone_maps(values):
    scores = np.array([v for v, _ in values], float)
    same = np.array([s for _, s in values])
    assume(same.any() and not same.all())
    rate = eer(scores, same).rate
    assert rate == pytest.approx(from_roc_curve(scores, same), abs=1e-12)
    assert eer(np.exp(scores / 3) - 5, same).rate == pytest.approx(rate, abs=1e-12)
    assert eer(-scores, ~same).rate == pytest.approx(rate, abs=1e-12)
    threshold = eer(scores, same).threshold
    assert scores.min() <= threshold <= scores.max()


def test_eer_of_normal_scores_is_the_textbook_value():
    rng = np.random.default_rng(0)
    same = np.arange(200_000) % 2 == 0
    scores = rng.normal(size=200_000) + 2 * same
    assert eer(scores, same).rate == pytest.approx(0.158655, abs=0.003)  # Phi(-1)


def test_37720_trials_take_milliseconds():
    scores, same = normal_trials(37_720)
    best = min(
        (lambda began: (eer(scores, same), time.perf_counter() - began)[1])(time.perf_counter())
        for _ in range(20)
    )
    assert best < 0.05  # measured about 0.008; a busy machine may take longer


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([0.1, 0.2], [1, 1], "0 different-speaker"),
        ([], [], "both are needed"),
        ([0.1, float("nan")], [1, 0], "not finite"),
    ],
)
def test_what_has_no_eer_is_refused(scores, same, message):
    with pytest.raises(ValueError, match=message):
        eer(scores, np.array(same, bool))


# --- costs -------------------------------------------------------------------------------------------


def test_min_dcf_by_hand():
    scores, same = [0.9, 0.5, 0.6, 0.1, 0.2, 0.3], [1, 1, 0, 0, 0, 0]
    # from 0.9: miss 1/2, no false alarm; from 0.5: no miss, false alarm 1/4
    assert min_dcf(scores, same, 0.01) == pytest.approx(0.5)
    # prior 1/2: 0.5 * 1/2 = 0.25 against 0.5 * 1/4 = 0.125; divided by 0.5
    assert min_dcf(scores, same, 0.5) == pytest.approx(0.25)
    assert min_dcf([1.0, 1.0], [1, 0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        min_dcf(scores, same, 1.0)


# --- chance -------------------------------------------------------------------------------------------


def speakers_and_scores(harm: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    speakers = np.repeat([f"s{i}" for i in range(12)], 8)
    pairs, same = all_pairs(speakers)
    habit = rng.normal(0, 0.7, 12)[pairs // 8].sum(1)  # a speaker is hard or easy
    scores = rng.normal(size=len(pairs)) + 2.5 * same + habit
    worse = scores + harm * rng.normal(size=len(pairs))
    return scores, worse, same, speakers[pairs]


def test_interval_holds_the_eer_and_repeats():
    scores, _, same, speakers = speakers_and_scores()
    found = eer_interval(scores, same, speakers, 300)
    assert found.low < found.mean < found.high
    assert found.mean == eer(scores, same).rate
    assert found == eer_interval(scores, same, speakers, 300)
    assert found != eer_interval(scores, same, speakers, 300, seed=1)


def test_drawing_every_speaker_once_is_the_plain_eer(monkeypatch):
    scores, _, same, speakers = speakers_and_scores()

    class Once:
        def integers(self, n, size):
            return np.arange(n)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Once())
    found = eer_interval(scores, same, speakers, 2)
    assert found.low == pytest.approx(found.mean, abs=1e-12)
    assert found.high == pytest.approx(found.mean, abs=1e-12)


def test_difference_between_systems_on_the_same_trials():
    scores, worse, same, speakers = speakers_and_scores(harm=3.0)
    gap = eer_difference(worse, scores, same, speakers, 300)
    assert gap.real
    assert gap.mean > 0
    assert not eer_difference(scores, scores, same, speakers, 50).real
    with pytest.raises(ValueError, match="two speakers a trial"):
        eer_interval(scores, same, speakers[:5])


# --- scores -------------------------------------------------------------------------------------------


def test_centring_takes_away_what_all_voices_share():
    drawn = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    voices = torch.nn.functional.normalize(drawn, dim=1)
    corner = 3 * torch.ones(16)  # as after a ReLU: everybody is like everybody
    x = torch.nn.functional.normalize(corner + voices.repeat_interleave(3, 0), dim=1)
    pairs, same = all_pairs([str(i // 3) for i in range(len(x))])
    plain, out = cosine_scores(x, pairs), cosine_scores(centred(x, x.mean(0)), pairs)
    assert plain[~same].mean() > 0.95
    assert abs(out[~same].mean()) < 0.2
    assert torch.allclose(centred(x, x.mean(0)).norm(dim=1), torch.ones(len(x)))
    by_hand = x[:2] - x.mean(0)
    wanted = (by_hand[0] @ by_hand[1] / by_hand[0].norm() / by_hand[1].norm()).item()
    assert cosine_scores(centred(x, x.mean(0)), [[0, 1]])[0] == pytest.approx(wanted)


def test_as_norm_by_hand():
    cohort = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    # nearest two of the cohort: for both utterances the scores 1 and 0, mean 1/2, deviation 1/sqrt 2
    out = as_norm([0.7], embeddings, [[0, 1]], cohort, top=2)
    assert out == pytest.approx([0.2 * 2**0.5])
    with pytest.raises(ValueError, match="at least 2"):
        as_norm([0.7], embeddings, [[0, 1]], cohort[:1])


def test_as_norm_takes_away_what_a_recording_adds_to_all_its_scores():
    rng = np.random.default_rng(0)
    voices, cohort = rng.normal(size=(10, 16)), rng.normal(size=(100, 16))
    common = np.zeros(16)
    common[0] = 1.0
    loud = rng.random(200) < 0.5  # half of the recordings share one channel
    who = np.repeat(np.arange(10), 20)
    x = voices[who] + 1.5 * rng.normal(size=(200, 16)) + np.outer(4 * loud, common)
    cohort[::2] += 4 * common
    x, cohort = torch.tensor(x), torch.tensor(cohort)
    pairs, same = all_pairs(who)
    scores = cosine_scores(x, pairs)
    better = as_norm(scores, x, pairs, cohort, top=50)
    assert eer(better, same).rate < eer(scores, same).rate


def test_cosine_scores_by_hand():
    x = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    scores = cosine_scores(x, [[0, 1], [0, 2], [1, 2]])
    assert scores == pytest.approx([0.5**0.5, 0.0, -(0.5**0.5)])


def test_calibrated_probabilities_are_shares():
    scores, same = normal_trials(40_000, apart=2.0)
    c = calibrate(scores, same)
    # two normals of variance 1, two apart: log odds 2 x - 2, even at 1
    assert c.slope == pytest.approx(2, abs=0.1)
    assert c.offset == pytest.approx(-2, abs=0.1)
    assert c.probability(c.threshold) == pytest.approx(0.5, abs=0.05)
    assert c.eer == eer(scores, same).rate
    from sklearn.linear_model import LogisticRegression

    theirs = LogisticRegression(C=1e6, class_weight="balanced")
    theirs.fit(scores[:, None], same)
    assert c.slope == pytest.approx(theirs.coef_[0, 0], rel=0.01)


def test_calibration_of_parted_scores_stays_finite():
    c = calibrate([0.9, 0.8, 0.7, 0.2, 0.1], [1, 1, 1, 0, 0])
    assert 0 < c.probability(0.0) < 0.5 < c.probability(1.0) < 1
    assert c.eer == 0
    assert 0.2 < c.threshold < 0.7


# --- identification and trials ------------------------------------------------------------------------


def test_identification_names_the_nearest_mean():
    eye = torch.eye(4)
    speakers = [s for s in "abcd" for _ in range(5)]
    x = eye.repeat_interleave(5, 0) + 0.01 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = identify(x, speakers, enrol=3)
    assert found.accuracy == 1
    assert len(found.items) == 8
    wrong = x.clone()
    wrong[found.items[0]] = eye[1]  # the first test item is of speaker a
    assert identify(wrong, speakers, enrol=3).accuracy == pytest.approx(7 / 8)
    with pytest.raises(ValueError, match="leave none to test"):
        identify(x, speakers, enrol=5)


def some_trials(seed=0):
    speakers = [s for s in "abcdef" for _ in range(10)]
    names = [f"{s}-{i:02d}" for i, s in enumerate(speakers)]
    sexes = dict(zip("abcdef", "MFMFMF", strict=True))
    return make_trials(names, speakers, sexes, same=20, other=30, seed=seed)


def test_trials_are_distinct_balanced_and_repeat():
    trials = some_trials()
    pairs = {tuple(p) for p in trials.pairs.tolist()}
    assert len(pairs) == len(trials) == 6 * 50
    assert all(a < b for a, b in pairs)
    kinds, counts = np.unique(trials.kinds, return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {
        "same speaker": 120, "same sex": 90, "other sex": 90,
    }  # fmt: skip
    assert trials.same.sum() == 120
    assert (some_trials().pairs == trials.pairs).all()
    assert (some_trials(1).pairs != trials.pairs).any()


def test_trials_without_known_sexes_say_so():
    speakers = [s for s in "abc" for _ in range(6)]
    names = [f"{s}{i}" for i, s in enumerate(speakers)]
    trials = make_trials(names, speakers, None, same=5, other=8)
    assert set(trials.kinds) == {"same speaker", "sex unknown"}


def test_a_list_is_written_and_read_again(tmp_path):
    trials = some_trials()
    write_trials(tmp_path / "list.txt", trials, "a comment")
    again = read_trials(tmp_path / "list.txt")
    assert (again.names, again.speakers, again.sexes) == (
        trials.names, trials.speakers, trials.sexes,
    )  # fmt: skip
    assert (again.pairs == trials.pairs).all()


def test_the_committed_list_is_what_it_is_said_to_be():
    trials = read_trials()
    assert len(trials) >= 20_000
    assert len(set(trials.speakers)) == 30
    assert len({tuple(p) for p in trials.pairs.tolist()}) == len(trials)
    assert trials.same.sum() > 10_000
    assert set(trials.kinds) == {"same speaker", "same sex", "other sex"}
    assert day13_trials.TRIALS.stat().st_size < 600_000


def test_the_generator_gives_the_committed_list_again():
    committed = read_trials()
    try:
        again = committed_trials()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    assert (again.names, again.sexes) == (committed.names, committed.sexes)
    assert (again.pairs == committed.pairs).all()
