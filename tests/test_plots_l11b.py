"""Figures of L11b draw what they are given."""

import pytest

from course_lib.plots import l11b


def points(*rows):
    names = ("proxy", "judge")
    return [
        {"kl": kl} | {n: (x, x - 0.5, x + 0.5) for n, x in zip(names, values, strict=True)}
        for kl, *values in rows
    ]


CURVES = {
    "kl_coef 0": points((0.0, 0, 1), (4.0, 2, 3), (25.0, 3, 0)),
    "other": points((-0.1, 1, 1)),
}


def test_both_rewards_are_drawn_against_kl():
    figure = l11b.against_kl(CURVES)
    proxy, judge = figure.axes
    assert [list(ax.lines[0].get_ydata()) for ax in (proxy, judge)] == [[0, 2, 3], [1, 3, 0]]
    assert list(proxy.lines[0].get_xdata()) == [0.0, 4.0, 25.0]
    assert list(proxy.lines[1].get_xdata()) == [0.0]  # an estimate below zero
    assert proxy.get_title(loc="left") == l11b.TITLES["proxy"]
    bars = judge.collections[0].get_segments()
    assert [tuple(bar[:, 1]) for bar in bars] == [(0.5, 1.5), (2.5, 3.5), (-0.5, 0.5)]


def test_the_axis_is_spaced_by_the_root_of_kl():
    ax = l11b.against_kl(CURVES).axes[0]
    place = [ax.transData.transform((kl, 0))[0] for kl in (0, 4, 16)]
    assert place[2] - place[0] == pytest.approx(2 * (place[1] - place[0]))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.5", "2", "5", "10", "20"]


def test_one_reward_alone():
    figure = l11b.against_kl(CURVES, ["judge"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == [l11b.TITLES["judge"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(CURVES)
