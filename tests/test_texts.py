"""README and notes: figures from the tables, links that lead somewhere, commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import results
from tools.checkin import SECTIONS
from tools.summary import summary, texts
from utils import days
from utils.metrics import spread

ROOT = Path(__file__).resolve().parent.parent
VIDEOS = {
    "https://www.youtube.com/watch?v=GIsg-ZUy0MY",
    "https://www.youtube.com/watch?v=gG8q2biSfR0",
    "https://www.youtube.com/watch?v=Qj4RyX2Gh4s",
    "https://www.youtube.com/watch?v=iJe0qzO8EHs",
    "https://www.bilibili.com/video/BV1THKyzBER6/",
    "https://www.bilibili.com/video/BV1Z7411L7dy/",
    "https://www.bilibili.com/video/BV1fQ4y1j7wb/",
    "https://www.bilibili.com/video/BV19L411v7cq/",
    "https://www.bilibili.com/video/BV1ea411r7Wg/",
}
"""The plan's video links: no other is to be printed."""
MARKDOWN = [p for g in ("*.md", "Day*/*.md", "containers/*.md", "docs/*.md") for p in ROOT.glob(g)]
PAGES = MARKDOWN + [d.notebook for d in days.existing()]


def name(path):
    return str(path.relative_to(ROOT))


def test_every_day_has_notes():
    assert {f"{d.name}/{d.name}_notes.md" for d in days.existing()} <= set(texts())


def test_figures_agree_with_the_tables(capsys):
    assert summary(check=True) == 0, capsys.readouterr().out


def test_a_figure_that_was_changed_by_hand_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(days, "ROOT", tmp_path)
    block = "<!-- [[[cog cog.outl(str(6 * 7)) ]]] -->\n{}\n<!-- [[[end]]] -->\n"
    (tmp_path / "README.md").write_text(block.format("41"))
    assert summary(check=True) == 1
    assert "make summary" in capsys.readouterr().out
    assert summary() == 0
    assert (tmp_path / "README.md").read_text() == block.format("42")
    assert summary(check=True) == 0


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http", "mailto:")):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_only_the_plans_videos_are_linked(page):
    for link in re.findall(r"https?://[^\s)\"\\>\]]+", page.read_text(encoding="utf-8")):
        if re.search(r"youtu\.?be|bilibili|vimeo", link):
            assert link.split("?spm")[0] in VIDEOS, link


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_make_targets_in_the_text_exist(page):
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = re.findall(r"(?:`|^\s*)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M)
    assert set(used) <= known


@pytest.mark.parametrize("day", days.existing(), ids=lambda d: d.name)
def test_notes_have_their_sections(day):
    body = (day.folder / f"{day.name}_notes.md").read_text(encoding="utf-8")
    for heading in SECTIONS:
        assert re.search(rf"^## ({heading})", body, re.M), heading
    assert re.search(r"[\u4e00-\u9fff]{10,}", body), "no Chinese summary"
    assert "![](" not in body
    assert f"{day.name}_loss_curve.png)" in body
    if day.number != 6:  # paths inside an image are Day 6's subject
        assert re.search(r"(?<![\w.:/])/(?:root|home|work|tmp|Users)/", body) is None


def test_tables_refuse_empty_claims():
    with pytest.raises(ValueError, match="has no row"):
        results.rows(1, role="headline", profile="quick")


def test_shares_become_percentages_and_the_rest_stays():
    assert results.show("val_accuracy", "0.98765") == "98.77 %"
    assert results.show("lr", "0.001") == "0.001"
    assert results.show("epochs", "12") == "12"
    assert results.show("note", "a b") == "a b"
    assert results.show_spread("accuracy", spread([0.99, 0.98])) == "98.50 ± 0.71 % (n=2)"
    assert results.show_spread("accuracy", spread([0.99])) == "99.00 %"
    assert results.show_spread("loss", spread([0.3232, 0.3252])) == "0.3242 ± 0.0014 (n=2)"
    assert results.show_spread("seconds", spread([100.0, 140.0])) == "120 ± 28 (n=2)"


def test_seed_tables_group_and_average():
    found = [{"a": "x", "accuracy": "0.9"}, {"a": "x", "accuracy": "0.8"}, {"a": "y", "accuracy": "0.5"}]
    lines = results.seeds(found, ["a"], "accuracy").splitlines()
    assert lines[2] == "| x | 85.00 ± 7.07 % (n=2) |"
    assert lines[3] == "| y | 50.00 % |"


def test_requirements_say_which_days_need_them():
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert re.search(r"#\s.*(days? \d|tests|lint)", line), line
