"""Text as it is spoken, mel and back, sentences in memory, and speech from them."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from Day11_Voice_Cloning import train
from Day11_Voice_Cloning.waveglow import WaveGlow, WaveGlowConfig
from utils.features import AudioError, LogMel, to_level
from utils.models import tts
from utils.models.tacotron2 import Tacotron2, TacotronConfig
from utils.models.tts_mel import (
    KATHLEEN_MEL,
    LIBRISPEECH_MEL,
    SILENCE,
    MelSettings,
    SynthesisMel,
    loudness,
    trim_silence,
)
from utils.models.tts_text import (
    LONGEST,
    SYMBOLS,
    TextError,
    cardinal,
    encode,
    encode_batch,
    expand_text,
    ordinal,
)

RATE = KATHLEEN_MEL.sample_rate

# --- text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Hello, World!", "hello, world!"),
        ("Dr. Smith met Mrs. Jones.", "doctor smith met missus jones."),
        ("No. 7 said: oh no.", "number seven said: oh no."),
        ("3.50", "three point five zero"),
        ("It cost $3.50.", "it cost three dollars, fifty cents."),
        ("$1, £2 and €0.01", "one dollar, two pounds and one cent"),
        ("$2.5 million", "two point five million dollars"),
        ("1,234,567 people", "one million two hundred thirty four thousand five hundred sixty seven people"),
        ("the 1st, 22nd and 30th", "the first, twenty second and thirtieth"),
        ("in 1921 and 1905 and 1900", "in nineteen twenty one and nineteen oh five and nineteen hundred"),
        ("the 1990s", "the nineteen nineties"),
        ("in 2024", "in two thousand twenty four"),
        ("at 10:30 or 9:05 or 3:00", "at ten thirty or nine oh five or three o'clock"),
        ("12% & 5°", "twelve percent and five degrees"),
        ("-5 or 3-4", "minus five or three - four"),
        ("call 0800", "call zero eight zero zero"),
        ("a café (“naïve”) … ok", "a cafe, naive... ok"),
        ("tabs\tand\nlines", "tabs and lines"),
        ("etc. etc.", "et cetera et cetera"),
        ("B2B", "b two b"),
    ],
)  # fmt: skip
def test_text_as_it_is_spoken(text, spoken):
    assert expand_text(text) == spoken
    assert expand_text(spoken) == spoken


def test_cardinals_and_ordinals():
    assert cardinal(0) == "zero"
    assert cardinal(19) == "nineteen"
    assert cardinal(100) == "one hundred"
    assert cardinal(10**12 + 1) == "one trillion one"
    assert cardinal(-40) == "minus forty"
    assert [ordinal(n) for n in (1, 5, 12, 20, 101)] == [
        "first", "fifth", "twelfth", "twentieth", "one hundred first"
    ]  # fmt: skip


@pytest.mark.parametrize("empty", ["", "   ", "\n", "...", "-", "“”", "!?"])
def test_empty_text_is_named(empty):
    with pytest.raises(TextError, match="nothing to speak"):
        expand_text(empty)


@pytest.mark.parametrize("text", ["你好", "hello 世界", "привет", "ok 😀"])
def test_other_scripts_are_named(text):
    with pytest.raises(TextError, match="English letters"):
        encode(text)
    with pytest.raises(TextError, match="世"):
        encode("hello 世界")


def test_too_long_a_text_is_named():
    with pytest.raises(TextError, match="split it into sentences"):
        encode("word " * LONGEST)


def decode(numbers):
    return "".join(SYMBOLS[i] for i in numbers).strip("_").strip("~")


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_any_ascii_is_read_or_refused(text):
    """Whatever is typed: symbols that decode to the normalised text, or a TextError."""
    try:
        numbers = encode(text)
    except TextError:
        return
    assert decode(numbers) == expand_text(text)
    assert numbers[-1] == 1
    assert 0 not in numbers
    assert not any(c.isdigit() for c in decode(numbers))


def test_symbols_and_batches():
    assert len(set(SYMBOLS)) == len(SYMBOLS)
    text, lengths = encode_batch(["Hi.", "Hello there."])
    assert text.shape == (2, 13)
    assert lengths.tolist() == [4, 13]
    assert decode(text[0].tolist()) == "hi."
    assert text[0].tolist()[-9:] == [0] * 9
    with pytest.raises(ValueError, match="at least one"):
        encode_batch([])


# --- mel ----------------------------------------------------------------------------


def chirp(seconds: float = 0.6, rate: int = RATE) -> torch.Tensor:
    """Harmonics that glide, with a level that changes."""
    t = torch.arange(round(seconds * rate)) / rate
    phase = 2 * math.pi * (150 * t + 100 * t.square())
    tone = sum(torch.sin(k * phase) / k for k in range(1, 12))
    return 0.1 * tone * (1.1 + torch.sin(2 * math.pi * 4 * t))


@pytest.mark.parametrize("settings", [KATHLEEN_MEL, LIBRISPEECH_MEL])
def test_mel_is_the_log_mel_of_features_scaled(settings):
    wave = chirp(0.3, settings.sample_rate)
    mel = SynthesisMel(settings)(wave[None])
    plain = LogMel(80, settings.sample_rate, 1024, 1024, 256, 20.0, 8000.0)(wave[None])
    assert mel.shape == (1, 80, 1 + len(wave) // 256)
    torch.testing.assert_close(mel * 4 - 5, plain)
    assert mel.min() > SILENCE - 0.01
    assert mel.max() < 4
    quiet = SynthesisMel(settings)(torch.zeros(1, 1024))
    torch.testing.assert_close(quiet, torch.full_like(quiet, SILENCE))
    whole = (wave * 32767).round().to(torch.int16)
    torch.testing.assert_close(
        SynthesisMel(settings)(whole[None]).clamp(min=-1), mel.clamp(min=-1), atol=0.02, rtol=0
    )  # fmt: skip


def test_linear_spectrum_has_the_mel_it_came_from():
    front = SynthesisMel()
    mel = front(chirp()[None])
    rough, close = (front.to_linear(mel, updates=n) for n in (0, 100))
    assert close.shape == (1, 513, mel.shape[2])
    assert close.min() >= 0

    def error(linear):
        back = (linear.square().transpose(1, 2) @ front.bank).transpose(1, 2)
        return (((back + 1e-6).log() + 5) / 4 - mel).abs().mean()

    assert error(close) < 0.1
    assert error(close) < 0.4 * error(rough)


def test_griffin_lim_gives_back_a_sound_of_this_mel():
    front, wave = SynthesisMel(), chirp()
    mel = front(wave[None])
    sound = front.griffin_lim(mel, 30)
    assert sound.shape == (1, (mel.shape[2] - 1) * 256)
    assert torch.equal(sound, front.griffin_lim(mel, 30))
    error = (front(sound) - mel).abs().mean()
    rough = (front(front.griffin_lim(mel, 0)) - mel).abs().mean()
    assert error < 0.12
    assert error < 0.5 * rough


def test_griffin_lim_in_a_batch_and_of_silence():
    front = SynthesisMel(MelSettings(8000, 256, 256, 64, 20, 20, 4000))
    mel = torch.cat([front(chirp(0.2, 8000)[None]), torch.full((1, 20, 26), SILENCE)])
    both = front.griffin_lim(mel, 8)
    assert both.shape == (2, 25 * 64)
    assert both[0].abs().max() > 0.05
    assert both[1].abs().max() < 1e-4
    with pytest.raises(ValueError, match="at least two"):
        front.griffin_lim(mel[:, :, :1])


def test_silence_is_trimmed():
    wave = torch.cat([torch.zeros(RATE // 2), chirp(), torch.zeros(RATE)])
    wave = wave + 1e-4 * torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    kept = trim_silence(wave, RATE)
    assert len(kept) / RATE == pytest.approx(0.66, abs=0.06)
    assert (loudness(wave, RATE) < -70).float().mean() > 0.5
    with pytest.raises(AudioError, match="silent"):
        trim_silence(torch.zeros(RATE), RATE)
    with pytest.raises(AudioError, match="no samples"):
        trim_silence(torch.zeros(0), RATE)
    assert len(trim_silence(chirp(0.005), RATE)) > 0


def test_level():
    wave = to_level(chirp(), -25.0, peak=0.99)
    assert 20 * wave.square().mean().sqrt().log10() == pytest.approx(-25, abs=0.1)
    spike = torch.zeros(RATE)
    spike[5] = 0.01
    assert to_level(spike, -25.0, peak=0.99).abs().max() == pytest.approx(0.99)


# --- sentences ----------------------------------------------------------------------


def utterances():
    waves = [(chirp(s) * 32767).to(torch.int16) for s in (0.5, 0.4, 0.6, 0.3, 0.5)]
    waves[3] = torch.zeros(RATE, dtype=torch.int16)
    waves.append((chirp(3.0) * 32767).to(torch.int16))
    texts = ["One.", "Two 2!", "Three.", "Silent.", "五", "Too long."]
    return waves, texts, torch.randn(6, 256)


def test_prepared_sentences():
    waves, texts, d_vectors = utterances()
    every = tts.prepare(waves, texts, d_vectors, SynthesisMel(), longest=2.0)
    assert every.numbers == [0, 1, 2]
    assert set(every.skipped) == {3, 4, 5}
    assert "silent" in every.skipped[3]
    assert "2 at most" in every.skipped[5]
    assert torch.equal(every.d_vectors, d_vectors[:3])
    assert decode(every.text[1].tolist()) == "two two!"
    for i, n in enumerate(every.mel_lengths.tolist()):
        assert (every.mel[i, :, n:] == SILENCE).all()
        assert every.mel[i, :, n - 3].mean() > SILENCE + 0.5
    batch = every.batch([1, 0], 3)
    assert batch.mel.shape[2] % 3 == 0
    assert torch.equal(batch.d_vectors, d_vectors[[1, 0]])
    with pytest.raises(ValueError, match="shorter"):
        tts.prepare(waves, texts[:2], d_vectors, SynthesisMel())
    with pytest.raises(ValueError, match="no sentence of 1 can be used"):
        tts.prepare([torch.zeros(RATE)], ["a"], d_vectors[:1], SynthesisMel())


def test_text_becomes_files_of_sound(tmp_path):
    torch.manual_seed(0)
    front = SynthesisMel(MelSettings(8000, 256, 256, 64, 20, 20, 4000))
    config = TacotronConfig(encoder=16, decoder=16, r=4, n_mels=20, postnet=8, prenet=8)
    model = Tacotron2(config)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        speech, again, other = (
            tts.speak(model, ["Hi.", "Hello there."], torch.ones(256), seed=s) for s in (0, 0, 1)
        )
    assert torch.equal(speech.mel, again.mel)
    assert not torch.equal(speech.before[:, :, :4], other.before[:, :, :4])
    assert torch.equal(torch.get_rng_state(), state)
    waves = tts.to_waves(speech, lambda mel: front.griffin_lim(mel, 2), hop=64)
    assert [len(w) for w in waves] == [64 * n for n in speech.lengths.tolist()]
    tts.write_wav(tmp_path / "audio" / "hi.wav", waves[0], 8000)
    info = soundfile.info(tmp_path / "audio" / "hi.wav")
    assert (info.samplerate, info.subtype, info.channels) == (8000, "PCM_16", 1)
    assert info.frames == len(waves[0])
    for text in ("", "你好"):
        with pytest.raises(TextError):
            tts.speak(model, [text], torch.ones(256))


def test_voices_are_means_over_a_speakers_utterances():
    waves = [torch.full((4,), value, dtype=torch.int16) for value in (1, 3, 10, 0)]
    asked = []

    def embed(some):
        asked.append(len(some))
        means = torch.stack([w.float().mean() for w in some])
        return torch.stack([means, torch.ones_like(means)], 1)

    got = tts.speaker_vectors(waves, ["a", "a", "b", "a"], embed, most=2)
    assert asked == [2, 1]
    a = torch.tensor([2.0, 1.0]) / math.sqrt(5)
    torch.testing.assert_close(got[[0, 1, 3]], a.expand(3, 2))
    torch.testing.assert_close(got.norm(dim=1), torch.ones(4))
    each = tts.speaker_vectors(waves, ["a", "a", "b", "a"], embed, most=0)
    assert asked[2:] == [4]
    torch.testing.assert_close(each[1], torch.tensor([3.0, 1.0]) / math.sqrt(10))


def test_networks_are_written_with_their_sizes(tmp_path):
    torch.manual_seed(0)
    config = TacotronConfig(encoder=16, decoder=16, r=4, n_mels=20, postnet=8, prenet=8)
    glow = WaveGlowConfig(flows=2, group=8, layers=2, channels=8, condition=8, n_mels=20)
    for model in (Tacotron2(config), WaveGlow(glow)):
        path = tmp_path / f"{type(model).__name__}.safetensors"
        assert train.save_network(path, model, steps=7) == path.stat().st_size
        again, card = train.load_network(path)
        assert again.config == model.config
        assert card["steps"] == 7
        assert not again.training
        for name, tensor in model.state_dict().items():
            kept = again.state_dict()[name]
            torch.testing.assert_close(kept, tensor, rtol=1e-3, atol=1e-4)
    with pytest.raises(FileNotFoundError, match="none"):
        train.load_network(tmp_path / "none.safetensors")


def test_the_benchmark_measures_both_on_the_same_sentences(monkeypatch):
    from bench import tts as bench

    for name, value in {"BATCH": 2, "LETTERS": 6, "FRAMES": 9}.items():
        monkeypatch.setattr(bench, name, value)
    runs = []
    once = lambda work, device, seconds: runs.append(work(0)) or 1.0  # noqa: E731
    monkeypatch.setattr(bench, "calls_per_second", once)
    config = TacotronConfig(encoder=16, decoder=16, r=3, postnet=8, prenet=8, attention=8)
    for claim in (bench.training(torch.device("cpu"), config), bench.speaking(torch.device("cpu"), config)):
        assert claim.stock == claim.ours == 18
    assert len(runs) == 4
    stock = bench.stock_tacotron(config, 9)
    assert stock.decoder.attention_rnn.hidden_size == stock.embedding.embedding_dim == 16


def test_the_benchmark_compares_griffin_lim_with_librosas(monkeypatch):
    from bench import tts as bench

    monkeypatch.setattr(bench, "WAVES", 2)
    monkeypatch.setattr(bench, "SECONDS", 0.2)
    samples = []

    def once(make, sample_rate, device, repeats=3):
        waves = make()
        samples.append([len(w) for w in waves])
        return 0.5 if len(samples) < 2 else 2.0

    monkeypatch.setattr(bench, "real_time_factor", once)
    monkeypatch.setattr(  # its search for a spectrum takes half a minute
        bench.librosa.feature.inverse, "mel_to_audio",
        lambda m, hop_length, **how: np.zeros((m.shape[-1] - 1) * hop_length, np.float32),
    )  # fmt: skip
    found = bench.vocoders(torch.device("cpu"), iterations=1)
    assert samples == [samples[0]] * 2  # as much sound from each
    assert found[0].ratio == 4


def test_the_benchmark_measures_training_speaking_and_vocoders(monkeypatch):
    from bench import tts as bench

    for name in ("training", "speaking"):
        monkeypatch.setattr(bench, name, lambda device, config, name=name: name)
    monkeypatch.setattr(bench, "vocoders", lambda device: ["vocoders"])
    assert bench.run() == ["training", "speaking", "vocoders"]
