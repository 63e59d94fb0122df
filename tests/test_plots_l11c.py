"""The figures of L11c show exactly what they are given."""

import pytest
from figures import texts

from course_lib.plots import l11c
from course_lib.studies import roads


def row(mean, kl, score):
    return {
        "judge_mean": mean,
        "judge_interval": [mean - 0.25, mean + 0.5],
        "reward": [score, score - 0.125, score + 0.125],
        "kl": kl,
    }


ENDS = {"sft": row(0.25, -1e-9, 0.0), "ppo": row(1.5, 2.0, 1.25), "dpo": row(1.0, 4.0, 1.0)}
BEST = [
    {"n": 1, "kl": 0.0, "judge": [0.25, 0.0, 0.5], "reward": [0.0, -0.1, 0.1]},
    {"n": 4, "kl": 0.75, "judge": [0.75, 0.5, 1.0], "reward": [0.875, 0.8, 0.9]},
]


def lines_of(ax):
    return [(list(map(float, x.get_xdata())), list(map(float, x.get_ydata()))) for x in ax.lines]


def test_roads_map_draws_truth_left_and_proxy_right():
    figure = l11c.roads_map(ENDS, BEST)
    left, right = figure.axes
    assert lines_of(left)[0] == ([0.0, 0.75], [0.25, 0.75])
    assert lines_of(right)[0] == ([0.0, 0.75], [0.0, 0.875])
    assert ([2.0, 2.0], [1.25, 2.0]) in lines_of(left) and ([2.0], [1.5]) in lines_of(left)
    assert ([2.0, 2.0], [1.125, 1.375]) in lines_of(right)
    assert ([0.0], [0.25]) in lines_of(left)  # a KL of zero, not of rounding
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["best of n", "SFT", "PPO", "DPO"]
    assert "4" in texts(figure) and "1" not in [t.get_text() for t in left.texts]


def test_every_road_of_the_study_has_a_look_of_its_own():
    looks = [(colour, marker) for _, colour, marker in l11c.ROADS.values()]
    assert len(set(looks)) == len(looks)
    assert len({marker for _, marker in looks}) == len(looks)  # colour is never the only sign
    assert set(l11c.ROADS) == {"sft", "ppo", "longer", "round two", "dpo", "grpo"}
    assert roads.SIZES["full"]["best_of"][0] == 1


def test_score_paths_end_at_their_last_mean():
    curves = {
        "ppo": {"score": [0.0, 1.0, 2.0], "kl": [0.0, 0.5, 1.0]},
        "grpo": {"score": [0.0, 3.0], "kl": [0.0, 2.0]},
    }
    score, kl = l11c.score_paths(curves, window=2).axes
    assert lines_of(score)[0] == ([1, 2, 3], [0.0, 0.5, 1.5])
    assert lines_of(score)[1] == ([3], [1.5])
    assert lines_of(kl)[3] == ([2], [1.0])


def test_unknown_roads_are_errors():
    with pytest.raises(KeyError):
        l11c.score_paths({"shortcut": {"score": [1.0], "kl": [0.0]}})
