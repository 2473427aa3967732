"""The commands that a reader types."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
from pathlib import Path

import nbformat
import pytest

from bench.claims import Claim, bench
from tools import __main__, ask, doctor
from tools import run as runner
from utils import days

ROOT = Path(__file__).resolve().parent.parent


def notebook(folder: Path, day: days.Day, *cells: str) -> None:
    (folder / day.name).mkdir(parents=True)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "p", "language": "python"}
    nbformat.write(nb, folder / day.name / f"{day.name}.ipynb")


@pytest.mark.slow
def test_one_failing_day_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    notebook(tmp_path, days.get(1), 'PROFILE = "study"', "1 / 0")
    notebook(tmp_path, days.get(2), 'PROFILE = "study"', 'print(f"in {PROFILE}")')
    assert __main__.main(["run"]) == 1
    said = capsys.readouterr().out
    assert "Day01_PyTorch_Basics  FAILED" in said
    assert "Day02_Training_Loop   ok" in said
    assert "ZeroDivisionError: division by zero" in said
    assert "1 of 2 days ok" in said
    done = nbformat.read(tmp_path / "runs/quick/Day02_Training_Loop/Day02_Training_Loop.ipynb", as_version=4)
    assert "in quick" in str(done.cells)
    source = nbformat.read(days.get(2).notebook, as_version=4)
    assert source.cells[1].outputs == []


@pytest.mark.slow
def test_two_notebooks_at_once_share_the_cores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "cores", lambda: 6)
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = f"""
import os, pathlib, time
here, other = pathlib.Path("{tmp_path}/1"), pathlib.Path("{tmp_path}/2")
here, other = (here, other) if "Day01" in os.getcwd() else (other, here)
here.touch()
until = time.monotonic() + 60
while not other.exists():
    assert time.monotonic() < until, "nobody else is here"
    time.sleep(0.05)
print(os.environ["OMP_NUM_THREADS"], "threads")"""
    for day in (days.get(1), days.get(2)):
        notebook(tmp_path, day, 'PROFILE = "study"', meet)
    assert __main__.main(["run", "--at-once", "2"]) == 0
    said = capsys.readouterr().out
    assert said.index("Day01") < said.index("Day02")
    for path in tmp_path.glob("runs/quick/*/*.ipynb"):
        assert "3 threads" in str(nbformat.read(path, as_version=4).cells)
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_a_process_that_dies_is_a_day_that_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    end = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    for number, cell in ((7, end), (8, "1")):  # Day 8 waits for Day 7, which it reads
        notebook(tmp_path, days.get(number), 'PROFILE = "study"', cell)
    assert __main__.main(["run", "--at-once", "2"]) == 1
    said = capsys.readouterr().out
    assert "1 of 2 days ok" in said
    assert "Day08_SC_Tuning        ok" in said
    assert "Day07_Speech_Commands failed in BrokenProcessPool" in said
    assert __main__.main(["run", "--at-once", "0"]) == 2
    assert "at least one" in capsys.readouterr().err


@pytest.mark.slow
def test_study_replaces_the_notebook_only_when_it_went_through(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    notebook(tmp_path, days.get(1), 'PROFILE = "study"', "print(PROFILE)")
    notebook(tmp_path, days.get(2), 'PROFILE = "study"', "print(PROFILE)\n1 / 0")
    before = days.get(2).notebook.read_bytes()
    assert runner.run(None, "study") == 1
    first = nbformat.read(days.get(1).notebook, as_version=4)
    assert [c.execution_count for c in first.cells] == [1, 2]
    assert first.cells[1].outputs[0].text == "study\n"
    assert "injected-parameters" not in str(first)
    assert "papermill" not in str(first)
    assert days.get(2).notebook.read_bytes() == before


def test_a_day_that_is_not_here_is_said(tmp_path, monkeypatch, capsys):
    missing = days.get(4)
    monkeypatch.setattr(days, "ROOT", tmp_path)
    assert __main__.main(["run", "--days", str(missing.number)]) == 2
    assert missing.name in capsys.readouterr().err
    with pytest.raises(ValueError, match="number from 1 to 15"):
        days.get(16)


def test_progress_bars_leave_their_last_state_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    printed = [
        ("a\nb\n", "a\nb\n"),
        ("bar 10%\rbar 50%\rbar 100%\n", "bar 100%\n"),
        ("\rbar 10%\r       \r", None),
        ("done\r\n", "done\n"),
        ("bar\r     \rresult 1\n", "result 1\n"),
        ("first\n\rbar\r    \r", "first\n"),
    ]
    cells = [f"import sys\n_ = [sys.stdout.write(c) for c in {raw!r}]" for raw, _ in printed]
    notebook(tmp_path, days.get(1), *cells)
    runner.quiet_jupyter()
    path = tmp_path / days.get(1).name / f"{days.get(1).name}.ipynb"
    done = runner.run_notebook(path, tmp_path / "done.ipynb")
    shown = [[o.text for o in c.outputs] for c in done.cells]
    assert shown == [[] if text is None else [text] for _, text in printed]
    assert "papermill" not in str(done)


def test_doctor_is_content_here(capsys):
    status = doctor.doctor()
    said = capsys.readouterr().out
    assert status == 0, said
    assert "FAIL" not in said
    assert "a training loop: loss" in said


def test_doctor_names_the_missing_package_and_the_fix(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "optuna":
            raise importlib.metadata.PackageNotFoundError(name)
        return "99.0" if name == "papermill" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    lines = list(doctor.packages())
    fails = {c.what: c.fix for c in lines if c.state == "FAIL"}
    assert "optuna is not installed" in fails
    assert any(what.startswith("papermill 99.0 is outside") for what in fails)
    assert all("pip install -r requirements.txt" in fix for fix in fails.values())


def test_doctor_survives_a_broken_check():
    def broken():
        yield doctor.Check("OK", "fine")
        raise OSError("no such luck")

    found = list(doctor.guarded(broken))
    assert [c.state for c in found] == ["OK", "FAIL"]
    assert "no such luck" in found[1].what


def test_doctor_sees_a_wrong_device(monkeypatch):
    monkeypatch.setenv("STUDY_DEVICE", "cuda:99")
    (check,) = doctor.device()
    assert check.state == "FAIL"
    assert check.fix == "unset STUDY_DEVICE"


def test_doctor_names_a_copy_of_data_that_it_does_not_know(tmp_path, monkeypatch):
    from test_data import write_cifar10

    from utils import sources

    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    write_cifar10(tmp_path)
    (check,) = [c for c in doctor.data_sets() if c.what.startswith("cifar10")]
    assert check.state == "note"
    assert sources.identify("cifar10") in check.what
    assert "make fetch DAY=4" in check.fix
    monkeypatch.setattr(sources, "identify", lambda name: "cifar10-jpeg")
    (check,) = [c for c in doctor.data_sets() if c.what.startswith("cifar10")]
    assert (check.state, check.fix) == ("OK", "")


def test_doctor_speaks_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\nfrom tools.__main__ import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [__import__("sys").executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "FAIL device: " in done.stdout
    assert "OK   Python 3" in done.stdout


def test_fetch_says_what_there_is(capsys):
    assert __main__.main(["fetch", "--day", "1"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out
    assert __main__.main(["fetch", "nonsense"]) == 2
    assert "there are: mnist" in capsys.readouterr().err
    assert __main__.main(["fetch"]) == 0
    assert "mnist: 12 MB" in capsys.readouterr().out


def test_ask_names_the_word_and_the_days_to_come(tmp_path, capsys):
    import soundfile

    from utils.speech.corpora import read_sample

    rows, samples = read_sample("words")
    files = []
    for row in [r for r in rows if r["text"] == "zero"][:3]:
        files.append(str(tmp_path / f"{row['voice']}.wav"))
        clip = samples[int(row["start"]) :][: int(row["length"])]
        soundfile.write(files[-1], clip, 16_000)
    assert __main__.main(["ask", "words", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert sum(f"{file}: zero" in line for file, line in zip(files, lines, strict=True)) >= 2
    assert __main__.main(["ask", "words", str(tmp_path / "none.wav")]) == 2
    for kind, (number, _, _) in ask.KINDS.items():
        module = importlib.import_module(f"{days.get(number).name}.{ask.KINDS[kind][1]}")
        if not hasattr(module, "load_kept"):
            assert __main__.main(["ask", kind, "a.wav"]) == 2
            assert f"Day {number} will add it" in capsys.readouterr().out


def test_bench_ratios():
    faster = Claim("a", stock=100.0, ours=5.0, unit="s", goal=10)
    more = Claim("b", stock=10.0, ours=45.0, unit="1/s", goal=5, higher=True)
    capped = Claim("c", stock=600.0, ours=5.0, unit="s", goal=10, capped=True)
    assert (faster.ratio, more.ratio) == (20.0, 4.5)
    assert faster.row()[-1] == "reached"
    assert more.row()[-1] == "MISSED"
    assert capped.row()[4] == "at least 120.0"
    with pytest.raises(ValueError, match="there are: mnist"):
        bench(["nonsense"])


def test_a_bench_task_that_fails_keeps_the_others_figures(monkeypatch, capsys):
    from bench import claims, mnist, tts

    monkeypatch.setattr(tts, "run", lambda: 1 / 0)
    monkeypatch.setattr(mnist, "run", lambda: [Claim("images", 1, 9, "1/s", 5, True)])
    assert claims.bench(["tts", "mnist"]) == 1
    said = capsys.readouterr().out
    assert "images" in said
    assert "tts failed" in said
    assert "ZeroDivisionError" in said
    assert claims.bench(["mnist"]) == 0


def test_races_stop_at_the_goal_and_at_the_cap():
    import torch

    from bench import measure, mnist
    from utils.data import Batches, Split

    split = Split(torch.eye(10), torch.arange(10))

    def fresh(rate):
        model = torch.nn.Linear(10, 10, bias=False)
        torch.nn.init.zeros_(model.weight)
        return model, measure.stock_step(model, torch.optim.SGD(model.parameters(), rate))

    loader = [(split.x, split.y)]
    model, step = fresh(1.0)
    seconds, accuracy, arrived = measure.stock_race(step, loader, model, split, 0.99, epochs=5)
    assert (accuracy, arrived) == (1.0, True)
    assert seconds < 60
    model, step = fresh(0.0)
    assert measure.stock_race(step, loader, model, split, 0.99, cap=0)[2] is False
    model, _ = fresh(0.0)
    batches = Batches(split, 10)
    assert measure.our_race(model, batches, split, 0.99, 20, lr=0.1, smoothing=0.1)[1:] == (1.0, True)
    stock = mnist.StockNet()
    assert sum(p.numel() for p in stock.parameters()) == 1_199_882
    assert stock(torch.zeros(2, 1, 28, 28)).exp().sum().item() == pytest.approx(2, abs=1e-4)


def test_rates_are_counted_after_one_call():
    import torch

    from bench import measure

    seen = []
    calls = measure.calls_per_second(lambda i: seen.append(i), seconds=0.01)
    assert seen[:3] == [0, 0, 1]
    assert calls > len(seen) / 2
    batches = [(torch.zeros(4, 1), torch.zeros(4))] * 3
    sizes = []
    measure.images_per_second(batches, torch.device("cpu"), lambda x, y: sizes.append(len(y)), 0.01)
    assert len(sizes) > 3  # over and over
    assert set(sizes) == {4}


def test_makefile_installs_once_and_helps():
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    made = "run test check extras lab day fetch sweep container container-days bench summary doctor new"
    for target in f"{made} practice checkin clean".split():
        assert f"make {target}" in helped
    if (ROOT / ".venv" / ".installed").exists():
        plan = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True)
        assert "pip install" not in plan.stdout
    assert (ROOT / ".ci/run").read_text().strip().endswith("\nmake test")


def test_code_is_clean():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [__import__("sys").executable, "-m", "ruff", *command, "."],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_headline_without_its_optional_package_is_not_measured(tmp_path, monkeypatch):
    from tools.run import headline
    from utils.logger import write_table

    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    day = days.get(14)
    assert headline(day, "quick") == "none"
    path = day.output("quick") / f"{day.name}_params.csv"
    path.parent.mkdir(parents=True)
    row = {"run": "a", "profile": "quick", "role": "headline", "dataset": "sample"}
    write_table(path, [*row, "pesq_after"], [row | {"pesq_after": ""}])
    assert headline(day, "quick") == "pesq_after not measured"
    write_table(path, [*row, "pesq_after"], [row | {"pesq_after": "1.5"}])
    assert headline(day, "quick").startswith("pesq_after 1.5")
