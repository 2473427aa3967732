"""The notebooks: each runs in the quick profile, offline; the committed ones are lessons, run once."""

from __future__ import annotations

import hashlib
import re
import statistics

import nbformat
import pytest
from conftest import offline

from Day15_Summary import summary
from tools.run import execute, execute_all, quiet_jupyter, usual
from utils import days
from utils.logger import LEADING_COLUMNS, TRAILING_COLUMNS, read_table

HERE = days.existing()
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:root|home|work|tmp|Users|mnt|private)/[\w.-]+")


def by_name(day):
    return day.name


def prints(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def rehearsal(request, tmp_path_factory):
    """What `make run` does, over the chosen days: outcomes by name, folder, and files before and after."""
    chosen = [
        item.callspec.params["day"]
        for item in request.session.items
        if "rehearsal" in getattr(item, "fixturenames", ())
    ]
    place = tmp_path_factory.mktemp("rehearsal")
    before = {day.name: prints(day.folder) for day in chosen}
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, place)
        quiet_jupyter()
        done = execute_all(chosen, "quick", usual("quick"), execute)
        outcomes = {outcome.day.name: outcome for outcome in done}
    after = {day.name: prints(day.folder) for day in chosen}
    return outcomes, place, before, after


@pytest.mark.notebook
@pytest.mark.parametrize("day", HERE, ids=by_name)
def test_quick_profile_runs_offline_and_writes_only_under_runs(day, rehearsal):
    outcomes, place, before, after = rehearsal
    outcome = outcomes[day.name]
    assert outcome.status == "ok", outcome.error
    assert outcome.headline != "none"
    assert after[day.name] == before[day.name]
    assert not (place / "no data").exists()
    output = place / "runs/quick" / day.name
    rows = read_table(output / f"{day.name}_params.csv")
    if day.number == 15:  # a table of the others', whatever the profile
        assert rows == summary.derive()
    else:
        assert {r["profile"] for r in rows} == {"quick"}
    assert (output / f"{day.name}_loss_curve.png").exists()


def code_cells(day):
    nb = nbformat.read(day.notebook, as_version=4)
    return nb, [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]


@pytest.mark.parametrize("day", HERE, ids=by_name)
def test_committed_notebook_is_one_clean_study_run(day):
    nb, code = code_cells(day)
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not any(o.output_type == "error" for c in code for o in c.outputs)
    assert 'PROFILE = "study"' in [c.source.strip() for c in code]
    assert not any("injected-parameters" in c.metadata.get("tags", []) for c in code)
    assert day.notebook.stat().st_size < 2_000_000
    leak = MACHINE_PATH.search(day.notebook.read_text(encoding="utf-8"))
    assert leak is None, leak
    assert nbformat.validate(nb) is None


@pytest.mark.parametrize("day", HERE, ids=by_name)
def test_committed_notebook_is_a_lesson(day):
    nb, code = code_cells(day)
    assert nb.cells[0].source.startswith("# Day ")
    prose = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    for part in ("Goals", "Prerequisites", "What went wrong", "Exercises", "Summary", "Further reading"):
        assert re.search(rf"^## {part}", prose, re.M), part
    assert len(re.findall(r"\*\*Exercise \d", prose)) >= 3
    assert prose.count("<details>") >= 3
    lines = [len([s for s in c.source.splitlines() if s.strip()]) for c in code]
    assert statistics.median(lines) <= 10
    assert max(lines) <= 40
    assert max(len(s) for c in code for s in c.source.splitlines()) <= 88
    pictures = 0
    for cell, following in zip(nb.cells, nb.cells[1:], strict=False):
        if cell.cell_type == "code" and "Image(filename" not in cell.source:  # the text before shows those
            data = [o.get("data", {}) for o in cell.outputs]
            drawn = sum("image/png" in d for d in data)
            below = following.cell_type == "markdown" and re.match(r"\*[^*\s]", following.source)
            assert sum("text/markdown" in d for d in data) >= drawn or below, cell.source
            pictures += drawn
    assert pictures >= 2
    assert "torchaudio.load" not in "".join(c.source for c in code)


@pytest.mark.parametrize("day", [d for d in HERE if d.number < 15], ids=by_name)
def test_the_rows_that_a_notebook_shows_are_those_of_its_table(day):
    known = {r["run"] for r in read_table(day.folder / f"{day.name}_params.csv")}
    _, code = code_cells(day)
    tables = [o for c in code if "log.show(" in c.source for o in c.outputs]
    shown = {
        run for output in tables for run in re.findall(r"^([0-9a-f]{10})\b", output.data["text/plain"], re.M)
    }
    assert shown
    assert shown <= known, sorted(shown - known)


@pytest.mark.parametrize("day", [d for d in HERE if d.number < 15], ids=by_name)
def test_published_rows_come_from_committed_code_and_real_data(day):
    rows = read_table(day.folder / f"{day.name}_params.csv")
    assert any(r["role"] == "headline" for r in rows)
    assert list(rows[0])[:6] == list(LEADING_COLUMNS)
    assert list(rows[0])[-4:] == list(TRAILING_COLUMNS)
    assert len({r["run"] for r in rows}) == len(rows)
    for r in rows:
        assert r["profile"] in ("study", "full")
        assert not r["dataset"].startswith("sample")
        assert re.fullmatch(r"[0-9a-f]{10}", r["commit"]), f"{r['run']}: {r['commit']}"
        assert float(r["seconds"]) >= 0
    log = read_table(day.folder / f"{day.name}_train_log.csv")
    headline = [r for r in rows if r["role"] == "headline"]
    trained = {r["run"] for r in headline if r.get("loss") or r.get("final_loss")}
    # a network that others trained has no epochs here
    assert trained <= {r["run"] for r in log} <= {r["run"] for r in headline}


@pytest.mark.parametrize(("day", "least"), [(2, 0.983), (3, 0.994), (4, 0.84)])
def test_published_accuracy_keeps_its_promise(day, least):
    rows = read_table(days.get(day).folder / f"{days.get(day).name}_params.csv")
    values = [float(r["accuracy"]) for r in rows if r["role"] == "headline"]
    assert len(values) >= 3
    assert statistics.mean(values) >= least
