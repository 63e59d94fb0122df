"""The figures of L11e show exactly what they are given."""

import pytest
from figures import texts

from course_lib.plots import l11e


def lines_of(ax):
    return [(list(map(float, x.get_xdata())), list(map(float, x.get_ydata()))) for x in ax.lines]


def test_by_seed_draws_per_cent_with_intervals_over_the_band_of_the_first():
    figure = l11e.by_seed(
        {"one": [(0.5, 0.25, 0.75), (0.875, 0.75, 1.0)], "two": [(0.0, 0.0, 0.5)]}
    )
    one, two = figure.axes
    assert ([0, 0], [25.0, 75.0]) in lines_of(one) and ([1], [87.5]) in lines_of(one)
    (band,) = one.patches
    assert (band.get_y(), band.get_height()) == (25.0, 50.0)
    assert ([0, 0], [0.0, 50.0]) in lines_of(two)
    assert {"one", "two", "seed"} <= set(texts(figure))


def test_slopes_have_a_line_for_each_seed_and_one_for_the_mean():
    figure = l11e.slopes({"points": [(0.0, 1.0), (0.5, 2.0)], "length": [(16.0, 18.0)] * 2})
    points, length, hidden = figure.axes
    drawn = lines_of(points)
    assert drawn[:2] == [([0, 1], [0.0, 1.0]), ([0, 1], [0.5, 2.0])]
    assert drawn[2] == ([0, 1], [0.25, 1.5]) and points.lines[2].get_linewidth() > 2
    assert drawn[3:] == [([0], [0.25]), ([1], [1.5])]
    assert not hidden.get_visible() and length.get_title(loc="left") == "length"


def test_shares_are_cut_where_shares_end():
    table = {
        "sft": {"refusal": (0.25, 0.125, 0.375), "off-topic": (0.03, -0.05, 0.125)},
        "rlhf": {"refusal": (0.5, 0.5, 0.5), "off-topic": (0.0, 0.0, 0.0)},
    }
    figure = l11e.shares(table)
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([25, 3, 50, 0])
    spans = [x for x, _ in lines_of(ax)]
    assert spans[0] == [12.5, 37.5] and spans[1] == [0.0, 12.5]
    assert {"SFT 25", "RLHF 50", "refusal"} <= set(texts(figure))
