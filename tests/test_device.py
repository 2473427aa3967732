import pytest
import torch

from Day09_Wav2Vec2 import pretrain
from utils import device as dev


def test_device_can_be_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("STUDY_DEVICE", "cpu")
    assert dev.pick_device() == torch.device("cpu")


@pytest.mark.parametrize("wish", ["tpu", "gpu", "cuda:99"])
def test_a_wish_that_cannot_be_met_is_said_and_never_replaced(monkeypatch, wish):
    monkeypatch.setenv("STUDY_DEVICE", wish)
    with pytest.raises(RuntimeError, match="STUDY_DEVICE"):
        dev.pick_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_gpu_names_what_is_there(monkeypatch):
    monkeypatch.setenv("STUDY_DEVICE", "cuda")
    with pytest.raises(RuntimeError, match=r"sees only: .*cpu.*make doctor"):
        dev.pick_device()


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_order_of_devices(monkeypatch, cuda, mps, chosen):
    monkeypatch.delenv("STUDY_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert dev.pick_device().type == chosen


def test_machine_line_names_device_versions_and_arithmetic():
    line = dev.describe_machine(torch.device("cpu"))
    assert line.startswith("cpu: ")
    assert torch.__version__ in line
    assert "autocast" in line


def test_same_seed_same_numbers():
    def draw():
        dev.seed_everything(7)
        return (torch.rand(3), __import__("numpy").random.rand(3), __import__("random").random())

    (a, b, c), (d, e, f) = draw(), draw()
    assert torch.equal(a, d)
    assert (b == e).all()
    assert c == f


def test_tf32_is_for_gpus_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    pretrain.allow_tf32(torch.device("cpu"))
    assert asked == []
    pretrain.allow_tf32(torch.device("cuda"))
    assert asked == ["high"]


def test_autocast_is_on_only_where_it_gains(monkeypatch):
    cpu = torch.device("cpu")
    for gains, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(dev, "gains_bf16", lambda _, gains=gains: gains)
        with dev.autocast(cpu):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == wanted
    with dev.autocast(cpu, enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
