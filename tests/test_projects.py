"""Day 15: the table of all projects, the templates that become projects, the check-in."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from PIL import Image

from Day15_Summary import summary
from tools import __main__, checkin, new
from utils import days
from utils.logger import add_row, read_table
from utils.metrics import spread

ARTEFACTS = {
    "day1_mnist_baseline": {"loss_curve.png", "params_table.csv"},
    "day2_cifar10_cnn": {"loss_accuracy_curve.png", "params_table.csv"},
    "day3_speech_commands": {
        "mfcc_features.npy", "loss_accuracy_curve.png", "params_table.csv",
    },
    "day4_wav2vec2_asr": {"fine_tuned_model", "loss_accuracy_table.csv"},
    "day5_voice_cloning": {"synthesized_audio.wav", "params_table.csv"},
    "day6_speaker_verification": {
        "d_vectors.npy", "loss_accuracy_curve.png", "params_table.csv",
    },
}  # fmt: skip
"""The six starting projects of the plan, and what each makes."""


# --- the table ----------------------------------------------------------------------------------------


def publish(folder, day, rows):
    path = folder / day.name / f"{day.name}_params.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(k for r in rows for k in r))
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def row(role="headline", profile="study", **more):
    base = {"role": role, "profile": profile, "dataset": "d", "device": "cpu (x)"}
    return base | {"run": "r", "seconds": 10, "commit": "c"} | more


def test_headlines_have_mean_spread_and_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    day = days.get(8)
    accuracies = (0.9, 0.92, 0.97)
    heads = [
        row(lr=0.1, activation="GELU", accuracy=a, seed=i, final_loss=1.5, loss=0.2)
        for i, a in enumerate(accuracies)
    ]
    trials = [row("sweep", lr=lr, val_accuracy=v) for lr, v in ((1, 0.3), (2, 0.8))]
    base = [row("baseline", lr=3, accuracy=a) for a in (0.5, 0.6)]
    publish(tmp_path, day, [*heads, *trials, *base, row("failed", accuracy=1)])
    head, also, baseline, sweep = summary.derive()
    known = spread(accuracies)
    assert float(head["value"]) == pytest.approx(known.mean, rel=1e-5)
    assert float(head["spread"]) == pytest.approx(known.std, rel=1e-5)
    assert (head["runs"], head["day"], head["project"]) == ("3", "8", "SC Tuning")
    assert head["best_config"] == "lr=0.1; activation=GELU"  # a number is no loss_fn
    assert (also["role"], also["metric"], also["spread"]) == ("also", "final_loss", "0")
    assert (baseline["role"], baseline["value"]) == ("baseline", "0.6")
    assert (sweep["role"], sweep["metric"], sweep["value"], sweep["runs"]) == (
        "sweep", "val_accuracy", "0.8", "2",
    )  # fmt: skip
    assert sweep["best_config"] == "lr=2"
    assert summary.missing() == [d.number for d in days.ALL if d.number not in (8, 15)]


def test_a_quality_whose_rows_say_lower_is_better_is_read_so():
    said = {"quality_metric": "MCD (dB) on test, lower is better"}
    rows = [row(audio_quality=9, **said), row(audio_quality=12, **said)]
    assert summary.best(rows, "audio_quality")["audio_quality"] == 9
    plain = [row(audio_quality=9, quality_metric="DNSMOS"), row(audio_quality=12)]
    assert summary.best(plain, "audio_quality")["audio_quality"] == 12
    trials = [row("sweep", val_score=s, val_loss=2) for s in (0.2, 0.6)]
    assert summary.selection(trials, "audio_quality") == "val_score"


def test_errors_are_best_when_low_and_full_stands_beside_study(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    rows = [row(profile=p, wer=w) for p, w in (("study", 0.3), ("full", 0.2))]
    rows += [row("sweep", val_wer=w) for w in (0.5, 0.4)]
    rows += [row("baseline", wer=w) for w in (0.9, 0.7)]
    publish(tmp_path, days.get(9), rows)
    heads = [r for r in summary.derive() if r["role"] == "headline"]
    assert [(r["trained_in"], r["value"]) for r in heads] == [
        ("study", "0.3"), ("full", "0.2"),
    ]  # fmt: skip
    rest = {r["role"]: r["value"] for r in summary.derive() if r["role"] != "headline"}
    assert rest == {"baseline": "0.7", "sweep": "0.4"}


def test_test_items_are_no_trials_and_nan_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    easy = [row("sweep", pesq_after=v, val_stoi="nan") for v in (3.5, 4.0)]
    publish(tmp_path, days.get(14), [row(pesq_after=2.3), *easy])
    assert [r["role"] for r in summary.derive()] == ["headline"]


def test_the_published_table_is_the_derived_one_and_wide_enough():
    day = days.get(15)
    found = read_table(day.folder / f"{day.name}_params.csv")
    assert found == summary.derive(), "run `make summary`"
    assert len(found) >= 10
    assert list(found[0]) == list(summary.COLUMNS)
    assert {r["day"] for r in found} == {
        str(d.number) for d in summary.projects() if d.number not in summary.missing()
    }
    whole = [tuple(v for k, v in r.items() if k != "seconds") for r in found]
    assert len(set(whole)) == len(whole)


def test_summary_writes_the_table_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    last = days.get(15)
    publish(tmp_path, days.get(2), [row(accuracy=0.98)])
    assert __main__.main(["summary", "--check"]) == 0
    assert "not written, its day is not here" in capsys.readouterr().out
    last.folder.mkdir()
    last.notebook.touch()
    assert __main__.main(["summary", "--check"]) == 1
    assert __main__.main(["summary"]) == 0
    assert __main__.main(["summary", "--check"]) == 0
    assert len(read_table(last.folder / f"{last.name}_params.csv")) == 1
    said = capsys.readouterr().out
    assert "Days without a headline row yet: 1, 3, 4" in said
    publish(tmp_path, days.get(2), [row(accuracy=0.99)])
    assert __main__.main(["summary", "--check"]) == 1


def test_a_project_keeps_one_row_a_configuration(tmp_path):
    path = tmp_path / "params_table.csv"
    for accuracy in (0.1, 0.2):
        add_row(path, "quick", "sample-x", 0, {"lr": 0.1}, accuracy=accuracy)
    add_row(path, "quick", "sample-x", 0, {"lr": 0.2}, accuracy=0.3, note="more")
    rows = read_table(path)
    assert [(r["lr"], r["accuracy"]) for r in rows] == [("0.1", "0.2"), ("0.2", "0.3")]


# --- templates ----------------------------------------------------------------------------------------


def test_the_six_templates_are_there():
    assert new.names() == sorted(ARTEFACTS)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_template_is_short_executed_and_says_where_its_files_come_from(name):
    folder = new.shelf() / name
    made = {p.name for p in folder.iterdir()} - {new.NOTEBOOK}
    assert made == ARTEFACTS[name]
    nb = nbformat.read(folder / new.NOTEBOOK, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert 10 <= len(nb.cells) <= 20
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not any(o.output_type == "error" for c in code for o in c.outputs)
    (parameters,) = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert parameters.source == 'PROFILE = "quick"'
    first = " ".join(nb.cells[0].source.split())
    assert "were made by the quick profile" in first
    assert re.search(r"no result", first)
    text = (folder / new.NOTEBOOK).read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:/])/(?:root|home|work|tmp|Users)/\w", text)
    assert max(len(s) for c in code for s in c.source.splitlines()) <= 88


def test_artefacts_of_templates_are_what_they_are_called():
    shelf = new.shelf()
    files = [p for p in shelf.rglob("*") if p.is_file()]
    binary = [p for p in files if p.suffix in (".png", ".npy", ".wav", ".safetensors")]
    assert sum(p.stat().st_size for p in binary) < 1_000_000
    for path in shelf.glob("*/*.png"):
        with Image.open(path) as image:
            assert image.width >= 1200
    for path in shelf.glob("*/*.csv"):
        rows = read_table(path)
        assert {r["profile"] for r in rows} == {"quick"}
        assert all(r["dataset"].startswith("sample-") for r in rows)
    mfcc = np.load(shelf / "day3_speech_commands/mfcc_features.npy")
    assert mfcc.shape[1] == 40
    vectors = np.load(shelf / "day6_speaker_verification/d_vectors.npy")
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    model = shelf / "day4_wav2vec2_asr/fine_tuned_model"
    assert sum(p.stat().st_size for p in model.iterdir()) < 300_000
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "wav2vec2"


def test_the_kept_model_opens_again():
    from utils.models.wav2vec2_ctc import load_recogniser

    folder = new.shelf() / "day4_wav2vec2_asr" / "fine_tuned_model"
    assert sum(p.numel() for p in load_recogniser(folder).parameters()) < 100_000


def test_new_refuses_what_it_should(tmp_path, capsys):
    assert __main__.main(["new", "day9_nothing", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ARTEFACTS)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mine.txt").write_text("mine")
    assert __main__.main(["new", "day1_mnist_baseline", str(tmp_path / "b")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["mine.txt"]
    (tmp_path / "file").touch()
    assert __main__.main(["new", "day1_mnist_baseline", str(tmp_path / "file")]) == 2
    assert not (tmp_path / "a").exists()
    inside = days.ROOT / "my_project"
    assert __main__.main(["new", "day1_mnist_baseline", str(inside)]) == 2
    assert not inside.exists()


def test_a_copied_project_is_whole_and_knows_it_is_a_copy(tmp_path, capsys):
    target = tmp_path / "deep" / "project"
    assert __main__.main(["new", "day4_wav2vec2_asr", str(target)]) == 0
    assert "jupyter lab notebook.ipynb" in capsys.readouterr().out
    assert {p.name for p in target.iterdir()} == {
        new.NOTEBOOK, "utils", *ARTEFACTS["day4_wav2vec2_asr"],
    }  # fmt: skip
    assert (target / "utils/sample/sentences.ogg").exists()
    assert not list(target.rglob("__pycache__"))
    command = [sys.executable, "-c", "from utils import days; print(days.ROOT.name)"]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True)
    assert done.stdout == "project\n"


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_copy_holds_what_its_template_imports_and_no_more(name, tmp_path):
    assert new.new(name, str(tmp_path / "p")) == 0
    there = {str(p.relative_to(tmp_path / "p")) for p in (tmp_path / "p/utils").rglob("*.*")}
    assert {"utils/__init__.py", "utils/days.py", "utils/plots.py"} <= there
    assert ("utils/models/wav2vec2_ctc.py" in there) == (name == "day4_wav2vec2_asr")
    assert ("utils/models/tacotron2.py" in there) == (name == "day5_voice_cloning")


@pytest.mark.notebook
@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_copied_project_runs_offline_in_its_own_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "no data"))
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    target, shelf = tmp_path / "project", new.shelf() / name
    before = {p.name: p.read_bytes() for p in shelf.iterdir() if p.is_file()}
    assert new.new(name, str(target)) == 0
    for made in ARTEFACTS[name]:
        (shutil.rmtree if (target / made).is_dir() else os.remove)(target / made)
    new.execute(target)
    assert {p.name for p in target.iterdir() if p.name[0] != "."} == {
        new.NOTEBOOK, "utils", *ARTEFACTS[name],
    }  # fmt: skip
    if name == "day1_mnist_baseline":
        (row,) = read_table(target / "params_table.csv")
        assert float(row["val_accuracy"]) > 0.9
    assert before == {p.name: p.read_bytes() for p in shelf.iterdir() if p.is_file()}


# --- the check-in -------------------------------------------------------------------------------------


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def copied_day(tmp_path, monkeypatch):
    """Day 7's folder in a fresh repository of one commit."""
    source = days.get(7).folder
    monkeypatch.setattr(days, "ROOT", tmp_path)
    keep = shutil.ignore_patterns("checkpoints", "*.npy")
    shutil.copytree(source, days.get(7).folder, ignore=keep)
    git(tmp_path, "init", "-b", "mine")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "all")
    return days.get(7)


def missing(capsys):
    return [s for s in capsys.readouterr().out.splitlines() if "MISSING" in s]


def test_checkin_wants_a_new_row_and_never_pushes(copied_day, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(checkin, "git", lambda *a, real=checkin.git: asked.append(a[0]) or real(*a))
    assert __main__.main(["checkin", "7"]) == 1
    said = capsys.readouterr().out
    assert [s.split("  ")[-1] for s in said.splitlines() if "MISSING" in s] == ["a new row"]
    assert "git add Day07_Speech_Commands" in said
    assert 'git commit -m "Add Day 7 study files"' in said
    assert "git push origin mine" in said
    assert set(asked) == {"show", "branch"}
    path = copied_day.folder / f"{copied_day.name}_params.csv"
    text = path.read_text(encoding="utf-8")
    last = text.splitlines()[-1]
    path.write_text(text + "f" * 10 + last[10:] + "\n", encoding="utf-8")
    assert __main__.main(["checkin", "7"]) == 0
    assert "1 new rows since the last commit" in capsys.readouterr().out


def test_checkin_sees_each_gap(copied_day, capsys):
    stem = copied_day.folder / copied_day.name
    nb = nbformat.read(f"{stem}.ipynb", as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    code[3].execution_count = None
    nbformat.write(nb, f"{stem}.ipynb")
    notes = copied_day.folder / f"{copied_day.name}_notes.md"
    text = notes.read_text(encoding="utf-8")
    text = re.sub(r"(## Links\n).*?(?=^## )", r"\1\n", text, flags=re.M | re.S)
    notes.write_text(text, encoding="utf-8")
    with Image.open(f"{stem}_loss_curve.png") as image:
        image.resize((600, 300)).save(f"{stem}_loss_curve.png")
    assert __main__.main(["checkin", "7"]) == 1
    said = capsys.readouterr().out
    assert "still empty: Links\n" in said
    gaps = [s for s in said.splitlines() if "MISSING" in s]
    assert len(gaps) == 4
    assert "executed once" in gaps[0]
    assert "px wide" in gaps[2]


def test_a_section_is_filled_by_what_stands_under_its_subheadings(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    day = days.get(3)
    day.folder.mkdir()
    text = "# t\n" + "".join(f"## {s.split('|')[0]}\n### more\nwords\n" for s in checkin.SECTIONS)
    path = day.folder / f"{day.name}_notes.md"
    path.write_text(text, encoding="utf-8")
    assert next(checkin.notes(day)).done
    path.write_text(text.replace("words\n## Links", "## Links"), encoding="utf-8")
    assert next(checkin.notes(day)).fix == "still empty: Container"


def test_checkin_of_a_day_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    assert __main__.main(["checkin", "9"]) == 1
    assert len(missing(capsys)) == 5
    assert __main__.main(["checkin", "16"]) == 2
    assert "from 1 to 15" in capsys.readouterr().err
