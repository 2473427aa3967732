"""The record: rows are replaced, never lost, whatever happens to the process that writes them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from conftest import git

from utils import days, logger
from utils.logger import LogError, RunLogger, format_cell, read_table, update_table

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
COLUMNS = ("optimizer", "lr", "final_loss", "accuracy")


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    return RunLogger(2, "study", "mnist", CPU, COLUMNS, folder=tmp_path / "day")


def one(log, seed=0, accuracy=0.9, role="sweep", **config):
    with log.run(role=role, seed=seed, **{"optimizer": "Adam", "lr": 1e-3, **config}) as run:
        run.log_epoch(1, train_loss=0.5)
        run.log_metrics(final_loss=0.25, accuracy=accuracy)
    return run


def test_a_run_is_one_row_with_the_agreed_columns(log):
    run = one(log)
    (row,) = read_table(log.path)
    own = ["final_loss", "accuracy", "optimizer", "lr"]  # results before settings
    assert list(row) == [*logger.LEADING_COLUMNS, *own, *logger.TRAILING_COLUMNS]
    assert row["run"] == run.id
    assert (row["profile"], row["dataset"], row["seed"]) == ("study", "mnist", "0")
    assert (row["optimizer"], row["lr"], row["accuracy"]) == ("Adam", "0.001", "0.9")
    assert row["device"].startswith("cpu (")
    assert log.path.name == "Day02_Training_Loop_params.csv"


def test_results_stay_before_settings(log):
    """Also when another logger writes a run with fewer settings, or makes an old headline a sweep row."""
    one(log, role="headline")
    later = RunLogger(2, "study", "mnist", CPU, (*COLUMNS, "val_loss"), folder=log.folder)
    later.demote_old_headlines()
    with later.run(lr=0.5) as run:
        run.log_metrics(val_loss=1.0)
    own = list(read_table(log.path)[0])[6:-4]
    assert own == ["val_loss", "final_loss", "accuracy", "optimizer", "lr"]


def test_the_same_configuration_replaces_its_row_in_place(log):
    one(log, seed=0)
    one(log, seed=1)
    one(log, seed=0, accuracy=0.95)
    rows = read_table(log.path)
    assert [(r["seed"], r["accuracy"]) for r in rows] == [("0", "0.95"), ("1", "0.9")]


def test_run_names_depend_on_profile_data_seed_and_configuration():
    base = logger.run_id("study", "mnist", 0, {"lr": 0.1, "a": 1})
    assert base == logger.run_id("study", "mnist", 0, {"a": 1, "lr": 0.1})
    others = {
        logger.run_id("full", "mnist", 0, {"lr": 0.1, "a": 1}),
        logger.run_id("study", "cifar10", 0, {"lr": 0.1, "a": 1}),
        logger.run_id("study", "mnist", 1, {"lr": 0.1, "a": 1}),
        logger.run_id("study", "mnist", 0, {"lr": 0.2, "a": 1}),
    }
    assert len(others | {base}) == 5


def test_a_failed_run_keeps_its_row_with_the_reason(log):
    with pytest.raises(ZeroDivisionError), log.run(optimizer="SGD", lr=9.0):
        raise ZeroDivisionError("the rate\nwas too large")
    (row,) = read_table(log.path)
    assert row["role"] == "failed"
    assert row["note"] == "ZeroDivisionError: the rate was too large"
    assert row["accuracy"] == ""


def test_stopping_a_repetition_does_not_destroy_the_finished_row(log):
    one(log)
    with pytest.raises(KeyboardInterrupt), log.run(optimizer="Adam", lr=1e-3):
        raise KeyboardInterrupt
    assert read_table(log.path)[0]["role"] == "sweep"
    with pytest.raises(KeyboardInterrupt), log.run(optimizer="Adam", lr=2e-3):
        raise KeyboardInterrupt
    assert read_table(log.path)[1]["role"] == "failed"


def test_only_headline_runs_keep_their_epochs(log):
    one(log, seed=0)
    assert not log.train_log.exists()
    head = one(log, seed=1, role="headline")
    one(log, seed=1, role="headline")
    rows = read_table(log.train_log)
    assert [(r["run"], r["epoch"], r["train_loss"]) for r in rows] == [(head.id, "1", "0.5")]


def test_only_this_sessions_headline_stays_a_headline(log, tmp_path):
    for seed in (0, 1):
        one(log, seed=seed, role="headline")
    later = RunLogger(2, "study", "mnist", CPU, COLUMNS, folder=log.folder)
    kept = [one(later, seed=s, role="headline", lr=0.5).id for s in (0, 1)]
    one(later, seed=2)
    one(later, seed=1)  # an earlier headline, run again and no headline any more
    later.demote_old_headlines()
    rows = read_table(log.path)
    assert [r["run"] for r in rows if r["role"] == "headline"] == kept
    assert [r["role"] for r in rows] == ["sweep", "sweep", "headline", "headline", "sweep"]
    assert {r["run"] for r in read_table(log.train_log)} == set(kept)
    assert later.table(role="headline")["lr"].tolist() == [0.5, 0.5]


def test_a_learners_own_column_stays(log):
    one(log)
    text = log.path.read_text().splitlines()
    log.path.write_text(text[0] + ",my thoughts\n" + text[1] + ",interesting\n")
    one(log, seed=1)
    assert [r["my thoughts"] for r in read_table(log.path)] == ["interesting", ""]


def test_a_foreign_table_is_not_overwritten(log):
    log.path.parent.mkdir()
    log.path.write_text("name,age\nAda,36\n")
    with pytest.raises(LogError, match="not a table that RunLogger wrote"):
        one(log)
    assert log.path.read_text() == "name,age\nAda,36\n"


def test_unknown_column_and_role_are_refused(log):
    with pytest.raises(ValueError, match="no such column"), log.run(optimizer="SGD") as run:
        run.log_metrics(acuracy=1.0)
    with pytest.raises(ValueError, match="role"):
        log.run(role="best")


def test_results_of_the_sample_are_never_published(tmp_path):
    with pytest.raises(LogError, match="never published"):
        RunLogger(2, "study", "sample-digits", CPU, COLUMNS, folder=tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "True"),
        (1 / 3, "0.333333"),
        (torch.tensor(2.5), "2.5"),
        ("two\nlines", "two lines"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (-0.5, "-0.5"),
        ("überraschend, 惊讶", "überraschend, 惊讶"),
    ],
)
def test_cells(value, text):
    assert format_cell(value) == text


def test_any_text_survives_the_csv(tmp_path):
    path, note = tmp_path / "t.csv", 'quotes " and, commas; 中文 ± é'
    update_table(path, [{"run": "a", "note": note}], ["run", "note"], replace="a")
    assert read_table(path)[0]["note"] == note


def test_numbers_come_back_as_numbers_and_text_as_it_stands(log):
    one(log)
    frame = log.table("lr", "accuracy")
    assert frame["accuracy"].tolist() == [0.9]
    assert log.show("lr", "note").iloc[0].tolist() == ["0.001", ""]


# --- several processes, and sudden death ---------------------------------------


def write_rows(path: str, name: str, count: int) -> None:
    for i in range(count):
        run = f"{name}-{i}"
        update_table(Path(path), [{"run": run, "value": i}], ["run", "value"], replace=run)


def test_two_notebooks_at_once_lose_no_row(tmp_path):
    path = tmp_path / "t.csv"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_rows, args=(str(path), name, 25)) for name in "abcd"]
    for w in writers:
        w.start()
    for w in writers:
        w.join(60)
        assert w.exitcode == 0
    wanted = {f"{name}-{i}" for name in "abcd" for i in range(25)}
    assert {r["run"] for r in read_table(path)} == wanted


@pytest.mark.slow
def test_kill_minus_9_while_writing_loses_nothing_that_was_finished(tmp_path):
    path = tmp_path / "t.csv"
    writer = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from utils.logger import update_table\n"
        "path, name = Path(sys.argv[2]), sys.argv[3]\n"
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True:\n"
        "    row = {'run': f'{name}-{i}', 'text': 'x' * 5000}\n"
        "    update_table(path, [row], ['run', 'text'], replace=row['run'])\n"
        "    print(row['run'], flush=True)\n"
        "    i += 1\n"
    )
    confirmed, rng = set(), random.Random(0)
    for life in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", writer, str(ROOT), str(path), f"life{life}"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2 + 0.3 * rng.random())
        process.send_signal(signal.SIGKILL)
        confirmed |= set(process.communicate()[0].split())
        rows = read_table(path)
        assert confirmed <= {r["run"] for r in rows}
        assert all(r["text"] == "x" * 5000 for r in rows)
    assert len(confirmed) > 10
    update_table(path, [{"run": "after"}], ["run", "text"], replace="after")
    assert not list(tmp_path.glob("*.tmp"))


def try_as_nobody(folder: str, queue) -> None:
    try:
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere: become nobody
        update_table(Path(folder) / "t.csv", [{"run": "a"}], ["run"], replace="a")
        queue.put("written")
    except Exception as e:
        queue.put(f"{type(e).__name__}: {e}")


def test_an_unwritable_day_folder_is_one_clear_sentence():
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "Day02_Training_Loop"
        folder.mkdir()
        update_table(folder / "t.csv", [{"run": "old"}], ["run"], replace="old")
        os.chmod(top, 0o755)
        os.chmod(folder, 0o555)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=try_as_nobody, args=(str(folder), queue))
        child.start()
        said = queue.get(timeout=60)
        child.join()
        os.chmod(folder, 0o755)
        assert said.startswith("LogError: Day02_Training_Loop/t.csv could not be written")
        assert "Make the folder writable" in said
        assert [r["run"] for r in read_table(folder / "t.csv")] == ["old"]


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    update_table(path, [{"run": "old"}], ["run"], replace="old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.os, "fsync", full)
    with pytest.raises(LogError, match="rows that it had are untouched"):
        update_table(path, [{"run": "new"}], ["run"], replace="new")
    assert [r["run"] for r in read_table(path)] == ["old"]


# --- TensorBoard, wandb, commit ---------------------------------------------------


def test_steps_and_epochs_can_be_read_back_from_tensorboard(log):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second run of a configuration replaces the curve of the first
        with log.run(optimizer="SGD", lr=0.1) as run:
            run.log_steps(10, {"loss": [3.0, 2.0, 1.0]})
            run.log_epoch(1, val_accuracy=0.5)
    events = EventAccumulator(str(run.folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 3.0), (11, 2.0), (12, 1.0)]
    assert events.Scalars("epoch/val_accuracy")[0].value == 0.5


def test_wandb_offline_gets_the_run(log, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = one(log)
    assert list(run.folder.glob("wandb/offline-run-*/*.wandb"))


def test_a_row_says_which_code_it_comes_from(repository, monkeypatch):
    day = repository / "Day08_SC_Tuning"
    clean = logger.code_commit(day)
    assert len(clean) == 10
    (repository / "table.csv").write_text("a run wrote this\n")
    (repository / "utils" / "c.py").write_text("c = 2  # Day 8 does not import this\n")
    assert logger.code_commit(day) == clean
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "a table")
    assert logger.code_commit(day) != clean
    clean = logger.code_commit(day)
    (repository / "utils" / "b.py").write_text("b = 2\n")
    assert logger.code_commit(day) == clean + "-dirty"
    monkeypatch.setattr(days, "ROOT", repository.parent)
    assert logger.code_commit(day) == ""


def test_the_code_of_a_day_is_what_it_imports(repository):
    day = repository / "Day08_SC_Tuning"
    names = [str(p.relative_to(repository)) for p in days.code_files(day)]
    assert names == [
        "Day08_SC_Tuning/Day08_SC_Tuning.ipynb", "Day08_SC_Tuning/search.py",
        "utils/__init__.py", "utils/a.py", "utils/b.py",
    ]  # fmt: skip
    before = days.code_version(day)
    notebook = day / "Day08_SC_Tuning.ipynb"
    notebook.write_text(notebook.read_text().replace('"source"', '"outputs": [1], "source"'))
    assert days.code_version(day) == before
    notebook.write_text(notebook.read_text().replace("search", "search as s"))
    assert days.code_version(day) != before
