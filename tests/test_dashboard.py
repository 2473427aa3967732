"""TensorBoard is started on real runs and read back through its HTTP interface."""

from __future__ import annotations

import pytest
import torch

from utils import dashboard
from utils.logger import RunLogger


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    log = RunLogger(
        5,
        "quick",
        "sample-shapes",
        torch.device("cpu"),
        ("lr", "accuracy"),
        folder=tmp_path,
    )
    made = {}
    for lr in (0.1, 0.2):
        with log.run(lr=lr, optimizer="SGD") as run:
            run.steps(0, {"loss": [3 * lr, 2 * lr, lr]})
            run.epoch(1, val_accuracy=lr)
            run.result(accuracy=lr)
        made[run.id] = lr
    return tmp_path / "runs", made


def test_what_was_logged_is_what_the_dashboard_shows(runs):
    folder, made = runs
    with dashboard.serve(folder) as url:
        shown = dashboard.ask(url, "/data/runs")
        assert len(shown) == 2
        for name in shown:
            lr = made[name.rsplit("/", 1)[-1]]
            steps = dashboard.scalars(url, name, "loss")
            assert [s for s, _ in steps] == [0, 1, 2]
            assert [v for _, v in steps] == pytest.approx([3 * lr, 2 * lr, lr])
            assert dashboard.scalars(url, name, "hparam/accuracy")[0][
                1
            ] == pytest.approx(lr)
        tags = dashboard.ask(url, "/data/plugin/scalars/tags")
        assert {t for of_run in tags.values() for t in of_run} >= {
            "loss",
            "epoch/val_accuracy",
        }


def test_an_empty_folder_is_said(tmp_path):
    with (
        pytest.raises(dashboard.DashboardError, match="tensorboard --logdir"),
        dashboard.serve(tmp_path, timeout=2),
    ):
        pass


def test_no_browser_names_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "browser", lambda: None)
    with pytest.raises(dashboard.DashboardError, match="apt-get install chromium"):
        dashboard.capture("http://127.0.0.1:1", "scalars", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.skipif(
    not dashboard.browser(), reason="no Chromium or Chrome on this machine"
)
def test_a_browser_captures_the_page(runs, tmp_path):
    from PIL import Image

    with dashboard.serve(runs[0]) as url:
        png = dashboard.capture(url, "scalars", tmp_path / "page.png", size=(1200, 700))
    picture = Image.open(png)
    assert picture.size == (1200, 700)
    assert len(picture.convert("RGB").getcolors(1_000_000)) > 50
