"""The loop: equal to the one written by hand, and to itself after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from utils.data import Batches, Split, random_flip, random_shift
from utils.device import seed_everything
from utils.training import Diverged, evaluate, fit, gradient_norms, predict, resume, total_norm

ROOT = Path(__file__).resolve().parent.parent


def toy(n=200, seed=0):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return Split(x, (x[:, 0] + x[:, 1] > 0).long())


def net(seed=0):
    seed_everything(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def test_fit_is_the_loop_of_day_2():
    batches, lr = Batches(toy(), 32, seed=3), 0.05
    by_hand, model = [], net()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for epoch in range(2):
        model.train()
        for x, y in batches.epoch(epoch):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            by_hand.append(loss.item())
    model = net()
    history = fit(model, batches, torch.optim.SGD(model.parameters(), lr), epochs=2, bar=False)
    assert history.steps["loss"] == by_hand
    assert [e["epoch"] for e in history.epochs] == [1, 2]


def test_fit_learns_and_keeps_what_it_saw():
    part, model = toy(), net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    batches = Batches(part, 20)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 8 * len(batches))
    history = fit(
        model, batches, optimizer, epochs=8, scheduler=cycle, layer_norms=True, bar=False,
        validate=lambda m: evaluate(m, part),
    )  # fmt: skip
    assert history.column("val_accuracy")[-1] > 0.95
    assert len(history.steps["loss"]) == 8 * len(batches)
    assert history.steps["lr"][0] < max(history.steps["lr"]) > history.steps["lr"][-1]
    assert {"grad_norm/0.weight", "grad_norm/3.weight"} <= set(history.steps)
    assert history.seconds > 0


def test_norms_by_hand():
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()  # d/dW = 1 everywhere, d/db = 1
    assert gradient_norms(model)["weight"].item() == pytest.approx(6**0.5)
    assert total_norm(model).item() == pytest.approx(8**0.5)


def test_clipping_bounds_the_step_and_logs_the_norm_before():
    model, part = nn.Linear(6, 2), toy(32)
    part = Split(1000 * part.x, part.y)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    history = fit(model, Batches(part, 32), optimizer, epochs=1, clip=0.5, bar=False)
    assert history.steps["grad_norm"][0] > 10
    assert (model.weight - before).norm() <= 0.5 + 1e-5


def test_a_loss_that_is_no_number_stops_the_training():
    model, part = nn.Linear(6, 2), toy()
    part = Split(100 * part.x, part.y)
    optimizer = torch.optim.SGD(model.parameters(), 1e38)
    with pytest.raises(Diverged, match="learning rate too large"):
        fit(model, Batches(part, 20), optimizer, epochs=5, bar=False)


def test_evaluate_by_hand_and_the_mode_is_put_back():
    model = nn.Sequential(nn.Dropout(0.5), nn.Identity()).train()
    part = Split(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1]))
    found = evaluate(model, part)
    right, wrong = -torch.tensor([2.0, 0.0]).log_softmax(0)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx((2 * right + wrong).item() / 3, abs=1e-6)
    assert model.training
    assert predict(model, part.x, batch_size=2).shape == (3, 2)


# --- batches -------------------------------------------------------------------


def test_batches_hold_every_item_once_in_an_order_of_their_own():
    part = Split(torch.arange(10.0), torch.arange(10))
    batches = Batches(part, 3, seed=1, drop_last=False)
    first, again, second = (torch.cat([y for _, y in batches.epoch(e)]).tolist() for e in (0, 0, 1))
    assert sorted(first) == list(range(10))
    assert first == again != second
    assert len(batches) == 4
    assert len(Batches(part, 3)) == 3 == len(list(Batches(part, 3)))
    with pytest.raises(ValueError, match="does not fit"):
        Batches(part, 11)


def test_iterating_twice_gives_two_epochs():
    batches = Batches(Split(torch.arange(8.0), torch.arange(8)), 8)
    (_, a), (_, b) = next(iter(batches)), next(iter(batches))
    assert a.tolist() != b.tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_random_shift_shifts_each_image_by_at_most_so_much(channels):
    x = torch.zeros(40, channels, 12, 12)
    x[:, :, 5:7, 5:7] = torch.rand(40, channels, 2, 2)
    shifted = random_shift(x, torch.Generator().manual_seed(0), pixels=2)
    moves = set()
    for a, b in zip(x, shifted, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(torch.roll(a, (dy, dx), (1, 2)), b)
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 12  # of 25
    again = random_shift(x, torch.Generator().manual_seed(0), pixels=2)
    assert torch.equal(shifted, again)


def test_flip_mirrors_about_half_and_nothing_else():
    x = torch.rand(400, 3, 4, 4)
    flipped = random_flip(x, torch.Generator().manual_seed(0))
    same = (flipped == x).flatten(1).all(1)
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250


# --- killed and resumed -----------------------------------------------------------

TRAIN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from torch import nn
from utils.data import Batches, Split
from utils.device import seed_everything
from utils.training import fit
checkpoint, result, wait = Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
seed_everything(0)
x = torch.randn(300, 6)
part = Split(x, (x[:, 0] > 0).long())
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
batches = Batches(part, 30, seed=5, augment=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g))
cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 6 * len(batches))
def validate(model):
    time.sleep(wait)
    return {}
history = fit(model, batches, optimizer, epochs=6, scheduler=cycle, validate=validate,
              checkpoint=checkpoint, bar=False)
torch.save({"model": model.state_dict(), "loss": history.steps["loss"]}, result)
"""


def start(folder: Path, result: str, wait: float) -> subprocess.Popen:
    arguments = [str(ROOT), str(folder / "c.pt"), str(folder / result), str(wait)]
    return subprocess.Popen([sys.executable, "-c", TRAIN, *arguments])


@pytest.mark.slow
def test_kill_minus_9_in_training_and_the_same_result_after_all(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    straight = start(whole, "result.pt", 0)
    killed = start(tmp_path, "result.pt", 0.5)
    while not (tmp_path / "c.pt").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    time.sleep(0.7)  # somewhere in a later epoch
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "result.pt").exists()
    assert straight.wait(120) == 0
    assert start(tmp_path, "result.pt", 0).wait(120) == 0
    a, b = (torch.load(f / "result.pt", weights_only=True) for f in (whole, tmp_path))
    assert a["loss"] == b["loss"]
    assert len(a["loss"]) == 60
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    assert not (tmp_path / "c.pt").exists()


def test_a_checkpoint_that_does_not_fit_names_the_file_to_delete(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    path = tmp_path / "c.pt"
    path.write_bytes(b"half a file")
    with pytest.raises(RuntimeError, match=r"Delete .*c\.pt to begin anew"):
        resume(path, model, optimizer, None)


def test_a_run_that_was_resumed_has_one_whole_record(tmp_path, monkeypatch):
    from utils.logger import RunLogger, read_table

    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    log = RunLogger(2, "study", "mnist", torch.device("cpu"), ("final_loss", "epochs"), folder=tmp_path)

    def go(stop_after):
        def validate(_):
            nonlocal stop_after
            stop_after -= 1
            if stop_after < 0:
                raise KeyboardInterrupt
            return {"accuracy": 0.5}

        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with log.run(role="headline", epochs=4) as run:
            history = fit(
                model, Batches(toy(), 50), optimizer, epochs=4, run=run, validate=validate,
                bar=False,
            )  # fmt: skip
            run.log_metrics(final_loss=history.epochs[-1]["train_loss"])
        return run

    with pytest.raises(KeyboardInterrupt):
        go(2)
    run = go(9)
    assert [r["epoch"] for r in read_table(log.train_log)] == ["1", "2", "3", "4"]
    assert [r["role"] for r in read_table(log.path)] == ["headline"]
    assert not run.checkpoint.exists()
