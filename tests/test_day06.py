"""Day 6's notebook: the diagnosis on machines that are not here, the recording, and rows of several places."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

from utils import days
from utils.logger import RunLogger, read_table, update_table

FOLDER = days.get(6).folder
CELLS = [c.source for c in nbformat.read(days.get(6).notebook, as_version=4).cells if c.cell_type == "code"]


def run_cells(scope, *beginnings):
    """Execute the cells that contain these texts, in this order, in one scope."""
    for text in beginnings:
        exec(next(c for c in CELLS if text in c), scope)
    return scope


@pytest.fixture
def diagnosis(capsys):
    scope = {"re": re, "Path": Path, "shutil": shutil, "subprocess": subprocess, "torch": torch}
    scope["engine"] = "none"
    return run_cells(scope, "NEEDED = {", "def verdict(")["verdict"]


SOUND = {"module": "580.65.06", "cards": ["nvidia0"], "driver": "580.65.06", "cuda": "13.0", "seen": ""}
BLIND = {"cards": [], "driver": ""}


@pytest.mark.parametrize(
    ("facts", "problem", "fix"),
    [
        ({"engine": "docker", "seen": "NVIDIA H200"}, "works", "nothing"),
        ({"engine": "docker", **BLIND}, "does not get it", "--gpus all"),
        ({"engine": "podman", **BLIND}, "does not get it", "--device nvidia.com/gpu=all"),
        ({"engine": "buildah-1.28.2", **BLIND}, "does not get it", "--device nvidia.com/gpu=all"),
        ({"engine": "apptainer", "driver": ""}, "does not get it", "--nv"),
        ({"engine": "apptainer", "driver": "535.104.05"}, "too old", "580"),
        ({"engine": "none", "driver": "535.104.05", "cuda": "12.8"}, "all links", "CUDA_VISIBLE_DEVICES"),
        ({"engine": "docker", **BLIND, "module": ""}, "no NVIDIA card", "another machine"),
        ({"engine": "none", **BLIND, "module": ""}, "no NVIDIA card", "--gres=gpu:1"),
        ({"engine": "none", "driver": ""}, "no driver", "install the driver"),
        ({"engine": "none", "cuda": ""}, "without CUDA", "built for CUDA"),
    ],
)
def test_each_broken_link_has_its_own_fix(diagnosis, facts, problem, fix):
    said = diagnosis(SOUND | facts)
    assert problem in said[0]
    assert fix in said[1]


@pytest.mark.parametrize(
    ("traces", "expected"),
    [
        (({"APPTAINER_NAME": "study.sif"}, None, False, "overlay"), ("apptainer", "study.sif")),
        (({}, "", False, "overlay"), ("podman", "unknown")),
        (({}, 'engine="podman-5.4.2"\nimage="localhost/study"', False, "overlay"),
         ("podman-5.4.2", "localhost/study")),
        (({"STUDY_IMAGE": "study"}, None, True, "overlay"), ("docker", "study")),
        (({"STUDY_IMAGE": "study"}, None, True, "ext4"), ("none", "none")),
    ],
)  # fmt: skip
def test_engine_and_image_are_found_by_their_traces(traces, expected):
    assert run_cells({"re": re}, "def engine_and_image(")["engine_and_image"](*traces) == expected


def test_a_command_shows_its_recorded_output_or_that_it_was_not_run(tmp_path, monkeypatch, capsys):
    text = "# of a day\n\n$ a b\nline 1\nline 2\n\n$ c\n"
    (tmp_path / "Day06_Containers_recorded.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    scope = run_cells({"re": re, "Path": Path, "shutil": shutil, "subprocess": subprocess}, "def terminal(")
    scope["terminal"]("a b", "c", "docker run x", live=False)
    said = capsys.readouterr().out
    assert "$ a b\nline 1\nline 2\n" in said
    assert "$ docker run x\n(not run here)" in said


def test_every_recorded_command_is_shown(monkeypatch):
    recorded = re.findall(r"^\$ (.+)", (FOLDER / "Day06_Containers_recorded.txt").read_text(), re.M)
    shown = []
    cells = [c for c in CELLS if "terminal(" in c and "def terminal(" not in c]
    monkeypatch.chdir(FOLDER)
    for cell in cells:
        names = {"Path": Path, "socket": socket, "shutil": SimpleNamespace(rmtree=lambda *a, **k: None)}
        exec(cell, names | {"terminal": lambda *c, live=True: shown.extend(c)})
    extra = {c for c in recorded if "cat /proc/mounts" in c}  # exercise 1 reads it
    assert set(recorded) <= set(shown) | extra
    assert len(set(recorded)) == len(recorded)


def test_a_run_in_a_container_adds_its_row_and_keeps_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    history = SimpleNamespace(
        steps={"loss": [2.0, 1.0]}, seconds=1.0, epochs=[{"val_accuracy": 0.9, "train_loss": 1.5}]
    )

    def train(part, epochs, run):
        run.log_epoch(1, train_loss=1.5)
        return None, history

    for engine in ("apptainer", "buildah-1.28.2", "none", "apptainer"):
        scope = {
            "engine": engine, "image": f"image of {engine}", "system": "Linux", "SEED": 0, "os": os,
            "FACTS": {"seen": "", "driver": "", "cuda": "13.0"}, "torch": torch, "train": train,
            "CONFIG": {"epochs": 1}, "PROFILE": "quick", "RunLogger": RunLogger,
            "device": torch.device("cpu"), "speeds": {"cpu": [1.0]}, "update_table": update_table,
            "images": SimpleNamespace(name="sample-x", train=None, test=None),
            "evaluate": lambda model, split: {"accuracy": 0.9},
        }  # fmt: skip
        log = run_cells(scope, "HERE = dict(", "with log.run(role=role")["log"]
    rows = log.rows()
    assert {r["container_engine"]: r["role"] for r in rows} == {
        "apptainer": "sweep", "buildah-1.28.2": "sweep", "none": "headline",
    }  # fmt: skip
    assert len(rows) == 3
    assert {r["image"] for r in rows} == {f"image of {e}" for e in ("apptainer", "buildah-1.28.2", "none")}
    losses = read_table(scope["LOSSES"])
    assert {r["run"] for r in losses} == {r["run"] for r in rows}
    assert {r["run"] for r in read_table(log.train_log)} <= {
        r["run"] for r in rows if r["role"] == "headline"
    }
