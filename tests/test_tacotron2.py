"""Tacotron 2: padding changes nothing, forced equals free on the same frames, it aligns, stops, and resumes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import FixedTrial
from torch import nn

from Day11_Voice_Cloning import train
from Day12_VC_Tuning import search
from utils.features import resample
from utils.logger import RunLogger, read_table
from utils.models import tts
from utils.models.ge2e import pretrained_dvector
from utils.models.tacotron2 import (
    FRAMES_EXTRA,
    FRAMES_PER_LETTER,
    TAIL,
    MaskedBatchNorm,
    Tacotron2,
    TacotronConfig,
    TacotronLoss,
    diagonality,
    guided_attention_loss,
    length_mask,
    pad_frames,
    speech_steps,
    steps_to_alignment,
)
from utils.models.tts import AlignmentMonitor, LengthBatches, TTSDataset
from utils.models.tts_mel import KATHLEEN_MEL, SILENCE, MelSettings, SynthesisMel
from utils.models.tts_text import SYMBOLS, encode_batch
from utils.speech.corpora import Utterances
from utils.speech.pack import to_int16
from utils.training import Diverged

MELS = 8
SMALL = TacotronConfig(
    encoder=32, decoder=64, r=2, attention=16, prenet=32, postnet=16, speaker=4, d_vector=6,
    n_mels=MELS, dropout=0.0, rnn_dropout=0.0, prenet_dropout=0.0,
)  # fmt: skip


def sentences(count: int = 4, seed: int = 0, low: int = 5, high: int = 9) -> TTSDataset:
    """Utterances whose every letter sounds for three frames, each letter with a spectrum of its own."""
    g = torch.Generator().manual_seed(seed)
    spectra = torch.randn(len(SYMBOLS), MELS, generator=torch.Generator().manual_seed(1))
    lengths = torch.randint(low, high, (count,), generator=g)
    text = torch.zeros(count, int(lengths.max()), dtype=torch.long)
    mel = torch.full((count, MELS, 3 * int(lengths.max())), SILENCE)
    for i, n in enumerate(lengths.tolist()):
        text[i, :n] = torch.randint(2, len(SYMBOLS), (n,), generator=g)
        text[i, n - 1] = 1
        mel[i, :, : 3 * n] = spectra[text[i, :n]].repeat_interleave(3, 0).T
    d_vectors = torch.randn(count, 6, generator=g)
    return TTSDataset(text, lengths, d_vectors, mel, 3 * lengths, list(range(count)))


def model(config: TacotronConfig = SMALL, seed: int = 0) -> Tacotron2:
    torch.manual_seed(seed)
    return Tacotron2(config)


def test_shapes_and_attention_that_sums_to_one_inside_the_text():
    every = sentences()
    batch = every.batch([0, 1, 2, 3], SMALL.r)
    out = model()(*batch)
    frames = batch.mel.shape[2]
    assert frames % SMALL.r == 0
    assert out.before.shape == out.mel.shape == batch.mel.shape
    assert out.stop.shape == (4, frames // SMALL.r)
    assert out.alignment.shape == (4, frames // SMALL.r, batch.text.shape[1])
    torch.testing.assert_close(out.alignment.sum(2), torch.ones(4, frames // 2))
    outside = ~length_mask(batch.text_lengths, batch.text.shape[1])[:, None]
    assert (out.alignment * outside).abs().max() == 0


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(training):
    """In training too: batch norm and loss see the same, however far text and mel are filled up."""
    every, loss = sentences(), TacotronLoss(model().train(training))
    near = every.batch([0, 1, 2, 3], 2)
    far = every.batch([0, 1, 2, 3], 2, near.mel.shape[2] + 22, near.text.shape[1] + 7)
    far = far._replace(text=torch.nn.functional.pad(near.text, (0, 7)))
    loss.train(training)
    (a, parts), (b, others) = loss.parts(near), loss.parts(far)
    for name, value in parts.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5)
    for i, n in enumerate(near.mel_lengths.tolist()):
        torch.testing.assert_close(b.mel[i, :, :n], a.mel[i, :, :n], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(b.stop[i, : n // 2], a.stop[i, : n // 2], rtol=1e-3, atol=1e-5)  # fmt: skip


def test_masked_batch_norm_is_batch_norm_of_what_is_inside():
    x = torch.randn(3, 5, 7)
    mask = length_mask(torch.tensor([7, 4, 2]), 7)[:, None]
    ours, theirs = MaskedBatchNorm(5), torch.nn.BatchNorm1d(5)
    inside = x.transpose(1, 2)[mask[:, 0]]
    for _ in range(2):
        out, expected = ours(x, mask), theirs(inside)
    torch.testing.assert_close(out.transpose(1, 2)[mask[:, 0]], expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, mask).transpose(1, 2)[mask[:, 0]], theirs.eval()(inside))


def test_teacher_forced_equals_free_running_when_fed_the_same_frames():
    every, tacotron = sentences(), model().eval()
    with pytest.warns(UserWarning, match="did not stop by themselves"):
        free = tacotron.generate(
            every.text, every.text_lengths, every.d_vectors, threshold=1.0, max_frames=20
        )
    assert free.lengths.tolist() == [20] * 4
    assert not free.stopped.any()
    batch = (every.text, every.text_lengths, every.d_vectors)
    forced = tacotron(*batch, free.before, free.lengths)
    steps = forced.stop.shape[1]
    assert steps >= 10 + TAIL
    torch.testing.assert_close(forced.before, free.before[:, :, : 2 * steps])
    torch.testing.assert_close(forced.stop.sigmoid(), free.stop[:, :steps])
    torch.testing.assert_close(forced.alignment, free.alignment[:, :steps])
    torch.testing.assert_close(forced.mel[:, :, :20], free.mel)


def test_all_steps_at_once_have_the_values_and_gradients_of_single_steps():
    network, batch = model(), sentences().batch([0, 1, 2, 3], SMALL.r)
    frames = network.prenet(batch.mel[:, :, :: SMALL.r].transpose(1, 2)).detach()
    mask = length_mask(batch.text_lengths, batch.text.shape[1])

    def learned(step_by_step: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        network.zero_grad()
        memory = network.memory(*batch[:3])
        keys, state = network.attention.key(memory), network.initial_state(memory)
        states = [] if step_by_step else network.attend_all(frames, memory, keys, mask)
        for frame in frames.unbind(1) if step_by_step else ():
            state = network.attend(frame, state, memory, keys, mask)
            states.append(state)
        out = torch.cat([torch.cat([s.hidden, s.context], 1) for s in states])
        out.square().mean().backward()
        return out, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    (out, gradients), (wanted_out, wanted) = learned(False), learned(True)
    assert len(frames[0]) > 5
    assert "attention_rnn.weight_hh" in wanted
    assert torch.allclose(out, wanted_out, atol=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() <= 1e-4 * wanted[name].norm(), name


def test_a_sentence_sounds_the_same_alone_and_in_a_batch():
    every, tacotron = sentences(), model().eval()
    args = (every.text, every.text_lengths, every.d_vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = tacotron.generate(*args, threshold=0.5, max_frames=16)
        for i, n in enumerate(every.text_lengths.tolist()):
            alone = tacotron.generate(
                every.text[i : i + 1, :n], every.text_lengths[i : i + 1],
                every.d_vectors[i : i + 1], threshold=0.5, max_frames=16,
            )  # fmt: skip
            assert alone.lengths[0] == together.lengths[i]
            torch.testing.assert_close(alone.item(0), together.item(i))


def test_three_hundred_letters_do_not_run_away():
    text, lengths = encode_batch(["a long way to go " * 18])
    assert lengths[0] > 300
    tacotron = model(TacotronConfig(encoder=16, decoder=16, r=5, n_mels=MELS, postnet=8))
    with pytest.warns(UserWarning, match="1 of 1 texts did not stop by themselves"):
        free = tacotron.eval().generate(text, lengths, torch.ones(1, 256), threshold=1.0)
    most = FRAMES_PER_LETTER * int(lengths[0]) + FRAMES_EXTRA
    assert most <= int(free.lengths[0]) < most + 5
    assert not free.stopped[0]


def test_a_window_keeps_the_attention_near():
    every, tacotron = sentences(high=30, low=20), model().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = tacotron.generate(every.text, every.text_lengths, every.d_vectors, max_frames=40, window=2)
    peaks = free.alignment.argmax(2)
    moves = peaks[:, 1:] - peaks[:, :-1]
    assert moves.min() >= -1
    assert moves.max() <= 2


# --- losses and measures ------------------------------------------------------------


def diagonal(steps: int, letters: int) -> torch.Tensor:
    at = torch.linspace(0, letters - 1, steps).round().long()
    return torch.nn.functional.one_hot(at, letters).float()[None]


def test_guided_loss_is_small_on_the_diagonal_and_large_off_it():
    letters, steps = torch.tensor([20]), torch.tensor([60])
    on = guided_attention_loss(diagonal(60, 20), letters, steps)
    off = guided_attention_loss(diagonal(60, 20).flip(1), letters, steps)
    flat = guided_attention_loss(torch.full((1, 60, 20), 1 / 20), letters, steps)
    assert on < 0.01
    assert flat > 0.4
    assert off > flat


def test_guided_loss_by_hand():
    """Two letters, two steps, all weight on the first letter: step 2 is one whole diagonal away."""
    alignment = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    two = torch.tensor([2])
    loss = guided_attention_loss(alignment, two, two, width=0.2)
    assert loss.item() == pytest.approx((1 - np.exp(-1 / 0.08)) / 2)


def test_diagonality_wants_sharp_and_diagonal():
    letters, steps = torch.tensor([30]), torch.tensor([60])
    sharp = diagonality(diagonal(60, 30), letters, steps)
    flat = diagonality(torch.full((1, 60, 30), 1 / 30), letters, steps)
    off = diagonality(diagonal(60, 30).flip(1), letters, steps)
    place = torch.arange(30.0)
    blurred = -((place - torch.linspace(0, 29, 60)[:, None]) ** 2) / (2 * 8.0**2)
    blurred = diagonality(blurred.softmax(1)[None], letters, steps)
    assert sharp == pytest.approx(1.0)
    assert flat < 0.11
    assert off < 0.3
    assert blurred < 0.3


def test_measures_leave_padding_out():
    letters, steps = torch.tensor([20]), torch.tensor([60])
    exact = diagonal(60, 20)
    padded = torch.zeros(1, 90, 33)
    padded[:, :60, :20] = exact
    padded[:, 60:, 19] = 1  # the tail rests on the end
    padded[:, 60 + TAIL :] = 1 / 33
    assert diagonality(padded, letters, steps) == diagonality(exact, letters, steps)
    assert guided_attention_loss(padded, letters, steps) < 0.01


def test_steps_to_alignment():
    steps = [100, 200, 300, 400]
    assert steps_to_alignment(steps, [0.1, 0.7, 0.2, 0.9]) == 400
    assert steps_to_alignment(steps, [0.1, 0.7, 0.8, 0.9]) == 200
    assert steps_to_alignment(steps, [0.1, 0.2, 0.3, 0.4]) is None
    assert speech_steps(torch.tensor([1, 3, 4]), 3).tolist() == [1, 1, 2]


def test_own_frames_are_heard_and_the_weights_still_learn():
    batch = sentences().batch([0, 1], 2)
    loss = TacotronLoss(model(), own=0.5)
    torch.manual_seed(0)
    mixed = loss(batch)
    mixed.backward()
    assert all(p.grad is not None for p in loss.parameters())
    loss.own = 0.0
    assert mixed.item() != loss(batch).item()
    loss.own = 0.5
    assert loss.eval()(batch).item() == loss(batch).item()  # judged on true frames


def test_dropped_frames_are_the_mean_and_only_in_training():
    batch = sentences().batch([0, 1], 2)
    loss = TacotronLoss(model(), drop=0.3)
    torch.manual_seed(0)
    inputs = loss.decoder_inputs(batch)
    frames = pad_frames(batch.mel, 2)
    gone = (inputs == 0).all(1, keepdim=True)
    assert 0.15 < gone.float().mean() < 0.45
    assert torch.equal(inputs, frames.masked_fill(gone, 0.0))
    loss(batch).backward()
    assert all(p.grad is not None for p in loss.parameters())
    assert loss.eval().decoder_inputs(batch) is None
    assert TacotronLoss(model()).train().decoder_inputs(batch) is None


def test_weights_with_the_first_names_of_layers_still_load():
    first, second = model(), model()
    names = {"gate.": "to_stop.", "attention.location_conv.": "attention.place."}
    state = first.state_dict()
    for new, old in names.items():
        state = {k.replace(new, old): v for k, v in state.items()}
    assert "to_stop.bias" in state
    second.load_state_dict(state)
    for name, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[name])


def test_the_best_weights_are_kept_and_come_back(tmp_path):
    module = nn.Linear(1, 1)
    losses = iter([3.0, 1.0, 2.0])
    best = train.Best(lambda _: {"loss": next(losses)}, tmp_path / "new" / "best.pt")
    for value in (3.0, 1.0, 2.0):
        nn.init.constant_(module.weight, value)
        assert best(module) == {"loss": value}
    best.restore(module)
    assert module.weight.item() == 1.0


# --- training -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """Four sentences by heart."""
    every = sentences()
    loss = TacotronLoss(model(), guided=2.0)
    batches = LengthBatches(every, 4, SMALL.r, buckets=1, steps=40)
    watch = AlignmentMonitor(every.batch([0, 1, 2, 3], SMALL.r))
    history = tts.train(loss, batches, epochs=3, lr=1e-2, validate=watch, bar=False)
    return every, loss, history, watch


def test_it_overfits_four_sentences_to_a_diagonal(trained):
    _, _, history, watch = trained
    first, last = watch.seen[0].numbers, watch.seen[-1].numbers
    assert last["mel"] < 0.3 * first["mel"]
    assert last["diagonality"] > 0.8
    assert last["free_diagonality"] > 0.8
    assert steps_to_alignment([40, 80, 120], history.column("val_diagonality"))
    assert len(history.steps["grad_norm"]) == 120


def test_it_stops_by_itself_where_the_sentence_ends(trained):
    every, loss, _, watch = trained
    assert watch.seen[-1].numbers["free_stopped"] == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free = loss.model.eval().generate(every.text, every.text_lengths, every.d_vectors)
    assert free.stopped.all()
    assert (free.lengths - every.mel_lengths).abs().max() <= 2 * SMALL.r
    for i, n in enumerate(free.lengths.tolist()):
        assert (free.mel[i, :, n:] == SILENCE).all()


def test_a_validation_shows_what_was_heard(trained):
    every, _, _, watch = trained
    seen, n = watch.seen[-1], int(every.mel_lengths[0])
    assert seen.target.shape == seen.predicted.shape == (MELS, n)
    assert seen.alignment.shape == (-(-n // 2) + TAIL, int(every.text_lengths[0]))
    assert seen.stop.shape == (-(-n // 2) + TAIL,)
    assert seen.stop[-1] > 0.5 > seen.stop[0]
    assert seen.free_mel.shape[0] == MELS


def training(tmp_path, stop_after=None, epochs=3):
    """Three epochs with dropout; `stop_after` breaks the training in the validation of that epoch."""
    config = TacotronConfig(
        encoder=16, decoder=16, r=2, attention=8, prenet=8, postnet=8, speaker=4, d_vector=6,
        n_mels=MELS,
    )  # fmt: skip
    torch.manual_seed(3)
    loss = TacotronLoss(Tacotron2(config), own=0.3)
    batches = LengthBatches(sentences(8), 2, 2, buckets=2)
    calls = 0

    def validate(module):
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise KeyboardInterrupt
        return {}

    return loss, tts.train(
        loss, batches, epochs=epochs, lr=1e-3, validate=validate, bar=False,
        checkpoint=tmp_path / "c.pt",
    )  # fmt: skip


def test_a_training_that_was_broken_off_ends_as_the_whole_one(tmp_path):
    whole, history = training(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, stop_after=2)
    assert (tmp_path / "c.pt").exists()
    torch.manual_seed(77)
    resumed, again = training(tmp_path)
    assert again.steps == history.steps
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert not (tmp_path / "c.pt").exists()


def test_a_rate_that_is_too_large_is_named():
    loss = TacotronLoss(model())
    loss.model.to_mel.bias.data.fill_(float("nan"))
    batches = LengthBatches(sentences(), 2, 2, buckets=1)
    with pytest.raises(Diverged):
        tts.train(loss, batches, epochs=1, lr=1e-3, bar=False)


def test_mixed_precision_gives_nearly_the_same_loss():
    batch = sentences().batch([0, 1, 2, 3], 2)
    loss = TacotronLoss(model()).eval()
    exact = loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss(batch)
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
    loss.train()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(batch)
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


def test_a_captured_step_wants_cuda():
    batch = sentences().batch([0, 1], 2)
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device"):
        tts.capture_cuda_graph(TacotronLoss(model()), batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_gives_the_same_gradients():
    device = torch.device("cuda")
    every = sentences(8).to(device)
    eager, graphed = (TacotronLoss(model().to(device)) for _ in range(2))
    batches = LengthBatches(every, 4, 2, buckets=1)
    first, second = (batch for batch, _ in batches.epoch(0))
    tts.capture_cuda_graph(graphed, first, mixed=False)
    for batch in (second, first):
        for loss in (eager, graphed):
            loss.zero_grad(set_to_none=True)
            loss(batch).backward()
        for a, b in zip(eager.parameters(), graphed.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


# --- batches ------------------------------------------------------------------------


def test_batches_by_length_have_few_shapes_and_little_padding():
    every = sentences(40, low=4, high=40)
    sorted_, mixed = (LengthBatches(every, 4, 2, buckets=b) for b in (5, 1))
    shapes = {b.mel.shape[2:] + b.text.shape[1:] for b, _ in sorted_.epoch(0)}
    assert len(shapes) <= 5
    assert len({b.mel.shape for b, _ in mixed.epoch(0)}) == 1
    for batch, _ in sorted_.epoch(1):
        room = batch.mel.shape[2] // 2 - speech_steps(batch.mel_lengths, 2)
        assert room.min() >= TAIL
        assert (batch.text[:, :1] > 0).all()
    seen = torch.cat([b.mel_lengths for b, _ in sorted_.epoch(2)])
    assert sorted(seen.tolist()) == sorted(every.mel_lengths.tolist())


def test_epochs_repeat_themselves_and_differ():
    batches = LengthBatches(sentences(12), 3, 2, buckets=2, steps=7)
    a, b, c = ([x.d_vectors for x, _ in batches.epoch(n)] for n in (0, 0, 1))
    assert len(a) == len(batches) == 7
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


def test_a_batch_that_cannot_be_filled_is_named():
    with pytest.raises(ValueError, match="fewer buckets or smaller batches"):
        LengthBatches(sentences(8), 4, 2, buckets=4)


def test_validations_are_kept_in_a_folder(tmp_path):
    loss = TacotronLoss(model())
    batch = sentences().batch([0, 1], 2)
    for _ in range(2):  # a resumed training makes a new monitor on the same folder
        AlignmentMonitor(batch, folder=tmp_path)(loss)
    kept = AlignmentMonitor.load(tmp_path)
    assert len(kept) == 2
    assert kept[0].numbers == kept[1].numbers
    assert np.array_equal(kept[0].alignment, tts.validate(loss, batch).alignment)


# --- Day 12's search ----------------------------------------------------------------


def test_the_score_wants_alignment_early():
    assert search.score(100, 800, 0.9) > search.score(400, 800, 0.99)
    assert search.score(800, 800, 0.7) > search.score(None, 800, 0.5)
    assert search.score(None, 800, 0.5) > search.score(None, 800, 0.1)


def test_a_trial_leaves_a_row_and_its_alignment(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    small = {"encoder_dim": [16], "decoder_dim": [16, 24], "r": [3], "guided": [1.0]}
    for name, choices in small.items():
        monkeypatch.setitem(search.SPACE, name, CategoricalDistribution(choices))
    settings = MelSettings(8000, 256, 256, 64, MELS, 20, 4000)
    noise = [0.1 * torch.randn(1600 + 64 * i) for i in range(3)]
    every = sentences(8)
    data = search.Material("toy", every, every, noise, SynthesisMel(settings))
    budget = {"steps": 4, "every": 2, "batch_size": 4}
    log = RunLogger(12, "quick", "toy", torch.device("cpu"), search.COLUMNS, folder=tmp_path)
    trial = FixedTrial({"encoder_dim": 16, "decoder_dim": 24, "r": 3, "guided": 1.0, "lr": 0.00123456})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing stops after four steps
        value = search.objective(log, data, budget)(trial)
    (row,) = read_table(log.path)
    assert (row["decoder_dim"], row["lr"], row["steps"]) == ("24", "0.001235", "4")
    assert float(row["grad_norm"]) > 0
    assert float(row["audio_quality"]) > 0
    assert len(row["diagonality_curve"].split()) == 2
    assert value == pytest.approx(
        search.score(
            int(row["steps_to_alignment"]) if row["steps_to_alignment"] else None,
            4, float(row["diagonality"]),
        ), abs=1e-5,
    )  # fmt: skip
    assert float(row["val_score"]) == pytest.approx(value, abs=1e-5)
    for name in ("free_curve", "mel_curve"):
        assert len(row[name].split()) == 2
    with np.load(search.alignment_path(log, row["run"])) as kept:
        assert kept["alignment"].shape[1] == int(every.text_lengths[0])
        assert kept["free_mel"].shape[0] == MELS
        assert len(kept["free_stop"]) == len(kept["free_alignment"])


def test_held_out_sentences_keep_their_rate_and_their_d_vector_is_of_16_khz():
    rate = KATHLEEN_MEL.sample_rate
    t = torch.arange(rate) / rate
    tones = [0.1 * torch.sin(2 * torch.pi * f * t) for f in (200, 300)]
    waves = [to_int16(w) for w in tones]
    spoken = Utterances.of(waves, ["One.", "Two."], ["a", "b"], rate=rate)
    part, recordings = search.held_out(spoken, SynthesisMel(KATHLEEN_MEL), 4.0, most=1)
    assert part.numbers == [0, 1]
    assert part.mel_lengths.tolist() == [1 + len(tones[0]) // KATHLEEN_MEL.hop] * 2
    assert [len(w) for w in recordings] == [rate]
    low = [resample(spoken.sound(i), rate) for i in range(2)]
    torch.testing.assert_close(part.d_vectors, pretrained_dvector().embed(low))


def test_a_training_that_is_stopped_is_the_beginning_of_the_whole_one():
    """The check of the notebook: the first validations of a trial, by its own schedule, and narrower sizes."""
    settings = MelSettings(8000, 256, 256, 64, MELS, 20, 4000)
    every = sentences(8)
    noise = [0.1 * torch.randn(1600)] * 2
    data = search.Material("toy", every, every, noise, SynthesisMel(settings))
    chosen = {"encoder_dim": 64, "decoder_dim": 64, "r": 3, "guided": 1.0, "lr": 1e-3}
    budget = {"steps": 6, "every": 2, "batch_size": 4, "shrink": 4}
    loss, whole, watch = search.train(data, chosen, budget)
    config = loss.model.config
    assert (config.encoder, config.decoder, config.prenet) == (16, 16, 64)
    _, first, _ = search.train(data, chosen, budget, stop=lambda e: e["epoch"] == 2)
    found, wanted = (search.results(h, 2) for h in (first, whole))
    assert found["steps"] == 4
    for name in ("diagonality_curve", "mel_curve"):
        assert found[name].split() == wanted[name].split()[:2]
    seen = search.last_seen(watch, loss)
    watch.seen.clear()  # as after a finished training that was loaded
    assert np.array_equal(seen.free_mel, search.last_seen(watch, loss).free_mel)
