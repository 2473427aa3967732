"""wav2vec 2.0: lengths, loading, the reasons for a WER of 1.0, and trainings of a tiny network."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F
from transformers import Wav2Vec2ForPreTraining, Wav2Vec2Model, Wav2Vec2Processor

from Day09_Wav2Vec2 import finetune
from Day09_Wav2Vec2 import pretrain as day09_pretrain
from Day09_Wav2Vec2 import transcribe as day09_transcribe
from Day09_Wav2Vec2.pretrain import Pretraining, pretrain, small_config
from Day09_Wav2Vec2.transcribe import transcribe
from Day10_ASR_Tuning import search
from tools.__main__ import main
from utils import days
from utils.device import seed_everything
from utils.features import AudioError
from utils.logger import RunLogger, read_table
from utils.models import ctc
from utils.models import wav2vec2_ctc as w2v
from utils.models.ctc import Batch, Vocabulary
from utils.models.wav2vec2_ctc import (
    CTCDataset,
    FineTuning,
    Wav2Vec2CTC,
    fine_tune,
    load_recogniser,
    tiny_config,
)
from utils.models.weights import training_command
from utils.speech.corpora import Utterances

ROOT = Path(__file__).resolve().parent.parent
TONES = {"A": 400, "B": 900, "C": 1700, " ": 0}
RANDOM = ("hidden", "attention", "activation", "feat_proj", "final")
CALM = {"layerdrop": 0.0, **{f"{name}_dropout": 0.0 for name in RANDOM}}


def spoken(*texts: str, rate: int = 16_000, letter: float = 0.12) -> Utterances:
    """Texts in which each letter is a tone of its own: what a tiny network can learn in seconds."""
    rng = np.random.default_rng(0)
    t = np.arange(round(letter * rate)) / rate
    waves = []
    for text in texts:
        tones = [8000 * np.sin(2 * np.pi * TONES[c] * t) for c in text]
        wave = np.concatenate([*tones, np.zeros(len(t))])
        waves.append((wave + rng.normal(0, 30, len(wave))).astype(np.int16))
    return Utterances.of(waves, texts, ["x"] * len(texts), rate=rate)


def tiny(seed: int = 0, **changes) -> Wav2Vec2CTC:
    torch.manual_seed(seed)
    return load_recogniser(tiny_config(), **changes)


def logits_of(recogniser: Wav2Vec2CTC, sentences: Utterances) -> torch.Tensor:
    batch = CTCDataset(sentences, recogniser).batch(range(len(sentences)))
    with torch.no_grad():
        return recogniser.eval()(batch.x, batch.lengths)[0]


# --- lengths and the forward computation ------------------------------------------------


def test_the_small_network_has_its_size():
    model = Wav2Vec2ForPreTraining(small_config())
    size = sum(p.numel() for p in model.parameters())
    assert 3.0e6 < size < 3.2e6
    assert day09_pretrain.receptive_field(small_config()) == (400, 320)


@pytest.mark.parametrize("config", [small_config(), tiny_config()])
def test_frames_are_counted_as_the_library_counts_them(config):
    shape = {k: getattr(config, k) for k in ("conv_kernel", "conv_stride")}
    shape["conv_dim"] = (4,) * len(config.conv_kernel)
    model = Wav2Vec2Model(tiny_config(**shape))
    least, hop = day09_pretrain.receptive_field(config)
    for samples in (least, least + hop - 1, least + hop, 16_000, 33_333):
        wanted = int(model._get_feat_extract_output_lengths(torch.tensor(samples)))
        assert w2v.num_frames(samples, config) == wanted
        made = model.feature_extractor(torch.zeros(1, samples)).shape[2]
        assert made == wanted
    assert w2v.num_frames(least, config) == 1
    assert w2v.num_frames(least - 1, config) == 0
    many = torch.tensor([5, least, 16_000])
    assert w2v.num_frames(many, config).tolist() == [
        0, 1, w2v.num_frames(16_000, config),
    ]  # fmt: skip


def test_the_recogniser_computes_what_the_library_computes():
    recogniser, some = tiny(), spoken("AB", "CAB A")
    batch = CTCDataset(some, recogniser).batch([0, 1])
    inside = torch.arange(batch.x.shape[1]) < batch.lengths[:, None]
    with torch.no_grad():
        logits, frames = recogniser(batch.x, batch.lengths)
        wanted = recogniser.model(batch.x, attention_mask=inside.long()).logits
        loss = recogniser.model(
            batch.x, inside.long(), labels=batch.labels.masked_fill(batch.labels == 0, -100)
        ).loss  # fmt: skip
    torch.testing.assert_close(logits, wanted)
    ours = w2v.ctc_losses(logits, frames, batch, 0)
    assert (ours * batch.label_lengths).sum().item() == pytest.approx(loss.item())


def test_under_autocast_only_the_convolutions_leave_float32():
    recogniser, some = tiny().eval(), spoken("AB", "CAB A")
    batch = CTCDataset(some, recogniser).batch([0, 1])
    seen = {}
    body = recogniser.model.wav2vec2
    for name, part in (
        ("conv", body.feature_extractor.conv_layers[0].conv),
        ("keys", body.encoder.layers[0].attention.k_proj),
    ):
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = recogniser(batch.x, batch.lengths)
    assert seen == {"conv": torch.bfloat16, "keys": torch.float32}
    assert logits.dtype == torch.float32
    plain = logits_of(recogniser, some)
    assert (logits - plain).norm() < 0.05 * plain.norm()


@pytest.mark.parametrize("seed", range(5))
def test_spec_augment_masks_the_frames_that_the_library_masks(seed):
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

    config = tiny_config(mask_time_prob=(0.05, 0.3, 0.65)[seed % 3])
    counts = torch.tensor([60, 33, 12, 9])  # the last is shorter than a span
    inside = torch.arange(60) < counts[:, None]
    seed_everything(seed)
    wanted = _compute_mask_indices((4, 60), config.mask_time_prob, 10, inside, 2)
    seed_everything(seed)
    masks = w2v.draw_time_masks(counts.tolist(), 60, config)
    assert torch.equal(masks & inside, torch.from_numpy(wanted) & inside)


def test_padding_and_the_cache_change_nothing():
    recogniser, some = tiny(), spoken("AB", "CAB A")
    together = logits_of(recogniser, some)
    alone = logits_of(recogniser, some.take([0]))
    torch.testing.assert_close(together[:1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)
    kept = CTCDataset(some, recogniser, cached=True)
    batch = kept.batch([0, 1])
    assert batch.x.ndim == 3
    with torch.no_grad():
        torch.testing.assert_close(recogniser(batch.x, batch.lengths)[0], together)


# --- loading ------------------------------------------------------------------------------


def test_a_folder_saved_and_loaded_again_gives_the_same_logits(tmp_path):
    letters = Vocabulary(("<pad>", "<unk>", "|", "A", "B", "C"))
    some = spoken("AB", "CAB A")
    torch.manual_seed(0)
    recogniser = load_recogniser(tiny_config(letters), letters)
    w2v.save_folder(recogniser, tmp_path / "fine_tuned_model")
    again = load_recogniser(tmp_path / "fine_tuned_model")  # keeps its own vocabulary
    assert again.vocabulary == letters
    assert torch.equal(logits_of(again, some), logits_of(recogniser, some))
    processor = Wav2Vec2Processor.from_pretrained(tmp_path / "fine_tuned_model")
    path = [3, 3, 0, 3, 4, 2, 5]
    assert processor.tokenizer.decode(path) == letters.decode(ctc.collapse(path, 0))
    assert processor.tokenizer("AB C").input_ids == letters.encode("AB C")
    assert processor.tokenizer.pad_token_id == 0


def test_small_weights_saved_and_loaded_again(tmp_path):
    some = spoken("AB", "CAB A")
    recogniser = tiny()
    day09_pretrain.save_wav2vec2(tmp_path / "a.safetensors", recogniser, {"seed": 0}, half=False)
    again = load_recogniser(tmp_path / "a.safetensors", Vocabulary())
    assert torch.equal(logits_of(again, some), logits_of(recogniser, some))
    day09_pretrain.save_wav2vec2(tmp_path / "b.safetensors", recogniser, {})
    close = load_recogniser(tmp_path / "b.safetensors", mask_time_prob=0.3)
    assert close.config.mask_time_prob == 0.3
    torch.testing.assert_close(logits_of(close, some), logits_of(recogniser, some), atol=0.02, rtol=0.02)
    day09_pretrain.save_wav2vec2(tmp_path / "c.safetensors", tiny(mask_time_prob=0.0), {})
    masked = load_recogniser(tmp_path / "c.safetensors", mask_time_prob=0.3)
    assert masked.model.wav2vec2.masked_spec_embed.shape == (32,)  # a new one


def test_a_pretrained_body_gets_a_new_head(tmp_path):
    model = Wav2Vec2ForPreTraining(tiny_config()).eval()
    day09_pretrain.save_wav2vec2(tmp_path / "p.safetensors", model, {"steps": 3}, half=False)
    letters = Vocabulary(("<pad>", "|", "A", "B"))
    recogniser = load_recogniser(tmp_path / "p.safetensors", letters)
    assert recogniser.model.lm_head.out_features == 4
    for name, weight in recogniser.model.wav2vec2.state_dict().items():
        assert torch.equal(weight, model.wav2vec2.state_dict()[name])
    again, card = day09_pretrain.load_pretraining(tmp_path / "p.safetensors")
    assert card["steps"] == 3
    assert torch.equal(again.quantizer.codevectors, model.quantizer.codevectors)
    other = Wav2Vec2ForPreTraining(tiny_config(num_hidden_layers=1))
    day09_pretrain.save_wav2vec2(tmp_path / "o.safetensors", other, {})
    card = json.loads((tmp_path / "o.json").read_text())
    card["config"]["num_hidden_layers"] = 2
    (tmp_path / "o.json").write_text(json.dumps(card))
    with pytest.raises(RuntimeError, match="of another network"):
        load_recogniser(tmp_path / "o.safetensors")


def test_a_model_like_wav2vec2_base_on_disk_is_loaded(tmp_path):
    """Group norm, no stable layer norm, no head: the hub's layout of a pretrained model."""
    config = tiny_config(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
    Wav2Vec2Model(config).save_pretrained(tmp_path / "base")
    recogniser = load_recogniser(str(tmp_path / "base"))
    assert len(recogniser.vocabulary) == 30
    some = spoken("AB", "CAB A")
    kept = CTCDataset(some, recogniser, cached=True).batch([0])
    with torch.no_grad():
        cached = recogniser(kept.x, kept.lengths)[0]
    torch.testing.assert_close(cached, logits_of(recogniser, some.take([0])))


def test_weights_that_are_not_there_name_the_ways_on(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="python -m Day09_Wav2Vec2.pretrain"):
        load_recogniser(tmp_path / "none.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"Three options(.|\n)*hf download facebook/"):
        load_recogniser("facebook/wav2vec2-base-never-fetched")


# --- the reasons for a WER of 1.0 ------------------------------------------------------------


def test_reason_1_the_vocabularys_case():
    """A tokenizer that knows capitals alone makes of small letters one unknown after another."""
    processor = w2v.make_processor(Vocabulary())
    unknown = Vocabulary().symbols.index("<unk>")
    assert processor.tokenizer("cab").input_ids == [unknown] * 3
    labels, lengths = ctc.encode_texts(["cab"], Vocabulary())
    assert Vocabulary().decode(labels[0, : lengths[0]].tolist()) == "CAB"


def test_reason_2_pad_is_the_blank():
    letters = Vocabulary(("|", "A", "B", "<pad>"))
    assert letters.blank == 3
    assert load_recogniser(tiny_config(), letters).config.pad_token_id == 3
    model = tiny().model
    with pytest.raises(ValueError, match="outputs, the vocabulary 4 symbols"):
        Wav2Vec2CTC(model, letters)
    model.config.pad_token_id = 5
    with pytest.raises(ValueError, match="set pad_token_id"):
        Wav2Vec2CTC(model, Vocabulary())


def test_reason_3_the_sampling_rate():
    recogniser = tiny()
    with pytest.raises(ValueError, match="8,000 Hz.*resample"):
        CTCDataset(spoken("AB", rate=8000), recogniser)


def test_reason_4_normalised_input():
    """Raw int16 values and a whisper become the same input."""
    loud = spoken("AB")
    soft = Utterances.of([loud.wave(0) // 8], ["AB"], ["x"])
    batches = [CTCDataset(s, tiny()).batch([0]) for s in (loud, soft)]
    assert batches[0].x.std().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(batches[0].x, batches[1].x, atol=0.01, rtol=0.01)


def test_reasons_5_and_7_an_utterance_too_short_for_its_text():
    letters = Vocabulary()
    batch = Batch(
        torch.zeros(2, 3, 1), torch.tensor([3, 3]), torch.tensor([[4, 4, 5], [4, 0, 0]]),
        torch.tensor([3, 1]),
    )  # fmt: skip
    for zero_infinity, finite in ((False, False), (True, True)):
        logits = torch.randn(2, 3, len(letters), requires_grad=True)
        losses = w2v.ctc_losses(logits, batch.lengths, batch, 0, zero_infinity)
        losses.sum().backward()
        assert bool(torch.isfinite(losses).all()) is finite
        assert bool(torch.isfinite(logits.grad).all()) is finite
    assert losses[0] == 0  # CAB needs 3 frames, AAB 4: it teaches nothing
    some = spoken("A", "B")
    some.texts[1] = "B" * 40
    recogniser = tiny()
    assert w2v.has_enough_frames(some, recogniser.config, letters).tolist() == [True, False]
    with pytest.raises(ValueError, match="1 of 2 utterances are too short, e.g. 1"):
        fine_tune(recogniser, some, some.take([0]), FineTuning(epochs=1))
    assert len(CTCDataset(some, recogniser)) == 2  # to listen to, it is long enough


# --- odd sounds and texts ---------------------------------------------------------------------


def test_any_rate_and_kind_of_sound_is_transcribed(tmp_path):
    recogniser, some = tiny(3), spoken("ABC")
    text = transcribe(recogniser, some.wave(0))
    soundfile.write(tmp_path / "a.wav", some.wave(0), 16_000)
    assert transcribe(recogniser, tmp_path / "a.wav") == text
    assert transcribe(recogniser, some.sound(0)) == text
    twice = torch.stack([some.sound(0)] * 2)
    assert transcribe(recogniser, twice) == text
    from utils.features import resample

    at_48 = resample(some.sound(0), 16_000, 48_000)
    back = resample(at_48, 48_000, 16_000)
    assert transcribe(recogniser, at_48, 48_000) == transcribe(recogniser, back)


def test_a_sound_shorter_than_a_frame_is_refused_and_a_long_one_cut(monkeypatch):
    recogniser = tiny()
    with pytest.raises(AudioError, match="shorter than one frame"):
        transcribe(recogniser, torch.zeros(100))
    short = Utterances.of([np.zeros(100, np.int16)], ["A"], ["x"])
    with pytest.raises(ValueError, match="too short, e.g. 0: 0 frames for 'A'"):
        CTCDataset(short, recogniser)
    lengths = []
    forward = recogniser.forward
    monkeypatch.setattr(recogniser, "forward", lambda x, n: lengths.append(x.shape[1]) or forward(x, n))
    wave = torch.randn(40 * 16_000, generator=torch.Generator().manual_seed(0))
    wave[24 * 16_000 : 24 * 16_000 + 4800] = 0
    assert isinstance(transcribe(recogniser, wave), str)
    assert len(lengths) == 2
    assert sum(lengths) == 40 * 16_000
    assert 24 * 16_000 < lengths[0] < 25 * 16_000


def test_an_empty_transcript_is_learned_as_blanks():
    recogniser = tiny()
    some = Utterances.of([spoken("AB").wave(0)] * 2, ["", "AB"], ["x", "y"])
    batch = CTCDataset(some, recogniser, cached=True, strict=True).batch([0])
    logits, frames = recogniser(batch.x, batch.lengths)
    blanks = -logits.log_softmax(-1)[0, :, 0].sum()
    loss = w2v.ctc_losses(logits, frames, batch, 0)
    torch.testing.assert_close(loss[0], blanks)
    assert w2v.evaluate_ctc(recogniser, some).errors.words == 1
    with pytest.raises(ValueError, match="write numbers as words"):
        CTCDataset(Utterances.of([some.wave(0)], ["AB 7"], ["x"]), recogniser, strict=True)


def test_letters_are_found_where_they_were_said():
    letters = Vocabulary(("<pad>", "|", "A", "B"))
    recogniser = load_recogniser(tiny_config(), letters)
    path = [0, 2, 2, 0, 2, 1, 0, 3]
    log_probs = (F.one_hot(torch.tensor(path), 4) * 9.0).log_softmax(-1)
    found = day09_transcribe.letter_times(log_probs, "aa b", recogniser)
    assert [f[0] for f in found] == ["A", "A", "|", "B"]
    times = [round(100 * x) for f in found for x in f[1:]]
    assert times == [1, 3, 4, 5, 5, 6, 7, 8]
    assert day09_transcribe.letter_times(log_probs, "", recogniser) == []


# --- fine-tuning ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_clips_are_learned_by_heart():
    some = spoken("AB CA", "CB", letter=0.06)
    recogniser = tiny(mask_time_prob=0.0, **CALM)
    settings = FineTuning(epochs=300, batch_size=2, lr=5e-3, frozen=False, scheduler="constant")
    history = fine_tune(recogniser, some, some, settings, bar=False, stop=lambda e: e["val_wer"] == 0)
    last = history.epochs[-1]
    assert last["val_wer"] == last["val_cer"] == 0
    assert last["decoded"] == "AB CA → AB CA / CB → CB"
    assert history.epochs[0]["val_wer"] == 1
    assert last["train_loss"] < history.epochs[0]["train_loss"] / 4
    assert transcribe(recogniser, some.wave(0)) == "AB CA"
    found = w2v.evaluate_ctc(recogniser, some)
    assert found.outputs == some.texts
    assert 0 < found.blanks < 1
    assert transcribe(recogniser, some.wave(0), beam=8) == "AB CA"
    assert transcribe(recogniser, some.wave(0), words=["AB", "CA"]) == "AB CA"
    assert set(transcribe(recogniser, some.wave(0), words=["CB"]).split()) <= {"CB"}


def weights(recogniser):
    return torch.cat([p.detach().flatten() for p in recogniser.parameters()])


SOME = FineTuning(epochs=3, batch_size=2, lr=1e-3, encoder_lr=3e-4)


def trained(settings=SOME, changes=CALM, **how):
    some = spoken("AB CA", "CB", "B", "ACCA", "BBC")
    recogniser = tiny(**changes)
    history = fine_tune(recogniser, some, some, settings, bar=False, **how)
    return recogniser, history


def test_a_cached_encoder_trains_the_same_network():
    plain, history = trained()
    kept, history_kept = trained(replace(SOME, cached=True))
    torch.testing.assert_close(weights(kept), weights(plain), atol=1e-5, rtol=1e-4)
    assert history_kept.column("train_loss") == pytest.approx(history.column("train_loss"), rel=1e-4)
    start = tiny(**CALM)
    before = start.model.wav2vec2.feature_extractor.state_dict()
    for name, weight in plain.model.wav2vec2.feature_extractor.state_dict().items():
        assert torch.equal(weight, before[name])  # frozen
    free, _ = trained(replace(SOME, frozen=False))
    moved = free.model.wav2vec2.feature_extractor.state_dict()
    assert any(not torch.equal(moved[name], w) for name, w in before.items())
    with pytest.raises(ValueError, match="only the output of frozen"):
        FineTuning(frozen=False, cached=True)
    with pytest.raises(ValueError, match="write one of AdamW"):
        FineTuning(optimizer="Adagrad")


def test_trainings_share_what_the_convolutions_made():
    some = spoken("AB CA", "CB", "B", "ACCA", "BBC")
    kept = CTCDataset(some, tiny(**CALM), cached=True, strict=True)
    shared, settings = tiny(**CALM), replace(SOME, cached=True)
    history = fine_tune(shared, kept, kept, settings, bar=False)
    alone, _ = trained(settings)
    assert torch.equal(weights(shared), weights(alone))
    assert history.epochs[-1]["decoded"].count("→") == 3
    with pytest.raises(ValueError, match="only the output of frozen"):
        fine_tune(shared, kept, kept, replace(SOME, frozen=False), bar=False)


def test_day_10_begins_every_training_from_the_same_weights():
    torch.rand(3)
    one = search.build("quick", torch.device("cpu"))
    torch.rand(5)
    assert torch.equal(weights(search.build("quick", torch.device("cpu"))), weights(one))


def test_a_training_that_was_stopped_goes_on_as_it_would_have(tmp_path):
    """With dropout and masks on: each epoch's random numbers come from its own seed."""
    whole, history = trained(changes={})
    killed = []

    def kill(entry):
        killed.append(entry["epoch"])
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(changes={}, checkpoint=tmp_path / "c.pt", stop=kill)
    assert (tmp_path / "c.pt").exists()
    torch.rand(100)
    again, rest = trained(changes={}, checkpoint=tmp_path / "c.pt")
    assert torch.equal(weights(again), weights(whole))
    assert [e["train_loss"] for e in rest.epochs] == history.column("train_loss")
    assert rest.steps == history.steps
    assert not (tmp_path / "c.pt").exists()


def test_the_two_learning_rates_and_the_schedules():
    for name in w2v.SCHEDULES:
        factors = [w2v.schedule_factor(name, step, 100) for step in range(100)]
        assert factors[0] == pytest.approx(0.1, rel=0.01)
        assert max(factors) > 0.88
        assert all(b > a for a, b in itertools.pairwise(factors[:10]))
    tri = [w2v.schedule_factor("tri-stage", step, 100) for step in range(101)]
    assert tri[10] == tri[49] == 1
    assert tri[100] == pytest.approx(0.05)
    recogniser, history = trained(replace(SOME, encoder_lr=0.0))
    assert len(history.steps["lr"]) == 9
    before, after = tiny(**CALM).model, recogniser.model
    assert not torch.equal(after.lm_head.weight, before.lm_head.weight)
    for name, weight in before.wav2vec2.state_dict().items():
        assert torch.equal(after.wav2vec2.state_dict()[name], weight)


def test_each_epoch_is_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    log = RunLogger(9, "quick", "sample-tones", torch.device("cpu"), ["final_loss"])
    with log.run(role="headline", lr=1) as run:
        _, history = trained(run=run)
        run.log_metrics(final_loss=history.epochs[-1]["train_loss"])
    rows = read_table(log.train_log)
    assert len(rows) == 3
    for row in rows:
        assert row["decoded"].count("→") == 3
        for name in ("train_loss", "val_loss", "val_wer", "val_cer", "val_blanks"):
            assert math.isfinite(float(row[name]))


# --- pretraining ------------------------------------------------------------------------------------

FEW = Pretraining(steps=60, batch_size=4, crop=0.4, lr=5e-3, every=20, mixed=False)


def pretrained(settings=FEW, changes=(), **how):
    sound = spoken("ABCCA BACA", "CABBA ABC").joined()
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(tiny_config(mask_time_length=4, **dict(changes)))
    return model, pretrain(model, sound, settings, bar=False, **how)


@pytest.mark.slow
def test_pretraining_lowers_its_loss_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    model, history = pretrained()
    assert [e["step"] for e in history.epochs] == [20, 40, 60]
    assert history.epochs[-1]["contrastive"] < history.epochs[0]["contrastive"] - 0.1
    assert history.epochs[-1]["contrastive"] < math.log(11) - 0.4  # chance, 10 negatives
    assert all(1 <= e["perplexity"] <= 16 for e in history.epochs)
    assert len(history.steps["loss"]) == 60
    _, begun = pretrained(stop=lambda entry: True)  # the check of a card
    assert begun.steps["loss"] == history.steps["loss"][:20]
    real, calls = day09_pretrain.save_checkpoint, []

    def killed(*args):
        real(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(day09_pretrain, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrained(checkpoint=tmp_path / "p.pt")
    again, rest = pretrained(checkpoint=tmp_path / "p.pt")
    assert rest.steps == history.steps
    assert torch.equal(weights(again), weights(model))
    waves = torch.randn(2, 3200)
    codes = day09_pretrain.code_numbers(model, waves)
    assert codes.shape == (2, w2v.num_frames(3200, model.config), 2)
    assert codes.max() < 8
    with pytest.raises(ValueError, match="less than one crop"):
        pretrain(model, torch.zeros(100, dtype=torch.int16), FEW)


@pytest.fixture
def no_chance_in_the_codes(monkeypatch):
    """The likeliest code instead of Gumbel noise."""

    def likeliest(logits, tau=1.0, hard=False, dim=-1):
        soft = (logits / tau).softmax(dim)
        return F.one_hot(soft.argmax(dim), soft.shape[dim]) - soft.detach() + soft

    monkeypatch.setattr(F, "gumbel_softmax", likeliest)


LAUNCHED = """
    import json, sys
    from pathlib import Path
    sys.path[:0] = [{root!r}, {tests!r}]
    import pytest, torch
    torch.set_num_threads(1)
    import test_wav2vec2 as t
    t.no_chance_in_the_codes.__wrapped__(pytest.MonkeyPatch())
    model, history = t.pretrained(changes=t.PLAIN_CODES)
    process = t.day09_pretrain.make_accelerator()
    result = dict(ranks=process.num_processes, loss=history.steps["loss"],
                  weights=t.weights(model)[::101].tolist())
    Path(sys.argv[1], f"{{process.process_index}}.json").write_text(json.dumps(result))
    weights = Path(sys.argv[1]) / "small.safetensors"
    quick = t.replace(t.day09_pretrain.PRETRAINING["quick"], steps=2)
    t.day09_pretrain.PRETRAINING["quick"] = quick
    t.day09_pretrain.pretrain_small("quick", weights)
    assert weights.exists()
"""
PLAIN_CODES = {**CALM, "diversity_loss_weight": 0.0}
"""No chance in a step but for the codes; diversity counts the codes of one process's crops."""


@pytest.mark.processes
def test_two_processes_pretrain_what_one_does(tmp_path, no_chance_in_the_codes):
    """`accelerate launch --cpu` starts one of the two, as it does under mpirun: so it is called twice."""
    script = tmp_path / "launched.py"
    script.write_text(textwrap.dedent(LAUNCHED).format(root=str(ROOT), tests=str(ROOT / "tests")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--num_processes", "2", "--cpu", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", port, str(script), str(tmp_path)]
    crew = []
    for rank in ("0", "1"):
        env = {**os.environ, "STUDY_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        env |= {"STUDY_RUNS": str(tmp_path), "RANK": rank, "LOCAL_RANK": rank}
        env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        with open(tmp_path / f"{rank}.log", "w") as log:
            crew.append(subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log))
    try:
        codes = [process.wait(180) for process in crew]
    finally:
        for process in crew:
            process.kill()
    assert codes == [0, 0], (tmp_path / "0.log").read_text()[-2000:]
    model, history = pretrained(changes=PLAIN_CODES)
    for rank in (0, 1):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["ranks"] == 2
        assert result["loss"] == pytest.approx(history.steps["loss"], rel=1e-3)
        np.testing.assert_allclose(result["weights"], weights(model)[::101].numpy(), atol=1e-3)
    table = tmp_path / "quick" / days.get(9).name / f"{days.get(9).name}_params.csv"
    assert len(read_table(table)) == 1  # the main process alone writes
    assert not list(tmp_path.rglob("*.pt"))


def test_negatives_are_other_hidden_frames_of_the_same_crop():
    config = tiny_config()
    torch.manual_seed(0)
    mask, negatives = day09_pretrain.draw_masks(3, 50, config, Pretraining())
    assert mask.shape == (3, 50)
    assert 0.3 < mask.float().mean() < 0.7
    for row in mask.int().tolist():  # spans of ten, alone or grown together
        runs = "".join(map(str, row)).split("0")
        assert min(len(run) for run in runs if run) >= 10
    assert negatives.shape == (3, 50, config.num_negatives)
    for b in range(3):
        for t in torch.nonzero(mask[b]).flatten().tolist():
            drawn = negatives[b, t]
            assert ((drawn // 50) == b).all()
            assert mask[b][drawn % 50].all()
            assert (drawn % 50 != t).all()
    drawn = torch.cat([day09_pretrain.draw_masks(64, 50, config, Pretraining())[1][:, 20]
                       for _ in range(40)]) % 50  # fmt: skip
    counts = drawn.flatten().bincount(minlength=50)
    assert counts[20] == 0
    assert (counts[torch.arange(50) != 20] > 0).all()  # any other may be drawn


@pytest.mark.slow
def test_the_command_pretrains_and_the_sweep_fine_tunes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    weights_file = tmp_path / "small.safetensors"
    few = replace(day09_pretrain.PRETRAINING["quick"], steps=4)
    monkeypatch.setitem(day09_pretrain.PRETRAINING, "quick", few)
    jobs = {"": (day09_pretrain.weights_path, day09_pretrain.pretrain_small)}
    command = ["--profile", "quick", "--output", str(weights_file)]
    assert training_command(jobs, command) == 0
    assert "perplexity" in capsys.readouterr().out
    card = json.loads(weights_file.with_suffix(".json").read_text())
    assert set(card["hours"]) == {"sample-sentences", "sample-words"}
    assert card["curve"][-1]["step"] == 4
    assert load_recogniser(weights_file).model.lm_head.out_features == 30
    table = tmp_path / "quick" / days.get(9).name / f"{days.get(9).name}_params.csv"
    (row,) = read_table(table)
    assert float(row["perplexity"]) >= 1
    assert main(["sweep", "--day", "10", "--profile", "quick", "--trials", "1"]) == 0
    table = tmp_path / "quick" / days.get(10).name / f"{days.get(10).name}_params.csv"
    (row,) = read_table(table)
    assert row["dataset"] == "sample-words-connected"
    assert row["state"] == "complete"
    assert float(row["val_wer"]) >= 0
    assert len(row["val_curve"].split()) == len(row["loss_curve"].split()) == 2


def test_the_benchmark_trains_the_same_network_on_both_sides(monkeypatch):
    from bench import asr as bench

    monkeypatch.setattr(bench, "small_config", tiny_config)
    some = spoken("AB", "CAB A", "BA", "A BA C")
    found = bench.claims(torch.device("cpu"), some, least=0.01)
    assert len(found) >= 3
    assert all(c.stock > 0 and c.ours > 0 for c in found)
    plain = bench.Fixture(torch.device("cpu"), some, cached=False)
    kept = bench.Fixture(torch.device("cpu"), some, cached=True)
    for side in (plain, kept):
        side.recogniser.eval()  # without dropout and masks both compute the same step
        side.step([0, 1, 2, 3])
    for a, b in zip(plain.recogniser.parameters(), kept.recogniser.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_the_grid_and_the_long_training_leave_rows_once(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    path = tmp_path / "long.safetensors"
    finetune.run_worker("quick", trials=1)
    finetune.train_words("quick", path)
    table = days.get(9).output("quick") / f"{days.get(9).name}_params.csv"
    cell, long = read_table(table)
    assert (cell["role"], cell["init"], long["init"]) == (
        "baseline", "random", "pretrained",
    )  # fmt: skip
    assert cell["run"] != long["run"]
    assert cell["wer"]
    assert not long["wer"]  # the notebook tests it
    on = finetune.recogniser_path("quick", on=1)
    finetune.go_on("quick", on, seed=1)  # from the tiny network's layout
    again = finetune.recogniser_path("quick", on=2)
    finetune.go_on("quick", again, seed=2)
    assert [(r["init"], r["lr"]) for r in read_table(table)[2:]] == [
        ("connected words", "0.001"), ("connected words, mean", "0.0001"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="seeds .*not 7"):
        finetune.go_on("quick", tmp_path / "no.safetensors", seed=7)
    for kept in (finetune.shipped("quick", "random"), path, on, again):
        assert load_recogniser(kept).vocabulary.symbols == ctc.Vocabulary().symbols
    finished = cell["finished"]
    finetune.run_worker("quick", trials=1)
    assert read_table(table)[0]["finished"] == finished


def test_sentences_are_learned_with_frozen_convolutions_the_shortest_first(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    heard = []
    monkeypatch.setattr(
        finetune, "fine_tune", lambda r, lessons, *a, **k: (
            heard.extend(lessons), w2v.fine_tune(r, lessons, *a, **k))[1]
    )  # fmt: skip
    path = finetune.sentences_path("quick")
    finetune.train_sentences("quick", path)
    short, long = heard
    assert (len(short), len(long)) == (2, 8)
    assert max(short.lengths) <= sorted(long.lengths)[2]
    (row,) = read_table(days.get(9).output("quick") / f"{days.get(9).name}_params.csv")
    assert (row["task"], row["init"], row["speakers"], row["wer"]) == (
        "sentences", "pretrained, full", str(len(set(long.speakers))), "",
    )  # fmt: skip
    # the convolutions are those that it began with
    trained, begun = w2v.load_recogniser(path), finetune.build("quick", "random")
    pairs = zip(trained.model.parameters(), begun.model.parameters(), strict=True)
    same = [torch.equal(a, b.half().float()) for a, b in pairs]
    names = [name for name, _ in trained.model.named_parameters()]
    convolutions = [n for n in names if "feature_extractor" in n]
    kept = [n for n, s in zip(names, same, strict=True) if s]
    # a bias of the keys moves all scores of a query alike: its gradient is 0 but for rounding
    assert convolutions == [n for n in kept if not n.endswith("k_proj.bias")]


def test_the_mean_of_two_networks_is_that_of_their_weights():
    torch.manual_seed(0)
    one, other = (w2v.load_recogniser(w2v.tiny_config()) for _ in range(2))
    mean = day09_pretrain.average_weights([one, other])
    wave = torch.randn(1, 4000), torch.tensor([4000])
    assert not torch.equal(one(*wave)[0], mean(*wave)[0])
    states = (r.state_dict() for r in (one, other, mean))
    for a, b, c in zip(*(s.values() for s in states), strict=True):
        assert torch.allclose((a + b) / 2, c)
    assert torch.equal(day09_pretrain.average_weights([one])(*wave)[0], one(*wave)[0])
    assert mean.vocabulary.symbols == one.vocabulary.symbols
