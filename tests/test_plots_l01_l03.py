"""The figures and tables of L01 to L03 show exactly what they are given."""

import re

import matplotlib.pyplot as plt
import pytest
import torch
from figures import cells, texts

from course_lib.plots import l01, l02, l03
from course_lib.studies import run_study


@pytest.fixture(scope="module")
def study():
    return run_study("positions", "small")["results"]


# -- L01 ----------------------------------------------------------------------------------------


def test_readable_shows_text_or_bytes():
    assert l01.readable(b" Peru\n") == "␣Peru⏎"
    assert l01.readable("ñ".encode()) == "ñ"
    assert l01.readable("ñ".encode()[:1]) == "C3"


def test_chips_escape_and_keep_every_token():
    html = l01.chips([b"<b>", b"&", b"\xf0\x9f"])
    assert re.findall(r"<bdi[^>]*>([^<]*)</bdi>", html) == ["&lt;b&gt;", "&amp;", "F0 9F"]


def test_splits_table_counts_bytes_and_tokens():
    rows = [("English", [b"ab", b"c"]), ("CHIPS", ["é".encode()])]
    assert cells(l01.splits_table(rows))[1:] == [
        ["English", "3", "2", "abc"],
        ["CHIPS", "2", "1", "é"],
    ]


def test_merges_table_numbers_the_ids_from_256():
    html = l01.merges_table([((b"h", b"e"), 8275), ((b" ", b"t"), 7)])
    assert cells(html)[1:] == [
        ["0", "h", "e", "he", "8,275", "256"],
        ["1", "␣", "t", "␣t", "7", "257"],
    ]


def test_bytes_per_token_draws_what_it_gets():
    top, bottom = l01.bytes_per_token([256, 512], [1.0, 2.4], [0.1, 0.2], 300).axes
    assert list(top.lines[0].get_ydata()) == [1.0, 2.4]
    assert list(bottom.lines[0].get_ydata()) == [10.0, 20.0]  # per cent
    assert list(top.lines[1].get_xdata()) == [300, 300]


# -- L02 ----------------------------------------------------------------------------------------


def test_neighbours_table_puts_both_lists_side_by_side():
    html = l02.neighbours_table([(" a", 0.25)], [(" <b>", 0.756)])
    assert cells(html)[1:] == [["1", "␣a", "0.25", "␣&lt;b&gt;", "0.76"]]


def test_maps_draw_every_point_in_its_group():
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    figure = l02.maps({"before": (points, 0.125), "after": (-points, 0.5)}, ["B", "A", "B"])
    before, after = figure.axes
    assert [line.get_label() for line in before.lines] == ["A", "B"]
    assert list(before.lines[1].get_xdata()) == [0.0, 4.0]
    assert list(after.lines[0].get_ydata()) == [-3.0]
    assert "after: keeps 50 %" in texts(figure)


def test_study_curves_are_means_over_the_seeds():
    runs = [
        {"variant": name, "train_loss": [2.0 + s, 1.0 + s], "by_position": [3.0 + s, 4.0]}
        for name in [*l02.SCHEME_STYLES, "none, 1 layer"]
        for s in (0, 1)
    ]
    study = {"runs": runs, "steps": 20, "bucket": 16, "trained": 16}
    (ax,) = l02.training_curves(study).axes
    assert len(ax.lines) == len(l02.SCHEME_STYLES)
    assert list(ax.lines[0].get_xdata()) == [5.0, 15.0]
    assert list(ax.lines[0].get_ydata()) == [2.5, 1.5]
    (ax,) = l02.beyond(study).axes
    assert list(ax.lines[0].get_xdata()) == [8.0, 24.0]
    assert list(ax.lines[0].get_ydata()) == [3.5, 4.0]


def test_the_study_has_what_the_figures_need(study):
    assert len(l02.training_curves(study).axes[0].lines) == len(l02.SCHEME_STYLES)
    assert len(l02.beyond(study).axes[0].lines) == len(l02.SCHEME_STYLES) + 1  # and the border


def test_gap_curve_and_table_picture():
    (ax,) = l02.gap_curve([0, 8], [0.97, 0.1]).axes
    assert list(ax.lines[0].get_ydata()) == [97.0, 10.0]
    rows = torch.tensor([[0.0, 1.0], [0.5, -1.0]])
    picture = l02.table_picture(rows).axes[0].images[0]
    assert picture.get_array().tolist() == rows.T.tolist()


# -- L03 ----------------------------------------------------------------------------------------


def test_lines_of_l03_are_the_data():
    values = {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    top, bottom = l03.scale_curves([4, 8], values, {"a": [5.0, 6.0], "b": [7.0, 8.0]}).axes
    assert [list(line.get_ydata()) for line in top.lines] == [[1.0, 2.0], [3.0, 4.0]]
    assert [list(line.get_ydata()) for line in bottom.lines] == [[5.0, 6.0], [7.0, 8.0]]
    (ax,) = l03.reach([0, 1], values).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[1.0, 2.0], [3.0, 4.0]]
    times, memory = l03.cost([64, 128], values, {"a": [9.0, 1.0]}).axes
    assert list(times.lines[1].get_ydata()) == [3.0, 4.0]
    assert list(memory.lines[0].get_ydata()) == [9.0, 1.0]


def test_head_map_and_row():
    seen = texts(l03.head_map(torch.tensor([[0.999, 0.0], [0.5, 0.123]])))
    assert {"100", "0", "50", "12", "layer 1", "head 1"} <= set(seen)
    figure = l03.attention_row([" is", " Peru"], [0.001, 0.999], found=1)
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.1, 99.9])
    assert {"␣Peru", "<1", "100"} <= set(texts(figure))
    assert ax.get_yticklabels()[1].get_fontweight() == "bold"


def test_text_is_readable_on_a_phone(study):
    """In a column of 358 pixels no letter is smaller than 8 pixels."""
    figures = [
        l01.bytes_per_token([256, 512], [1.0, 2.4], [0.1, 0.2], 300),
        l02.training_curves(study),
        l02.beyond(study),
        l03.head_map(torch.rand(4, 5)),
        l03.attention_row(["a", "b"], [0.5, 0.5], 0),
    ]
    for figure in figures:
        pixels = 358 / figure.get_figwidth() / 72
        assert pixels * min(t.get_fontsize() for t in figure.findobj(plt.Text)) >= 8
