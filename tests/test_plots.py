"""Figures show exactly what they are given, once, and tables escape what models wrote."""

import re

import matplotlib.pyplot as plt
import pytest
import torch
from figures import texts

from course_lib import plots
from course_lib.chat import IM_END, SPECIAL_TOKENS
from course_lib.evaluate import BEHAVIOURS, wilson_interval
from course_lib.tokenizer import BPETokenizer

TALK = [("system", "Be brief."), ("user", "Hi <b>"), ("assistant", "Hello")]


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train("Hello there, hello you. Be brief.", 265, SPECIAL_TOKENS)


@pytest.fixture
def shares():
    table = {}
    for model, counts in {"base": (9, 1, 0, 0, 0, 0), "sft": (0, 6, 2, 1, 1, 0)}.items():
        table[model] = {}
        for name, k in zip(BEHAVIOURS, counts, strict=True):
            low, high = wilson_interval(k, 10)
            table[model][name] = {"share": k / 10, "low": low, "high": high, "count": k}
    return table


def test_behaviour_chart_draws_the_shares_it_got(shares):
    (ax,) = plots.behaviour_chart(shares).axes
    widths = [round(bar.get_width(), 6) for bar in ax.patches]
    assert widths == [100 * row["share"] for model in shares.values() for row in model.values()]
    drawn = [line for c in ax.containers if hasattr(c, "has_xerr") for line in c[2]]
    ends = [segment[:, 0] for line in drawn for segment in line.get_segments()]
    low, high = ends[0]
    first = shares["base"]["continuation"]
    assert (low, high) == pytest.approx((100 * first["low"], 100 * first["high"]))


def test_behaviour_chart_names_every_class_and_model(shares):
    seen = texts(plots.behaviour_chart(shares))
    assert set(BEHAVIOURS) <= set(seen)
    assert "Base 90" in seen and "SFT 60" in seen


def test_loss_curve_shows_the_mean_and_the_extremes():
    rows = [{"step": i, "loss": 3.0 / (i + 1)} for i in range(40)]
    (ax,) = plots.loss_curve(rows).axes
    assert list(ax.lines[0].get_ydata()) == [row["loss"] for row in rows]
    rows = [{"step": i, "loss": 9.0 if i == 777 else 1.0} for i in range(1000)]
    (ax,) = plots.loss_curve(rows).axes
    assert len(ax.lines[0].get_ydata()) == 100
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() == 9.0  # no spike is lost


def test_ppo_curves_has_one_panel_a_metric():
    rows = [dict.fromkeys(plots.PPO_PANELS, float(i)) | {"step": i} for i in range(7)]
    figure = plots.ppo_curves(rows)
    assert len(figure.axes) == len(plots.PPO_PANELS)
    kl, clipped = figure.axes[1], figure.axes[4]
    assert list(kl.lines[0].get_ydata()) == [float(i) for i in range(7)]
    assert list(clipped.lines[0].get_ydata()) == [100.0 * i for i in range(7)]  # per cent


def test_calibration_points_and_intervals():
    rows = [
        {"confidence": 0.6, "right": 0.5, "count": 4, "low": 0.2, "high": 0.8},
        {"confidence": 0.9, "right": 1.0, "count": 4, "low": 0.6, "high": 1.0},
    ]
    (ax,) = plots.reward_calibration(rows).axes
    assert list(ax.lines[-1].get_ydata()) == [50.0, 100.0]
    assert ax.get_ylim()[0] < 20  # the lowest interval is inside


def test_clip_objective_is_flat_where_nothing_can_be_gained():
    better, worse = plots.clip_objective(0.2).axes
    ratios = torch.linspace(0.4, 1.6, 241)
    gain = torch.tensor(better.lines[1].get_ydata())
    loss = torch.tensor(worse.lines[1].get_ydata())
    assert gain[ratios > 1.21] == pytest.approx(1.2)
    assert loss[ratios < 0.79] == pytest.approx(-0.8)
    assert loss[-1].item() == pytest.approx(-1.6)  # a mistake is never clipped


def test_points_and_probabilities_show_their_numbers():
    assert "−0.50" in texts(plots.points_chart({"sft": (-0.5, -0.7, -0.3)}))
    rows = [{"token": " Paris", "probs": {"base": 0.25, "sft": 0.001}}]
    seen = texts(plots.probability_bars(rows))
    assert {"␣Paris", "25", "<1", "Base", "SFT"} <= set(seen)


def test_figures_are_transparent_and_closed(shares):
    before = plt.get_fignums()
    figure = plots.behaviour_chart(shares)
    assert plt.get_fignums() == before  # a notebook shows it once, as the value of its cell
    assert figure.get_facecolor()[3] == 0


def test_text_is_readable_on_a_phone(shares):
    """In a column of 358 pixels no letter is smaller than 8 pixels."""
    rows = [dict.fromkeys(plots.PPO_PANELS, float(i)) | {"step": i} for i in range(7)]
    for figure in (plots.behaviour_chart(shares), plots.ppo_curves(rows)):
        pixels = 358 / figure.get_figwidth() / 72
        assert pixels * min(t.get_fontsize() for t in figure.findobj(plt.Text)) >= 8


def cells(html):
    """Rows of a table as lists of texts."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_table_escapes_and_keeps_lines():
    html = plots.table(("a", "b"), [("<script>",), ("x\ny", "1 < 2")], numbers=[1])
    assert "<script>" not in html
    assert cells(html)[1:] == [["&lt;script&gt;"], ["x<br>y", "1 &lt; 2"]]


def test_mask_table_agrees_with_the_mask(tokenizer):
    rows = cells(plots.mask_table(TALK, tokenizer))[1:]
    learned = "".join(row[1] for row in rows if row[4] == "learned")
    assert learned == "Hello" + IM_END.replace("<", "&lt;").replace(">", "&gt;")
    # a target stands one row above its token
    asked = [row[5] for row in rows if row[5] != "–"]
    assert asked == [row[1] for row in rows if row[4] == "learned"]
    writers = [row[3] for row in rows]
    assert {"template", "system", "user", "assistant"} == set(writers)
    assert all(row[3] == "assistant" for row in rows if row[4] == "learned")


def test_source_shows_the_code_without_its_docstring():
    html = plots.source(plots.smooth)
    assert "smooth" in html and "Mean of each value" not in html
    assert plots.without_docstring("def f():\n    # why\n    return 1") == (
        "def f():\n    # why\n    return 1"
    )


def test_claims_show_only_what_does_not_hold():
    claim = plots.Claims()
    claim(True, "Fire is hot.")
    assert "admonition" not in claim._repr_html_()
    claim(torch.tensor(1) > 2, "One is <more> than two.")
    shown = claim._repr_html_()
    assert "One is &lt;more&gt; than two." in shown and "Fire" not in shown
