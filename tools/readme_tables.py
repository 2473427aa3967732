"""What the READMEs, the days' pages and docs show, from the tables."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path

from utils import days
from utils.logger import read_table
from utils.sources import catalogue

from . import results

TEXTS = tomllib.loads(Path(__file__).with_name("readme_texts.toml").read_text(encoding="utf-8"))
"""Questions, names of metrics and phrases: [English, Chinese]."""
QUESTIONS, METRICS = TEXTS["questions"], TEXTS["metrics"]
FILES = (".ipynb", "_notes.md", "_params.csv", "_loss_curve.png")


def say(key: str, language: str, *values: object) -> str:
    """A phrase in `en` or `zh`, with its values."""
    return TEXTS["text"][key][language == "zh"].format(*values)


def span(numbers: Sequence[int]) -> str:
    """`1–4, 6` for 1, 2, 3, 4, 6."""
    runs = itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    groups = [[n for _, n in run] for _, run in runs]
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups)


def minutes(found: list[results.Row], device: str, language: str = "en") -> str:
    """Minutes of the study rows on `cpu`, `mps` or `cuda`; else those of full, marked; else `not measured`."""
    for profile, mark in (("study", ""), ("full", " (full)")):
        rows = [r for r in found if r.get("profile") == profile]
        seconds = [float(r["seconds"]) for r in rows if r["device"].split()[0] == device]
        if seconds:
            return f"{sum(seconds) / 60:.1f}{mark}"
    return say("measured", language)


def headline(day: days.Day, found: list[results.Row], language: str = "en") -> str:
    """`accuracy 95.90 ± 0.29 % (n=3) on ...`; where there is no headline row, what there is instead."""
    if found and "profile" not in found[0]:  # Day 15: a table of the others
        return say("rows", language, len(found))
    heads = [r for r in found if (r["role"], r["profile"]) == ("headline", "study")]
    sets = [r["dataset"] for r in heads if r.get(day.metric)]  # a training run may have no such metric
    if not sets:
        return say("run", language)
    metric = METRICS[day.metric][language == "zh"]
    return say("on", language, metric, results.headline(day.number), sets[0])


def files(day: days.Day, folder: str, language: str = "en") -> list[str]:
    """Links to the day's notebook, notes, table and curve, as far as they are there."""
    names = say("files", language).split()
    return [
        f"[{name}]({folder}{day.name}{suffix})"
        for name, suffix in zip(names, FILES, strict=True)
        if (day.folder / f"{day.name}{suffix}").exists()
    ]


def overview(language: str = "en") -> str:
    """The days that are here: question, headline, minutes of the runs by device, links."""
    body = []
    for day in days.existing():
        found = read_table(day.table())
        line = [str(day.number), QUESTIONS[str(day.number)][language == "zh"]]
        line.append(headline(day, found, language))
        line += [minutes(found, device, language) for device in ("cpu", "mps", "cuda")]
        body.append([*line, " · ".join(files(day, f"{day.name}/", language))])
    return results.markdown(say("days", language).split("|"), body)


def machines() -> str:
    """One sentence: the devices of the study and full rows, and the days that ran on each."""
    ran: dict[str, list[int]] = {}
    for day in days.existing():
        for name in dict.fromkeys(r["device"] for r in read_table(day.table()) if r.get("profile")):
            ran.setdefault(name, []).append(day.number)
    shown = []
    for name, numbers in ran.items():
        kind, _, model = name.replace("(R)", "").partition(" ")
        model = model.removeprefix("(").removesuffix(")")
        shown.append(f"{model} ({kind.upper()}, days {span(numbers)})")
    return f"The minutes are those of: {'; '.join(shown)}."


def gaps() -> str:
    """What the tables say was not run, as list items: full profiles, devices."""
    rows = {d.number: read_table(d.table()) for d in days.existing()}
    full = [n for n, found in rows.items() if all(r.get("profile") == "study" for r in found)]
    kinds = {r["device"].split()[0] for found in rows.values() for r in found if r.get("device")}
    absent = [n for k, n in (("mps", "MPS"), ("cuda", "CUDA")) if k not in kinds]
    said = [f"* Not run: the full profile of days {span(full)}."] if full else []
    said += [f"* No row of any table comes from {' or '.join(absent)}."] if absent else []
    return "\n".join(said)


def sets() -> str:
    """The data sets that `make fetch` knows: the days that use them, what they weigh, their licence."""
    body = []
    for name, source in catalogue.SOURCES.items():
        size = sum(f.size for f in source.files) / 1e6
        weight = f"{size:,.0f} MB" if size else "by hand"
        body.append([f"`{name}`", span(days.using(name)), weight, source.licence])
    return results.markdown(("set", "days", "download", "licence"), body)


def speed() -> str:
    """The benchmarks that were run, from `docs/bench.csv`; a baseline that was stopped gives `at least`."""
    body = []
    for r in read_table(days.ROOT / "docs" / "bench.csv"):
        least = "at least " if r["capped"] else ""
        body.append([r["claim"], least + r["stock"], r["ours"], least + r["ratio"], r["goal"], r["machine"]])
    return results.markdown(("claim", "stock", "ours", "ratio", "goal", "2-core machine"), body)


def container_days() -> str:
    """What the days took in the image, in the quick profile."""
    columns = ("run", "seconds", "peak_mb", "engine", "machine", "threads")
    body = [[r[c] for c in columns] for r in read_table(days.ROOT / results.TABLE)]
    return results.markdown(("day", "seconds", "memory, MB", "engine", "machine", "threads"), sorted(body))


def neighbours(day: days.Day, file: str) -> list[str]:
    """Links from a page of a day to the same page of the days before and after."""
    here = days.existing()
    at = here.index(day)
    return [
        f"[Day {d.number}](../{d.name}/{file.format(d.name)})"
        for d in (*here[max(0, at - 1) : at], *here[at + 1 : at + 2])
    ]


def links(number: int) -> str:
    """The first line of a day's notes: its other files, and the notes of its neighbours."""
    day = days.get(number)
    others = [x for x in files(day, "") if "_notes.md" not in x]
    return " · ".join([*others, *neighbours(day, "{}_notes.md")])


def page(day: days.Day) -> str:
    """A day's README.md: its question, its files, its headline beside the best baseline, its neighbours."""
    found = read_table(day.table())
    heads = [r for r in read_table(days.get(15).table()) if r["day"] == str(day.number)]
    said = headline(day, found)
    for row in heads:
        if row["role"] == "baseline" and f"`{row['dataset']}`" in said:
            value = float(row["value"])
            best = f"{100 * value:.2f} %" if day.metric in results.RATES else f"{value:.4g}"
            said += f"; the best baseline: {best}"
    fetch = f"make fetch DAY={day.number} && " if day.sets else ""
    return "\n\n".join(
        [
            f"# Day {day.number} · {day.title.replace('_', ' ')}",
            QUESTIONS[str(day.number)][0],
            " · ".join(files(day, "")),
            f"Result (study profile): {said}.",
            f"Run it: `{fetch}make day DAY={day.number} PROFILE=study`; "
            f"without data or network: `make day DAY={day.number} PROFILE=quick`.",
            " · ".join([*neighbours(day, "README.md"), "[all days](../README.md#the-fifteen-days)"]),
        ]
    )
