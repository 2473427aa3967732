"""Packed sound, Speech Commands on disk, the committed lists, the bundled words, and the keyword networks."""

from __future__ import annotations

import nbformat
import numpy as np
import pytest
import soundfile
import torch

from Day07_Speech_Commands import recognise
from Day07_Speech_Commands.networks import LearnedFrontEnd, TCResNet
from utils import days, features, sources
from utils.features import MFCC, SAMPLE_RATE, AudioError, LogMel
from utils.models import keyword_net
from utils.models.keyword_net import CNN2d, KeywordNet
from utils.sources import catalogue
from utils.speech import augment, corpora
from utils.speech.corpora import (
    Clips,
    Utterances,
    kathleen,
    librispeech,
    noises,
    read_sample,
    speaker_of,
    speech_commands,
    without_silence,
)
from utils.speech.pack import Item, pack, read_pack
from utils.training import count_parameters


def write_wave(path, seconds=0.1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    wave = rng.integers(-9000, 9000, round(seconds * SAMPLE_RATE)).astype(np.int16)
    soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
    return wave


def items(tmp_path, count=5):
    waves, out = [], []
    for i in range(count):
        path = tmp_path / f"{i}.wav"
        waves.append(write_wave(path, 0.05 + 0.01 * i, i))
        out.append(Item(path.name, path, f"word{i % 2}", f"speaker{i}"))
    return out, waves


def test_a_pack_gives_back_every_sample(tmp_path):
    some, waves = items(tmp_path)
    packed = pack(tmp_path / "p" / "set.pack", some, bar=False)
    assert packed.names == [i.name for i in some]
    assert packed.texts == [i.label for i in some]
    assert packed.speakers == [i.speaker for i in some]
    for i, wave in enumerate(waves):
        assert np.abs(packed.wave(i).astype(int) - wave).max() <= 1
    batch = packed.batch([4, 0], 1000)
    assert batch.shape == (2, 1000)
    assert batch[0, : len(waves[4])].ne(0).float().mean() > 0.99
    assert not batch[1, len(waves[0]) :].any()


def test_a_pack_is_made_once_and_again_when_the_files_change(tmp_path):
    some, _ = items(tmp_path)
    target = tmp_path / "set.pack"
    pack(target, some, bar=False)
    made = (target / "samples.i16").stat().st_mtime_ns
    pack(target, some, bar=False)
    assert (target / "samples.i16").stat().st_mtime_ns == made
    write_wave(some[0].path, 0.2, 9)
    assert len(pack(target, some, bar=False).wave(0)) == 3200


def test_a_pack_of_a_bad_file_leaves_nothing_behind(tmp_path):
    some, _ = items(tmp_path)
    some[3].path.write_text("not sound")
    with pytest.raises(AudioError, match=r"3\.wav"):
        pack(tmp_path / "set.pack", some, bar=False)
    assert not (tmp_path / "set.pack").exists()


def test_a_damaged_pack_says_so(tmp_path):
    some, _ = items(tmp_path)
    target = tmp_path / "set.pack"
    pack(target, some, bar=False)
    samples = (target / "samples.i16").read_bytes()
    (target / "samples.i16").write_bytes(samples[:-100])
    with pytest.raises(sources.DataError, match="damaged"):
        read_pack(target)


def test_the_committed_lists_share_no_speaker_and_no_clip():
    lists = {
        part: catalogue.read_lines(catalogue.SPLITS / f"speech_commands_{part}.txt")
        for part in ("train", "validation", "test")
    }
    assert {k: len(v) for k, v in lists.items()} == {
        "train": 3527, "validation": 455, "test": 520,
    }  # fmt: skip
    speakers = {k: {speaker_of(n) for n in v} for k, v in lists.items()}
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not speakers[a] & speakers[b]
    words = {n.split("/")[0] for names in lists.values() for n in names}
    assert words == set(corpora.NINE_WORDS)


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """A folder in torchaudio's layout with all clips of the lists, a few samples each."""
    folder = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    wave = np.zeros(40, np.int16)
    soundfile_bytes = tmp_path / "one.wav"
    soundfile.write(soundfile_bytes, wave + 100, SAMPLE_RATE)
    content = soundfile_bytes.read_bytes()
    for part in ("train", "validation", "test"):
        for name in catalogue.read_lines(catalogue.SPLITS / f"speech_commands_{part}.txt"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    write_wave(folder / "_background_noise_" / "running_tap.wav", 2)
    write_wave(folder / "_background_noise_" / "white_noise.wav", 2)
    (folder / "testing_list.txt").write_text("up/x_nohash_0.wav\n")
    (folder / "validation_list.txt").write_text("go/y_nohash_0.wav\n")
    for name in ("up/x_nohash_0.wav", "go/y_nohash_0.wav", "cat/z_nohash_0.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    return folder


def test_speech_commands_on_disk_is_read_by_the_lists(small_set):
    words = speech_commands("study")
    assert words.name.startswith("speech_commands_v2-other-")
    assert [len(p) for p in (words.train, words.validation, words.test)] == [3527, 455, 520]
    assert words.classes == sorted(corpora.NINE_WORDS)
    assert words.train.x.dtype == torch.int16
    assert words.train.x.shape[1] == SAMPLE_RATE
    assert words.test.names[0].split("/")[0] == words.classes[words.test.y[0]]
    assert set(words.train_noise) == {"white_noise"}
    assert set(words.test_noise) == {"running_tap"}


def test_the_full_profile_takes_all_words_by_the_sets_own_lists(small_set):
    words = speech_commands("full")
    assert len(words.classes) == 10
    assert words.test.names == ["up/x_nohash_0.wav"]
    assert words.validation.names == ["go/y_nohash_0.wav"]
    assert "cat/z_nohash_0.wav" in words.train.names


def test_missing_clips_stop_the_day(small_set):
    for path in list((small_set / "up").iterdir()):
        path.unlink()
    with pytest.raises(sources.DataError, match="are not in"):
        speech_commands("study")


def test_known_copies_are_known_by_their_clips(small_set, tmp_path):
    assert sources.is_here("speech_commands")
    old = small_set.rename(small_set.with_name("speech_commands_v0.01"))
    assert sources.identify("speech_commands").startswith("speech_commands_v1-other-")
    assert catalogue.speech_commands_folder(tmp_path) == old
    assert catalogue.speech_commands_folder(tmp_path / "nowhere") is None


def test_clips_keep_names_and_speakers_when_some_are_taken():
    clips = Clips(torch.arange(6).view(3, 2), torch.tensor([0, 1, 2]), ["a", "b", "c"], ["x", "y", "z"])
    part = clips.take(torch.tensor([2, 0]))
    assert part.names == ["c", "a"]
    assert part.speakers == ["z", "x"]
    assert clips.take(clips.y > 0).names == ["b", "c"]
    assert clips.take(slice(0, 1)).speakers == ["x"]


def test_the_bundled_words_are_a_set():
    words = speech_commands("quick")
    assert words.name == "sample-words"
    assert len(words.classes) == 12
    voices = [set(p.speakers) for p in (words.train, words.validation, words.test)]
    assert [len(v) for v in voices] == [38, 8, 8]
    assert not voices[0] & voices[1] | voices[0] & voices[2] | voices[1] & voices[2]
    loud = words.train.x.abs().amax(1).float() / 32768
    assert loud.min() > 0.2
    assert loud.max() <= 1
    assert len(words.train) == 38 * 12


def test_the_bundled_sentences_have_texts_and_voices():
    index, samples = read_sample("sentences")
    assert len(index) == 150
    assert len({row["text"] for row in index}) == 150
    assert len({row["voice"] for row in index}) == 15
    for row in index:
        start, length = int(row["start"]), int(row["length"])
        assert 1.0 < length / SAMPLE_RATE < 8
        assert np.abs(samples[start : start + length]).max() > 3000
    files = list(corpora.SAMPLE.glob("*.ogg"))
    assert sum(f.stat().st_size for f in files) < 8e6


@pytest.mark.parametrize("front", [LogMel(40), MFCC(40, deltas=1), LearnedFrontEnd(64)])
@pytest.mark.parametrize("network", [CNN2d, TCResNet, lambda c: TCResNet(c, 2.0, separable=True)])
def test_every_front_end_fits_every_network(front, network):
    model = KeywordNet(front, network(front.out_channels), 9, 0.1, (20, 6))
    for wave in (torch.zeros(3, 16000, dtype=torch.int16), torch.randn(3, 9000)):
        assert model(wave).shape == (3, 9)


def test_tc_resnet8_has_the_papers_size():
    size = count_parameters(KeywordNet(LogMel(40), TCResNet(40), 12))
    assert 60_000 < size < 70_000  # 66 thousand


def test_int16_and_float_waves_are_the_same_sound():
    model = KeywordNet(LogMel(40), TCResNet(40), 9).eval()
    x = (torch.randn(2, 16000) * 3000).to(torch.int16)
    torch.testing.assert_close(model(x), model(x.float() / 32768))


def test_a_soft_recording_is_the_same_word():
    front, x = LogMel(40), 0.1 * torch.randn(2, 16000)
    model = KeywordNet(front, TCResNet(40), 9).eval()
    torch.testing.assert_close(model(0.01 * x), model(x), rtol=1e-4, atol=1e-4)
    as_it_is = KeywordNet(front, TCResNet(40), 9, level=None).eval()
    assert (as_it_is(0.01 * x) - as_it_is(x)).abs().max() > 1e-3


def test_answers_over_several_speeds_are_probabilities():
    model = KeywordNet(LogMel(40), TCResNet(40), 9)
    x = 0.1 * torch.randn(3, 16000)
    several = keyword_net.probabilities(model, x)
    torch.testing.assert_close(several.sum(1), torch.ones(3))
    once = keyword_net.probabilities(model, x, [1.0])
    torch.testing.assert_close(once, model.eval()(x).softmax(1))
    other = keyword_net.probabilities(model, x, [0.92])
    third = keyword_net.probabilities(model, x, [1.08])
    torch.testing.assert_close(several, (once + other + third) / 3)
    (word, p), *_ = recognise.recognise(model, list("abcdefghi"), x[0])
    assert p == pytest.approx(several[0].max().item())
    assert word == "abcdefghi"[several[0].argmax()]


def test_the_notebooks_augmentation_is_that_of_utils():
    notebook = nbformat.read(days.get(7).notebook, as_version=4)
    (cell,) = [c.source for c in notebook.cells if "def augment_with" in c.source]
    words = speech_commands("quick")
    there = {
        "torch": torch, "words": words, "utils_augment": augment, "SAMPLE_RATE": SAMPLE_RATE,
        "as_float": features.as_float,
    }  # fmt: skip
    exec(cell, there)
    x = words.train.x[:24]
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    written_out = there["augment_with"]()(x, draws[0])
    ours = keyword_net.augmentation(words.train_noise)(x, draws[1])
    torch.testing.assert_close(written_out, ours)


def test_spec_augment_works_in_training_only():
    torch.manual_seed(0)
    model = KeywordNet(LogMel(40), TCResNet(40), 9, masks=(30, 10)).eval()
    x = torch.randn(2, 16000)
    assert torch.equal(model(x), model(x))
    model.train()
    model.normalise.eval()
    for m in model.network.modules():
        m.training = False
    assert not torch.equal(model(x), model(x))


def test_the_real_set_when_it_is_here(pytestconfig):
    if not sources.is_here("speech_commands"):
        pytest.skip("Speech Commands is not on this machine")
    words = speech_commands("study")
    assert len(words.test) >= 500
    assert words.train.x.abs().amax(1).float().median() > 3000


# --- sentences and noises -----------------------------------------------------------


def three_sentences():
    waves = [np.full(n, n, np.int16) for n in (5, 3, 9)]
    return Utterances.of(waves, ["A", "B", "C"], ["x", "y", "x"], ["a", "b", "c"])


def test_sentences_keep_their_samples_texts_and_speakers_together():
    some = three_sentences()
    assert len(some) == 3
    assert some.seconds == 17 / SAMPLE_RATE
    assert some.wave(1).tolist() == [3, 3, 3]
    part = some.take([2, 1])
    assert (part.texts, part.speakers, part.names) == (["C", "B"], ["x", "y"], ["c", "b"])
    assert part.wave(0).tolist() == [9] * 9
    assert part.joined().tolist() == [9] * 9 + [3] * 3
    assert some.take(np.array([True, False, True])).texts == ["A", "C"]
    assert some.sound(0).dtype == torch.float32
    assert some.sound(0)[0] == 5 / 32768
    with pytest.raises(ValueError, match="2 texts"):
        Utterances.of([np.zeros(1, np.int16)] * 3, ["a", "b"], ["x"] * 3)


def test_parts_of_one_rate_are_joined_and_a_part_is_brought_to_another():
    some = three_sentences()
    both = Utterances.together([some.take([2]), some])
    assert (both.texts, both.names) == (["C", "A", "B", "C"], ["c", "a", "b", "c"])
    assert both.wave(0).tolist() == [9] * 9
    assert both.seconds == 26 / SAMPLE_RATE
    assert some.at(SAMPLE_RATE) is some
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050)).astype("<i2")
    one = Utterances.of([tone], ["tone"], ["x"], ["t"], rate=22_050)
    same = one.at(SAMPLE_RATE)
    assert (same.rate, same.lengths.tolist(), same.names) == (16_000, [16_000], ["t"])
    assert np.abs(np.fft.rfft(same.wave(0))).argmax() == 440
    assert np.abs(same.wave(0)).max() == pytest.approx(8000, rel=0.01)
    with pytest.raises(ValueError, match="one rate first"):
        Utterances.together([some, one])


def test_no_speaker_text_or_recording_is_in_two_committed_lists():
    def lists(stem, *parts):
        return [catalogue.read_lines(catalogue.SPLITS / f"{stem}_{p}.txt") for p in parts]

    libri = lists("librispeech", "train", "validation", "test")
    assert [len(names) for names in libri] == [1042, 271, 1397]
    speakers = [{n.split("-")[0] for n in names} for names in libri]
    assert [len(s) for s in speakers] == [16, 4, 30]
    assert len(set.union(*speakers)) == 50
    noise = lists("noise", "train", "test")
    assert [len(names) for names in noise] == [320, 80]
    recordings = [{n.split("-")[1] for n in names} for names in noise]
    assert not recordings[0] & recordings[1]
    validation, test = lists("kathleen", "validation", "test")
    assert (len(validation), len(test)) == (57, 76)
    assert not set(validation) & set(test)


def test_the_bundled_sentences_are_parted_by_voice_or_by_text():
    corpus = librispeech("quick")
    assert corpus.name == corpus.test_name == "sample-sentences"
    parts = (corpus.train, corpus.validation, corpus.test)
    assert [len(p) for p in parts] == [110, 20, 20]
    assert len(set.union(*(set(p.speakers) for p in parts))) == 15
    assert sum(len(set(p.speakers)) for p in parts) == 15
    for part in parts:
        assert abs(part.wave(0).astype(int)).max() > 3000
    corpus = kathleen("quick")
    parts = (corpus.train, corpus.validation, corpus.test)
    assert [len(p) for p in parts] == [130, 10, 10]
    assert len(set.union(*(set(p.texts) for p in parts))) == 150


def write_flac(path, samples=400):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(samples, 900, np.int16), SAMPLE_RATE)


@pytest.fixture
def small_corpora(tmp_path, monkeypatch):
    """LibriSpeech, Kathleen and ESC-10 in their layouts with all files of the lists, a few samples each."""
    write_flac(tmp_path / "one.flac")
    write_flac(tmp_path / "one.wav", 2 * SAMPLE_RATE)
    flac, wav = ((tmp_path / f"one.{e}").read_bytes() for e in ("flac", "wav"))
    for part in ("train", "validation", "test"):
        folder = tmp_path / "LibriSpeech" / f"{'test' if part == 'test' else 'dev'}-clean"
        for name in catalogue.read_lines(catalogue.SPLITS / f"librispeech_{part}.txt"):
            speaker, chapter, _ = name.split("-")
            chapter = folder / speaker / chapter
            chapter.mkdir(parents=True, exist_ok=True)
            (chapter / f"{name}.flac").write_bytes(flac)
            with open(chapter / f"{'-'.join(name.split('-')[:2])}.trans.txt", "a") as f:
                f.write(f"{name} THE TEXT OF {name}\n")
    wavs = tmp_path / "kathleen" / "wavs"
    wavs.mkdir(parents=True)
    lines = ["more_1|Another text.", "more_2|Another text, too."]
    for part in ("validation", "test"):
        for name in catalogue.read_lines(catalogue.SPLITS / f"kathleen_{part}.txt"):
            lines.append(f"{name}|{part} {name}")
    lines.append(f"again_1|{lines[-1].split('|')[1]}")
    for line in lines:
        (wavs / f"{line.split('|')[0]}.wav").write_bytes(wav)
    (tmp_path / "kathleen" / "metadata.csv").write_text("\n".join(lines))
    for part in ("train", "test"):
        for name in catalogue.read_lines(catalogue.SPLITS / f"noise_{part}.txt"):
            (tmp_path / "noise" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "noise" / f"{name}.wav").write_bytes(wav)
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    return tmp_path


def test_corpora_on_disk_are_read_by_the_lists(small_corpora):
    assert sources.identify("librispeech_dev") == "librispeech-dev-clean-half"
    extra = small_corpora / "LibriSpeech/dev-clean/84/121123/84-121123-9999.flac"
    write_flac(extra)
    with open(extra.with_name("84-121123.trans.txt"), "a") as f:
        f.write("84-121123-9999 ONE MORE\n")
    corpus = librispeech("study")
    assert corpus.name.startswith("librispeech-dev-clean-other-")
    assert corpus.test_name == "librispeech-test-clean-30spk"
    assert [len(p) for p in (corpus.train, corpus.validation, corpus.test)] == [1042, 271, 1397]
    assert corpus.train.texts[0] == f"THE TEXT OF {corpus.train.names[0]}"
    assert corpus.train.speakers[0] == corpus.train.names[0].split("-")[0]
    assert len(corpus.train.wave(5)) == 400
    assert "ONE MORE" in librispeech("full").train.texts
    for path in list((small_corpora / "LibriSpeech/test-clean/1089").glob("*/*.flac")):
        path.unlink()
    for path in list((small_corpora / "LibriSpeech/test-clean").glob("[4-8]*/*/*.flac")):
        path.unlink()
    with pytest.raises(sources.DataError, match="of the test list are not in test-clean"):
        librispeech("study")


def test_kathleen_and_the_noises_are_read_by_the_lists(small_corpora):
    corpus = kathleen("study")
    assert corpus.train.texts == ["Another text.", "Another text, too."]  # not again_1
    assert (len(corpus.validation), len(corpus.test)) == (57, 76)
    assert corpus.train.rate == 22_050
    assert corpus.train.lengths[0] == 2 * 22_050
    assert sources.identify("noise") == "esc10"
    some = noises("study")
    assert some.name == "esc10"
    assert len(some.train) == len(some.test) == 10
    assert some.train["rain"].square().mean().item() == pytest.approx(0.01)
    quick = noises("quick")
    assert (*quick.train, *quick.test) == ("white_noise", "pink_noise")


def test_silence_is_cut_out_of_a_noise():
    wave = torch.zeros(SAMPLE_RATE)
    wave[:1600], wave[8000:9600] = 0.5, 0.1
    assert len(without_silence(wave)) == 3200
    assert not len(without_silence(torch.zeros(3000)))
