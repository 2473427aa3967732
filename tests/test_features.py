"""Reading sound, features against torchaudio and librosa, streaming, augmentation; and what a bad file does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from Day14_Enhancement.train import within_band
from utils import features
from utils.features import (
    MFCC,
    SAMPLE_RATE,
    AudioError,
    LogMel,
    Spectrogram,
    mel_filterbank,
    read_audio,
    resample,
    to_level,
    to_mono,
)
from utils.speech.augment import (
    add_noise,
    change_microphone,
    change_speed,
    noise_segments,
    play_at,
    spec_augment,
    time_shift,
)


def sine(hz: float, seconds: float = 1.0, rate: int = SAMPLE_RATE) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_16", 1e-4),
        ("wav", "PCM_24", 1e-6),
        ("wav", "PCM_U8", 2e-2),
        ("wav", "FLOAT", 1e-7),
        ("wav", "DOUBLE", 1e-7),
        ("flac", "PCM_16", 1e-4),
        ("ogg", "VORBIS", 5e-2),
        ("mp3", "MPEG_LAYER_III", 5e-2),
    ],
)
def test_every_format_gives_the_same_sound(tmp_path, suffix, subtype, tolerance):
    wave = sine(440)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, wave, SAMPLE_RATE, subtype=subtype)
    read = read_audio(path)
    assert read.dtype == torch.float32
    assert read.ndim == 1
    middle = slice(2000, 14000)  # a codec may ring at the edges
    assert len(read) >= len(wave)
    assert np.abs(read.numpy()[: len(wave)][middle] - wave[middle]).max() < tolerance


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_any_rate_and_channel_count_becomes_16_khz_mono(tmp_path, rate):
    left, right = sine(300, rate=rate), sine(300, rate=rate) * 0.5
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right, left], 1), rate)
    read = read_audio(path)
    wanted = sine(300) * 2.5 / 3
    assert abs(len(read) - SAMPLE_RATE) <= 1
    assert np.abs(read.numpy()[800:15000] - wanted[800:15000]).max() < 2e-3


def level_db(wave: torch.Tensor) -> float:
    return 10 * math.log10(float(wave[2000:-2000].square().mean()) + 1e-20)


def test_resampling_keeps_what_fits_and_does_not_fold_the_rest_back():
    full = level_db(torch.from_numpy(sine(1000)))
    for hz in (100, 3000, 7000):
        kept = resample(torch.from_numpy(sine(hz, rate=48000)), 48000)
        assert abs(level_db(kept) - full) < 0.1
    for hz in (8400, 12000, 20000):
        gone = resample(torch.from_numpy(sine(hz, rate=48000)), 48000)
        assert level_db(gone) - full < -80


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(AudioError, match="is not there"):
        read_audio(tmp_path / "no.wav")


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="it is empty"):
        read_audio(tmp_path / "empty.wav")


def test_text_that_was_renamed_says_so(tmp_path):
    (tmp_path / "text.wav").write_text("these are words, not waves\n" * 20)
    with pytest.raises(AudioError, match="not a sound file"):
        read_audio(tmp_path / "text.wav")


def test_a_file_without_samples_says_so(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match="no samples"):
        read_audio(tmp_path / "none.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, bad):
    wave = sine(200)
    wave[5] = bad
    soundfile.write(tmp_path / "bad.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="1 samples that are NaN"):
        read_audio(tmp_path / "bad.wav")


def test_a_wrong_header_reads_what_is_there_or_says_so(tmp_path):
    path = tmp_path / "cut.wav"
    soundfile.write(path, sine(200, 2.0), SAMPLE_RATE, subtype="PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole[: 44 + 16000])  # the header promises four times as much
    assert len(read_audio(path)) == 8000
    no_rate = whole[:24] + (0).to_bytes(4, "little") + whole[28:]
    path.write_bytes(no_rate)
    with pytest.raises(AudioError):
        read_audio(path)


def test_dc_clipping_and_silence_give_finite_features():
    front = LogMel(40)
    for wave in (torch.full((1, 16000), 0.7), torch.ones(1, 16000), torch.zeros(1, 16000)):
        assert torch.isfinite(front(wave)).all()
    clipped = (noise(1, 16000) * 100).clamp(-1, 1)
    assert torch.isfinite(MFCC(20, deltas=2)(clipped)).all()


def test_ten_minutes_are_read_and_measured(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.tile(sine(440), 600), SAMPLE_RATE)
    wave = read_audio(tmp_path / "long.wav")
    assert LogMel(40)(wave[None]).shape == (1, 40, 60_001)


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(1, 3000),
    channels=st.integers(1, 4),
    rate=st.sampled_from([8000, 16000, 22050, 44100]),
    kind=st.sampled_from([np.int16, np.int32, np.float32, np.float64]),
)
def test_any_small_wave_becomes_one_finite_channel(samples, channels, rate, kind):
    rng = np.random.default_rng(samples)
    wave = rng.uniform(-1, 1, (channels, samples))
    if np.issubdtype(kind, np.integer):
        wave = wave * np.iinfo(kind).max
    mono = to_mono(wave.astype(kind), rate)
    assert mono.ndim == 1
    assert len(mono) == math.ceil(samples * SAMPLE_RATE / rate)
    assert torch.isfinite(mono).all()
    assert mono.abs().max() < 2
    out = LogMel(40)(mono[None])
    assert out.shape == (1, 40, 1 + len(mono) // 160)
    assert torch.isfinite(out).all()


def test_integers_are_scaled_by_their_range():
    assert to_mono(np.array([-32768, 16384], np.int16), 16000).tolist() == [-1.0, 0.5]


# --- features ----------------------------------------------------------------------------------------


def test_spectrogram_is_torchaudios():
    wave = noise(3, 5000)
    theirs = torchaudio.transforms.Spectrogram(512, 400, 160, pad_mode="constant")(wave)
    torch.testing.assert_close(Spectrogram()(wave), theirs, rtol=1e-4, atol=1e-5)


def test_log_mel_is_torchaudios():
    wave = noise(40, 16000)
    theirs = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, 512, 400, 160, f_min=20, f_max=8000, n_mels=64, pad_mode="constant"
    )(wave)
    ours = LogMel(64)(wave)
    assert (ours - torch.log(theirs + features.FLOOR)).abs().max() < 1e-4


def test_mfcc_is_torchaudios():
    wave = noise(2, 16000)
    theirs = torchaudio.transforms.MFCC(
        SAMPLE_RATE,
        40,
        log_mels=True,
        melkwargs={
            "n_fft": 512,
            "win_length": 400,
            "hop_length": 160,
            "f_min": 20,
            "n_mels": 64,
            "pad_mode": "constant",
        },
    )(wave)
    assert (MFCC(40)(wave) - theirs).abs().max() < 1e-3


@pytest.mark.slow
def test_log_mel_is_librosas():
    librosa = pytest.importorskip("librosa")
    wave = noise(16000)
    theirs = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160,
        n_mels=64, fmin=20, fmax=8000, htk=True, norm=None,
    )  # fmt: skip
    ours = LogMel(64)(wave[None])[0].numpy()
    assert np.abs(ours - np.log(theirs + features.FLOOR)).max() < 1e-3


def test_deltas_are_more_channels():
    assert MFCC(13, deltas=2)(noise(1, 8000)).shape == (1, 39, 51)


def test_a_tone_lights_the_filter_of_its_frequency():
    out = LogMel(40)(torch.from_numpy(sine(1000))[None])[0].mean(1)
    bank = mel_filterbank(40, 512, SAMPLE_RATE, 20, 8000)
    assert out.argmax() == bank[round(1000 / 8000 * 256)].argmax()


def test_the_chunk_size_changes_nothing():
    wave = noise(10, 8000)
    assert torch.equal(LogMel(40, chunk=3)(wave), LogMel(40, chunk=10)(wave))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_device_changes_nothing():
    wave = noise(4, 16000)
    there = LogMel(64).cuda()(wave.cuda()).cpu()
    assert (there - LogMel(64)(wave)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"n_mels": 300}, "see no bin"),
        ({"n_mels": 40, "f_max": 9000.0}, "f_min < f_max"),
        ({"n_mels": 40, "hop": 500}, "hop <= window"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        LogMel(**settings_)


# --- augmentation --------------------------------------------------------------------------------------


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shift_moves_each_wave_and_lets_zeros_in():
    wave = torch.arange(1.0, 9.0).expand(200, 8)
    out = time_shift(wave, gen(), 3)
    seen = set()
    for row in out.tolist():
        by = next(k for k in range(-3, 4) if row == [(i - k + 1 if 0 <= i - k < 8 else 0) for i in range(8)])
        seen.add(by)
    assert seen == set(range(-3, 4))
    assert torch.equal(time_shift(wave, gen(), 0), wave)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_has_the_wanted_ratio(snr):
    speech, disturbance = noise(6, 8000), 3 * noise(6, 8000, seed=1)
    mixed = add_noise(speech, disturbance, snr)
    added = mixed - speech
    ratio = 10 * torch.log10(speech.square().mean(1) / added.square().mean(1))
    assert (ratio - snr).abs().max() < 1e-3


def test_silence_has_no_ratio_and_stays():
    assert torch.equal(add_noise(torch.zeros(2, 100), noise(2, 100), 0.0), torch.zeros(2, 100))
    speech = noise(2, 100)
    assert torch.equal(add_noise(speech, torch.zeros(2, 100), 0.0), speech)


def test_noise_segments_are_stretches_of_the_recording():
    long = torch.arange(1000.0)
    out = noise_segments(long, 20, 100, gen())
    assert out.shape == (20, 100)
    assert torch.equal(out[:, 1:] - out[:, :-1], torch.ones(20, 99))
    with pytest.raises(ValueError, match="are fewer"):
        noise_segments(long, 1, 1001, gen())


def test_noise_ends_where_the_band_of_the_speech_ends():
    length, rate = 16_000, SAMPLE_RATE
    full = noise(2, length)
    spectrum = torch.fft.rfft(full[:1])
    spectrum[:, 5000:] = 0  # nothing above 5 kHz: one bin is one Hz
    speech = torch.cat([torch.fft.irfft(spectrum, length), full[1:]])
    out = within_band(noise(2, length, seed=1), speech)
    power = torch.fft.rfft(out).abs().square()
    hertz = torch.fft.rfftfreq(length, 1 / rate)
    high = power[:, hertz > 5010].sum(1) / power.sum(1)
    assert high[0] < 1e-9
    assert high[1] == pytest.approx(3 / 8, abs=0.03)
    low = torch.fft.rfft(noise(2, length, seed=1))[:, :4900]
    assert torch.allclose(torch.fft.rfft(out)[:, :4900], low, atol=1e-3)
    assert torch.isfinite(within_band(full, torch.zeros(2, length))).all()


def test_speed_changes_pitch_and_keeps_the_length():
    tone = torch.from_numpy(sine(1000)).expand(40, -1)
    out = change_speed(tone, gen(3), max_change=0.2, groups=8)
    assert out.shape == tone.shape
    peaks = torch.fft.rfft(out[:, :12000]).abs().argmax(1) * SAMPLE_RATE / 12000
    assert peaks.min() >= 790
    assert peaks.max() <= 1210
    assert peaks.max() - peaks.min() > 50
    assert torch.equal(change_speed(tone, gen(), 0.0), tone)


def test_one_speed_is_one_pitch():
    tone = torch.from_numpy(sine(1000))[None]
    assert torch.equal(play_at(tone, 1.0), tone)
    fast = play_at(tone, 1.25)
    assert fast.shape == tone.shape
    assert not fast[:, 12_800:].any()  # filled with zeros
    assert torch.fft.rfft(fast[:, :12_000]).abs().argmax() * 4 / 3 == pytest.approx(1250, abs=2)


def test_another_microphone_colours_and_muffles():
    white = noise(64, SAMPLE_RATE)
    assert torch.equal(change_microphone(white, gen(), 0.0, 0.0), white)

    def decibels(wave, low, high):  # hertz are the bins of one second
        power = torch.fft.rfft(wave).abs().square()
        return 10 * torch.log10(power[:, low:high].mean(1))

    dull = change_microphone(white, gen(1), 0.0, 1.0)
    kept = decibels(dull, 100, 450) - decibels(white, 100, 450)
    assert kept.abs().max() < 1e-3  # below every edge
    lost = decibels(white, 7000, 8000) - decibels(dull, 7000, 8000)
    assert lost.min() > 8
    assert lost.max() < 50.1
    coloured = change_microphone(white, gen(2), 4.0, 0.0)
    assert coloured.shape == white.shape
    apart = decibels(coloured, 50, 100) - decibels(coloured, 6000, 8000)
    assert 4 < apart.std() < 16  # the first and the third cosine turn from +1 to -1
    once, again = (change_microphone(white, gen(3)) for _ in range(2))
    assert torch.equal(once, again)


def test_one_level_for_loud_soft_and_silent():
    wave = torch.from_numpy(sine(300))[None]
    out = to_level(torch.cat([wave, 0.001 * wave, 0 * wave]), -20.0)
    rms = out.square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.tensor([0.1, 0.1, 0.0]))
    torch.testing.assert_close(out[0], out[1])


def test_spec_augment_hides_bands_within_its_limits():
    x = 1 + noise(300, 40, 100).abs()
    out = spec_augment(x, gen(), time=10, frequency=5, masks=1)
    mean = x.mean((1, 2), keepdim=True)
    hidden = out != x
    assert torch.equal(out, torch.where(hidden, mean, x))
    rows = hidden.all(2).sum(1)
    columns = hidden.all(1).sum(1)
    assert rows.max() == 5
    assert columns.max() == 10
    assert rows.min() == 0
    assert torch.equal(spec_augment(x, gen(), 0, 0), x)


def test_augmentation_repeats_with_its_generator():
    wave = noise(8, 2000)
    for change in (
        lambda g: time_shift(wave, g, 300),
        lambda g: change_speed(wave, g),
        lambda g: spec_augment(noise(4, 20, 30), g),
    ):
        assert torch.equal(change(gen(5)), change(gen(5)))
