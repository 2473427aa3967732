"""The front door: both READMEs say the same, and what they show comes from the tables."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tools import __main__, readme_tables
from tools import picture as pictures
from utils import days
from utils.logger import read_table

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {"en": "README.md", "zh": "README.zh-CN.md"}
SECTIONS = (
    ("Two commands", "两条命令"),
    ("The fifteen days", "十五天一览"),
    ("How to study a day", "一天怎么学"),
    ("Profiles and data", "运行配置与数据"),
    ("Containers", "容器"),
    ("Results: what was run, and where", "结果：在哪里运行过什么"),
    ("The repository", "仓库结构"),
    ("Resources", "学习资源"),
    ("The author's note", "作者的话"),
    ("Contributing", "参与贡献"),
    ("Licence", "许可证"),
    ("Citation", "引用"),
)
"""The headings of both, in order."""
PLAN = (
    "https://www.youtube.com/watch?v=GIsg-ZUy0MY",
    "https://www.youtube.com/watch?v=gG8q2biSfR0",
    "https://mlarchive.com/deep-learning/speech-command-recognition-the-ultimate-guide/",
    "https://www.youtube.com/watch?v=Qj4RyX2Gh4s",
    "https://huggingface.co/blog/fine-tune-wav2vec2-english",
    "https://github.com/CorentinJ/Real-Time-Voice-Cloning",
    "https://speechbrain.readthedocs.io/en/latest/",
    "https://apptainer.org/docs/",
    "https://podman.io/getting-started/",
    "https://www.bilibili.com/video/BV1THKyzBER6/",
    "https://www.youtube.com/watch?v=iJe0qzO8EHs",
    "https://apptainer.org/docs/user/latest/",
    "https://www.bilibili.com/video/BV1Z7411L7dy/",
    "https://docs.github.com/en/authentication/connecting-to-github-with-ssh",
    "https://pytorch.org/tutorials/beginner/deep_learning_60min_blitz.html",
    "https://scikit-learn.org/",
    "https://www.bilibili.com/video/BV1fQ4y1j7wb/",
    "https://www.bilibili.com/video/BV19L411v7cq/",
    "https://www.bilibili.com/video/BV1ea411r7Wg/",
    "https://speechbrain.readthedocs.io/",
    "https://espnet.github.io/espnet/",
)
"""Every link of the plan."""
PARTS = ("", *(en for en, _ in SECTIONS))


def page(language: str) -> str:
    return (ROOT / LANGUAGES[language]).read_text(encoding="utf-8")


def shown(text: str) -> str:
    """What a reader sees: no comments."""
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


def fences(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, re.M | re.S)


def unfenced(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def headings(text: str) -> list[tuple[int, str]]:
    found = re.findall(r"^(#+) (.+)$", unfenced(text), re.M)
    return [(len(marks), title) for marks, title in found]


def part(language: str, name: str) -> str:
    """The text under one heading, named in English; `""` is what comes before the first `##`."""
    pieces = re.split(r"^##+ .+$", unfenced(shown(page(language))), flags=re.M)
    return pieces[PARTS.index(name)]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def numbers(text: str) -> Counter[str]:
    """Numbers in prose and tables, without those in links and code."""
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|https?://\S+", " ", text)
    return Counter(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)*", text))


def cells(text: str) -> list[list[str]]:
    rows = [ln for ln in text.splitlines() if ln.startswith("|")]
    return [[c.strip() for c in row.strip("|").split("|")] for row in rows]


def anchor(title: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_both_have_the_same_headings_in_order():
    en, zh = headings(page("en")), headings(page("zh"))
    assert [level for level, _ in en] == [level for level, _ in zh]
    assert list(zip([t for _, t in en[1:]], [t for _, t in zh[1:]], strict=True)) == [*SECTIONS]


@pytest.mark.parametrize("name", PARTS)
def test_both_say_the_same_numbers_and_code(name):
    en, zh = part("en", name), part("zh", name)
    assert numbers(en) == numbers(zh)
    code = [Counter(re.findall(r"`([^`]+)`", t)) for t in (en, zh)]
    assert code[0] == code[1]


@pytest.mark.parametrize("name", PARTS)
def test_both_have_the_same_links(name):
    en, zh = links(part("en", name)), links(part("zh", name))
    ours = {*LANGUAGES.values()}  # each names the other
    inner = [[link for link in found if link.startswith("#")] for found in (en, zh)]
    assert len(inner[0]) == len(inner[1])
    plain = [[link for link in f if link[0] != "#" and link not in ours] for f in (en, zh)]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("name", PARTS)
def test_both_have_the_same_tables(name):
    en, zh = cells(part("en", name)), cells(part("zh", name))
    assert [len(row) for row in en] == [len(row) for row in zh]
    for a, b in zip(en, zh, strict=True):
        assert [numbers(c) for c in a] == [numbers(c) for c in b]
        assert [bool(c) for c in a] == [bool(c) for c in b]


def test_both_have_the_same_commands():
    en, zh = ([re.sub(r" +#.*", "", f) for f in fences(page(k))] for k in LANGUAGES)
    tree = [i for i, block in enumerate(en) if block.startswith("```\n")]
    assert len(tree) == 1  # the map of the repository, in words
    del en[tree[0]], zh[tree[0]]
    assert en == zh


@pytest.mark.parametrize("language", LANGUAGES)
def test_links_within_the_page_lead_to_a_heading(language):
    there = {anchor(title) for _, title in headings(page(language))}
    assert {link[1:] for link in links(page(language)) if link.startswith("#")} <= there


def test_every_link_of_the_plan_is_there():
    assert set(PLAN) <= set(links((ROOT / "docs" / "resources.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_two_commands_come_first(language):
    text = shown(page(language))
    first = fences(text)[0].splitlines()
    assert [line.split("  ")[0] for line in first[1:-1]] == ["make run", "make test"]
    assert text[: text.index("make run")].count("\n") < 25
    assert text.index(pictures.PICTURE) < text.index("make run")


@pytest.mark.parametrize("language", LANGUAGES)
def test_commands_of_the_command_line_exist(language):
    known = set(__main__.parser()._subparsers._group_actions[0].choices)
    used = re.findall(r"(?:python|python3\.11) -m tools ([a-z]+)", page(language))
    assert {"new", "checkin", "doctor", "run"} <= set(used) <= known


def test_modules_in_the_map_exist():
    block = next(f for f in fences(page("en")) if f.startswith("```\n"))
    for folder, following in (("utils", "tools"), ("tools", "bench"), ("bench", "containers")):
        names = re.search(rf"^{folder}/(.*?)^{following}/", block, re.M | re.S).group(1)
        for name in (word.strip() for word in re.split(r"[·\n]", names) if word.strip()):
            there = ROOT / folder / name
            assert there.is_dir() if name[-1] == "/" else Path(f"{there}.py").exists(), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_days_are_in_the_table(language):
    rows = cells(readme_tables.overview(language))[2:]
    assert [row[0] for row in rows] == [str(d.number) for d in days.existing()]
    assert len({len(row) for row in rows}) == 1


def test_a_day_fills_in_as_its_files_come(tmp_path, monkeypatch):
    monkeypatch.setattr(days, "ROOT", tmp_path)

    def row(number):
        return next(c for c in cells(readme_tables.overview()) if c[0] == str(number))

    day = days.get(9)
    assert readme_tables.gaps() == "* No row of any table comes from MPS or CUDA."
    day.folder.mkdir()
    day.notebook.touch()
    assert row(9)[2:] == [
        "not run yet", "not measured", "not measured", "not measured",
        f"[notebook]({day.name}/{day.name}.ipynb)",
    ]  # fmt: skip
    (day.folder / f"{day.name}_params.csv").write_text(
        "run,role,profile,dataset,device,wer,seconds\n"
        "a,headline,study,words,cuda (H100),0.05,90\n"
        "b,sweep,study,words,cpu (EPYC (a)),0.07,30\n"
        "c,headline,full,words,mps (M2),0.04,600\n",
        encoding="utf-8",
    )
    assert row(9)[2:6] == ["WER 5.00 % on `words`", "0.5", "10.0 (full)", "1.5"]
    assert "EPYC (a) (CPU, days 9)" in readme_tables.machines()
    assert readme_tables.gaps().count("\n") == 0
    last = days.get(15)
    last.folder.mkdir()
    last.notebook.touch()
    (last.folder / f"{last.name}_params.csv").write_text(
        "day,project,best_config,metric,value\n1,a,b,c,2\n", encoding="utf-8"
    )
    assert row(15)[2] == "1 rows in one table"


def test_the_headline_names_the_data_of_rows_that_have_the_metric():
    day, row = days.get(11), {"role": "headline", "profile": "study"}
    training = row | {"dataset": "what-it-learned-from", "similarity": ""}
    clones = row | {"dataset": "unseen", "similarity": "0.5"}
    for language in ("en", "zh"):
        said = readme_tables.headline(day, [training, clones], language)
        assert "`unseen`" in said
        assert "learned" not in said


def test_days_are_named_in_groups():
    assert readme_tables.span([1, 2, 3, 6, 9, 8]) == "1–3, 6, 8–9"
    assert readme_tables.span([15]) == "15"


def test_the_picture_is_wide_and_light():
    path = ROOT / pictures.PICTURE
    with Image.open(path) as image:
        assert image.width >= 1200
    assert path.stat().st_size < 400_000


def test_the_picture_is_drawn_when_the_results_changed(tmp_path, monkeypatch):
    for source in pictures.sources()[1:]:
        there = tmp_path / source.relative_to(ROOT)
        there.parent.mkdir(exist_ok=True)
        shutil.copy(source, there)
    monkeypatch.setattr(days, "ROOT", tmp_path)
    assert pictures.picture(check=True) == "differs from the tables"
    assert not (tmp_path / pictures.PICTURE).exists()
    assert pictures.picture() == "drawn"
    assert pictures.picture(check=True) == "agrees with the tables"
    day = days.get(8)
    table = day.folder / f"{day.name}_params.csv"
    curve = next(r["val_curve"] for r in read_table(table) if r["val_curve"])
    other = curve[:-1] + ("1" if curve[-1] != "1" else "2")
    text = table.read_text(encoding="utf-8").replace(curve, other)
    table.write_text(text, encoding="utf-8")
    assert pictures.picture(check=True) == "differs from the tables"
    table.unlink()
    assert pictures.picture() == "not drawn, its days are not here"
