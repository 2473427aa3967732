import itertools

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils import plots


@pytest.mark.parametrize("inches", [3, 9, 14])
def test_pictures_are_wide_enough(tmp_path, inches):
    figure, axis = plt.subplots(figsize=(inches, 2))
    axis.plot([0, 1], [0, 1])
    plots.save_png(figure, tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").width >= 1200
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_a_figure_is_shown_once_with_its_caption_below(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", seen.append)
    figure = plt.figure()
    plots.show(figure)
    assert seen == [figure]
    assert not plt.fignum_exists(figure.number)
    plots.show(figure, "What to see.")
    assert seen[2].data == "*What to see.*"


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=12), st.floats(0.01, 0.08))
def test_labels_are_apart_in_order_and_inside(heights, gap):
    out = plots.spaced(sorted(heights), gap)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(out))
    assert max(out) <= 1 + 1e-9
    assert min(out) >= -1e-9


def test_labels_that_do_not_touch_stay_where_they_are():
    assert plots.spaced([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]


def test_end_labels_write_the_last_values_of_named_lines():
    _, axis = plt.subplots()
    axis.plot([1, 2, 3], [3.0, 2.0, 1.25], label="a")
    axis.plot([1, 2, 3], [3.0, 2.0, 0.5], label="b")
    axis.plot([1, 3], [1, 1], label="_helper")
    plots.end_labels(axis, "{:.2f}")
    assert sorted(t.get_text() for t in axis.texts) == ["0.50", "1.25"]
    plots.end_labels(axis, "{label} {:.1f}")
    assert [t.get_text() for t in axis.texts[2:]] == ["b 0.5", "a 1.2"]


def test_lines_differ_by_more_than_colour():
    plots.use_house_style()
    _, axis = plt.subplots()
    lines = [axis.plot([0, 1], [0, i])[0] for i in range(len(plots.COLOURS))]
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == len(plots.COLOURS)
    assert len({look[1] for look in looks}) == len(plots.COLOURS)


def test_image_grid_shows_all(tmp_path):
    figure = plots.image_grid([[[0, 1], [1, 0]]] * 5, list("abcde"), columns=3)
    assert sum(bool(a.images) for a in figure.axes) == 5
