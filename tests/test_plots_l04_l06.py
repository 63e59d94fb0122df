"""Figures of L04 to L06 draw what they are given; the depth study and its browser hold together."""

import json
import math

import matplotlib.pyplot as plt
import pytest
import torch

from course_lib.data import token_stream
from course_lib.errors import CourseError
from course_lib.plots import l04, l05, l06
from course_lib.studies import depth, run_study
from course_lib.widgets.base import BOOK_BUILD_VARIABLE
from course_lib.widgets.depth_browser import DepthBrowser, binned, depth_curves, seed_mean


def texts(ax):
    return [t.get_text() for t in ax.findobj(plt.Text) if t.get_text()]


# -- L04 ------------------------------------------------------------------------------------------


def test_head_grids_write_every_share_and_frame_the_largest():
    tables = {"previous": [[0.1, 0.42], [0.07, 0.2]], "own": [[0.3, 0.0], [0.1, 0.25]]}
    figure = l04.head_grids(tables, {"previous": 0.04, "own": 0.05})
    for ax, (name, table) in zip(figure.axes, tables.items(), strict=True):
        written = [float(t) for t in texts(ax)[:4]]
        assert sorted(written) == sorted(round(100 * x) for row in table for x in row)
        (frame,) = ax.patches
        row, column = max((x, i, j) for i, r in enumerate(table) for j, x in enumerate(r))[1:]
        assert frame.get_xy() == pytest.approx((column - 0.47, row - 0.47))
        assert any(t.startswith(name) and "even" in t for t in texts(ax))


def test_damage_grids_keep_the_sign():
    figure = l04.damage_grids({"loss": [[0.5, -0.25]]}, {"loss": "{:.2f}"})
    assert {"0.50", "−0.25"} <= set(texts(figure.axes[0]))
    assert "−0" not in texts(
        l04.damage_grids({"points": [[4.0, -0.3]]}, {"points": "{:.0f}"}).axes[0]
    )


# -- L05 ------------------------------------------------------------------------------------------


def test_gradients_leave_gaps_and_lift_what_is_too_small():
    curves = {"pre": [1.0, 0.5], "residual only": [None, 2.0]}
    figure = l05.gradients_by_block({"at the start": curves, "after training": curves})
    first, second = figure.axes[1].lines
    assert list(first.get_ydata()) == [1.0, 0.5]
    assert math.isnan(second.get_ydata()[0]) and second.get_ydata()[1] == 2.0
    tiny = l05.gradients_by_block({"now": {"neither": [0.0, 1e-30]}}).axes[0].lines[0]
    assert list(tiny.get_ydata()) == [l05.LEAST] * 2


def test_stream_by_depth_puts_depths_on_the_axis():
    (line,) = l05.stream_by_depth({"post": {4: 1.0, 8: 3.0}}).axes[0].lines
    assert list(line.get_xdata()) == [4, 8] and list(line.get_ydata()) == [1.0, 3.0]


def test_training_by_depth_draws_one_line_a_seed():
    losses = {4: {"pre": [[5.0, 4.0], [5.2, 4.1]]}, 16: {"pre": [[5.1, 4.9], [5.0, 4.8]]}}
    figure = l05.training_by_depth(losses, bin=5)
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]
    assert list(figure.axes[1].lines[1].get_ydata()) == [5.0, 4.8]
    assert list(figure.axes[0].lines[0].get_xdata()) == [
        3.0,
        8.0,
    ]  # middles of steps 1 to 5, 6 to 10


def test_stream_through_model_marks_the_median():
    ax = l05.stream_through_model([[0.1, 0.2, 0.3], [1.0, 2.0, 30.0]]).axes[0]
    assert list(ax.lines[0].get_ydata()) == [0.2, 2.0]
    assert {"embedding", "block 0"} <= set(texts(ax))


# -- L06 ------------------------------------------------------------------------------------------


def test_curves_are_labelled_with_their_ends():
    figure = l06.training_curves({"no mask": [3.0] * 30, "causal mask": [4.0] * 30})
    assert {"no mask 3.00", "causal mask 4.00"} <= set(texts(figure.axes[0]))
    ax = l06.loss_by_position({"no mask": [0.1, 0.1, 3.0]}).axes[0]
    assert list(ax.lines[0].get_ydata()) == [0.1, 0.1, 3.0]
    assert list(ax.lines[1].get_ydata()) == [3.0]


def test_influence_grid_leaves_exact_zeros_empty():
    ax = l06.influence_grid([[1.0, 0.0], [0.001, 0.999]], [" a", "b"]).axes[0]
    written = texts(ax)
    assert "100" in written and "<1" in written and "0" not in written
    assert "␣a" in written


# -- the study of depth ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    return run_study("depth", "small")["results"]


@pytest.fixture(scope="module")
def stream(tiny_tokenizer):
    return token_stream(["a b c d e f g h. " * 20], tiny_tokenizer)


def test_the_study_has_every_stack(study):
    json.dumps(study, allow_nan=False)
    stacks = {(run["variant"], run["n_layers"]) for run in study["runs"]}
    assert stacks == {(v, d) for v in depth.VARIANTS for d in study["depths"]}
    for run in study["runs"]:
        assert len(run["start"]["gradients"]) == run["n_layers"]
        assert len(run["start"]["stream"]) == run["n_layers"] + 1
        assert ("losses" in run) == (run["n_layers"] in study["trained"])


def test_variants_are_what_their_names_say():
    x = torch.randn(1, 5, depth.WIDTH)
    for variant in depth.VARIANTS:
        model = depth.build(variant, 2, seed=0)
        block = model.blocks[0]
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                if name.endswith(("out.weight", "down.weight")):
                    parameter.zero_()  # the block writes nothing
        rotary = model._embed(torch.zeros(1, 5, dtype=torch.long), torch.arange(5))[1]
        out = block(x, rotary)
        keeps = variant in ("residual only", "pre", "pre, scaled")
        assert torch.equal(out, x) == keeps
        assert (out.abs().max() == 0) == (variant in ("neither", "norm only"))
    assert not any("norm" in name for name, _ in depth.build("neither", 2, 0).named_parameters())


def test_writes_start_smaller_in_deeper_stacks_when_scaled():
    def std(variant, n_layers):
        return depth.build(variant, n_layers, 0).blocks[0].mlp.down.weight.std().item()

    assert std("pre", 8) == pytest.approx(std("pre", 2), rel=0.05)
    assert std("pre, scaled", 8) == pytest.approx(std("pre", 8) / 4, rel=0.05)


def test_snapshot_is_the_gradient_of_the_batch(stream):
    model = depth.build("pre", 2, 0)
    seen = depth.snapshot(model, stream)
    want = [
        math.sqrt(sum(p.grad.square().sum().item() for p in block.parameters()))
        for block in model.blocks
    ]
    assert seen["gradients"] == pytest.approx(want, rel=1e-3)


def test_numbers_beyond_float_become_none():
    assert depth.plain([1.23456, math.inf, math.nan, 0.0]) == [1.235, None, None, 0.0]


# -- the browser of the study ---------------------------------------------------------------------


def test_seed_means():
    assert seed_mean([[1.0, 2.0], [3.0, 6.0]], geometric=False) == [2.0, 4.0]
    assert seed_mean([[1.0, 2.0], [4.0, 8.0]], geometric=True) == [2.0, 4.0]
    assert seed_mean([[0.0], [4.0]], geometric=True) == [0.0]
    assert binned([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None]) == [3.0, None]


def test_browser_shows_the_study(study):
    widget = DepthBrowser(study, depth=2)
    curves = depth_curves(study)
    assert widget.curves == curves
    assert set(curves) == {f"{v}, {d}" for v in depth.VARIANTS for d in study["depths"]}
    value = curves["pre, 2"]["gradients"][0]
    fallback = widget.fallback_html()
    assert f"{value:.3g}" in fallback and "2 blocks" in fallback
    untrained = DepthBrowser(study, depth=3, quantity="losses")
    assert untrained.fallback_html().count("not trained") == 2 * len(depth.VARIANTS)


def test_browser_state_is_plain_and_the_same_twice(study, monkeypatch):
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    one, two = (DepthBrowser(study, depth=2).book_html() for _ in range(2))
    assert one == two and "NaN" not in one


@pytest.mark.parametrize("state", [{"depth": 5}, {"quantity": "x"}, {"shown": ["best"]}])
def test_browser_refuses_what_the_study_lacks(study, state):
    with pytest.raises(CourseError, match="choose from"):
        DepthBrowser(study, **({"depth": 2} | state))
