"""The house style of every picture: readable in print, in grey, and by colour-blind eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .days import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe & Ito's palette for colour-blind readers (2008), darkest first, without its yellow."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
DPI = 150


def use_house_style() -> None:
    """Set matplotlib's defaults for this session: call it once, in the cell of the imports."""
    plt.style.use(Path(__file__).with_name("plots.mplstyle"))
    lines = cycler(color=COLOURS) + cycler(linestyle=DASHES)
    plt.rcParams.update({"axes.prop_cycle": lines, "savefig.dpi": DPI})


def show(figure: Figure, caption: str = "", save: Path | None = None) -> None:
    """Show a figure once; with `save`, also write a PNG, at least 1200 px wide.

    What to see in it belongs into a Markdown cell below; `caption` shows such a sentence from the code.
    """
    if save:
        save_png(figure, save)
    from IPython.display import Markdown, display

    display(figure)
    if caption:
        display(Markdown(f"*{caption}*"))
    plt.close(figure)


def save_png(figure: Figure, path: Path, width: int = 1200, dpi: float = DPI) -> None:
    """Write a PNG at least `width` pixels wide, whole or not at all."""
    dpi = max(dpi, width / figure.get_size_inches()[0])
    with atomic(path) as scratch:
        figure.savefig(scratch, dpi=dpi, format="png", metadata={"Software": None})


def end_labels(axis: Axes, form: str = "{:.3g}", gap: float = 0.055) -> None:
    """Write each line's last value at its right end, in its colour, pushed apart where they touch.

    `form` may contain the line's name: "{label}", "{label} {:.2f}". `gap` is the smallest distance of two labels
    as a fraction of the axis' height.
    """
    axis.margins(x=0.02)
    _ = axis.get_xlim(), axis.get_ylim()  # reading them makes matplotlib compute the limits
    lines = [ln for ln in axis.get_lines() if len(ln.get_xdata()) > 1 and ln.get_label()[0] != "_"]
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = []
    for line in lines:
        x, y = line.get_xdata()[-1], float(line.get_ydata()[-1])
        if y == y:
            ends.append((float(to_axes.transform((float(x), y))[1]), y, line))
    ends.sort(key=lambda e: e[0])
    heights = spaced([e[0] for e in ends], gap)
    for height, (_, y, line) in zip(heights, ends, strict=True):
        axis.annotate(
            form.format(y, label=line.get_label()), (1.0, height), xycoords="axes fraction", xytext=(4, 0),
            textcoords="offset points", color=line.get_color(), va="center", fontsize=9,
            annotation_clip=False,
        )  # fmt: skip


def spaced(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as necessary so that neighbours are `gap` apart and all within 0..1."""
    out = [min(max(h, 0.0), 1.0) for h in heights]
    for i in range(1, len(out)):
        out[i] = max(out[i], out[i - 1] + gap)
    if out and out[-1] > 1:
        out[-1] = 1.0
        for i in range(len(out) - 2, -1, -1):
            out[i] = min(out[i], out[i + 1] - gap)
    return out


def image_grid(
    images: Sequence, titles: Sequence[str], columns: int = 8, cmap: str = "gray_r", size: float = 1.25
) -> Figure:
    """A grid of small images, each `(height, width)` or `(height, width, 3)`, with a title above."""
    rows = -(-len(images) // columns)
    figure, _ = plt.subplots(rows, columns, figsize=(columns * size, rows * (size + 0.25)))
    for axis in figure.axes:
        axis.axis("off")
    for axis, image, title in zip(figure.axes, images, titles, strict=False):
        axis.imshow(image, cmap=cmap)
        axis.set_title(title, fontsize=8.5, fontweight="normal")
    return figure
