"""TensorBoard is started on real runs and read back through its HTTP interface."""

from __future__ import annotations

import pytest
import torch

from Day05_Visualization import tensorboard_capture
from utils.logger import RunLogger


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    log = RunLogger(5, "quick", "sample-shapes", torch.device("cpu"), ("lr", "accuracy"), folder=tmp_path)
    made = {}
    for lr in (0.1, 0.2):
        with log.run(lr=lr, optimizer="SGD") as run:
            run.log_steps(0, {"loss": [3 * lr, 2 * lr, lr]})
            run.log_epoch(1, val_accuracy=lr)
            run.log_metrics(accuracy=lr)
        made[run.id] = lr
    return tmp_path / "runs", made


def test_what_was_logged_is_what_the_dashboard_shows(runs):
    folder, made = runs
    with tensorboard_capture.serve(folder) as url:
        shown = tensorboard_capture.ask(url, "/data/runs")
        assert len(shown) == 2
        for name in shown:
            lr = made[name.rsplit("/", 1)[-1]]
            steps = tensorboard_capture.scalars(url, name, "loss")
            assert [s for s, _ in steps] == [0, 1, 2]
            assert [v for _, v in steps] == pytest.approx([3 * lr, 2 * lr, lr])
            assert tensorboard_capture.scalars(url, name, "hparam/accuracy")[0][1] == pytest.approx(lr)
        tags = tensorboard_capture.ask(url, "/data/plugin/scalars/tags")
        assert {t for of_run in tags.values() for t in of_run} >= {"loss", "epoch/val_accuracy"}


def test_an_empty_folder_is_said(tmp_path):
    with (
        pytest.raises(tensorboard_capture.DashboardError, match="tensorboard --logdir"),
        tensorboard_capture.serve(tmp_path, timeout=2),
    ):
        pass


def test_no_browser_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_capture, "browser", lambda: None)
    with pytest.raises(tensorboard_capture.DashboardError, match="apt-get install chromium"):
        tensorboard_capture.capture("http://127.0.0.1:1", "scalars", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.skipif(not tensorboard_capture.browser(), reason="no Chromium or Chrome on this machine")
def test_a_browser_captures_the_page(runs, tmp_path):
    from PIL import Image

    with tensorboard_capture.serve(runs[0]) as url:
        png = tensorboard_capture.capture(url, "scalars", tmp_path / "page.png", size=(1200, 700))
    picture = Image.open(png)
    assert picture.size == (1200, 700)
    assert len(picture.convert("RGB").getcolors(1_000_000)) > 50
