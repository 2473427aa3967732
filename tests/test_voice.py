"""Measures of a cloned voice against hand and brute force; references that cannot be used."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from Day11_Voice_Cloning import evaluate
from utils.features import MFCC, AudioError
from utils.models import tts
from utils.speech.corpora import read_sample

RATE = 16_000


def speechlike(seconds: float = 1.5, seed: int = 0, pitch: float = 120.0) -> torch.Tensor:
    """A buzz whose formant moves: not speech, but with a spectrum that changes."""
    t = torch.arange(round(seconds * RATE)) / RATE
    buzz = sum(torch.sin(2 * math.pi * pitch * k * t + k) / k for k in range(1, 30))
    slow = torch.sin(2 * math.pi * 3 * t + seed)
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(seed))
    return 0.05 * buzz * (1.2 + slow) + 0.01 * noise * (1 - slow)


# --- references ---------------------------------------------------------------------


def test_a_good_reference_is_trimmed_and_resampled():
    wave = torch.cat([torch.zeros(RATE), speechlike(2.0), torch.zeros(RATE)])
    kept = evaluate.check_reference(wave, RATE)
    assert len(kept) / RATE == pytest.approx(2.06, abs=0.05)
    doubled = evaluate.check_reference(wave.repeat_interleave(2), 2 * RATE)
    assert len(doubled) == pytest.approx(len(kept), abs=RATE // 50)


def test_references_that_cannot_be_used_say_why():
    with pytest.raises(AudioError, match="silent .* microphone"):
        evaluate.check_reference(torch.zeros(5 * RATE), RATE)
    with pytest.raises(AudioError, match="0.3 s of speech, 1 s at least"):
        evaluate.check_reference(speechlike(0.3), RATE)
    padded = torch.cat([torch.zeros(3 * RATE), speechlike(0.3), torch.zeros(3 * RATE)])
    with pytest.raises(AudioError, match="0.4 s of speech"):
        evaluate.check_reference(padded, RATE)
    with pytest.raises(AudioError, match="no samples"):
        evaluate.check_reference(torch.zeros(0), RATE)
    with pytest.raises(AudioError, match="NaN"):
        evaluate.check_reference(torch.full((RATE,), float("nan")), RATE)


# --- whose voice --------------------------------------------------------------------


def test_similarity_is_the_cosine():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert evaluate.similarity(a, b).tolist() == pytest.approx([0.0, math.sqrt(0.5)])
    assert evaluate.similarity(a[0], 5 * a[0]).item() == pytest.approx(1.0)


def test_identification():
    enrolled = {
        "a": torch.tensor([[1.0, 0.0, 0.0], [30.0, 30.0, 0.0]]),  # a loud one weighs no more
        "b": torch.tensor([0.0, 1.0, 0.0]),
        "c": torch.tensor([0.0, 0.0, 9.0]),
    }  # fmt: skip
    spoken = torch.tensor([[5.0, 2.0, 0.0], [0.0, 1.0, 0.1], [0.0, 1.0, 1.2]])
    assert evaluate.nearest_voice(spoken, enrolled) == ["a", "b", "c"]
    assert evaluate.identification_rate(spoken, ["a", "b", "b"], enrolled) == 2 / 3
    with pytest.raises(ValueError, match="not enrolled: \\['z'\\]"):
        evaluate.identification_rate(spoken, ["a", "b", "z"], enrolled)


# --- distance -----------------------------------------------------------------------


def test_cepstra_are_those_of_the_log_spectrum(monkeypatch):
    """A log-mel that differs by a cosine of A dB: distortion A / sqrt(2), its root mean square."""
    height = 6.0
    n = torch.arange(60)
    ripple = height * torch.cos(math.pi * 3 * (n + 0.5) / 60) * math.log(10) / 10
    dct = MFCC(14, n_mels=60).dct
    flat, rippled = ((dct @ x)[1:] / math.sqrt(120) for x in (torch.zeros(60), ripple))
    pair = iter([flat[None], rippled[None]])
    monkeypatch.setattr(tts, "mel_cepstra", lambda *_: next(pair))
    distortion = tts.mel_cepstral_distortion(torch.zeros(1), torch.zeros(1), RATE)
    assert distortion == pytest.approx(height / math.sqrt(2), rel=1e-4)


def test_distortion_grows_with_the_difference():
    a = speechlike()
    assert tts.mel_cepstra(a, RATE).shape == (1 + len(a) // 80, 13)
    same = tts.mel_cepstral_distortion(a, a, RATE)
    louder = tts.mel_cepstral_distortion(a, 2 * a, RATE)
    noisy = tts.mel_cepstral_distortion(
        a, a + 0.002 * torch.randn(len(a), generator=torch.Generator().manual_seed(1)), RATE
    )  # fmt: skip
    other = tts.mel_cepstral_distortion(a, speechlike(seed=5, pitch=210), RATE)
    assert same == pytest.approx(0, abs=1e-6)
    assert louder < 0.1 < noisy < other
    assert tts.mel_cepstral_distortion(a, a[: RATE // 2], RATE) > same


def test_warping_forgives_a_pause():
    a = speechlike(1.0)
    late = torch.cat([a[: RATE // 2], a[RATE // 2 - 800 : RATE // 2], a[RATE // 2 :]])
    stretched = tts.mel_cepstral_distortion(a, late, RATE)
    assert stretched < 0.5 * tts.mel_cepstral_distortion(a, a.flip(0), RATE)


# --- speed and words ----------------------------------------------------------------


def test_real_time_factor(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: next(clock))
    factor = evaluate.real_time_factor(
        lambda: [torch.zeros(RATE), torch.zeros(3 * RATE)], RATE, torch.device("cpu")
    )
    assert factor == pytest.approx(2.0 / 4.0)


def test_words_are_plain():
    assert evaluate.plain_words("Dr. Who? It's 'two' o'clock -- 3 times!") == (
        "doctor who it's two o'clock three times"
    )


def test_word_error_rate_over_all_words(monkeypatch):
    said = iter(["one three", "four five six"])
    monkeypatch.setattr(evaluate, "_decoder", lambda: None)
    monkeypatch.setattr(evaluate, "_transcribe", lambda wave: next(said))
    rate, heard = evaluate.asr_wer([torch.zeros(9)] * 2, ["1, 2, 3.", "Four five."], RATE)
    assert rate == pytest.approx(2 / 5)
    assert heard == ["one three", "four five six"]


def test_a_missing_recogniser_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    evaluate._decoder.cache_clear()
    with pytest.raises(evaluate.MissingRecogniser, match="pip install pocketsphinx"):
        evaluate.hear_all([speechlike()], RATE)
    assert not evaluate.recogniser_is_here()


def test_the_recogniser_answers_with_words():
    pytest.importorskip("pocketsphinx")
    evaluate._decoder.cache_clear()
    index, samples = read_sample("sentences")
    start, length = int(index[0]["start"]), int(index[0]["length"])
    wave = torch.from_numpy(samples[start : start + length].copy()) / 32768
    heard = evaluate.hear_all([wave], RATE)[0].split()
    assert 3 <= len(heard) <= 20  # a synthetic voice: words, not the right ones


def test_what_is_heard_does_not_depend_on_what_was_heard_before_or_by_whom():
    pytest.importorskip("pocketsphinx")
    index, samples = read_sample("sentences")
    waves = []
    for row in index[:16]:
        start, length = int(row["start"]), int(row["length"])
        waves.append(torch.from_numpy(samples[start : start + length].copy()) / 32768)
    there = evaluate.hear_all(waves, RATE)
    assert evaluate.hear_all(waves[::-1], RATE)[::-1] == there
    assert evaluate.hear_all(waves, RATE, processes=2) == there
