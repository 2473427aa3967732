"""Shapes, sizes, and what the networks promise."""

import pytest
import torch
from torch import nn

from Day04_CIFAR10.fast_cnn import FastCNN, whitening_filters
from utils.models.cifar_cnn import SmallCNN
from utils.models.mnist_cnn import MnistCNN


def test_mnist_cnn():
    model = MnistCNN()
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == 29_434


@pytest.mark.parametrize("batch_norm", [True, False])
def test_small_cnn(batch_norm):
    model = SmallCNN(batch_norm, dropout=0.5)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) is batch_norm


def test_pooling_before_relu_changes_nothing():
    x = torch.randn(2, 4, 8, 8)
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    assert torch.equal(relu(pool(x)), pool(relu(x)))


def test_whitening_makes_patches_uncorrelated():
    g = torch.Generator().manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(200, 3, 36, 36, generator=g), 5, 1)
    filters = whitening_filters(smooth)
    out = nn.functional.conv2d(smooth, filters)
    flat = out.permute(1, 0, 2, 3).reshape(12, -1)
    covariance = flat @ flat.T / flat.shape[1]
    off = covariance - torch.diag(covariance.diag())
    assert off.abs().max() < 0.01
    strongest = (filters.flatten(1).norm(dim=1) ** -1).tolist()
    assert strongest == sorted(strongest, reverse=True)


def test_fast_cnn_does_not_train_its_whitening():
    model = FastCNN(torch.randn(8, 3, 32, 32), widths=(8, 8, 8))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert not model.whiten.weight.requires_grad


def test_the_bench_trains_on_small_images_and_answers_with_both_sides():
    from bench.cifar10 import SIZES, Mirrored, shrunk

    x = torch.randn(4, 3, 32, 32)
    assert shrunk(x, 32) is x
    flat = shrunk(torch.full_like(x, 2.0), min(SIZES))
    assert flat.shape == (4, 3, 24, 24)
    assert torch.allclose(flat, torch.tensor(2.0))
    model = Mirrored(FastCNN(x, widths=(8, 8, 8)))
    assert model(flat).shape == (4, 10)
    model.eval()
    assert torch.allclose(model(x), model(x.flip(3)), atol=1e-5)
    assert not torch.allclose(model.model(x), model.model(x.flip(3)), atol=1e-6)
