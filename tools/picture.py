"""The README's picture, drawn from what the days published: `python -m tools summary` keeps it up to date."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.metrics import ConfusionMatrixDisplay

from utils import days, plots
from utils.features import SAMPLE_RATE, LogMel
from utils.logger import read_table
from utils.speech.corpora import read_sample

from . import results

PICTURE = "docs/what_comes_out.png"
WIDTH = 1800
TRAINING_RUNS = {
    2: "Day 2: digits, MLP",
    3: "Day 3: digits, CNN",
    4: "Day 4: photos, CNN",
    7: "Day 7: spoken words",
}
"""The days whose headline training runs are drawn together, and their names."""


def sources() -> list[Path]:
    """The files that the picture is drawn from, this one among them."""
    logs = [days.get(n).folder / f"{days.get(n).name}_train_log.csv" for n in TRAINING_RUNS]
    answers = days.get(7).folder / f"{days.get(7).name}_test_answers.csv"
    return [Path(__file__), *logs, answers, days.get(8).table()]


def fingerprint() -> str:
    """A digest of the sources, kept in the PNG: says whether it is older than the results."""
    texts = [p.read_text(encoding="utf-8") for p in sources()]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def picture(check: bool = False) -> str:
    """Draw it where it is older than its sources; with `check` only look. What was found, in a word."""
    path = days.ROOT / PICTURE
    if any(not p.exists() for p in sources()):
        return "not drawn, its days are not here"
    if path.exists():
        with Image.open(path) as image:
            if image.info.get("Description") == fingerprint():
                return "agrees with the tables"
    if check:
        return "differs from the tables"
    draw(path)
    return "drawn"


def draw(path: Path) -> None:
    """Four panels: a spoken sentence, the confusions of words, training runs, a search."""
    style = {"font.size": 11, "axes.titlesize": 12.5}
    with plt.rc_context():
        plots.use_house_style()
        plt.rcParams.update(style)
        figure = plt.figure(figsize=(15, 5.3), layout="constrained")
        grid = figure.add_gridspec(2, 4, height_ratios=(1, 3.2), width_ratios=(5, 4, 4, 4))
        sentence(figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0]))
        confusions(figure.add_subplot(grid[:, 1]))
        training_runs(figure.add_subplot(grid[:, 2]))
        search(figure.add_subplot(grid[:, 3]))
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=WIDTH / 15, format="png")
        plt.close(figure)
    marks = PngInfo()
    marks.add_text("Description", fingerprint())
    few = {"colors": 256, "method": Image.Quantize.MAXCOVERAGE, "dither": Image.Dither.NONE}
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(drawn).convert("RGB").quantize(**few)  # half the bytes of full colour
    image.save(path, optimize=True, pnginfo=marks)


def sentence(above, below) -> None:
    """A sentence of the bundled sample: its wave, and under it its log-mel spectrogram."""
    rows, samples = read_sample("sentences")
    row = min(rows, key=lambda r: len(r["text"]))
    start, length = int(row["start"]), int(row["length"])
    wave = torch.from_numpy(samples[start : start + length]).float() / 2**15
    seconds = len(wave) / SAMPLE_RATE
    above.plot(torch.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.5)
    above.set(title="A wave becomes a picture", xlim=(0, seconds), yticks=[])
    above.tick_params(labelbottom=False)
    mels = LogMel()(wave[None])[0].numpy()
    where = {"origin": "lower", "aspect": "auto", "extent": (0, seconds, 0, len(mels))}
    below.imshow(mels, cmap="magma", **where)
    below.set(ylabel="mel band", xlabel=f"seconds\n“{row['text']}”")
    for axis in (above, below):
        axis.grid(visible=False)


def confusions(axis) -> None:
    """Day 7's answers to the test clips, three seeds: rows what was said, columns what was recognised."""
    day = days.get(7)
    answers = read_table(day.folder / f"{day.name}_test_answers.csv")
    said, recognised = zip(
        *((r["word"], r[c]) for r in answers for c in r if c.startswith("seed")), strict=True
    )
    shown = ConfusionMatrixDisplay.from_predictions(
        said, recognised, normalize="true", values_format=".0%", cmap="Blues", ax=axis, colorbar=False,
        xticks_rotation="vertical", im_kw={"aspect": "auto"},
    )  # fmt: skip
    shown.im_.set_norm(PowerNorm(0.5, 0, 1))  # so that rare confusions can be seen
    for text in shown.text_.flat:
        text.set(fontsize=9, visible=text.get_text() != "0%")
    people = len({r["speaker"] for r in answers})
    axis.set(
        title=f"Words of {people} unseen speakers", ylabel="said", xlabel="recognised (of a word's clips)"
    )
    axis.grid(visible=False)


def training_runs(axis) -> None:
    """Validation error of the headline runs over their epochs in percent, mean and range of the seeds."""
    for number, name in TRAINING_RUNS.items():
        day = days.get(number)
        runs: dict[str, list[float]] = {}
        for row in read_table(day.folder / f"{day.name}_train_log.csv"):
            if row["profile"] == "study":
                error = 100 * (1 - float(row["val_accuracy"]))
                runs.setdefault(row["run"], []).append(error)
        errors = np.array(list(runs.values()))  # (seeds, epochs)
        x = 100 * np.arange(1, errors.shape[1] + 1) / errors.shape[1]
        (line,) = axis.plot(x, errors.mean(0), label=name)
        axis.fill_between(x, errors.min(0), errors.max(0), color=line.get_color(), alpha=0.15)
    axis.set(title="Training runs, three seeds each", xlabel="% of the epochs")
    axis.set(ylabel="validation error, %", yscale="log", ylim=(0.3, 400))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_yticks([0.5, 1, 2, 5, 10, 20, 50])
    axis.minorticks_off()
    plots.end_labels(axis, "{:.1f} %")
    axis.legend(fontsize=10)


def search(axis) -> None:
    """Day 8's trials: validation accuracy over epochs, the pruned ones ending early, the best bold."""
    blue, orange = plots.COLOURS[:2]
    trials = [r for r in results.rows(8) if r["state"] in ("complete", "pruned")]
    complete = [r for r in trials if r["state"] == "complete"]
    best = max(complete, key=lambda r: float(r["val_accuracy"]))
    for row in [*trials, best]:
        values = [100 * float(v) for v in row["val_curve"].split()]
        style = {"color": blue, "alpha": 0.35, "linewidth": 1.1}
        if row["state"] == "pruned":
            style |= {"color": orange, "alpha": 0.6}
            axis.plot(len(values), values[-1], "x", color=orange, alpha=0.6, markersize=6)
        axis.plot(range(1, len(values) + 1), values, "-", **style)
    axis.lines[-1].set(color="black", alpha=1, linewidth=2.6, label="best")
    axis.plot([], [], "-", color=blue, alpha=0.5, label="complete")
    axis.plot([], [], "-x", color=orange, alpha=0.7, label="pruned")
    plots.end_labels(axis, "{:.1f} %")
    axis.set(title=f"A search of {len(trials)} trials", xlabel="epoch")
    axis.set(ylabel="validation accuracy, %", ylim=(30, 101), xticks=range(2, 13, 2))
    axis.legend(fontsize=10, loc="lower right")
