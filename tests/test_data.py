"""Splits, names, and the sample."""

from __future__ import annotations

import dataclasses
import pickle
import struct

import numpy as np
import pytest
import torch

from utils import data, days, sources
from utils.sources import catalogue


def test_the_sample_has_three_parts_without_an_image_in_common():
    images = data.mnist("quick")
    assert images.name == "sample-digits"
    seen = [{x.numpy().tobytes() for x in p.x} for p in (images.train, images.validation, images.test)]
    assert [len(p) for p in (images.train, images.validation, images.test)] == [1197, 300, 300]
    assert not (seen[0] & seen[1])
    assert not (seen[0] & seen[2])
    assert not (seen[1] & seen[2])
    assert images.train.x.shape[1:] == (1, 28, 28)
    assert abs(images.train.x.mean()) < 0.05
    assert sorted(set(images.test.y.tolist())) == list(range(10))


def test_the_committed_split_is_5000_different_training_images():
    held_out = data.read_split("mnist_validation")
    assert len(set(held_out)) == len(held_out) == 5000
    assert min(held_out) >= 0
    assert max(held_out) < 60_000


def write_idx(path, array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.fixture
def other_mnist(tmp_path, monkeypatch):
    """Files in MNIST's place and layout that are not MNIST; label of item i is i % 10."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, n in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((n, 28, 28), np.uint8)
        images[:, 0, :3] = np.frombuffer(np.arange(n, dtype=">u4").tobytes(), np.uint8).reshape(n, 4)[:, 1:]
        write_idx(raw / f"{name}-images-idx3-ubyte", images)
        write_idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))


def test_study_parts_are_disjoint_and_the_set_is_named_by_what_it_is(other_mnist):
    images = data.mnist("study")
    assert images.name.startswith("mnist-other-")

    def numbers(part):
        pixels = (part.x[:, 0, 0, :3] * data.MNIST_STD + data.MNIST_MEAN).mul(255).round().long()
        return pixels[:, 0] * 65536 + pixels[:, 1] * 256 + pixels[:, 2]

    train, validation = numbers(images.train), numbers(images.validation)
    assert len(train) == 55_000
    assert sorted(validation.tolist()) == sorted(data.read_split("mnist_validation"))
    assert not set(train.tolist()) & set(validation.tolist())
    assert torch.equal(train % 10, images.train.y)
    assert len(images.test) == 10_000


@pytest.mark.skipif(not sources.is_here("mnist"), reason="the real MNIST is not on this machine")
def test_real_mnist_is_recognised():
    assert sources.identify("mnist") == "mnist"


def test_days_and_data_sets_name_each_other():
    wanted = {name for day in days.ALL for name in day.sets}
    assert wanted == set(catalogue.SOURCES)
    for name in catalogue.SOURCES:
        assert days.using(name)
        assert all(name in days.get(number).sets for number in days.using(name))


def test_study_without_data_and_network_names_three_ways_on(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    dead = catalogue.Remote(("http://127.0.0.1:9/x.gz",), 10, "md5:0")
    offline = dataclasses.replace(catalogue.SOURCES["mnist"], files=(dead,))
    monkeypatch.setitem(catalogue.SOURCES, "mnist", offline)
    with pytest.raises(sources.DataError, match="Three ways to continue"):
        data.mnist("study")


def test_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="write one of quick, study, full"):
        data.mnist("fast")


# --- CIFAR-10 -------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def write_cifar10(root, images=20, **extra):
    """Batch files in CIFAR-10's layout; item i of the training set is filled with i % 251."""
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for b, name in enumerate(catalogue.CIFAR10_BATCHES):
        numbers = np.arange(images) + b * images
        pixels = np.repeat((numbers % 251).astype(np.uint8)[:, None], 3072, 1)
        batch = {"data": pixels, "labels": (numbers % 10).tolist(), **extra}
        (root / name).write_bytes(pickle.dumps(batch, protocol=4))


def test_cifar10_parts_are_disjoint_and_named_by_their_pixels(tmp_path, monkeypatch):
    write_cifar10(tmp_path, images=10_000)
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    images = data.cifar10("study")
    assert images.name.startswith("cifar10-other-")
    assert [len(p) for p in (images.train, images.validation, images.test)] == [45_000, 5_000, 10_000]
    held_out = torch.tensor(data.read_split("cifar10_validation"))
    red = images.validation.x[:, 0, 5, 5] * data.CIFAR10_STD[0] + data.CIFAR10_MEAN[0]
    assert torch.equal((red * 255).round().long(), held_out % 251)
    assert torch.equal(images.validation.y, held_out % 10)
    again = write_with_protocol(tmp_path, 2)
    assert sources.identify("cifar10") == again == images.name  # packed otherwise, the same pixels


def write_with_protocol(root, protocol):
    for name in catalogue.CIFAR10_BATCHES:
        pixels, labels = catalogue.read_cifar10_batch(root / name)
        batch = {"data": pixels, "labels": labels}
        (root / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return sources.identify("cifar10", root)


def test_a_pickle_that_calls_something_is_not_opened(tmp_path, capsys):
    write_cifar10(tmp_path, extra=Evil())
    with pytest.raises(sources.DataError, match="wants to call builtins.print"):
        catalogue.read_cifar10_batch(tmp_path / catalogue.CIFAR10_BATCHES[0])
    assert "never" not in capsys.readouterr().out


def test_a_damaged_batch_names_the_mend(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / catalogue.CIFAR10_BATCHES[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(sources.DataError, match="make fetch DAY=4"):
        catalogue.read_cifar10_batch(path)


def test_the_committed_cifar10_split_is_balanced_in_size():
    held_out = data.read_split("cifar10_validation")
    assert len(set(held_out)) == len(held_out) == 5000
    assert max(held_out) < 50_000


@pytest.mark.skipif(not sources.is_here("cifar10"), reason="CIFAR-10 is not on this machine")
def test_real_cifar10_is_one_of_the_known_ones():
    assert sources.identify("cifar10") in ("cifar10", "cifar10-jpeg")
    images = data.cifar10("study")
    assert images.validation.y.bincount().tolist() == [500] * 10


def test_the_generated_shapes_are_ten_classes_that_do_not_repeat():
    images = data.cifar10("quick")
    assert images.name == "sample-shapes"
    assert images.train.y.bincount().min() > 50
    every = torch.cat([images.train.x, images.validation.x, images.test.x])
    assert len({x.numpy().tobytes() for x in every}) == len(every) == 1600


# --- LibriSpeech, Kathleen, ESC-10: known by the names of their files ----------------


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("librispeech_dev", ("librispeech-dev-clean", "librispeech-dev-clean-half")),
        ("librispeech_test", ("librispeech-test-clean", "librispeech-test-clean-30spk")),
        ("kathleen", ("kathleen",)),
        ("noise", ("esc10",)),
    ],
)
def test_the_speech_on_this_machine_is_one_of_the_known_sets(key, names):
    if not sources.is_here(key):
        pytest.skip(f"{key} is not on this machine")
    assert sources.identify(key) in names


def test_speech_sets_are_named_by_their_files(tmp_path):
    for key in ("librispeech_dev", "kathleen", "noise"):
        assert not sources.is_here(key, tmp_path)
    files = [
        "LibriSpeech/dev-clean/84/1/84-1-0000.flac",
        "kathleen/data/a_1.wav",
        "noise/001 - Dog bark/1-2-A.ogg",
    ]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    (tmp_path / "kathleen/data/a_1.txt").write_text("One text.\n")
    for key in ("librispeech_dev", "kathleen", "noise"):
        assert "-other-" in sources.identify(key, tmp_path)
        assert not sources.identify(key, tmp_path).endswith("-missing")
    assert sources.identify("librispeech_test", tmp_path).endswith("-missing")
    assert catalogue.kathleen_files(tmp_path)["a_1"][0] == "One text."
    assert list(catalogue.noise_files(tmp_path)) == ["dog_bark/1-2-A"]


def test_a_complete_librispeech_part_needs_no_known_digest(tmp_path):
    folder = tmp_path / "LibriSpeech/test-clean/1/2"
    folder.mkdir(parents=True)
    for i in range(2620):
        (folder / f"1-2-{i:04d}.flac").touch()
    assert sources.identify("librispeech_test", tmp_path) == "librispeech-test-clean"
    (folder / "1-2-0000.flac").unlink()
    assert "-other-" in sources.identify("librispeech_test", tmp_path)


def test_a_set_without_a_checksummed_archive_says_how_to_fetch_it(tmp_path):
    with pytest.raises(sources.DataError, match="git clone https://github.com/rhasspy"):
        sources.fetch("kathleen", tmp_path)
    with pytest.raises(sources.DataError, match=r"Three ways to continue(.|\n)*git clone"):
        sources.ensure_available("noise", tmp_path)
