"""The position explorer: its numbers are those of course_lib.positions, its state is checked."""

import json
import math
import re

import pytest
import torch

from course_lib.errors import CourseError
from course_lib.positions import rotary_angles, sinusoidal_table
from course_lib.widgets.base import BOOK_BUILD_VARIABLE
from course_lib.widgets.position_explorer import PositionExplorer, similarity, wavelength

LEARNED = [1.0, 0.5, 0.25]


def mean_cosine(distance, width, theta):
    angles = [distance * theta ** (-2 * i / width) for i in range(width // 2)]
    return sum(map(math.cos, angles)) / len(angles)


@pytest.mark.parametrize("scheme", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("theta", [100, 10_000])
def test_similarity_is_the_mean_cosine(scheme, theta):
    expected = [mean_cosine(d, 16, theta) for d in range(40)]
    assert similarity(scheme, 40, 16, theta) == pytest.approx(expected, abs=1e-5)


def test_similarity_of_any_two_rows_at_that_distance():
    rows = sinusoidal_table(50, 16)
    curve = similarity("sinusoidal", 50, 16, 10_000.0)
    assert (rows[31] @ rows[20] / 8).item() == pytest.approx(curve[11], abs=1e-5)
    assert similarity("none", 3, 16, 10_000.0) == [1.0, 1.0, 1.0]


def test_a_wavelength_is_one_turn():
    for pair in (0, 3, 7):
        _, sin = rotary_angles(torch.tensor([1]), 16)
        turned = math.asin(sin[0, pair].item()) * wavelength(pair, 16, 10_000)
        assert turned == pytest.approx(2 * math.pi, rel=1e-5)


def test_fallback_shows_the_chosen_curve():
    text = PositionExplorer(LEARNED, scheme="learned").fallback_html()
    assert re.findall(r'<td class="cw-number">([^<]+)</td>', text) == ["1.000", "0.500", "0.250"]
    text = PositionExplorer(LEARNED, scheme="rotary", width=16).fallback_html()
    assert f"{mean_cosine(16, 16, 10_000):.3f}" in text


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"learned": []}, "learned"),
        ({"learned": [1.0, math.nan]}, "learned"),
        ({"scheme": "alibi"}, "scheme is 'alibi'"),
        ({"theta": 1}, "theta is 1"),
        ({"pair": -1}, "pair is -1"),
        ({"distance": -1}, "distance is -1"),
        ({"width": 7}, "width 7"),
    ],
)
def test_bad_state_is_refused(state, message):
    with pytest.raises(CourseError, match=message):
        PositionExplorer(**({"learned": LEARNED} | state))


def test_book_bundle(monkeypatch):
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    page = PositionExplorer(LEARNED)._repr_mimebundle_()["text/html"]
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert state["learned"] == LEARNED and state["scheme"] == "sinusoidal"
    assert PositionExplorer(LEARNED)._repr_mimebundle_()["text/html"] == page
