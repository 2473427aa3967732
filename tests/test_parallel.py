"""The parallel synthesizer: letters spread over time, padding changes nothing, it learns, and it needs no loop."""

from __future__ import annotations

import math

import pytest
import torch

from Day11_Voice_Cloning import durations as day11_durations
from Day11_Voice_Cloning import train
from Day11_Voice_Cloning.durations import PITCH, TimedUtterances
from Day11_Voice_Cloning.train import FastSpeechLoss, fastspeech_losses, measure_liveliness
from utils.models import tts
from utils.models.fastspeech import FastSpeech, FastSpeechConfig, compensate_global_variance, length_regulate
from utils.models.tacotron2 import Tacotron2, TacotronConfig
from utils.models.tts_mel import LIBRISPEECH_MEL, SILENCE
from utils.models.tts_text import SYMBOLS
from utils.training import Diverged

MELS = 8
SMALL = FastSpeechConfig(
    encoder=32, width=32, hidden=64, blocks=2, kernel=5, predictor=16, speaker=4, d_vector=6,
    n_mels=MELS, dropout=0.0,
)  # fmt: skip


def sentences(count: int = 8, seed: int = 0) -> TimedUtterances:
    """Each letter lasts two or four frames, by what letter it is, with a spectrum of its own."""
    g = torch.Generator().manual_seed(seed)
    spectra = torch.randn(len(SYMBOLS), MELS, generator=torch.Generator().manual_seed(1))  # fmt: skip
    lengths = torch.randint(4, 8, (count,), generator=g)
    text = torch.zeros(count, 8, dtype=torch.long)
    durations = torch.zeros(count, 8)
    mel = torch.full((count, MELS, 40), SILENCE)
    mel_lengths = []
    for i, n in enumerate(lengths.tolist()):
        text[i, :n] = torch.randint(2, len(SYMBOLS), (n,), generator=g)
        durations[i, :n] = 2.0 + 2 * (text[i, :n] % 2)
        frames = spectra[text[i, :n]].repeat_interleave(durations[i, :n].long(), 0).T
        mel[i, :, : frames.shape[1]] = frames
        mel_lengths.append(frames.shape[1])
    return TimedUtterances(
        text, lengths, torch.ones(count, 6), mel, torch.tensor(mel_lengths),
        list(range(count)), {}, durations, torch.zeros(count, 8, 3),
    )  # fmt: skip


def test_letters_are_spread_over_time_by_hand():
    weights, since, until = length_regulate(torch.tensor([[1.5, 0.0, 2.5]]), 5)
    expected = [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1], [0, 0, 1], [0, 0, 0]]
    torch.testing.assert_close(weights[0], torch.tensor(expected))
    # frame 2 has its middle 1.0 behind the third letter's beginning and 1.5 before its end
    assert (since[0, 2].item(), until[0, 2].item()) == (1.0, 1.5)
    # frame 1 is half of each: half of 1.5 and 0.0; half of 0.0 and 2.5
    assert (since[0, 1].item(), until[0, 1].item()) == (0.75, 1.25)


def test_padding_and_neighbours_change_nothing():
    torch.manual_seed(0)
    model, every = FastSpeech(SMALL).eval(), sentences()
    both = model(*every.batch([0, 1]))
    for k in (0, 1):
        alone = model(*every.batch([k]))
        letters, n = int(every.text_lengths[k]), int(every.mel_lengths[k])
        torch.testing.assert_close(both.mel[k, :, :n], alone.mel[0, :, :n])
        for name in ("log_durations", "prosody"):
            a, b = getattr(both, name)[k, :letters], getattr(alone, name)[0, :letters]
            torch.testing.assert_close(a, b)
    together = model.generate(*every.batch([0, 1])[:3])
    alone = model.generate(*every.batch([1])[:3])
    torch.testing.assert_close(together.item(1), alone.item(0))


def test_losses_by_hand_and_without_padding():
    batch = sentences().batch([0, 1])
    out = FastSpeech(SMALL).eval()(*batch)
    a, b = [], []
    for k in (0, 1):
        n, letters = int(batch.mel_lengths[k]), int(batch.text_lengths[k])
        a += (out.mel[k, :, :n] - batch.mel[k, :, :n]).flatten().tolist()
        b += (out.log_durations[k, :letters] - (batch.durations[k, :letters] + 1).log()).tolist()  # fmt: skip
    parts = fastspeech_losses(out, batch)
    assert parts["mel"].item() == pytest.approx(sum(x * x + abs(x) for x in a) / len(a), rel=1e-4)
    assert parts["duration"].item() == pytest.approx(sum(x * x for x in b) / len(b), rel=1e-4)


@pytest.mark.slow
def test_it_learns_spectra_and_durations_and_speaks_without_them():
    torch.manual_seed(0)
    every, held_out = sentences(200), sentences(4, seed=9)
    loss = FastSpeechLoss(FastSpeech(SMALL))
    batches = tts.LengthBatches(every, 32, 1, buckets=1, steps=90)
    tts.train(loss, batches, epochs=2, lr=1e-2, bar=False)
    numbers = train.validate_parallel(loss, held_out.batch(range(4)))
    assert loss.training  # as it was before
    inside = held_out.mel[held_out.mel != SILENCE]
    off = inside - inside.mean()  # of one who has learned nothing but the mean
    assert numbers["mel"] < 0.3 * (off.square() + off.abs()).mean()
    assert numbers["free_length"] == pytest.approx(1, abs=0.15)
    model = loss.model.eval()
    speech = model.generate(*held_out.batch(range(4))[:3])
    assert speech.stopped.all()
    assert (speech.mel[0, :, int(speech.lengths[0]) :] == SILENCE).all()
    # each letter's durations add up to the length, one letter behind the other
    sums = speech.alignment.sum((1, 2))
    assert ((speech.lengths - sums).abs() < 1).all()
    slow = model.generate(*held_out.batch(range(4))[:3], pace=0.5)
    torch.testing.assert_close(slow.alignment.sum((1, 2)), 2 * sums)
    with pytest.raises(ValueError, match="above 0"):
        model.generate(*held_out.batch(range(4))[:3], pace=0)


def test_a_letter_does_not_hear_how_long_it_is_to_last():
    model, batch = FastSpeech(SMALL), sentences().batch([0, 1])
    fastspeech_losses(model(*batch), batch)["duration"].backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert any(p.grad is not None for p in model.duration.parameters())


def test_durations_are_the_attention_summed_over_time():
    torch.manual_seed(0)
    config = TacotronConfig(
        encoder=16, decoder=16, r=2, attention=8, prenet=8, postnet=8, speaker=4, d_vector=6,
        n_mels=MELS,
    )  # fmt: skip
    teacher, every = Tacotron2(config), sentences(5)
    durations = day11_durations.letter_durations(teacher, every, batch_size=2)
    torch.testing.assert_close(durations.sum(1), every.mel_lengths.float())
    for k, n in enumerate(every.text_lengths.tolist()):
        assert (durations[k, n:] == 0).all()
    assert torch.equal(durations, day11_durations.letter_durations(teacher, every, 2))


def test_pitch_of_a_tone_and_prosody_of_letters():
    rate, hertz = LIBRISPEECH_MEL.sample_rate, 200.0
    t = torch.arange(rate) / rate
    wave = sum(torch.sin(2 * math.pi * k * hertz * t) / k for k in (1, 2, 3)) / 4
    pitch = day11_durations.frame_pitch(wave, LIBRISPEECH_MEL, 63)
    assert pitch.shape == (63,)
    assert (pitch[5:-5] / hertz - 1).abs().max() < 0.02
    # two letters of 3 and 2 frames: the first loud below and quiet above, the second the other way round
    mel = torch.full((1, 80, 5), -1.0)
    mel[0, :40, :3] = 1.0
    mel[0, 40:, 3:] = 1.0
    heard = torch.tensor([[200.0, 200.0, 200.0, 333.0, 333.0]])
    got = day11_durations.letter_prosody(mel, torch.tensor([5]), heard, torch.tensor([[3.0, 2.0]]))
    high = (math.log(200) - PITCH[0]) / PITCH[1]
    expected = torch.tensor([[[high, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_the_training_leaves_weights_and_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    monkeypatch.setattr(train, "pick_device", lambda: torch.device("cpu"))
    short = train.Synthesis(steps=3, batch_size=2, longest=3.0, every=1)
    monkeypatch.setitem(train.SYNTHESIS, "quick", short)
    brief = train.Parallel(steps=4, batch_size=4, longest=3.0, most=2, every=2)
    monkeypatch.setitem(train.PARALLEL, "quick", brief)
    path = train.weights_path("parallel", "quick")
    with pytest.raises(FileNotFoundError, match="kathleen"):
        train.train_own("parallel", "quick", path)
    first = train.weights_path("kathleen", "quick")
    train.train_own("kathleen", "quick", first)
    history = train.train_own("parallel", "quick", path)
    model, card = train.load_network(path)
    assert card["begun_from"].startswith("synthesizer_kathleen")
    assert card["settings"]["steps"] == 4
    assert [e["val_loss"] for e in history.epochs] == pytest.approx(
        [e["val_loss"] for e in card["curve"]], abs=1e-4
    )
    spoken = tts.speak(model, ["Hello there."], torch.ones(256))
    assert spoken.mel.shape[2] == int(spoken.lengths[0])
    assert torch.equal(spoken.mel, tts.speak(model, ["Hello there."], torch.ones(256), seed=5).mel)  # fmt: skip


def test_a_mel_that_moves_too_little_is_given_the_variance_of_speech():
    torch.manual_seed(0)
    batch, model = sentences().batch([0, 1]), FastSpeech(SMALL).eval()
    flat = model.generate(*batch[:3])
    torch.testing.assert_close(flat.mel, flat.before)  # nothing was measured yet
    measure_liveliness(model, batch, most=1e9)
    lively = model.generate(*batch[:3])
    assert torch.equal(lively.before, flat.before)
    stds = torch.stack(
        [lively.item(k).std(1, correction=0) for k in (0, 1)]
    ).mean(0)  # fmt: skip
    true = torch.stack(
        [batch.mel[k, :, : int(batch.mel_lengths[k])].std(1, correction=0) for k in (0, 1)]
    ).mean(0)  # fmt: skip
    torch.testing.assert_close(stds, true, rtol=1e-3, atol=1e-3)
    for k in (0, 1):  # the means stay, and so does what lies behind the end
        n = int(flat.lengths[k])
        torch.testing.assert_close(lively.item(k).mean(1), flat.item(k).mean(1))
        assert (lively.mel[k, :, n:] == SILENCE).all()
    measure_liveliness(model, batch)
    assert model.liveliness.max() == 1.5
    mel, lengths, factors = (torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([2]), torch.tensor([2.0]))
    by_hand = compensate_global_variance(mel, lengths, factors)
    assert by_hand.tolist() == [[[0.0, 4.0, 9.0]]]


def test_judging_a_finished_network_leaves_it_finished():
    model, every = FastSpeech(SMALL).eval(), sentences()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss = FastSpeechLoss(model)  # new, so itself in training mode
    train.validate_parallel(loss, every.batch([0, 1]))
    assert loss.training
    assert not any(part.training for part in model.modules())
    model.generate(*every.batch([0, 1])[:3])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_loss_that_is_no_number_ends_the_training():
    every = sentences(16)
    every.mel[0, 0, 0] = math.nan
    loss = FastSpeechLoss(FastSpeech(SMALL))
    batches = tts.LengthBatches(every, 16, 1, buckets=1, steps=3)
    with pytest.raises(Diverged):
        tts.train(loss, batches, epochs=1, lr=1e-3, bar=False)
