"""The front door: what README.md and README.zh-CN.md show, from the same tables, in two languages."""

from __future__ import annotations

from utils import days
from utils.logger import read_table
from utils.sources import catalogue

from . import results

QUESTIONS_ZH = {
    1: "什么是梯度（gradient）？学习率（learning rate）取多大才合适？",
    2: "该用哪种损失函数（loss function）、哪种优化器（optimizer）？怎样比较才公平？",
    3: "卷积（convolution）看到了什么？激活函数（activation function）重要吗？",
    4: "哪个超参数（hyperparameter）带来多少提升？是否超出了噪声？",
    5: "怎样看清一次训练在做什么、毛病出在哪里？",
    6: "我的代码在哪里运行？GPU 真的在工作吗？",
    7: "一段波形怎样变成一个词？换个陌生人说还行吗？",
    8: "这次搜索找到的，是否不只是运气？",
    9: "声音怎样变成文字？没有文字标注的语音值多少？",
    10: "哪些设置能降低词错误率（WER）？剩下的是什么错误？",
    11: "哪三个网络合成出一个声音？合成出来的又是谁的声音？",
    12: "哪个旋钮能让注意力（attention）对齐？损失看得出来吗？",
    13: "是谁在说话？能有多大把握？",
    14: "语音怎样从噪声中还原？这对辨认说话人有帮助吗？",
    15: "十四个项目教会了什么？代价是多少？",
}
"""`tables.QUESTIONS` in Chinese."""

METRICS = {
    "test_loss": ("test loss", "测试损失"),
    "accuracy": ("accuracy", "准确率"),
    "wer": ("WER", "词错误率（WER）"),
    "similarity": ("speaker similarity", "说话人相似度"),
    "audio_quality": ("MCD in dB (lower is better)", "梅尔倒谱失真（dB，越低越好）"),
    "eer": ("EER", "等错误率（EER）"),
    "pesq_after": ("PESQ after enhancement", "增强后的 PESQ"),
    "value": ("value", "数值"),
}

TEXT = {
    "there": ("not there yet", "尚未完成"),
    "run": ("not run yet", "尚未运行"),
    "measured": ("not measured", "未测量"),
    "on": ("{} {} on `{}`", "{} {}，数据 `{}`"),
    "rows": ("{} rows in one table", "一张表，{} 行"),
    "files": ("notebook notes table curve", "笔记本 笔记 表格 曲线"),
    "days": (
        "day|question|headline (study)|minutes on CPU|on MPS|on GPU|files",
        "天|要回答的问题|主要结果（study）|CPU 分钟|MPS 分钟|GPU 分钟|文件",
    ),
    "sets": ("set|days|download|licence", "数据集|用于哪几天|下载量|许可证"),
    "hand": ("by hand", "手动下载"),
    "speed": (
        "claim|stock|ours|ratio|wanted|2-core machine",
        "比较项目|常规做法|本仓库|倍数|目标|2 核机器",
    ),
    "least": ("at least {}", "至少 {}"),
    "list": ("Days {}", "第 {} 天"),
    "single": ("Day {}", "第 {} 天"),
    "machines": ("The minutes are those of: {}.", "这些分钟数来自：{}。"),
    "machine": ("{} ({}, {})", "{}（{}，{}）"),
    "pending": (
        "Not there yet: {}. Part of the code is in `utils` already, with its tests; "
        "a day without results in the table claims nothing.",
        "尚未完成：{}。它们的部分代码已在 `utils` 中，并有测试；表中没有结果的那些天，本仓库不作任何结论。",
    ),
    "full": ("Not run: the full profile of {}.", "没有运行过：{}的 full 配置。"),
    "devices": ("No row of any table comes from {}.", "各天的表格里没有任何一行来自 {}。"),
}

LICENCES_ZH = {
    "cifar10": "无正式许可证，供研究使用（A. Krizhevsky 2009）",
    "kathleen": "CC0 1.0（Rhasspy 项目的女声 Kathleen）",
    "noise": "CC BY 3.0，各片段为 CC0 或 CC BY（K. J. Piczak, 2015）",
}
"""Where a licence is more than its name: the same in Chinese."""

FILES = (".ipynb", "_notes.md", "_params.csv", "_loss_curve.png")
BENCH = "docs/bench.csv"
"""The benchmarks' figures: copied row by row from what `make bench` printed, with the machine."""


def say(key: str, language: str, *values: object) -> str:
    """A phrase of TEXT in `en` or `zh`, with its values."""
    return TEXT[key][language == "zh"].format(*values)


def span(numbers: list[int], language: str = "en") -> str:
    """`1–4, 6` for 1, 2, 3, 4, 6."""
    groups: list[list[int]] = []
    for n in sorted(numbers):
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    comma = "、" if language == "zh" else ", "
    return comma.join(str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups)


def day_list(numbers: list[int], language: str) -> str:
    """`Days 1–4, 6`, `Day 15`; in Chinese `第 1–4、6 天`."""
    key = "list" if len(numbers) > 1 else "single"
    return say(key, language, span(numbers, language))


def rows_of(day: days.Day) -> list[results.Row]:
    """All rows of a day's table, of every profile; none where the day or its table is not there."""
    return read_table(day.table()) if day in days.existing() else []


def minutes(found: list[results.Row], device: str, language: str = "en") -> str:
    """Minutes of the study rows on `cpu`, `mps` or `cuda`; else those of full, marked; else `not measured`."""
    for profile, mark in (("study", ""), ("full", " (full)")):
        seconds = [
            float(r["seconds"])
            for r in found
            if r.get("profile") == profile and r["device"].split()[0] == device
        ]
        if seconds:
            return f"{sum(seconds) / 60:.1f}{mark}"
    return say("measured", language)


def headline(day: days.Day, found: list[results.Row], language: str) -> str:
    """`accuracy 95.90 ± 0.29 % (n=3) on ...`; where there is no headline row, what there is instead."""
    if found and "profile" not in found[0]:
        return say("rows", language, len(found))  # Day 15: a table of the others
    sets = [
        r["dataset"]
        for r in found
        if (r["role"], r["profile"]) == ("headline", "study") and r.get(day.metric)
    ]  # a training alone may have no such metric
    if not sets:
        return say("run", language)
    metric = METRICS[day.metric][language == "zh"]
    return say("on", language, metric, results.headline(day.number), sets[0])


def overview(language: str = "en") -> str:
    """All fifteen days: question, headline from the CSV, minutes of its runs by device, links."""
    questions = results.QUESTIONS | (QUESTIONS_ZH if language == "zh" else {})
    body = []
    for day in days.ALL:
        line = [str(day.number)]
        if day not in days.existing():
            line += [day.title.replace("_", " "), say("there", language), "", "", "", ""]
            body.append(line)
            continue
        found = rows_of(day)
        links = [
            f"[{text}]({day.name}/{day.name}{suffix})"
            for text, suffix in zip(TEXT["files"][language == "zh"].split(), FILES, strict=True)
            if (day.folder / f"{day.name}{suffix}").exists()
        ]
        question = questions.get(day.number, day.title.replace("_", " "))
        line += [question, headline(day, found, language)]
        line += [minutes(found, device, language) for device in ("cpu", "mps", "cuda")]
        body.append([*line, " · ".join(links)])
    return results.markdown(say("days", language).split("|"), body)


def machines(language: str = "en") -> str:
    """One sentence: the devices of the study and full rows, and the days that ran on each."""
    ran: dict[str, list[int]] = {}
    for day in days.existing():
        for name in dict.fromkeys(r["device"] for r in rows_of(day) if r.get("profile")):
            ran.setdefault(name, []).append(day.number)
    shown = []
    for name, numbers in ran.items():
        kind, _, model = name.replace("(R)", "").partition(" ")
        model = model.removeprefix("(").removesuffix(")")
        shown.append(say("machine", language, model, kind.upper(), day_list(numbers, language)))
    return say("machines", language, ("；" if language == "zh" else "; ").join(shown))


def gaps(language: str = "en") -> str:
    """What the tables say was not run, as list items: days, full profiles, devices."""
    here = days.existing()
    missing = [d.number for d in days.ALL if d not in here]
    rows = {d.number: rows_of(d) for d in here}
    part = [
        n for n, found in rows.items() if not any(r.get("profile", "full") == "full" for r in found)
    ]
    kinds = {r["device"].split()[0] for found in rows.values() for r in found if "device" in r}
    absent = [n for k, n in (("mps", "MPS"), ("cuda", "CUDA")) if k not in kinds]
    said = [
        say("pending", language, day_list(missing, language)) if missing else "",
        say("full", language, day_list(part, language)) if part else "",
        say("devices", language, (" 或 " if language == "zh" else " or ").join(absent))
        if absent
        else "",
    ]
    return "\n".join(f"* {s}" for s in said if s)


def sets(language: str = "en") -> str:
    """The data sets that `make fetch` knows: the days that use them, what they weigh, their licence."""
    body = []
    for name, source in catalogue.SOURCES.items():
        size = sum(f.size for f in source.files) / 1e6
        weight = f"{size:,.0f} MB" if size else say("hand", language)
        licence = source.licence
        if language == "zh":
            licence = LICENCES_ZH.get(name, licence)
        body.append([f"`{name}`", span(list(days.using(name)), language), weight, licence])
    return results.markdown(say("sets", language).split("|"), body)


def speed(language: str = "en") -> str:
    """The benchmarks that were run, from `docs/bench.csv`; a capped baseline gives `at least`."""
    body = []
    for row in read_table(days.ROOT / BENCH):
        stock, ratio = row["stock"], row["ratio"]
        if row["capped"]:
            stock, ratio = (say("least", language, v) for v in (stock, ratio))
        claim = row["claim_zh" if language == "zh" else "claim"]
        body.append([claim, stock, row["ours"], ratio, row["wanted"], row["machine"]])
    return results.markdown(say("speed", language).split("|"), body)
