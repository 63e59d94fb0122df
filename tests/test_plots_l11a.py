"""The figures of L11a and L11d show exactly what they are given."""

from figures import texts

from course_lib.plots import l11a, l11d
from course_lib.studies import ppo_steps


def test_every_variant_of_the_study_has_a_look_of_its_own():
    assert set(l11a.VARIANTS) == set(ppo_steps.VARIANTS)
    assert len({colour for colour, _, _ in l11a.VARIANTS.values()}) == len(l11a.VARIANTS)
    assert set(l11a.PANELS) <= {*ppo_steps.KEPT, "points"}


def test_learning_curves_draw_every_seed_and_the_mean():
    curves = {
        "score": {"REINFORCE": [[0.0, 1.0], [2.0, 3.0]], "clip": [[5.0, 5.0]]},
        "kl": {"REINFORCE": [[0.0, 4.0]]},
    }
    figure = l11a.learning_curves(curves, batch=32, window=1)
    first, second = figure.axes[:2]
    assert len(first.lines) == 5
    named = {line.get_label(): line for line in first.lines if line.get_label() in l11a.VARIANTS}
    assert list(named["REINFORCE"].get_ydata()) == [1.0, 2.0]
    assert list(named["REINFORCE"].get_xdata()) == [1, 2]
    assert list(second.lines[-1].get_ydata()) == [0.0, 4.0]
    assert "iteration, 32 replies each" in first.get_xlabel()


def test_noise_bars_write_the_mean():
    figure = l11a.noise_bars({"REINFORCE": [100.0, 300.0], "baseline": [50.0]})
    assert [bar.get_width() for bar in figure.axes[0].patches] == [200, 50]
    assert {"200", "50", "REINFORCE", "baseline"} <= set(texts(figure))


def test_mistakes_stand_beside_the_right_version():
    curves = {
        "loss": {"right": [[1.0, 2.0]], "wrong": [[3.0, 4.0], [5.0, 6.0]]},
        "score": {"right": [[0.0, 0.5]], "wrong": [[0.0, -0.5], [0.0, -0.7]]},
    }
    figure = l11d.mistake_curves(curves, "step")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["right"].get_ydata()) == [1.0, 2.0]
    assert list(lines["wrong"].get_ydata()) == [4.0, 5.0]
    assert lines["right"].get_color() != lines["wrong"].get_color()
    assert list(figure.axes[1].lines[-1].get_ydata()) == [0.0, -0.6]
