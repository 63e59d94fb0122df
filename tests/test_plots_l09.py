"""The figures of L09 show exactly what they are given."""

import pytest
from figures import texts

from course_lib.plots import l09


def lines_of(ax):
    """Label or colour -> the points of every line."""
    return {
        line.get_label(): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in ax.lines
    }


def test_curves_draw_each_line_up_to_the_top():
    lines = {"a": ([1, 2], [3.0, 1.0]), "b": ([1, 2], [2.0, 9.0])}
    figure = l09.curves(lines, "step", "loss", 5)
    (ax,) = figure.axes
    drawn = lines_of(ax)
    assert drawn["a"] == ([1, 2], [3.0, 1.0]) and drawn["b"] == ([1, 2], [2.0, 9.0])
    assert ax.get_ylim() == (0, 5)
    assert {"step", "loss"} <= set(texts(figure))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]


def test_long_curves_are_thinned_to_running_means():
    xs, ys = l09._thin(range(300), [float(i % 2) for i in range(300)])
    assert xs == list(range(0, 300, 2)) and set(ys[1:]) == {0.5} and ys[0] == 0.0


def test_schedule_shows_rate_norm_and_the_limit():
    rows = [{"step": i, "rate": 0.1 * i, "grad_norm": 2.0 + i} for i in range(4)]
    above, below = l09.schedule(rows, 1.5).axes
    (rate,) = above.lines
    assert list(rate.get_ydata()) == pytest.approx([0, 0.1, 0.2, 0.3])
    mean, limit = below.lines
    assert list(mean.get_ydata()) == pytest.approx([2, 2.5, 3.5, 4.5])
    assert set(limit.get_ydata()) == {1.5} and below.get_yscale() == "log"


def test_run_history_has_losses_snapshots_and_facts_in_per_cent():
    rows = [{"step": i, "loss": 4.0 - i} for i in range(3)]
    figure = l09.run_history(
        rows, [0, 3], [5.0, 1.5], {"capital": [0.0, 0.5], "currency": [0.25, 1.0]}, {"none": 6.0}
    )
    above, below = figure.axes
    drawn = lines_of(above)
    assert drawn["training batches"] == ([1, 2, 3], [4.0, 3.0, 2.0])
    assert drawn["held-out text"] == ([0, 3], [5.0, 1.5])
    assert lines_of(below) == {"capital": ([0, 3], [0, 50]), "currency": ([0, 3], [25, 100])}
    assert "none" in texts(figure)


def test_by_rate_leaves_out_what_blew_up():
    arms = {
        "own": {0.1: (2.0, 1.8, 2.2), 0.01: (3.0, 2.9, 3.1)},
        "other": {0.1: None, 0.01: (4.0, 3.0, 5.0)},
    }
    singles = {"own": {0.1: [1.9, 2.1], 0.01: [3.0]}, "other": {0.1: [7.0], 0.01: [4.0]}}
    (ax,) = l09.by_rate(arms, singles, "loss").axes
    drawn = lines_of(ax)
    assert drawn["own"][1] == [2.0, 3.0] and drawn["other"][1] == [4.0]
    aside = 1.05**0.5
    assert drawn["own"][0] == pytest.approx([0.1 / aside, 0.01 / aside])
    assert drawn["other"][0] == pytest.approx([0.01 * aside])
    ranges = {tuple(map(float, line.get_ydata())) for line in ax.lines}
    assert {(1.8, 2.2), (3.0, 5.0), (1.9, 2.1), (7.0,)} <= ranges
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.01", "0.1"]


def test_shakespeare_marks_validation_and_the_published_loss():
    run = {"loss": [3.0, 2.0], "validation_steps": [1, 2], "validation_loss": [2.5, 1.926]}
    figure = l09.shakespeare({"ours": run}, 1.88)
    (ax,) = figure.axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
    assert ([1, 2], [3.0, 2.5]) in drawn or ([1, 2], [3.0, 2.0]) in drawn
    assert ([1, 2], [2.5, 1.926]) in drawn
    assert {"1.93", "published: 1.88", "ours"} <= set(texts(figure))


def test_noise_draws_range_mean_and_prediction():
    (ax,) = l09.noise([1, 4], [(0.3, 0.1, 0.5), (0.8, 0.7, 0.9)], [0.4, 0.75]).axes
    drawn = lines_of(ax)
    assert drawn["measured"] == ([1, 4], [0.3, 0.8])
    assert drawn["predicted"] == ([1, 4], [0.4, 0.75])
    assert {(0.1, 0.5), (0.7, 0.9)} <= {tuple(map(float, x.get_ydata())) for x in ax.lines}
