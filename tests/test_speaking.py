"""The files of Day 11: one command, the same bytes again, and clear answers to what cannot be spoken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from Day11_Voice_Cloning import synthesize, train
from Day11_Voice_Cloning.waveglow import WaveGlow, WaveGlowConfig
from tools import results
from utils import days
from utils.features import SAMPLE_RATE, AudioError, as_float
from utils.models import ecapa_tdnn
from utils.models.fastspeech import FastSpeech, FastSpeechConfig
from utils.models.tacotron2 import Tacotron2, TacotronConfig
from utils.models.tts_text import TextError, expand_text
from utils.sources.catalogue import SPLITS, read_lines
from utils.sources.download import DataError
from utils.speech import corpora

NOISE = 0.1 * torch.randn(2 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny networks of random weights where the quick profile has its own."""
    folder = tmp_path_factory.mktemp("runs")
    config = TacotronConfig(encoder=16, decoder=16, r=5, attention=8, prenet=8, postnet=8, speaker=4)
    made = {"vocoder": WaveGlow, "parallel": FastSpeech}
    sizes = {
        "vocoder": WaveGlowConfig(flows=2, layers=1, channels=8, condition=8),
        "parallel": FastSpeechConfig(encoder=16, width=8, hidden=16, blocks=1, predictor=8),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_RUNS", str(folder))
        patch.setitem(synthesize.GRIFFIN_LIM, "quick", 1)
        for part in train.PARTS:
            torch.manual_seed(0)
            model = made.get(part, Tacotron2)(sizes.get(part, config))
            if part not in made:  # a sentence ends at once: nothing was learned
                torch.nn.init.constant_(model.gate.bias, 3.0)
            train.save_network(train.weights_path(part, "quick"), model, what=part)
        yield folder


def test_one_command_makes_every_file_and_the_same_again(runs, monkeypatch, capsys):
    assert synthesize.main(["--profile", "quick"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 46
    folder = days.get(11).output("quick") / "audio"
    files = sorted(folder.glob("*.wav"))
    assert len(files) == 2 * 7 + 4 * 8
    for path in files:
        info = soundfile.info(path)
        assert (info.samplerate, info.subtype, info.channels) == (16_000, "PCM_16", 1)
        assert info.frames > 0
    before = {path.name: path.read_bytes() for path in files}

    def no_set(profile):
        raise DataError("not here")

    lines = synthesize.lines("quick")
    monkeypatch.setattr(corpora, "librispeech", no_set)  # a clone of the repository
    monkeypatch.setattr(synthesize, "lines", lambda *_, **__: lines)
    assert {p.name: p.read_bytes() for p in synthesize.publish("quick")} == before
    (folder / "voices.npz").unlink()
    with pytest.raises(DataError, match="not here"):
        synthesize.publish("quick")


def test_a_line_sounds_the_same_whatever_else_is_spoken(runs):
    lines, nets = synthesize.lines("quick")[:2], synthesize.networks("quick")
    found = synthesize.material(lines, "quick", enrol=2)
    both, second = synthesize.perform(lines, found, nets), synthesize.perform(lines[1:], found, nets)  # fmt: skip
    for key, wave in second.waves.items():
        assert torch.equal(wave, both.waves[key])
    assert set(both.seconds) == {k for k in both.waves if k[1] != "recording"}
    assert all(seconds > 0 for seconds in both.seconds.values())
    assert {len(waves) for waves in found.elsewhere.values()} == {2}


def test_a_stranger_is_learned_once_and_spoken_alike(runs):
    strangers = [x for x in synthesize.lines("quick") if x.part == "voices"][:1]
    again = replace(strangers[0], name="again")
    nets = synthesize.networks("quick")
    found = synthesize.material([*strangers, again], "quick")
    made = synthesize.perform([*strangers, again], found, nets)
    (learned,) = made.learned.values()
    assert made.learning[again.speaker] > 0
    assert strangers[0].said
    assert learned.model is not nets.synthesizers["parallel"]
    for vocoder in synthesize.VOCODERS:
        first, second = (made.waves[x.name, f"adapted_{vocoder}"] for x in (*strangers, again))
        assert torch.equal(first, second)
    spoken = {kind for name, kind in made.speech if name == "again"}
    assert spoken == {"speech", "adapted"}


def test_missing_weights_name_the_command(runs, capsys):
    path = train.weights_path("voices", "quick")
    moved = path.rename(path.with_suffix(".away"))
    try:
        assert synthesize.main(["--profile", "quick"]) == 2
        assert "Day11_Voice_Cloning.train voices --profile quick" in capsys.readouterr().err
    finally:
        moved.rename(path)


def test_a_clone_wants_consent_text_and_a_voice(runs, tmp_path):
    nets = synthesize.networks("quick")
    for vocoder in synthesize.VOCODERS:
        wave = synthesize.clone(NOISE, "Take 2.", nets, consent=True, vocoder=vocoder)
        assert wave.ndim == 1
        assert len(wave) > 0
    soundfile.write(tmp_path / "me.wav", NOISE.repeat_interleave(2).numpy(), 32_000)
    synthesize.clone(tmp_path / "me.wav", "Hello.", nets, consent=True)
    told = synthesize.clone(NOISE, "Hello.", nets, consent=True, said="Good morning.")
    assert not torch.equal(told, synthesize.clone(NOISE, "Hello.", nets, consent=True))
    with pytest.raises(synthesize.ConsentError, match="your own"):
        synthesize.clone(NOISE, "Hello.", nets, consent=False)
    for text, said in (("", "nothing to speak"), ("你好", "English letters")):
        with pytest.raises(TextError, match=said):
            synthesize.clone(NOISE, text, nets, consent=True)
    with pytest.raises(TextError, match="English letters"):
        synthesize.clone(NOISE, "Hello.", nets, consent=True, said="你好")
    with pytest.raises(ValueError, match="write one of griffin_lim, waveglow"):
        synthesize.clone(NOISE, "Hello.", nets, consent=True, vocoder="hifigan")
    for sound, said in (
        (torch.zeros(5 * SAMPLE_RATE), "silent"),
        (NOISE[: 3 * SAMPLE_RATE // 10], "0.3 s of speech"),
        (tmp_path / "none.wav", "not there"),
    ):
        with pytest.raises(AudioError, match=said):
            synthesize.clone(sound, "Hello.", nets, consent=True)


def test_the_committed_lines_are_held_out():
    lines = synthesize.lines("study")
    assert len({line.name for line in lines}) == len(lines)
    tests = {n: set(read_lines(SPLITS / f"{n}_test.txt")) for n in ("kathleen", "librispeech")}  # fmt: skip
    trained = {n.split("-")[0] for n in read_lines(SPLITS / "librispeech_train.txt")}
    for line in lines:
        assert line.recording in tests["kathleen" if line.part == "kathleen" else "librispeech"]  # fmt: skip
        assert line.recording not in line.references
        assert expand_text(line.text)
        assert bool(line.said) == (line.part == "voices")
        if line.part == "voices":
            assert {n.split("-")[0] for n in (line.recording, *line.references)} == {line.speaker}  # fmt: skip
            assert line.speaker not in trained
        else:
            assert not tests["kathleen"] & set(line.references)
    assert len({line.speaker for line in lines if line.part == "voices"}) == 10
    shown = synthesize.lines("study", published=True)
    assert len({line.speaker for line in shown if line.part == "voices"}) >= 4
    assert sum(line.part == "kathleen" for line in shown) >= 2


def test_a_recording_is_as_its_file_holds_it(tmp_path):
    wave = synthesize.as_filed(torch.cat([torch.zeros(SAMPLE_RATE), NOISE]))
    assert len(wave) < 2.2 * SAMPLE_RATE
    whole = (wave * 32768).round().to(torch.int16)
    assert torch.equal(as_float(whole), wave)


def test_the_encoder_that_judges_is_the_shipped_one():
    encoder = ecapa_tdnn.load_speaker_net()
    vectors = encoder.embed([NOISE, NOISE[:SAMPLE_RATE]])
    assert vectors.shape == (2, 192)
    assert not encoder.training
    longer = ecapa_tdnn.load_speaker_net(profile="full").embed([NOISE])
    assert longer.shape == (1, 192)
    assert not torch.allclose(longer[0], vectors[0], atol=1e-3)
    with pytest.raises(FileNotFoundError, match="Speaker_Verification.train --seed 99"):
        ecapa_tdnn.load_speaker_net(seed=99)
    with pytest.raises(FileNotFoundError, match="--seed 99 --profile full"):
        ecapa_tdnn.load_speaker_net(seed=99, profile="full")


@pytest.mark.slow
def test_the_first_epoch_again_is_that_of_the_card(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    short = train.Synthesis(steps=3, batch_size=2, longest=3.0, every=1)
    monkeypatch.setitem(train.SYNTHESIS, "quick", short)
    monkeypatch.setattr(train, "pick_device", lambda: torch.device("cpu"))
    path = train.weights_path("kathleen", "quick")
    history = train.train_own("kathleen", "quick", path)
    again = train.check_card("kathleen", "quick")
    assert len(again.epochs) == 1
    assert again.epochs[0]["train_loss"] == history.epochs[0]["train_loss"]
    train.train_own("kathleen", "quick", path)  # anew: its pictures are not added on
    with np.load(path.with_name("synthesizer_kathleen_alignments.npz")) as kept:
        assert kept["steps"].tolist() == [1, 2, 3]


def test_a_headline_is_the_mean_of_what_has_the_metric(monkeypatch):
    found = [{"similarity": "0.5"}, {"similarity": ""}, {"similarity": "0.7"}]
    monkeypatch.setattr(results, "rows", lambda *_, **__: found)
    assert results.headline(11).startswith("0.6")
