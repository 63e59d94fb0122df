"""Figures and tables of L02: neighbours, maps of the embeddings, and the study of positions."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from course_lib.plots import (
    AMBER,
    BLUE,
    GREEN,
    PINK,
    SOFT,
    VERMILION,
    panels,
    table,
    token_text,
)

SCHEME_STYLES = {
    "none": (SOFT, "x"),
    "learned": (GREEN, "s"),
    "sinusoidal": (AMBER, "^"),
    "rotary": (BLUE, "o"),
}
_GROUPS = tuple(zip((VERMILION, BLUE, GREEN, AMBER, PINK, SOFT), "os^DvP", strict=True))

Neighbours = Sequence[tuple[str, float]]  # tokens with their cosines, nearest first


def neighbours_table(before: Neighbours, after: Neighbours) -> str:
    """The nearest tokens before and after training, side by side."""
    rows = []
    for rank, ((a, x), (b, y)) in enumerate(zip(before, after, strict=True), start=1):
        rows.append((rank, token_text(a), f"{x:.2f}", token_text(b), f"{y:.2f}"))
    header = ("rank", "untrained", "cosine", "trained", "cosine")
    return table(header, rows, numbers=(0, 2, 4), compact=True)


def maps(clouds: dict[str, tuple[Tensor, float]], groups: Sequence[str]) -> Figure:
    """Flat maps of the same things, one point each, coloured by group.

    Args:
        clouds: title to the points `(N, 2)` and the share of the variance that the map keeps.
        groups: the group of each of the N points.
    """
    figure, axes = panels(3.7, 1, len(clouds), grid=False)
    for ax, (title, (points, kept)) in zip(axes, clouds.items(), strict=True):
        for group, (colour, marker) in zip(sorted(set(groups)), _GROUPS, strict=False):
            own = [i for i, g in enumerate(groups) if g == group]
            x, y = points[own].T.tolist()
            ax.plot(x, y, marker, color=colour, markersize=4.5, label=group, alpha=0.85)
        ax.set_title(f"{title}: keeps {100 * kept:.0f} %", loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.margins(0.06)
        ax.spines[:].set_visible(False)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=3)
    return figure


def table_picture(rows: Tensor) -> Figure:
    """A table of position vectors `(length, width)` as a picture, blue below zero, red above."""
    figure, (ax,) = panels(2.9, grid=False)
    picture = ax.imshow(rows.T.tolist(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    figure.colorbar(picture, ax=ax, ticks=[-1, 0, 1])
    ax.set_xlabel("position")
    ax.set_ylabel("column")
    return figure


def _by_variant(runs: Sequence[dict], key: str) -> dict[str, list[list[float]]]:
    """Every seed's curve, by scheme, for the schemes that have a style."""
    return {name: [r[key] for r in runs if r["variant"] == name] for name in SCHEME_STYLES}


def _curves(ax, xs: Sequence[float], curves: dict[str, list[list[float]]], every: int) -> None:
    """The mean over seeds as a line, lowest and highest seed as a band."""
    for name, seeds in curves.items():
        colour, marker = SCHEME_STYLES[name]
        columns = list(zip(*seeds, strict=True))
        mean = [statistics.fmean(column) for column in columns]
        ax.fill_between(
            xs, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.25, lw=0
        )
        ax.plot(xs, mean, color=colour, marker=marker, markevery=every, markersize=5, label=name)


def training_curves(study: dict) -> Figure:
    """Training loss by step of each scheme: mean over seeds, and the range of the seeds."""
    curves = _by_variant(study["runs"], "train_loss")
    figure, (ax,) = panels(3.3)
    n_points = len(study["runs"][0]["train_loss"])
    steps = [study["steps"] * (i + 0.5) / n_points for i in range(n_points)]
    _curves(ax, steps, curves, every=4)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    ax.set_xlabel("step")
    ax.set_title("training loss, nats a token (means of ten steps)", loc="left")
    return figure


def beyond(study: dict) -> Figure:
    """Loss on fresh text by position; the dashed line is the longest text of training."""
    curves = _by_variant(study["runs"], "by_position")
    figure, (ax,) = panels(3.5)
    bucket = study["bucket"]
    places = [bucket * (i + 0.5) for i in range(len(study["runs"][0]["by_position"]))]
    _curves(ax, places, curves, every=2)
    ax.axvline(study["trained"], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    ax.annotate(
        "trained up to here",
        (study["trained"], 1),
        (5, -12),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=SOFT,
    )
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    ax.set_xlabel("position")
    ax.set_title("loss on fresh text, nats a token", loc="left")
    return figure


def gap_curve(gaps: Sequence[int], probabilities: Sequence[float]) -> Figure:
    """Probability of the right answer against the places that were skipped before it."""
    figure, (ax,) = panels(2.8)
    places = range(len(gaps))
    values = [100 * p for p in probabilities]
    ax.plot(places, values, "o-", color=VERMILION)
    for place, value in zip(places, values, strict=True):
        ax.annotate(f"{value:.0f}", (place, value), (0, 8), textcoords="offset points", ha="center")
    ax.set_xticks(places, [str(gap) for gap in gaps])
    ax.set_ylim(0, 114)
    ax.set_yticks([0, 50, 100])
    ax.set_xlabel("places skipped before the last token")
    ax.set_title("right first token, per cent", loc="left")
    return figure
