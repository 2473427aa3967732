"""A voice learned from one sentence: what is trained, what stays, and how a mel is moved towards a recording."""

import copy

import pytest
import torch

from Day11_Voice_Cloning import adaptation, synthesize
from Day11_Voice_Cloning.adaptation import Adapting
from Day11_Voice_Cloning.train import fastspeech_losses
from utils.features import SAMPLE_RATE
from utils.models.fastspeech import FastSpeech, FastSpeechConfig
from utils.models.tacotron2 import Tacotron2, TacotronConfig
from utils.models.tts_mel import LIBRISPEECH_MEL, SILENCE, SynthesisMel
from utils.models.tts_text import TextError

SIZES = {"encoder": 16, "speaker": 4}
SETTINGS = Adapting(steps=20, lr=5e-3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = FastSpeechConfig(width=16, hidden=32, blocks=2, predictor=8, **SIZES)
    return FastSpeech(small).eval()


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    config = TacotronConfig(decoder=16, r=2, attention=8, prenet=8, postnet=8, **SIZES)
    return Tacotron2(config).eval()


@pytest.fixture(scope="module")
def wave():
    t = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(0))
    return 0.2 * torch.sin(900 * t) * (1 + torch.sin(20 * t)) + 0.02 * noise


@pytest.fixture(scope="module")
def recording(teacher, wave):
    voice = torch.nn.functional.normalize(torch.ones(256), dim=0)
    mel = SynthesisMel(LIBRISPEECH_MEL)
    return adaptation.timed_recording(wave, "Hello there.", voice, mel, teacher)


def test_a_recording_is_timed_whole(recording):
    assert len(recording.text) == 1
    total = recording.durations.sum().item()
    assert total == pytest.approx(int(recording.mel_lengths[0]), abs=1)


def test_only_the_decoder_learns_and_only_in_the_copy(model, recording):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    adapted = adaptation.adapt(model, recording, SETTINGS)
    assert not any(part.training for part in adapted.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    after = adapted.state_dict()
    changed = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {"decoder", "colour"}  # the encoder's batch norms stay, too
    with torch.no_grad():
        errors = [fastspeech_losses(m(*recording), recording)["mel"].item() for m in (model, adapted)]  # fmt: skip
    assert errors[1] < 0.7 * errors[0]


def test_the_same_seed_learns_the_same(model, recording):
    torch.manual_seed(5)
    one = adaptation.adapt(model, recording, Adapting(steps=3))
    after = torch.rand(1)
    again = adaptation.adapt(model, recording, Adapting(steps=3))
    for a, b in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))  # the caller's generator is left alone


@pytest.fixture(scope="module")
def slow(model):
    """The model with letters of some three frames, so that a pace is seen in the number of frames."""
    model = copy.deepcopy(model)
    torch.nn.init.constant_(model.duration.leave.bias, 1.4)
    return model


def test_the_pace_is_that_of_the_recording(slow, recording):
    with torch.no_grad():
        own = (slow(*recording).log_durations.exp() - 1).clamp(min=0)

    def pace(factor):
        return adaptation.pace_of(slow, recording._replace(durations=factor * own))

    assert pace(1) == pytest.approx(1)
    assert pace(1.1) == pytest.approx(1 / 1.1)
    assert pace(0.9) == pytest.approx(1 / 0.9)
    assert (pace(9), pace(0.1)) == pytest.approx(adaptation.PACES)
    # the letters of a longer neighbour in the batch are not counted
    padded = torch.nn.functional.pad(recording.text, (0, 5), value=1)
    longer = recording._replace(
        text=padded,
        durations=torch.nn.functional.pad(own, (0, 5)),
        prosody=torch.nn.functional.pad(recording.prosody, (0, 0, 0, 5)),
    )
    assert adaptation.pace_of(slow, longer) == pytest.approx(1, abs=1e-3)


def test_a_learned_voice_speaks_at_its_pace(slow, recording):
    lengths = [
        int(adaptation.Learned(slow, recording, Adapting(), pace).say("Good morning.").lengths)
        for pace in (0.8, 1.0, 1.25)
    ]  # fmt: skip
    assert lengths[0] / lengths[1] == pytest.approx(1 / 0.8, abs=0.05)
    assert lengths[2] / lengths[1] == pytest.approx(0.8, abs=0.05)


def test_the_rate_rises_stays_and_falls():
    rates = [adaptation.rate_factor(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:49] == [1.0] * 40
    assert rates[-1] == pytest.approx(0.1)
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_a_voice_that_differs_by_a_colour_is_reached():
    torch.manual_seed(0)
    mel = torch.randn(80, 60).cumsum(1) / 4
    colour = torch.linspace(-1, 1, 80)[:, None]
    told = adaptation.towards(mel, mel + colour, Adapting(neighbours=1, width=2.0))
    assert torch.allclose(told, mel + colour, atol=1e-4)


def test_the_direction_is_smooth_in_time():
    torch.manual_seed(0)
    mel, recording = torch.randn(80, 50), torch.randn(80, 7)
    rough = adaptation.towards(mel, recording, Adapting(neighbours=1, width=0.1)) - mel
    smooth = adaptation.towards(mel, recording, Adapting(neighbours=9, width=8.0)) - mel
    assert smooth.diff().abs().mean() < 0.2 * rough.diff().abs().mean()


def test_frames_are_compared_without_level_and_colour():
    torch.manual_seed(0)
    mel = torch.randn(80, 40)
    found = adaptation.sound_of(mel)
    assert found.shape == (40, 13 * 5)
    brighter = mel + 0.3 + torch.linspace(-1, 1, 80)[:, None]
    assert torch.allclose(adaptation.sound_of(brighter), found, atol=1e-3)
    assert adaptation.sound_of(mel[:, :1]).isfinite().all()


def test_a_learned_voice_speaks_and_refuses(model, teacher, wave):
    voice = torch.nn.functional.normalize(torch.ones(256), dim=0)
    speakers = {"parallel": model, "voices": teacher}
    mel = SynthesisMel(LIBRISPEECH_MEL)
    nets = synthesize.Networks(speakers, {}, mel, {}, Adapting(steps=2))
    learned = synthesize.learn_voice(nets, wave, "Hello.", voice)
    speech = learned.say("Good morning.")
    n = int(speech.lengths[0])
    assert speech.item(0).shape == (80, n)
    assert (speech.mel[0, :, n:] == SILENCE).all()
    assert not torch.equal(speech.mel, speech.before)
    with pytest.raises(TextError):
        learned.say("")
    # texts that cannot be read and silent recordings leave nothing to learn from
    with pytest.raises(ValueError, match="nothing to speak"):
        synthesize.learn_voice(nets, wave, "", voice)
    with pytest.raises(ValueError, match="silent"):
        synthesize.learn_voice(nets, torch.zeros(SAMPLE_RATE), "Hello.", voice)
    with pytest.raises(ValueError, match="30 at most"):
        synthesize.learn_voice(nets, wave.repeat(20), "Hello.", voice)
