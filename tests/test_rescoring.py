"""The second opinion: CTC's word for each place against sums by hand, the pieces that are cut, both together."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from Day09_Wav2Vec2 import pretrain, rescoring, transcribe
from utils import days
from utils.features import SAMPLE_RATE
from utils.models import ctc
from utils.models import wav2vec2_ctc as w2v
from utils.models.keyword_net import load_kept
from utils.speech.corpora import sample_words

SMALL = ctc.Vocabulary((ctc.BLANK, ctc.SEPARATOR, "A", "B"))


def probability(log_probs, text, vocabulary):
    """p(text): the sum over all paths of the frames, one by one."""
    wanted = vocabulary.encode(text)
    paths = itertools.product(range(len(vocabulary)), repeat=len(log_probs))
    return sum(
        float(log_probs[range(len(path)), list(path)].sum().exp())
        for path in paths
        if ctc.collapse(path, vocabulary.blank) == wanted
    )


def test_replacements_are_the_sums_over_all_paths():
    torch.manual_seed(0)
    log_probs = torch.randn(6, 4).log_softmax(1)
    words = ("A", "B", "AB")
    found = rescoring.replacements(log_probs, "A B", words, SMALL).exp()
    first = [probability(log_probs, f"{word} B", SMALL) for word in words]
    last = [probability(log_probs, f"A {word}", SMALL) for word in words]
    for row, expected in zip(found, (first, last), strict=True):
        expected = torch.tensor(expected)
        assert torch.allclose(row, expected / expected.sum(), atol=1e-5)
    assert rescoring.replacements(log_probs, "", words, SMALL).shape == (0, 3)


def test_words_are_cut_half_way_to_their_neighbours_and_centred():
    wave = torch.zeros(2 * SAMPLE_RATE)
    wave[4000:6000], wave[12000:14000] = 1.0, 2.0  # 0.25 to 0.375 s, 0.75 to 0.875 s
    times = [("A", 0.25, 0.375), ("B", 0.75, 0.875)]
    clips = rescoring.cut_words(wave, times)
    assert clips.shape == (2, SAMPLE_RATE)
    for clip, level in zip(clips, (1.0, 2.0), strict=True):
        assert set(clip.unique().tolist()) == {0.0, level}  # nothing of the neighbour
        assert (clip == level).sum() == 2000
    # the border is at (0.375 + 0.75) / 2 s: 9000 samples are the first word's piece
    assert int(torch.nonzero(clips[0])[0]) == 4000 + (SAMPLE_RATE - 9000) // 2
    assert rescoring.cut_words(wave, []).shape == (0, SAMPLE_RATE)


def test_a_long_piece_keeps_the_second_around_its_word():
    wave = torch.arange(3.0 * SAMPLE_RATE)
    (clip,) = rescoring.cut_words(wave, [("A", 1.4, 1.6)])
    assert clip[0] == SAMPLE_RATE
    assert clip[-1] == 2 * SAMPLE_RATE - 1


def test_the_weight_decides_and_strange_words_stay():
    first = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]]).log()
    second = torch.tensor([[0.2, 0.8], [0.1, 0.9], [0.9, 0.1]]).log()
    both = rescoring.Opinions(("GO", "GO", "STOP"), ("GO", "UP"), first, second)
    assert both.text(0) == "GO GO STOP"
    assert both.text(1) == "GO UP STOP"  # 0.9 x 0.2 is above 0.1 x 0.8
    assert both.text(10) == "UP UP STOP"


class Sure(nn.Module):
    """Says the second of two words, whatever it hears."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 5.0]))
        self.heard = []

    def forward(self, wave):
        self.heard.append(wave.shape)
        return self.logits.expand(len(wave), 2)


def test_second_opinion_asks_about_each_word():
    torch.manual_seed(0)
    recogniser = w2v.load_recogniser(w2v.tiny_config())
    frames = torch.full((50, len(recogniser.vocabulary)), -9.0)
    frames[:, recogniser.vocabulary.blank] = -0.01
    for t, symbol in ((5, "G"), (8, "O"), (20, "|"), (30, "U"), (34, "P")):
        frames[t, recogniser.vocabulary.symbols.index(symbol)] = 2.0
    log_probs, wave = frames.log_softmax(1), 0.1 * torch.randn(SAMPLE_RATE)
    model, classes = Sure(), ["go", "up"]
    asked = (recogniser, log_probs, "GO UP", wave, model, classes)
    found = rescoring.second_opinion(*asked)
    assert found.said == found.words == ("GO", "UP")
    assert all(shape[0] == 2 for shape in model.heard)
    assert found.text(0) == "GO UP"
    assert found.text(100) == "UP UP"
    hop = pretrain.receptive_field(recogniser.config)[1] / SAMPLE_RATE
    times = transcribe.word_times(log_probs, "GO UP", recogniser)
    assert [word for word, _, _ in times] == ["GO", "UP"]
    assert times[0][1:] == pytest.approx((5 * hop, 9 * hop))
    assert times[1][1:] == pytest.approx((30 * hop, 35 * hop))
    nothing = rescoring.second_opinion(recogniser, log_probs, "", wave, *asked[4:])
    assert nothing.text(5) == ""


def test_the_kept_recogniser_names_words_of_the_bundled_voices():
    model, classes = load_kept()
    assert not model.training
    assert len(classes) == 12
    words = sample_words()
    test = words.test
    mine = [k for k, y in enumerate(test.y.tolist()) if words.classes[y] in classes]
    answers = model(test.x[mine]).argmax(1).tolist()
    right = [classes[a] == words.classes[int(test.y[k])] for a, k in zip(answers, mine, strict=True)]
    assert sum(right) > 0.5 * len(mine)  # a synthetic voice is a stranger


def test_the_kept_recogniser_is_refused_clearly(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "get", lambda number: SimpleNamespace(folder=tmp_path))
    with pytest.raises(FileNotFoundError, match="make day DAY=7"):
        load_kept()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "keywords.safetensors").write_bytes(b"")
    card = '{"network": "TC-ResNet", "front_end": "MFCC"}'
    (folder / "keywords.json").write_text(card, encoding="utf-8")
    with pytest.raises(ValueError, match="TC-ResNet over MFCC"):
        load_kept()
