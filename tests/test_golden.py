"""What the shipped networks answer, and a few scores: they stay what they were when the weights were published.

The tolerances hold on other processors too: AVX2, AVX512 and AMX give other last digits. To compare bit for bit
on one machine, before and after a change: `python -m tests.golden`.
"""

from __future__ import annotations

import json
from pathlib import Path

import golden
import pytest
import torch

from utils.models.ge2e import pretrained_dvector
from utils.models.keyword_net import load_kept, probabilities
from utils.models.verification import all_pairs, cosine_scores, eer
from utils.speech.corpora import librispeech, sample_words

VALUES = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
"""Of each answer its shape, its root mean square and its first values."""
TOLERANCE = 1e-2
"""Of the root mean square."""
SCORES = {"keyword accuracy": 0.903, "eer": 0.0, "similarity": 0.887}
"""Of the shipped keyword recogniser, and of the GE2E encoder (mean cosine of same-speaker pairs)."""


@pytest.fixture(scope="module")
def answers() -> dict[str, torch.Tensor]:
    return golden.answers()


def test_every_shipped_network_is_here(answers):
    shipped = [p for day in (7, 9, 11, 13, 14) for p in golden.checkpoints(day)]
    assert len(answers) == len(shipped) + 2  # and a template's, and the package's
    assert set(answers) == set(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_the_answers_are_those_of_the_published_weights(answers, name):
    found, want = answers[name], VALUES[name]
    rms = want["rms"]
    assert list(found.shape[:2]) == want["shape"][:2]
    # a synthesizer that stops by itself may stop a frame sooner on another processor
    assert abs(found.shape[-1] - want["shape"][-1]) <= (3 if "synthesizer" in name else 0)
    assert found.square().mean().sqrt().item() == pytest.approx(rms, rel=TOLERANCE)
    first = found.flatten()[: len(want["first"])].tolist()
    assert first == pytest.approx(want["first"], abs=TOLERANCE * rms)


def test_scores_on_the_bundled_sample():
    """The recogniser on synthetic voices that it never saw, and the GE2E encoder on two of them."""
    model, classes = load_kept()
    words = sample_words()
    known = [i for i, y in enumerate(words.test.y.tolist()) if words.classes[y] in classes]
    answers = probabilities(model, words.test.x[known]).argmax(1).tolist()
    right = sum(classes[a] == words.classes[words.test.y[i]] for a, i in zip(answers, known, strict=True))
    assert right / len(known) == pytest.approx(SCORES["keyword accuracy"], abs=0.03)
    test = librispeech("quick").test
    vectors = pretrained_dvector().embed([test.sound(i) for i in range(len(test))])
    pairs, same = all_pairs(test.speakers)
    scores = cosine_scores(vectors, pairs)
    assert eer(scores, same).rate == pytest.approx(SCORES["eer"], abs=0.01)
    assert scores[same].mean() == pytest.approx(SCORES["similarity"], abs=0.01)
