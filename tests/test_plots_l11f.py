"""The figure of L11f shows exactly what it is given."""

import pytest
from figures import texts

from course_lib.plots import l11f

FIRST = {"text": [0.0, 0.0], "template": [0.75, 1.0]}
PLACE = {"text": [0.25, 0.75], "template": [0.5, 0.0]}


def lines_of(ax):
    return [(list(map(float, x.get_xdata())), list(map(float, x.get_ydata()))) for x in ax.lines]


def test_moved_draws_every_question_and_the_means():
    figure = l11f.moved(FIRST, PLACE)
    left, right = figure.axes
    assert lines_of(left) == [([0, 1], [0.0, 0.75]), ([0, 1], [0.0, 1.0]), ([0, 1], [0.0, 0.875])]
    assert lines_of(right) == [([0, 1], [0.25, 0.5]), ([0, 1], [0.75, 0.0]), ([0, 1], [0.5, 0.25])]
    assert {"0.00", "0.88", "0.50", "0.25", "text", "template"} <= set(texts(figure))
    assert left.lines[-1].get_marker() != right.lines[-1].get_marker()


def test_ways_with_different_questions_are_an_error():
    with pytest.raises(ValueError):
        l11f.moved({"text": [0.0, 0.1], "template": [0.5]}, PLACE)
