"""The README's picture, drawn from what the days published: `python -m tools summary` keeps it up to date."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from utils import days
from utils.speech.corpora import read_sample

PICTURE = "docs/what_comes_out.png"
WIDTH = 1800

TRAININGS = {
    2: "Day 2: digits, MLP",
    3: "Day 3: digits, CNN",
    4: "Day 4: photos, CNN",
    7: "Day 7: spoken words",
}
"""The days whose headline trainings are drawn together, and their names."""


def sources() -> list[Path]:
    """The files that the picture is drawn from, this one among them."""
    words, search = days.get(7), days.get(8)
    logs = [days.get(n) for n in TRAININGS]
    return [
        Path(__file__),
        *(d.folder / f"{d.name}_train_log.csv" for d in logs),
        words.folder / f"{words.name}_test_answers.csv",
        search.table(),
    ]


def fingerprint() -> str:
    """A digest of the sources, kept in the PNG: says whether it is older than the results."""
    texts = [p.read_text(encoding="utf-8") for p in sources()]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def picture(check: bool = False) -> str:
    """Draw it where it is older than its sources; with `check` only look. What was found, in a word."""
    from PIL import Image

    path = days.ROOT / PICTURE
    if any(not p.exists() for p in sources()):
        return "not drawn, its days are not here"
    if path.exists():
        with Image.open(path) as image:
            if image.info.get("Description") == fingerprint():
                return "agrees with the tables"
    if not check:
        draw(path)
        return "drawn"
    return "differs from the tables"


def draw(path: Path) -> None:
    """Four panels: a sentence heard, what strangers' words were taken for, trainings, a search."""
    import matplotlib

    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from utils import plots

    with plt.rc_context():
        plots.use_house_style()
        plt.rcParams.update({"font.size": 11, "axes.titlesize": 12.5})
        figure = plt.figure(figsize=(15, 5.3), layout="constrained")
        grid = figure.add_gridspec(2, 4, height_ratios=(1, 3.2), width_ratios=(5, 4, 4, 4))
        sentence(figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0]))
        confusions(figure.add_subplot(grid[:, 1]))
        trainings(figure.add_subplot(grid[:, 2]))
        search(figure.add_subplot(grid[:, 3]))
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=WIDTH / 15, format="png")
        plt.close(figure)
    marks = PngInfo()
    marks.add_text("Description", fingerprint())
    few = (
        Image.open(drawn)
        .convert("RGB")
        .quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    few.save(path, optimize=True, pnginfo=marks)  # half the bytes of full colour
    matplotlib.use(backend)


def sentence(above, below) -> None:
    """A sentence of the bundled sample: its wave, and under it its log-mel spectrogram."""
    import torch

    from utils.features import SAMPLE_RATE, LogMel

    rows, samples = read_sample("sentences")
    row = min(rows, key=lambda r: len(r["text"]))
    start, length = int(row["start"]), int(row["length"])
    wave = torch.from_numpy(samples[start : start + length]).float() / 2**15
    seconds = len(wave) / SAMPLE_RATE
    above.plot(torch.arange(len(wave)) / SAMPLE_RATE, wave, linewidth=0.5)
    above.set(xlim=(0, seconds), yticks=[])
    above.tick_params(labelbottom=False)
    above.grid(visible=False)
    mels = LogMel()(wave[None])[0].numpy()
    below.imshow(
        mels, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, len(mels))
    )
    above.set(title="A wave becomes a picture")
    below.set(ylabel="mel band", xlabel=f"seconds\n“{row['text']}”")
    below.grid(visible=False)


def confusions(axis) -> None:
    """Day 7's answers to the test clips: rows what was said, columns what was heard, three seeds."""
    import numpy as np

    from utils.logger import read_table

    day = days.get(7)
    answers = read_table(day.folder / f"{day.name}_test_answers.csv")
    words = sorted({r["word"] for r in answers})
    seeds = [c for c in answers[0] if c.startswith("seed")]
    counts = np.zeros((len(words), len(words)))
    for row in answers:
        for seed in seeds:
            counts[words.index(row["word"]), words.index(row[seed])] += 1
    share = 100 * counts / counts.sum(1, keepdims=True)
    axis.imshow(np.sqrt(share), cmap="Blues", aspect="auto")
    for y, x in zip(*np.nonzero(share >= 0.5), strict=True):
        colour = "white" if share[y, x] > 40 else "black"
        axis.text(x, y, f"{share[y, x]:.0f}", ha="center", va="center", fontsize=9.5, color=colour)
    people = len({r["speaker"] for r in answers})
    axis.set(
        title=f"Heard from {people} unseen speakers",
        xlabel="heard (% of the clips of a word)",
        ylabel="said",
    )
    axis.set_xticks(range(len(words)), words, rotation=90)
    axis.set_yticks(range(len(words)), words)
    axis.grid(visible=False)


def trainings(axis) -> None:
    """Validation error of the headline trainings over the share of their epochs, mean and range of seeds."""
    import numpy as np

    from utils import plots
    from utils.logger import read_table

    for number, name in TRAININGS.items():
        day = days.get(number)
        runs: dict[str, list[float]] = {}
        for row in read_table(day.folder / f"{day.name}_train_log.csv"):
            if row["profile"] == "study":
                error = 100 * (1 - float(row["val_accuracy"]))
                runs.setdefault(row["run"], []).append(error)
        errors = np.array(list(runs.values()))
        x = 100 * np.arange(1, errors.shape[1] + 1) / errors.shape[1]
        (line,) = axis.plot(x, errors.mean(0), label=name)
        axis.fill_between(x, errors.min(0), errors.max(0), color=line.get_color(), alpha=0.15)
    axis.set(
        title="Trainings, three seeds each",
        xlabel="% of the training done",
        ylabel="validation error, %",
        yscale="log",
        ylim=(0.3, 400),
    )
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_yticks([0.5, 1, 2, 5, 10, 20, 50])
    axis.minorticks_off()
    plots.end_labels(axis, "{:.1f} %")
    axis.legend(fontsize=10)


def search(axis) -> None:
    """Day 8's trials: validation accuracy over epochs, the pruned ones ending early, the best bold."""
    from utils import plots

    from . import results

    trials = [r for r in results.rows(8) if r["state"] in ("complete", "pruned")]
    curves = {r["run"]: [100 * float(v) for v in r["val_curve"].split()] for r in trials}
    best = max(
        (r for r in trials if r["state"] == "complete"), key=lambda r: float(r["val_accuracy"])
    )
    for row in trials:
        pruned = row["state"] == "pruned"
        colour, alpha = (plots.COLOURS[1], 0.6) if pruned else (plots.COLOURS[0], 0.35)
        values = curves[row["run"]]
        x = range(1, len(values) + 1)
        axis.plot(x, values, color=colour, alpha=alpha, linewidth=1.1, linestyle="-")
        if pruned:
            axis.plot(x[-1], values[-1], "x", color=colour, markersize=6)
    axis.plot([], [], "-", color=plots.COLOURS[0], alpha=0.5, label="complete")
    axis.plot([], [], "-x", color=plots.COLOURS[1], alpha=0.7, label="pruned")
    values = curves[best["run"]]
    axis.plot(range(1, len(values) + 1), values, "-", color="black", linewidth=2.6, label="best")
    plots.end_labels(axis, "{:.1f} %")
    axis.set(
        title=f"A search of {len(trials)} trials",
        xlabel="epoch",
        ylabel="validation accuracy, %",
        ylim=(30, 101),
    )
    axis.legend(fontsize=10, loc="lower right")
