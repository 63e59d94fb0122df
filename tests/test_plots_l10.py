"""The figures of L10 show exactly what they are given."""

import pytest
from figures import texts

from course_lib.plots import l10


def test_temperature_bars_have_a_panel_each_and_per_cent():
    figure = l10.temperature_bars([" a", "b\n"], {"cold": [0.9, 0.001], "hot": [0.5, 0.25]})
    cold, hot = figure.axes
    assert [bar.get_width() for bar in cold.patches] == pytest.approx([90, 0.1])
    assert [bar.get_width() for bar in hot.patches] == pytest.approx([50, 25])
    assert {"␣a", "b⏎", "cold", "hot", "90", "<1", "25"} <= set(texts(figure))


def test_trade_draws_points_with_both_intervals():
    rows = [(0, (1.0, 1.0, 1.0), (1.5, 1.1, 1.9)), (1.3, (3.5, 3.2, 3.8), (-0.5, -0.9, -0.1))]
    (ax,) = l10.trade(rows).axes
    drawn = [(list(map(float, x.get_xdata())), list(map(float, x.get_ydata()))) for x in ax.lines]
    assert drawn[0] == ([1.0, 3.5], [1.5, -0.5])
    assert ([3.2, 3.8], [-0.5, -0.5]) in drawn and ([3.5, 3.5], [-0.9, -0.1]) in drawn
    assert {"0", "1.3"} <= {t.get_text() for t in ax.texts}


def test_filter_cuts_mark_the_last_token_that_stays():
    curves = {"sure": [0.9, 0.06, 0.04], "open": [0.4, 0.35, 0.25]}
    cuts = {"top-p": {"sure": 1, "open": 3}, "top-k": {"sure": 2, "open": 2}}
    figure = l10.filter_cuts(curves, cuts)
    (ax,) = figure.axes
    marks = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in ax.lines
        if len(line.get_xdata()) == 1
    ]
    assert marks == [(1, 0.9), (3, 0.25), (2, 0.06), (2, 0.35)]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["sure", "open", "top-p", "top-k"]


def test_likelihood_map_stars_real_text_and_turns_shares_into_per_cent():
    methods = {
        "real": ((-1.0, -1.25, -0.75), (0.0, -0.125, 0.125)),
        "greedy": ((-0.25, -0.5, -0.125), (0.5, 0.25, 0.75)),
    }
    (ax,) = l10.likelihood_map(methods).axes
    points = {x.get_marker(): x for x in ax.lines if x.get_marker() != "None"}
    assert {m: (x.get_xdata()[0], x.get_ydata()[0]) for m, x in points.items()} == {
        "*": (-1.0, 0.0),
        "s": (-0.25, 50.0),
    }
    assert points["*"].get_label() == "real" and points["s"].get_label() == "greedy"
    lows = [min(map(float, x.get_ydata())) for x in ax.lines]
    assert 25.0 in lows and min(lows) == 0.0  # a share is never below 0


def test_by_length_draws_each_method_and_writes_its_last_value():
    figure = l10.by_length([10, 20], {"slow": [5.0, 1234.4], "fast": [2.0, 4.0]}, "ms")
    (ax,) = figure.axes
    assert [list(map(float, line.get_ydata())) for line in ax.lines] == [[5.0, 1234.4], [2.0, 4.0]]
    assert {"slow: 1,234", "fast: 4", "ms"} <= set(texts(figure))
