"""Speaker encoders: d-vectors as resemblyzer's, batches as single ones, AAM-softmax, training, one's own voice."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

from Day13_Speaker_Verification import train as day13_train
from Day13_Speaker_Verification import verify as day13_verify
from Day13_Speaker_Verification.ecapa_speechbrain import load_ecapa, save_random_ecapa
from Day13_Speaker_Verification.train import train_encoder
from Day13_Speaker_Verification.trials import calibrate
from Day13_Speaker_Verification.verify import agreement, verify
from Day14_Enhancement.search import init_class_weights
from utils import days
from utils.features import SAMPLE_RATE, AudioError
from utils.logger import read_table
from utils.models import ecapa_tdnn, ge2e
from utils.models.ecapa_tdnn import (
    RandomSegments,
    SpeakerClassifier,
    SpeakerNet,
    SpeakerSettings,
    aam_softmax,
    train_speaker_net,
    training_voices,
    validation_eer,
    voice_augmentation,
)
from utils.models.ge2e import DVector, normalise_volume, pretrained_dvector, resemblyzer_weights, slice_starts
from utils.models.verification import all_pairs, cosine_scores
from utils.models.weights import load_weights, training_command
from utils.speech.augment import reverberate, room_response
from utils.speech.corpora import librispeech, read_sample
from utils.speech.pack import PackedSpeech, Utterances
from utils.training import count_parameters


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_net() -> SpeakerNet:
    """A small network with two windows of 1 s each second."""
    net = SpeakerNet(32, 32, 16)
    net.frames, net.rate = 100, 2.0
    return net


@pytest.fixture(scope="module")
def sentences():
    """Bundled sentences: waves (int16) and voices."""
    index, samples = read_sample("sentences")
    waves = [torch.from_numpy(samples[int(r["start"]) :][: int(r["length"])].copy()) for r in index]
    return waves, [r["voice"] for r in index]


@pytest.fixture(scope="module")
def dvector():
    try:
        resemblyzer_weights()
    except FileNotFoundError as e:
        pytest.skip(str(e))
    return pretrained_dvector()


# --- d-vectors ----------------------------------------------------------------------------------------


def resemblyzer_encoder():
    """resemblyzer's own encoder. It imports webrtcvad, for pauses; embedding does not use it."""
    if "webrtcvad" not in sys.modules:
        try:
            import webrtcvad  # noqa: F401
        except ImportError:
            sys.modules["webrtcvad"] = types.ModuleType("webrtcvad")
    resemblyzer = pytest.importorskip("resemblyzer")
    return resemblyzer.VoiceEncoder("cpu", verbose=False), resemblyzer.normalize_volume


def test_d_vectors_are_resemblyzers(dvector, sentences):
    theirs, louder = resemblyzer_encoder()
    waves = [w.float() / 32768 for w in sentences[0][::30]]
    waves += [waves[0][:1000], waves[1][:25_600], 0.001 * waves[2], waves[3][:30_000]]
    ours = dvector.embed(waves)
    for wave, mine in zip(waves, ours, strict=True):
        wanted = theirs.embed_utterance(louder(wave.numpy(), -30, increase_only=True))
        assert float(mine @ torch.from_numpy(wanted)) > 0.9999
    whole, partial, _ = theirs.embed_utterance(
        louder(waves[0].numpy(), -30, increase_only=True), return_partials=True
    )
    assert np.abs(dvector.partials(waves[0]).numpy() - partial).max() < 1e-4
    assert whole.shape == (256,)


def test_the_mel_front_end_is_librosas():
    librosa = pytest.importorskip("librosa")
    wave = 0.1 * torch.randn(20_000, generator=gen())
    theirs = librosa.feature.melspectrogram(y=wave.numpy(), sr=16_000, n_fft=400, hop_length=160, n_mels=40).T
    padded = F.pad(wave, (200, 200))[None]
    ours = DVector().mel(padded)[0].numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-3 * theirs.max()
    assert (np.abs(ours - theirs) < 1e-3 * np.abs(theirs) + 1e-6).all()


def test_batched_is_one_by_one(dvector, sentences):
    waves = [w[: 9000 + 7000 * i] for i, w in enumerate(sentences[0][:6])]
    together = dvector.embed(waves, batch=5)
    for wave, mine in zip(waves, together, strict=True):
        torch.testing.assert_close(dvector.embed([wave])[0], mine, rtol=0, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(6))
    assert not together.requires_grad
    net = small_net()
    together = net.embed(waves, batch=4)
    for wave, mine in zip(waves, together, strict=True):
        torch.testing.assert_close(net.embed([wave])[0], mine, rtol=0, atol=1e-5)
    assert net.training


def test_slices_by_hand():
    # 77 frames apart. 1.6 s fill one window; a second needs three quarters of itself: 0.77 + 1.2 s
    assert slice_starts(25_600, 160) == [0]
    assert slice_starts(1, 160) == [0]
    assert slice_starts(77 * 160 + 19_199, 160) == [0]
    assert slice_starts(77 * 160 + 19_200, 160) == [0, 77]
    assert slice_starts(80_000, 160) == [0, 77, 154, 231, 308, 385][:5]
    with pytest.raises(ValueError, match="leave gaps"):
        slice_starts(80_000, 160, rate=0.5)


def test_volume_is_raised_never_lowered():
    wave = 0.001 * torch.randn(4000, generator=gen())
    level = 20 * normalise_volume(wave).square().mean().sqrt().log10()
    assert level.item() == pytest.approx(-30, abs=1e-3)
    assert torch.equal(normalise_volume(500 * wave), 500 * wave)
    assert torch.equal(normalise_volume(torch.zeros(10)), torch.zeros(10))


def test_an_empty_wave_is_named(dvector):
    with pytest.raises(ValueError, match="wave 1 is"):
        dvector.embed([torch.zeros(100), torch.zeros(0)])


def test_missing_weights_name_the_command(monkeypatch):
    monkeypatch.setattr(ge2e.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps resemblyzer"):
        pretrained_dvector()


def test_bundled_voices_are_told_apart(dvector, sentences):
    waves, names = sentences[0][::4], sentences[1][::4]
    assert validation_eer(dvector, waves, names)["eer"] < 0.1


# --- a network of our own -----------------------------------------------------------------------------


def test_the_network_has_one_to_two_million_weights():
    assert 1e6 < count_parameters(SpeakerNet()) < 2e6


def test_level_and_length_of_a_recording_change_little():
    torch.manual_seed(0)
    net = small_net().eval()
    wave = 0.1 * torch.randn(30_000, generator=gen())
    torch.testing.assert_close(net.embed([wave]), net.embed([4 * wave]), rtol=0, atol=1e-2)
    short = wave[:500]
    assert torch.equal(net.embed([short]), net.embed([short.repeat(32)]))
    assert net.segments(torch.zeros(100 * 160 + 80 * 160)).shape == (3, 16_000)


def test_margin_zero_is_the_scaled_cosine_softmax():
    torch.manual_seed(0)
    cosines, labels = torch.rand(8, 5) * 1.8 - 0.9, torch.randint(5, (8,))
    plain = F.cross_entropy(30 * cosines, labels)
    torch.testing.assert_close(aam_softmax(cosines, labels, margin=0.0), plain)


def test_the_margin_is_an_angle():
    angle = torch.tensor(1.0)
    cosines = torch.tensor([[angle.cos(), 0.2]])
    moved = torch.tensor([[(angle + 0.3).cos(), 0.2]])
    wanted = F.cross_entropy(10 * moved, torch.tensor([0]))
    got = aam_softmax(cosines, torch.tensor([0]), margin=0.3, scale=10.0)
    torch.testing.assert_close(got, wanted)
    # behind the turn the loss goes on growing, and its gradient is finite
    behind = torch.linspace(-1, 1, 201).requires_grad_()
    zero = torch.tensor([0])
    losses = [aam_softmax(torch.stack([c, c * 0])[None], zero, scale=2.0) for c in behind]
    assert (torch.stack(losses).diff() < 0).all()
    sum(losses).backward()
    assert torch.isfinite(behind.grad).all()


def two_tone_speakers(count: int = 4, each: int = 6):
    """Packed int16 'utterances': each speaker is a pair of tones in noise. Lengths vary."""
    waves, speakers = [], []
    for s in range(count):
        for u in range(each):
            t = torch.arange(9000 + 1500 * u) / SAMPLE_RATE
            tone = (2 * math.pi * (300 + 400 * s) * t).sin()
            tone *= (2 * math.pi * 5 * t).sin() > 0  # what is steady, the mean takes away
            wave = tone + 0.3 * torch.randn(len(t), generator=gen(10 * s + u))
            waves.append((3000 * wave).to(torch.int16))
            speakers.append(f"s{s}")
    arrays = [w.numpy() for w in waves]
    return Utterances.of(arrays, [""] * len(waves), speakers).packed(), waves


SMALL = SpeakerSettings(batch_size=8, batches=6, epochs=3, seconds=0.5, channels=16, lr=5e-3, margin=0.1)


def test_a_small_training_learns_and_resumes(tmp_path):
    speech, waves = two_tone_speakers()
    noises = {"hiss": torch.randn(20_000, generator=gen())}
    augment = voice_augmentation(noises)

    def train(settings=SMALL, **more):
        torch.manual_seed(0)
        return train_speaker_net(
            speech, lambda e: validation_eer(e, waves[::2], speech.speakers[::2]), settings,
            augment, mixed=False, bar=False, **more,
        )  # fmt: skip

    net, history = train()
    losses = history.column("train_loss")
    assert losses[-1] < losses[0]
    assert history.epochs[-1]["val_eer"] < 0.3
    assert history.epochs[-1]["grad_norm"] > 0

    path, epochs = tmp_path / "c.pt", []

    def killed(numbers):
        epochs.append(numbers)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=path, stop=killed)
    again, resumed = train(checkpoint=path)
    assert resumed.column("train_loss") == pytest.approx(losses, rel=1e-4)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_training_on_begins_where_the_encoder_puts_the_voices():
    speech, waves = two_tone_speakers()

    def train(settings, **more):
        torch.manual_seed(0)
        return train_speaker_net(speech, None, settings, mixed=False, bar=False, **more)

    net, _ = train(SMALL)
    aims = init_class_weights(net, speech)
    names = sorted(set(speech.speakers))
    assert aims.shape == (len(names), net.dim)
    own = aims[[names.index(s) for s in speech.speakers]]
    assert (net.embed(waves) * own).sum(1).min() > 0.5
    careful = dataclasses.replace(SMALL, epochs=1, lr=1e-4)
    _, lost = train(careful, encoder=copy.deepcopy(net))
    _, aimed = train(careful, encoder=copy.deepcopy(net), class_weights=aims)
    assert aimed.epochs[0]["train_loss"] < 0.5 * lost.epochs[0]["train_loss"]


@pytest.mark.slow
def test_the_shipped_training_repeats_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "net.safetensors"
    shipped = day13_train.train("quick", path, seed=1)
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    voices = training_voices("quick", librispeech("quick"))
    _, again = train_encoder("quick", voices, seed=1, stop=lambda e: True, bar=False)
    assert len(again.epochs) == 1
    assert again.epochs[0]["train_loss"] == pytest.approx(shipped.epochs[0]["train_loss"], rel=0.01)
    assert card["curve"][0]["train_loss"] == pytest.approx(shipped.epochs[0]["train_loss"], abs=1e-4)
    assert card["speakers"] == len(set(voices.speakers))


def test_random_segments_are_parts_of_their_own_utterance():
    samples = torch.arange(1000, dtype=torch.int16)
    starts, lengths = np.array([0, 100, 150]), np.array([100, 50, 850])
    speech = PackedSpeech(samples, starts, lengths, ["a", "b", "c"])
    segments = RandomSegments(speech, crop=80, batch_size=200, batches=2, power=0.0, augment=lambda x, g: x)
    seen = torch.zeros(3)
    for x, y in segments.epoch(0):
        assert x.shape == (200, 80)
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            low, high = ((0, 99), (100, 149), (150, 999))[label]
            assert low <= min(row)
            assert max(row) <= high
            steps = set(np.diff(row).tolist())
            assert steps == {1} if label != 1 else steps <= {1, -49}
            seen[label] += 1
    assert seen.min() > 90  # all speakers alike
    first, again = next(segments.epoch(1))[0], next(segments.epoch(1))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, next(segments.epoch(0))[0])
    empty = PackedSpeech(samples, starts[:1], np.array([0]), ["a"])
    with pytest.raises(ValueError, match="no samples"):
        RandomSegments(empty, crop=8, batch_size=1, batches=1)


# --- rooms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rt60", [0.2, 0.5])
def test_reverberation_falls_by_60_db_in_its_time(rt60):
    response = room_response(torch.full((20,), rt60), gen())
    left = response[:, 40:].square().flip(1).cumsum(1).flip(1).mean(0)  # Schroeder
    decay = 10 * torch.log10(left / left[0])
    t = torch.arange(len(decay)) / SAMPLE_RATE
    inside = (decay < -5) & (decay > -25)
    slope = np.polyfit(t[inside].numpy(), decay[inside].numpy(), 1)[0]
    assert -60 / slope == pytest.approx(rt60, rel=0.05)
    direct, tail = response[:, 0].square(), response[:, 1:].square().sum(1)
    assert torch.allclose(10 * torch.log10(direct / tail), torch.full((20,), 5.0), atol=1e-3)


def test_reverberation_is_the_convolution_at_the_same_level():
    wave = torch.randn(2, 500, generator=gen())
    response = room_response(torch.tensor([0.1, 0.3]), gen(), seconds=0.02)
    wet = reverberate(wave, response)
    for i in range(2):
        wanted = np.convolve(wave[i].numpy(), response[i].numpy())[:500]
        wanted *= np.sqrt(wave[i].square().sum().item() / (wanted**2).sum())
        assert np.abs(wet[i].numpy() - wanted).max() < 1e-4
    assert torch.equal(reverberate(torch.zeros(1, 10), response[:1]), torch.zeros(1, 10))
    with pytest.raises(ValueError, match="longer than 0 s"):
        room_response(torch.tensor([0.0]), gen())


def test_augmentation_repeats_and_can_be_left_out():
    x = (3000 * torch.randn(6, 4000, generator=gen())).to(torch.int16)
    noises = {"hiss": torch.randn(9000, generator=gen(1))}
    augment = voice_augmentation(noises, noisy=1.0, wet=1.0)
    assert torch.equal(augment(x, gen(5)), augment(x, gen(5)))
    assert not torch.equal(augment(x, gen(5)), augment(x, gen(6)))
    clean = voice_augmentation(noises, noisy=0.0, wet=0.0)
    assert torch.equal(clean(x, gen()), x.float() / 32768)


# --- SpeechBrain --------------------------------------------------------------------------------------


@pytest.fixture
def speechbrain():
    """SpeechBrain, forgotten after: Hypothesis looks into all modules, and its lazy ones cannot all be loaded."""
    yield pytest.importorskip("speechbrain")
    for name in [n for n in sys.modules if n.split(".")[0] == "speechbrain"]:
        del sys.modules[name]


def test_speechbrains_ecapa_from_a_folder(tmp_path, speechbrain):
    torch.manual_seed(0)
    folder = save_random_ecapa(tmp_path / "ecapa", channels=16)
    encoder = load_ecapa(folder)
    waves = [0.1 * torch.randn(n, generator=gen(n)) for n in (16_000, 60_000)]
    out = encoder.embed(waves)
    assert out.shape == (2, 192)
    assert torch.allclose(out.norm(dim=1), torch.ones(2))
    theirs = encoder.classifier.encode_batch(waves[1][None])[0, 0]
    torch.testing.assert_close(out[1], F.normalize(theirs, dim=0))
    assert encoder.partials(waves[1]).shape[1] == 192
    torch.manual_seed(1)
    other = load_ecapa(save_random_ecapa(tmp_path / "other", channels=16))
    assert not torch.allclose(other.embed(waves), out)


# --- verify -------------------------------------------------------------------------------------------


ONE, OTHER = "flite-rms-95", "espeak-en-029-f1-58"


def by_voice(sentences, name: str, seconds: float = 0.0):
    """Float waves of one voice, or one wave of so many seconds."""
    waves = [w for w, n in zip(*sentences, strict=True) if n == name]
    waves = [w.float() / 32768 for w in waves]
    return torch.cat(waves)[: round(seconds * SAMPLE_RATE)] if seconds else waves


def calibrate_encoder(encoder, waves, speakers, centre=None):
    """As Day 13's notebook does it: all pairs of the utterances, and the lowest agreement but 1 %."""
    pairs, same = all_pairs(speakers)
    halves = [agreement(encoder.partials(wave)) for wave in waves]
    found = calibrate(cosine_scores(encoder.embed(waves), pairs, centre), same)
    return dataclasses.replace(found, agreement=float(np.quantile(halves, 0.01)), centre=centre)


@pytest.fixture(scope="module")
def calibration(dvector, sentences):
    """Learnt on five other voices that differ from each other, two recordings of 6 s each."""
    names = [
        "espeak-en-us-m1-30", "espeak-en-gb-x-rp-m7-51", "espeak-en-us-f2-30",
        "flite-kal16-105", "flite-awb-145",
    ]  # fmt: skip
    long = [by_voice(sentences, n, 12.0).split(6 * SAMPLE_RATE) for n in names]
    waves = [wave for some in long for wave in some]
    return calibrate_encoder(dvector, waves, [n for n in names for _ in (0, 1)])


def test_verify_says_who_and_how_sure(dvector, calibration, sentences):
    mine, other = by_voice(sentences, ONE), by_voice(sentences, OTHER)
    same = verify(dvector, calibration, mine[0], mine[1])
    assert same.same
    assert same.confidence > 0.5
    assert "the same speaker" in str(same)
    different = verify(dvector, calibration, mine[0], other[0])
    assert not different.same
    assert different.confidence > 0.5
    assert different.probability < same.probability
    assert different.threshold == calibration.threshold


def test_verify_centres_what_the_calibration_centred(dvector, sentences):
    names = sorted({*sentences[1]} - {ONE})[:5]
    waves = [by_voice(sentences, n)[k][: 3 * SAMPLE_RATE] for n in names for k in (0, 1)]
    who = [n for n in names for _ in (0, 1)]
    centre = dvector.embed(waves).mean(0)
    plain = calibrate_encoder(dvector, waves, who)
    moved = calibrate_encoder(dvector, waves, who, centre)
    assert plain.centre is None
    assert moved.threshold < plain.threshold - 0.1  # strangers lie around 0 now
    assert moved.agreement == plain.agreement
    mine = by_voice(sentences, ONE)
    a, b = dvector.embed([mine[2], mine[3]]) - centre
    found = verify(dvector, moved, mine[2], mine[3])
    assert found.same
    assert found.score == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)


def test_verify_reads_any_rate(dvector, calibration, sentences, tmp_path):
    from utils.features import resample

    mine = by_voice(sentences, ONE)
    wanted = verify(dvector, calibration, mine[0], mine[1])
    for rate in (8000, 48_000):
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, resample(mine[1], 16_000, rate).numpy(), rate)
        got = verify(dvector, calibration, mine[0], path)
        assert got.score == pytest.approx(wanted.score, abs=0.15 if rate < 16e3 else 0.01)
        assert any("8000 Hz" in w for w in got.warnings) == (rate == 8000)
    stereo = np.stack([mine[1].numpy()] * 2)
    got = verify(dvector, calibration, mine[0], stereo)
    assert got.score == pytest.approx(wanted.score, abs=1e-4)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (torch.zeros(32_000), "Recording b is silent"),
        (torch.ones(1), "has 1 samples"),
        (torch.zeros(0), "recording b has no samples"),
        (torch.full((9000,), float("nan")), "NaN"),
    ],
)
def test_what_says_nothing_of_a_voice_is_refused(dvector, calibration, sentences, wave, message):
    with pytest.raises(AudioError, match=message):
        verify(dvector, calibration, by_voice(sentences, ONE)[0], wave)


def test_two_speakers_in_one_file_are_noticed(dvector, calibration, sentences):
    assert 0.5 < calibration.agreement < 1
    assert f"agreement {calibration.agreement:.3f}" in str(calibration)
    calibration = dataclasses.replace(calibration, agreement=0.75)
    one, other = by_voice(sentences, ONE, 6.0), by_voice(sentences, OTHER, 6.0)
    clean = verify(dvector, calibration, one, by_voice(sentences, ONE, 4.0))
    assert not any("two voices" in w for w in clean.warnings)
    mixed = verify(dvector, calibration, one, torch.cat([one, other]))
    assert any("recording b seems to have two voices" in w for w in mixed.warnings)
    short = verify(dvector, calibration, one, one[:16_000])
    assert any("only 1.0 s" in w for w in short.warnings)


def test_agreement_needs_two_groups():
    a, b = torch.eye(3)[0], torch.eye(3)[1]
    assert agreement(torch.stack([a, a, b, b])) == pytest.approx(0, abs=1e-6)
    assert agreement(torch.stack([a, a, a, b])) == 1  # one odd window
    assert agreement(torch.stack([a, b])) == 1
    assert day13_verify.SHORTEST < 1


def test_the_classifier_gives_cosines():
    torch.manual_seed(0)
    model = SpeakerClassifier(SpeakerNet(16, 16, 8), 5)
    cosines = model(torch.randn(4, 8000))
    assert cosines.shape == (4, 5)
    assert cosines.abs().max() <= 1 + 1e-5


def test_the_shipped_encoder_is_made_by_one_command(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "e.safetensors"
    jobs = {"": (day13_train.weights_path, day13_train.train)}
    command = ["--profile", "quick", "--seed", "3", "--output", str(path)]
    assert training_command(jobs, command) == 0
    settings = day13_train.SETTINGS["quick"]
    encoder = ecapa_tdnn.SpeakerNet(settings.channels)
    before = encoder.first[0].weight.detach().clone()
    card = load_weights(path, encoder)
    assert not torch.equal(encoder.first[0].weight, before)
    assert card["seed"] == 3
    assert len(card["curve"]) == settings.epochs
    last = card["curve"][-1]["val_eer"]
    assert card["metric"]["val_eer"] == pytest.approx(last, abs=1e-4)
    day = days.get(13)
    (row,) = read_table(day.output("quick") / f"{day.name}_params.csv")
    assert float(row["val_eer"]) == pytest.approx(card["metric"]["val_eer"], abs=1e-3)


def test_training_voices_are_nobody_that_is_tested():
    corpus = librispeech("quick")
    voices = ecapa_tdnn.training_voices("quick", corpus)
    once = ecapa_tdnn.training_voices("quick", corpus, speeds=(1.0,))
    heard = {name.split(" x")[0] for name in voices.speakers}
    away = {*corpus.validation.speakers, *corpus.test.speakers}
    assert set(corpus.train.speakers) <= heard
    assert not heard & away
    assert len(set(voices.speakers)) == 3 * len(set(once.speakers)) == 3 * len(heard)
    n = len(once.speakers)
    assert np.allclose(voices.lengths[n : 2 * n], once.lengths / 0.9, atol=1)
    assert int(voices.starts[-1] + voices.lengths[-1]) == len(voices.samples)
