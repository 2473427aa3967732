"""Splits, names, and the sample."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from utils import data


def test_the_sample_has_three_parts_without_an_image_in_common():
    images = data.mnist("quick")
    assert images.name == "sample-digits"
    seen = [
        {x.numpy().tobytes() for x in p.x}
        for p in (images.train, images.validation, images.test)
    ]
    assert [len(p) for p in (images.train, images.validation, images.test)] == [
        1197,
        300,
        300,
    ]
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
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.write_bytes(head + array.tobytes())


@pytest.fixture
def other_mnist(tmp_path, monkeypatch):
    """Files in MNIST's place and layout that are not MNIST; label of item i is i % 10."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, n in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((n, 28, 28), np.uint8)
        images[:, 0, :3] = np.frombuffer(
            np.arange(n, dtype=">u4").tobytes(), np.uint8
        ).reshape(n, 4)[:, 1:]
        write_idx(raw / f"{name}-images-idx3-ubyte", images)
        write_idx(
            raw / f"{name}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8)
        )
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))


def test_study_parts_are_disjoint_and_the_set_is_named_by_what_it_is(other_mnist):
    images = data.mnist("study")
    assert images.name.startswith("mnist-other-")

    def numbers(part):
        pixels = (
            (part.x[:, 0, 0, :3] * data.MNIST_STD + data.MNIST_MEAN)
            .mul(255)
            .round()
            .long()
        )
        return pixels[:, 0] * 65536 + pixels[:, 1] * 256 + pixels[:, 2]

    train, validation = numbers(images.train), numbers(images.validation)
    assert len(train) == 55_000
    assert sorted(validation.tolist()) == sorted(data.read_split("mnist_validation"))
    assert not set(train.tolist()) & set(validation.tolist())
    assert torch.equal(train % 10, images.train.y)
    assert len(images.test) == 10_000


@pytest.mark.skipif(
    not data.is_here("mnist"), reason="the real MNIST is not on this machine"
)
def test_real_mnist_is_recognised():
    assert data.identify("mnist") == "mnist"


def test_study_without_data_and_network_names_three_ways_on(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    dead = data.Remote(("http://127.0.0.1:9/x.gz",), 10, "md5:0")
    entry = data.SOURCES["mnist"]
    offline = data.Source(
        entry.name, entry.days, (dead,), entry.folder, 10, entry.prints, entry.licence
    )
    monkeypatch.setitem(data.SOURCES, "mnist", offline)
    with pytest.raises(data.DataError, match="Three ways on"):
        data.mnist("study")


def test_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="write one of quick, study, full"):
        data.mnist("fast")
