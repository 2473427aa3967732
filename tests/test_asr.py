"""Letters, decoding against brute force, error rates against a hand-worked example, batches, word sequences."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch

from Day09_Wav2Vec2 import finetune, transcribe
from utils.metrics import bootstrap_ratio
from utils.models import ctc
from utils.models.ctc import Vocabulary, WordModel, beam_search, collapse
from utils.sources.catalogue import SPLITS, read_lines
from utils.speech import connected_words
from utils.speech.corpora import Clips, Utterances, read_sample, sample_words, speaker_of, speech_commands

LETTERS = Vocabulary()
TINY = Vocabulary(("<pad>", "|", "A", "B"))


# --- letters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("Don’t  stop – now!", "DON'T STOP NOW"),
        ("café; naïve\nwell-known", "CAFE NAIVE WELL KNOWN"),
        ("", ""),
        (" ... ", ""),
    ],
)
def test_text_is_normalised(raw, wanted):
    assert ctc.normalise_text(raw) == wanted
    assert ctc.normalise_text(wanted) == wanted


def test_letters_there_and_back():
    text = "IT'S A TREE"
    numbers = LETTERS.encode(text)
    assert len(numbers) == len(text)
    assert LETTERS.decode(numbers) == text
    assert LETTERS.encode("") == []
    assert LETTERS.blank == 0
    assert not {LETTERS.symbols.index(s) for s in ("<pad>", "<unk>")} & {*LETTERS.letters}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("lower case", "not in the vocabulary: normalise"),
        ("ROOM 101", "write numbers as words"),
        ("ПРИВЕТ", "leave other scripts out"),
        ("A, B", "',' in 'A, B'"),
    ],
)
def test_a_strange_letter_is_named_never_swallowed(text, match):
    with pytest.raises(ValueError, match=match):
        LETTERS.encode(text)


def test_every_sentence_of_the_sample_can_be_written():
    for row in read_sample("sentences")[0]:
        text = ctc.normalise_text(row["text"])
        assert LETTERS.decode(LETTERS.encode(text)) == text


# --- CTC ----------------------------------------------------------------------------


def test_collapse_takes_repetitions_before_blanks():
    assert collapse([1, 1, 0, 1, 2, 2, 0, 0, 3], 0) == [1, 1, 2, 3]
    assert collapse([0, 0], 0) == collapse([], 0) == []


def test_greedy_reads_each_utterance_to_its_own_end():
    path = [2, 2, 0, 2, 3, 1, 3]
    logits = torch.nn.functional.one_hot(torch.tensor([path, path]), 4).float()
    frames = torch.tensor([7, 4])
    assert transcribe.greedy(logits, frames, TINY) == ["AAB B", "AA"]
    assert ctc.blank_fraction(logits, frames, 0) == pytest.approx(2 / 11)


def test_frames_needed_is_what_ctc_needs():
    for text in ("A", "AA", "ABBA", "AAA"):
        codes = TINY.encode(text)
        need = ctc.frames_needed(codes)
        for frames, possible in ((need, True), (need - 1, False)):
            if frames:
                log_probs = torch.zeros(frames, 1, 4).log_softmax(-1)
                loss = torch.nn.functional.ctc_loss(
                    log_probs, torch.tensor([codes]), (frames,), (len(codes),)
                )
                assert bool(torch.isfinite(loss)) is possible


def brute_force(log_probs, vocabulary, model=None, alpha=0.5, beta=1.0):
    """All alignments one by one: {text: score}."""
    sums: dict[str, float] = {}
    frames, symbols = log_probs.shape
    for path in itertools.product(range(symbols), repeat=frames):
        p = math.exp(sum(log_probs[t, s].item() for t, s in enumerate(path)))
        text = vocabulary.decode(collapse(path, vocabulary.blank))
        sums[text] = sums.get(text, 0.0) + p
    return {
        text: math.log(p) + (alpha * model.score(text) + beta * len(text.split()) if model else 0)
        for text, p in sums.items()
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_model", [False, True])
def test_beam_search_is_the_sum_over_all_alignments(seed, with_model):
    g = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(5, 4, generator=g)).double().log_softmax(-1)
    model = WordModel(["A B", "AB A", "B A A"], order=2) if with_model else None
    wanted = brute_force(log_probs, TINY, model, alpha=0.8, beta=0.3)
    found = beam_search(log_probs, TINY, 10_000, model, alpha=0.8, beta=0.3, floor=-math.inf)
    assert {h.text for h in found} == set(wanted)
    assert [h.text for h in found] == sorted(wanted, key=wanted.get, reverse=True)
    for h in found:
        assert h.score == pytest.approx(wanted[h.text], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_model", [False, True])
def test_with_a_list_of_words_nothing_else_is_written(seed, with_model):
    g = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(5, 4, generator=g)).double().log_softmax(-1)
    known = ["AB", "B", "AA"]
    model = WordModel(["B AB", "AB AA", "B"], order=2) if with_model else None
    every = brute_force(log_probs, TINY, model, alpha=0.8, beta=0.3)
    wanted = {t: s for t, s in every.items() if set(t.split()) <= set(known)}
    found = beam_search(log_probs, TINY, 10_000, model, alpha=0.8, beta=0.3, floor=-math.inf, words=known)
    assert {h.text: pytest.approx(h.score, abs=1e-9) for h in found} == wanted
    assert beam_search(log_probs[:0], TINY, words=known)[0].text == ""
    with pytest.raises(ValueError, match="empty list"):
        beam_search(log_probs, TINY, words=[])


@pytest.mark.parametrize("with_model", [False, True])
def test_the_librarys_lexicon_decoder_writes_the_same_texts(with_model):
    pytest.importorskip("flashlight", reason="flashlight-text has no wheel for this Python")
    g = torch.Generator().manual_seed(0)
    known = ["AB", "B", "AA"]
    model = WordModel(["B AB", "AB AA", "B"], order=2) if with_model else None
    several = [(3 * torch.randn(n, 4, generator=g)).log_softmax(-1) for n in [*range(1, 13), 0]]
    found = ctc.beam_texts(several, TINY, 200, known, model=model, alpha=0.8, beta=0.3)
    every = (
        beam_search(p, TINY, 200, model, alpha=0.8, beta=0.3, floor=-math.inf, words=known) for p in several
    )
    assert found == [hypotheses[0].text for hypotheses in every]


def test_texts_without_a_lexicon_or_the_library_are_those_of_beam_search(monkeypatch):
    log_probs = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    assert ctc.beam_texts([log_probs], TINY) == [beam_search(log_probs, TINY)[0].text]
    monkeypatch.setattr(ctc, "find_spec", lambda name: None)
    wanted = beam_search(log_probs, TINY, words=["AB", "B"])[0].text
    assert ctc.beam_texts([log_probs], TINY, words=["AB", "B"]) == [wanted]
    with pytest.raises(ValueError, match="empty list"):
        ctc.beam_texts([log_probs], TINY, words=[])


def test_a_word_that_was_not_finished_is_not_said():
    log_probs = torch.full((1, 4), 1e-6).log()
    log_probs[0, 2] = 0.0  # A, and there is no word A
    assert beam_search(log_probs, TINY, 1)[0].text == "A"
    (found,) = beam_search(log_probs, TINY, 1, words=["AB"])
    assert (found.text, found.score) == ("", -math.inf)


def test_beam_search_sums_what_greedy_cannot():
    """`A` and blank share the frames so that each frame favours the blank, but all paths together favour A."""
    log_probs = torch.tensor([[0.6, 1e-9, 0.4, 1e-9]] * 2).log()
    frames = torch.tensor([2])
    assert transcribe.greedy(log_probs[None], frames, TINY) == [""]
    assert beam_search(log_probs, TINY)[0].text == "A"
    assert beam_search(log_probs[:0], TINY)[0].text == ""


def test_the_language_model_chooses_between_words_that_sound_alike():
    log_probs = torch.full((4, 4), 1e-6)
    for t, likely in enumerate((2, 1, 2, 0)):
        log_probs[t, likely] = 0.9
    log_probs[2, 2], log_probs[2, 3] = 0.55, 0.45
    log_probs = (log_probs / log_probs.sum(1, keepdim=True)).log()
    assert beam_search(log_probs, TINY)[0].text == "A A"
    model = WordModel(["A B"] * 5 + ["A"], order=3)
    assert beam_search(log_probs, TINY, model=model, alpha=1.0)[0].text == "A B"


# --- the language model ---------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_of_all_words_sum_to_one(order):
    model = WordModel(["A B C", "A B", "C A B", "B B B"], order)
    places = [*sorted(model.words), "NEVER"]
    for history in ((), ("A",), ("A", "B"), ("X", "Y"), ("B", "B", "B")):
        total = sum(math.exp(model.log_prob(word, history)) for word in places)
        assert total == pytest.approx(1)


def test_kneser_ney_counts_contexts_not_occurrences():
    """FRANCISCO is frequent but follows one word only, so after a new word it is less likely than a rarer one."""
    texts = ["SAN FRANCISCO"] * 8 + ["A GLASS", "THE GLASS", "ONE GLASS"]
    model = WordModel(texts, order=2)
    assert model.log_prob("GLASS", ("NEW",)) > model.log_prob("FRANCISCO", ("NEW",))
    assert model.log_prob("FRANCISCO", ("SAN",)) > model.log_prob("GLASS", ("SAN",))


def test_a_bigram_by_hand():
    """Texts `A B` and `A`: after A come B and the end, once each, d = 0.75, so 0.125 + 0.75 p(B)."""
    model = WordModel(["A B", "A"], order=2)
    # contexts seen: A after <s>; B after A; the end after B and A: 4 in all, 3 different words
    unigram = (1 - 0.75) / 4 + 0.75 * 3 / 4 * (1 / 4)
    wanted = (1 - 0.75) / 2 + 0.75 * 2 / 2 * unigram
    assert math.exp(model.log_prob("B", ("A",))) == pytest.approx(wanted)
    assert model.perplexity(["A B"]) < model.perplexity(["B A"])
    with pytest.raises(ValueError, match="needs texts"):
        WordModel([])


# --- errors ---------------------------------------------------------------------------

REFERENCES = ["THE CAT SAT ON THE MAT", "GO HOME", "ONE"]
OUTPUTS = ["THE CAT SIT ON MAT", "GO HOME NOW", ""]
"""By hand: SAT→SIT, THE deleted; NOW inserted; ONE deleted. 4 errors of 9 words."""


def test_error_rates_of_a_hand_worked_example():
    found = ctc.errors(REFERENCES, OUTPUTS)
    assert (found.substitutions, found.deletions, found.insertions) == (1, 2, 1)
    assert found.words == 9
    assert found.wer == pytest.approx(4 / 9)
    assert found.word_accuracy == pytest.approx(5 / 9)
    # letters: A→I, `THE ` (4) deleted; ` NOW` (4) inserted; ONE (3) deleted, of 22 + 7 + 3
    assert found.cer == pytest.approx(12 / 32)
    line = "WER 0.4444, CER 0.3750: 1 substitutions, 2 deletions, 1 insertions, 9 words"
    assert str(found) == line
    wrong, words = ctc.word_errors(REFERENCES, OUTPUTS)
    assert wrong.tolist() == [2, 1, 1]
    assert words.tolist() == [6, 2, 1]
    assert ctc.errors(["A"], ["B C D"]).word_accuracy == 0  # WER 3: not below 0


def test_an_empty_reference_counts_what_was_heard_there():
    found = ctc.errors(["GO", ""], ["GO", "ONE TWO"])
    assert (found.insertions, found.wer) == (2, 2.0)
    assert ctc.word_errors(["GO", ""], ["GO", "ONE TWO"])[0].tolist() == [0, 2]
    with pytest.raises(ValueError, match="no reference has a word"):
        ctc.errors(["", " "], ["A", ""])
    with pytest.raises(ValueError, match="1 references and 2 outputs"):
        ctc.errors(["A"], ["A", "B"])


def test_case_and_punctuation_count_unless_normalised():
    """Reason 1 for a WER of 1.0: reference and output in another case."""
    raw, out = ["Turn right, now"], ["TURN RIGHT NOW"]
    assert ctc.errors(raw, out).wer == 1
    assert ctc.errors([ctc.normalise_text(t) for t in raw], out).wer == 0


def test_the_interval_of_a_rate_holds_it_and_groups_widen_it():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(10), 20)
    wrong = rng.binomial(5, np.repeat(rng.uniform(0.05, 0.6, 10), 20))
    words = np.full(200, 5)
    plain = bootstrap_ratio(wrong, words)
    grouped = bootstrap_ratio(wrong, words, speakers)
    assert plain.mean == grouped.mean == pytest.approx(wrong.sum() / 1000)
    assert grouped.low < plain.low < plain.mean < plain.high < grouped.high
    same = ctc.wer_difference(REFERENCES, OUTPUTS, OUTPUTS)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    worse = ctc.wer_difference(REFERENCES, [""] * 3, REFERENCES)
    assert worse.mean == 1
    assert worse.real
    assert ctc.wer_interval(REFERENCES, OUTPUTS).mean == pytest.approx(4 / 9)
    with pytest.raises(ValueError, match="no ratio"):
        bootstrap_ratio([1.0], [0.0])


def test_an_alignment_shows_every_error_by_sign_and_colour():
    page = ctc.alignment_html("RIGHT UP GO ZERO ONE FIVE", "RIGHT DOWN GO ONE FIVE LEFT")
    assert re.sub("<.*?>", "", page) == "RIGHT UP→DOWN GO −ZERO ONE FIVE +LEFT"
    assert ctc.alignment_html("", "") == ""
    page = ctc.alignment_html("RIGHT UP", "RIGHT <B>")
    assert page == f'RIGHT <b style="color:{ctc.COLOURS["substitute"]}">UP→&lt;B&gt;</b>'
    table = ctc.transcripts_html(REFERENCES, OUTPUTS)
    assert table.count("<tr>") == 4
    assert table.count("−") == 2
    assert table.count("+") == 1


# --- batches --------------------------------------------------------------------------


def padding_share(lengths, batches):
    """Share of the computed samples that are padding, 0 to 1."""
    computed = sum(len(b) * int(lengths[b].max()) for b in batches)
    return 1 - sum(int(lengths[b].sum()) for b in batches) / computed


def test_buckets_hold_everything_once_and_pad_little():
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(20_000, 300_000, (203,), generator=g).numpy()
    batches = ctc.length_batches(lengths, 8, g)
    assert sorted(i for b in batches for i in b) == list(range(203))
    assert max(map(len, batches)) == 8
    stock = [some.tolist() for some in torch.randperm(203, generator=g).split(8)]
    assert padding_share(lengths, batches) < 0.15
    assert padding_share(lengths, stock) > 0.25
    ordered = ctc.length_batches(lengths, 8)
    assert padding_share(lengths, ordered) < padding_share(lengths, batches)
    assert ordered == ctc.length_batches(lengths, 8)
    small = ctc.length_batches(lengths, 8, g, max_samples=600_000)
    assert sorted(i for b in small for i in b) == list(range(203))
    assert max(len(b) * lengths[b].max() for b in small) <= 600_000


def some_sentences(rate=16_000, texts=("Go", "a tree")):
    rng = np.random.default_rng(0)
    waves = [(rng.normal(200, 900, n)).astype(np.int16) for n in (4000, 3000)[: len(texts)]]
    return Utterances.of(waves, texts, ["x"] * len(texts), rate=rate)


def test_a_batch_is_normalised_as_the_library_does_it():
    from transformers import Wav2Vec2FeatureExtractor

    some = some_sentences()
    batch = ctc.collate(some, [1, 0], LETTERS)
    assert batch.lengths.tolist() == [3000, 4000]
    assert batch.labels.tolist() == [LETTERS.encode("A TREE"), [*LETTERS.encode("GO"), *[0] * 4]]
    assert batch.label_lengths.tolist() == [6, 2]
    library = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    wanted = library(
        [some.sound(1).numpy(), some.sound(0).numpy()],
        sampling_rate=16_000, padding=True, return_tensors="pt",
    )  # fmt: skip
    torch.testing.assert_close(batch.x, wanted.input_values, atol=1e-4, rtol=1e-4)
    assert not batch.x[0, 3000:].any()


def test_another_rate_is_refused_with_the_way_on():
    with pytest.raises(ValueError, match="22,050 Hz.*resample"):
        ctc.collate(some_sentences(rate=22_050), [0], LETTERS)


def test_an_empty_text_has_no_letters_and_a_strange_one_is_refused():
    batch = ctc.collate(some_sentences(texts=("", "A")), [0, 1], LETTERS)
    assert batch.label_lengths.tolist() == [0, 1]
    assert ctc.collate(some_sentences(texts=("",)), [0], LETTERS).labels.shape == (1, 1)
    with pytest.raises(ValueError, match="write numbers as words"):
        ctc.collate(some_sentences(texts=("room 7",)), [0], LETTERS)


def test_a_long_recording_is_cut_where_it_is_quiet():
    wave = torch.randn(16_000 * 40, generator=torch.Generator().manual_seed(0))
    wave[25 * 16_000 : 25 * 16_000 + 3200] *= 1e-3
    pieces = transcribe.cut_long(wave, 30)
    assert torch.equal(torch.cat(pieces), wave)
    assert 25 * 16_000 < len(pieces[0]) < 25 * 16_000 + 3200
    assert max(len(p) for p in transcribe.cut_long(wave, 3)) <= 48_000
    assert len(transcribe.cut_long(wave[:100])) == 1


# --- connected words --------------------------------------------------------------------


def test_sequences_are_of_one_speaker_where_that_has_enough():
    names = [f"w{i % 5}/{s}_nohash_{i}" for s in ("a", "b") for i in range(10)]
    names += ["w0/c_nohash_0"]
    clips = Clips(torch.zeros(21, 10), torch.zeros(21), names, [speaker_of(n) for n in names])
    drawn = connected_words.draw_sequences(clips, 200, seed=5)
    assert drawn == connected_words.draw_sequences(clips, 200, seed=5)
    assert drawn != connected_words.draw_sequences(clips, 200, seed=6)
    assert {len(s) for s in drawn} == {3, 4, 5, 6}
    assert all(len(set(s)) == len(s) for s in drawn)
    speakers = [{speaker_of(n) for n in s} for s in drawn]
    assert all(len(s) == 1 for s in speakers if "c" not in s)
    assert all(len(s) == 2 for s in speakers if "c" in s)
    with pytest.raises(ValueError, match="too few"):
        connected_words.draw_sequences(clips.take(slice(0, 4)), 1, 0)


def test_connected_words_sound_like_their_clips_and_come_again():
    words = sample_words()
    first, second = (
        connected_words.speak_sequences(
            words.test, words.classes, connected_words.draw_sequences(words.test, 6, 3), seed=4
        )
        for _ in range(2)
    )
    assert np.array_equal(first.samples, second.samples)
    assert first.texts == second.texts
    for i in range(6):
        count = len(first.texts[i].split())
        assert first.texts[i] == ctc.normalise_text(first.texts[i])
        assert 0.3 * count < first.lengths[i] / 16_000 < 1.5 * count + 0.4
        assert 1000 < np.abs(first.wave(i).astype(int)).max() < 32_000
    level = np.sqrt(np.mean(first.wave(0).astype(float) ** 2)) / 32_768
    assert 0.02 < level < 0.1


def test_varied_rows_say_the_same_at_other_speeds_and_some_in_noise():
    words = sample_words()
    rows = connected_words.draw_sequences(words.train, 40, 3)
    noise = torch.randn(16_000 * 10, generator=torch.Generator().manual_seed(0))
    plain = connected_words.speak_sequences(words.train, words.classes, rows, 4)
    still = connected_words.speak_sequences(
        words.train, words.classes, rows, 4, connected_words.WaveAugmentation()
    )
    assert np.array_equal(plain.samples, still.samples)
    kind = connected_words.WaveAugmentation(speed=0.2, noisy=0.5, noise=noise)
    varied = connected_words.speak_sequences(words.train, words.classes, rows, 4, kind)
    again = connected_words.speak_sequences(words.train, words.classes, rows, 4, kind)
    assert np.array_equal(varied.samples, again.samples)
    assert varied.texts == plain.texts
    quietest = [
        [
            np.sort(np.abs(s.wave(i).astype(float))[: s.lengths[i] // 400 * 400]
                    .reshape(-1, 400).mean(1))[0]
            for i in range(40)
        ]
        for s in (plain, varied)
    ]  # fmt: skip
    louder = np.mean(np.array(quietest[1]) > 3 * np.array(quietest[0]) + 5)
    assert 0.2 < louder < 0.8  # about half of the rows have a noise floor now
    word = torch.sin(torch.arange(8000) * 0.05)
    lengths = [len(kind.word(word, np.random.default_rng(seed))) / 8000 for seed in range(50)]
    assert 1 / 1.2 <= min(lengths) < 0.9
    assert 1.1 < max(lengths) <= 1 / 0.8
    longer = torch.ones(200_000)  # than the noise: left as it is
    assert kind.row(longer, np.random.default_rng(0)).std() == 0


def test_another_microphone_colours_a_row_and_comes_again():
    row = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    kind = connected_words.WaveAugmentation(microphone=1.0)

    def colour(seed):
        heard = kind.row(row, np.random.default_rng(seed))
        gain = torch.fft.rfft(heard).abs() / torch.fft.rfft(row).abs()
        return 20 * gain.clamp(min=1e-6).log10()

    assert torch.equal(colour(1), colour(1))
    assert (colour(1) - colour(2)).abs().mean() > 1  # dB
    # a frequency response: neighbouring frequencies are changed alike
    assert colour(1).diff().abs().mean() < 0.1


def test_a_share_of_the_labels_is_a_share_of_the_speakers():
    words = sample_words()
    some = finetune.fraction_of_speakers(words.train, 0.3)
    assert 0.3 <= len(some) / len(words.train) < 0.34
    assert len(set(some.speakers)) == 12
    sets = finetune.Recipe(short=1, long=0, sequences=(20, 0)).curriculum(words, labels=0.3)
    spoken = {s for who in sets[0].speakers for s in who.split("+")}
    assert spoken <= set(some.speakers)


def test_the_committed_sequences_are_of_the_parts_own_clips():
    for part, count in (("validation", 200), ("test", 600)):
        own = set(read_lines(SPLITS / f"speech_commands_{part}.txt"))
        lines = read_lines(SPLITS / f"connected_{part}.txt")
        assert len(lines) == count
        for line in lines:
            assert 3 <= len(line.split()) <= 6
            assert set(line.split()) <= own
        one = [len({speaker_of(n) for n in line.split()}) == 1 for line in lines]
        assert np.mean(one) > 0.9


def test_a_curriculum_is_short_first_and_repeats_after_some_epochs():
    words = speech_commands("quick")
    recipe = finetune.Recipe(short=3, long=1, sequences=(6, 4), different=2)
    lessons = recipe.curriculum(words)
    assert [len(lesson) for lesson in lessons] == [6, 6, 6, 4]
    assert lessons[0] is lessons[2]
    assert lessons[0].texts != lessons[1].texts
    other = recipe.curriculum(words, first=1000)[0]
    assert other.texts not in (lessons[0].texts, lessons[1].texts)
    counts = [[len(text.split()) for text in lesson.texts] for lesson in lessons]
    assert all(n in (1, 2) for n in counts[0] + counts[1])
    assert all(3 <= n <= 6 for n in counts[3])
    known = set(words.train.speakers)
    assert all(set(s.split("+")) <= known for s in lessons[3].speakers)
