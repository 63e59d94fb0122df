"""The figures of L07 and L08 show exactly what they are given; the studies behind L08."""

import pytest
import torch
from figures import cells, texts
from matplotlib.patches import Rectangle

from course_lib.gpt import GPT, GPTConfig
from course_lib.plots import l07, l08
from course_lib.sizing import PUBLISHED, kv_cache_bytes, parameter_count, parameters, training_flops
from course_lib.studies import ablations, run_study
from course_lib.studies.scaling import PowerLaw, fit

SMALL = GPTConfig(101, 16, 32, 2, 2)


# -- L07 ----------------------------------------------------------------------------------------


def test_parameter_shares_fill_every_bar():
    models = {"small": SMALL, "GPT-2": PUBLISHED["GPT-2 small"].config}
    (ax,) = l07.parameter_shares({n: parameters(c) for n, c in models.items()}).axes
    bars = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_height() == 0.74]
    for i, config in enumerate(models.values()):
        widths = [b.get_width() for b in bars if round(b.get_y() + 0.37) == i]
        counts = parameters(config)
        shown = 100 * (1 - counts["norms"] / sum(counts.values()))
        assert sum(widths) == pytest.approx(shown)
        assert widths[0] == pytest.approx(100 * counts["embedding"] / sum(counts.values()))


def test_stream_sizes_label_the_ends():
    figure = l07.stream_sizes({"a": [0.1, 2.0, 30.0], "b": [0.5, 0.5, 0.75]})
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.1, 2.0, 30.0]
    assert {"0.1", "30", "0.5", "0.75"} <= set(texts(figure))


def test_lens_table_and_steps():
    html = l07.lens_table([("embedding", [(" <is>", 1.0), (".", 0.004)])])
    assert cells(html)[1:] == [["embedding", "␣&lt;is&gt; 100\u00a0%", ". 0\u00a0%"]]
    (ax,) = l07.lens_steps(["embedding", "attention 0", "feed-forward 0"], [0, 0.25, 0.5]).axes
    assert [bar.get_width() for bar in ax.patches] == [0, 25, 50]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 3


def test_removal_map_writes_every_share():
    figure = l07.removal_map([[0.0, 0.5], [1.0, 0.25]], ["a", "b"], ["x", "y"])
    assert [t for t in texts(figure) if t.isdigit()] == ["0", "50", "100", "25"]


def test_anatomy_counts_every_part():
    model = GPT(SMALL)
    html = l07.anatomy(model)
    assert f"{model.n_parameters:,} parameters, 100.0 %" in html
    assert html.count("<details") == html.count("</details>")
    shapes = [f"{a} × {b}" for a, b in (p.shape for p in model.parameters() if p.dim() == 2)]
    assert all(shape in html for shape in shapes)
    mlp = sum(p.numel() for p in model.blocks[0].mlp.parameters())
    assert f"(MLP): {mlp:,} parameters, {100 * mlp / model.n_parameters:.1f} %" in html


# -- L08 ----------------------------------------------------------------------------------------


def test_cache_growth_draws_each_model_and_the_limit():
    (ax,) = l08.cache_growth({"a": [1.0, 2.0], "b": [0.5, 1.0]}, [1024, 2048], 1.5, "free").axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[1, 2], [0.5, 1], [1.5, 1.5]]
    bottom, top = ax.get_ylim()
    assert 0.1 < bottom < 0.5 and top > 2  # all of it is in sight


def test_differences_mark_only_what_the_interval_decides():
    rows = {"good": (-0.2, -0.3, -0.1), "open": (0.1, -0.1, 0.3), "bad": (0.2, 0.1, 0.3)}
    figure = l08.differences(rows, {name: [row[0]] for name, row in rows.items()})
    means = [line for line in figure.axes[0].lines if line.get_marker() in "Do"]
    assert [line.get_marker() for line in means] == ["D", "o", "D"]
    assert len({line.get_color() for line in means}) == 3
    assert {"−0.200", "+0.100", "+0.200"} <= set(texts(figure))


def test_scaling_draws_laws_through_to_the_unseen_size():
    law = PowerLaw(1.0, 8.0, 0.3)
    figure = l08.scaling({1e3: [3.0, 3.1], 1e4: [2.0]}, {1e5: [1.5]}, {"law": law}, "N")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["fitted"].get_ydata()) == [3.0, 3.1, 2.0]
    xs, ys = lines["law"].get_data()
    assert xs[0] == pytest.approx(1e3) and xs[-1] == pytest.approx(1e5, rel=1e-5)
    assert ys[-1] == pytest.approx(law(1e5), rel=1e-5)


def test_published_table_is_computed():
    rows = cells(l08.published_table(PUBLISHED))[1:]
    names = [row[0].replace("\u00a0", " ").replace("\u2011", "-") for row in rows]
    assert names == list(PUBLISHED)
    for row, model in zip(rows, PUBLISHED.values(), strict=True):
        assert row[-2] == f"{parameter_count(model.config) / 1e9:.3g}"
        assert row[-1] == f"{kv_cache_bytes(model.config, 1) / 1000:,.0f}"


# -- the studies --------------------------------------------------------------------------------


def test_a_fit_finds_the_law_behind_its_points():
    sizes = [1e4, 3e4, 1e5, 3e5, 1e6]
    found = fit(sizes, [1.5 + 50 * n**-0.3 for n in sizes])
    assert (found.floor, found.amount, found.exponent) == pytest.approx((1.5, 50, 0.3), rel=1e-6)
    straight = fit(sizes, [20 * n**-0.2 for n in sizes], floor=0.0)
    assert (straight.amount, straight.exponent) == pytest.approx((20, 0.2), rel=1e-6)


def test_a_fit_refuses_a_floor_below_zero():
    sizes = [1e3, 1e4, 1e5]
    assert fit(sizes, [3.0, 2.0, 1.0]).floor >= 0  # falls faster than any law with a floor


@pytest.mark.parametrize("variant", ablations.VARIANTS)
def test_every_variant_spends_the_same_compute(variant):
    tokens = ablations.BATCH * ablations.LENGTH
    full = ablations.SIZES["full"]
    budget = training_flops(ablations.config_of("default", 512), full["steps"] * tokens, 64)
    step = training_flops(ablations.config_of(variant, 512), tokens, ablations.LENGTH)
    assert round(budget / step) * step == pytest.approx(budget, rel=0.01)


def test_deep_and_wide_have_as_large_blocks():
    def blocks(variant):
        counts = parameters(ablations.config_of(variant, 512))
        return counts["attention"] + counts["mlp"]

    for variant in ("deep", "wide"):
        assert blocks(variant) == pytest.approx(blocks("default"), rel=0.12)


def test_the_scaling_study_gives_a_row_for_each_size_and_seed(monkeypatch):
    from course_lib.studies import scaling

    monkeypatch.setitem(scaling.SIZES, "small", scaling.SIZES["small"] | {"steps": 1})
    results = run_study("scaling", "small")["results"]
    assert [r["width"] for r in results["runs"]] == [*results["fitted"], results["predicted"]]
    assert all(torch.tensor(r["loss"]).isfinite() for r in results["runs"])
    assert [r["parameters"] > r["embedding"] > 0 for r in results["runs"]] == [True] * 4
