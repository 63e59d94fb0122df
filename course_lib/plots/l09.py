"""Figures of lesson 9: what a training looks like, and what its settings change."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course_lib.plots import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    LINE,
    PINK,
    SOFT,
    VERMILION,
    band,
    legend,
    panels,
    smooth,
)

Interval = tuple[float, float, float]  # mean, low, high

# Series of one figure, in their order: colour, line style, marker.
STYLES = (
    (BLUE, "-", "o"),
    (VERMILION, (0, (5, 2)), "s"),
    (GREEN, (0, (1.5, 1)), "^"),
    (AMBER, (0, (6, 1, 1, 1)), "D"),
    (PINK, (0, (3, 1)), "v"),
)
POINTS = 150  # of a curve: a point for every step would make a heavy picture


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list, list]:
    """Running means of a long curve at about `POINTS` places."""
    width = max(1, len(ys) // POINTS)
    return list(xs)[::width], smooth(ys, width)[::width]


def curves(
    lines: dict[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    title: str,
    top: float | None = None,
) -> Figure:
    """Several curves from zero upwards.

    Args:
        lines: name -> (xs, ys).
        top: where the vertical axis ends; curves that go higher leave the picture.
    """
    figure, (ax,) = panels(3.5)
    for (name, (xs, ys)), (colour, style, _) in zip(lines.items(), STYLES, strict=False):
        xs, ys = _thin(xs, ys)
        ax.plot(xs, ys, color=colour, linestyle=style, label=name)
    ax.set_ylim(bottom=0, top=top)
    ax.set_xlabel(xlabel)
    ax.set_title(title, loc="left")
    legend(figure)
    return figure


def schedule(rows: Sequence[dict], norm: float) -> Figure:
    """Learning rate by step, and the gradient's norm before clipping, with the longest allowed.

    Args:
        rows: metrics by step, with `rate` and `grad_norm`.
    """
    figure, (above, below) = panels(4.6, 2, 1)
    steps = [row["step"] for row in rows]
    width = max(1, len(rows) // POINTS)
    above.plot(steps[::width], [row["rate"] for row in rows][::width], color=BLUE)
    above.set_ylim(bottom=0)
    above.set_title("learning rate", loc="left")
    norms = [row["grad_norm"] for row in rows]
    band(below, steps, norms, width, 2 * width, BLUE)
    below.axhline(norm, color=VERMILION, linewidth=1.2, linestyle=(0, (5, 2)))
    place = {"textcoords": "offset points", "ha": "right", "fontsize": 9.5, "color": INK}
    below.annotate("clipped above this", (steps[-1], norm), (0, 4), **place)
    below.set_yscale("log")
    below.yaxis.set_major_formatter("{x:g}")
    below.set_title("norm of the gradient, before clipping", loc="left")
    below.set_xlabel("step")
    return figure


def run_history(
    rows: Sequence[dict],
    steps: Sequence[int],
    heldout: Sequence[float],
    facts: dict[str, Sequence[float]],
    levels: dict[str, float],
) -> Figure:
    """A whole run: training and held-out loss, and the facts it completes, by step.

    Args:
        rows: metrics by step.
        steps: of the snapshots; `heldout` and each of `facts` hold a value for every one.
        levels: losses to compare with.
    """
    figure, (above, below) = panels(5.6, 2, 1)
    losses = [row["loss"] for row in rows]
    width = max(1, len(rows) // POINTS)
    done = [row["step"] + 1 for row in rows]
    band(above, done, losses, width, width, BLUE, label="training batches")
    above.plot(steps, heldout, "o", color=VERMILION, markersize=6, label="held-out text")
    for name, height in levels.items():
        above.axhline(height, color=SOFT, linewidth=1)
        place = {"textcoords": "offset points", "ha": "right", "fontsize": 9.5, "color": SOFT}
        above.annotate(name, (steps[-1], height), (0, 4), **place)
    above.set_ylim(bottom=0)
    above.set_title("loss, nats a token", loc="left")
    above.legend(frameon=False, loc="center right")
    _facts(below, steps, facts)
    below.set_xlabel("training steps")
    return figure


def _facts(ax: Axes, steps: Sequence[int], facts: dict[str, Sequence[float]]) -> None:
    for (name, shares), (colour, style, marker) in zip(facts.items(), STYLES, strict=False):
        values = [100 * share for share in shares]
        look = {"linestyle": style, "marker": marker, "markersize": 5}
        ax.plot(steps, values, color=colour, label=name, **look)
    ax.set_ylim(-3, 105)
    ax.set_title("facts completed greedily, per cent", loc="left")
    ax.legend(frameon=False, loc="lower right")


def by_rate(
    arms: dict[str, dict[float, Interval | None]],
    singles: dict[str, dict[float, Sequence[float]]],
    title: str,
) -> Figure:
    """Loss by peak learning rate: means with 95 % intervals, and every seed.

    Args:
        arms: name -> rate -> interval, or None where a seed ended in no number.
        singles: name -> rate -> the loss of each seed that ended in one.
    """
    figure, (ax,) = panels(4.2)
    n = len(arms)
    for k, ((name, by), (colour, style, marker)) in enumerate(
        zip(arms.items(), STYLES, strict=False)
    ):
        aside = 1.05 ** (k - (n - 1) / 2)  # intervals of several arms side by side
        found = {rate: interval for rate, interval in by.items() if interval}
        xs = [rate * aside for rate in found]
        ax.plot(
            xs,
            [mean for mean, _, _ in found.values()],
            color=colour,
            linestyle=style,
            marker=marker,
            label=name,
        )
        for x, (_, low, high) in zip(xs, found.values(), strict=True):
            ax.plot([x, x], [low, high], color=colour, linewidth=1.2)
        for rate, losses in singles[name].items():
            look = {"color": colour, "markersize": 4, "alpha": 0.7}
            ax.plot([rate * aside] * len(losses), losses, "_", **look)
    rates = sorted({rate for by in arms.values() for rate in by})
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.minorticks_off()
    means = [interval[0] for by in arms.values() for interval in by.values() if interval]
    room = 0.1 * (max(means) - min(means)) + 0.05
    ax.set_ylim(min(means) - room, max(means) + room)  # wide intervals are cut off
    ax.set_xlabel("peak learning rate")
    ax.set_title(title, loc="left")
    legend(figure)
    return figure


def shakespeare(variants: dict[str, dict], published: float) -> Figure:
    """Training and validation loss of the study's variants, against the published one."""
    figure, (ax,) = panels(3.7)
    for (name, run), (colour, style, marker) in zip(variants.items(), STYLES, strict=False):
        xs, ys = _thin(range(1, len(run["loss"]) + 1), run["loss"])
        ax.plot(xs, ys, color=colour, alpha=0.35, linewidth=1)
        look = {"linestyle": style, "marker": marker, "markersize": 6}
        ax.plot(run["validation_steps"], run["validation_loss"], color=colour, label=name, **look)
        last = run["validation_loss"][-1]
        place = {"textcoords": "offset points", "ha": "right", "weight": "bold"}
        ax.annotate(f"{last:.2f}", (run["validation_steps"][-1], last), (0, 8), **place)
    ax.axhline(published, color=INK, linewidth=1.1)
    place = {"textcoords": "offset points", "color": INK}
    ax.annotate(f"published: {published:.2f}", (0, published), (4, -13), **place)
    ax.set_ylim(1.2, 3.5)
    ax.set_xlabel("step")
    ax.set_title("loss, nats a character (thin: training, marked: validation)", loc="left")
    ax.legend(frameon=False)
    return figure


def noise(sizes: Sequence[int], agreement: Sequence[Interval], ideal: Sequence[float]) -> Figure:
    """How well the gradients of batches of several sizes point along that of a very large one.

    Args:
        agreement: cosine of the two, for each size: mean, least, greatest.
        ideal: what it would be if the noise averaged out as independent draws do.
    """
    figure, (ax,) = panels(3.1)
    for x, (_, low, high) in zip(sizes, agreement, strict=True):
        ax.plot([x, x], [low, high], color=BLUE, linewidth=5, alpha=0.3, solid_capstyle="butt")
    ax.plot(sizes, ideal, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="predicted")
    means = [mean for mean, _, _ in agreement]
    ax.plot(sizes, means, "o", color=BLUE, markersize=7, label="measured")
    ax.axhline(1, color=LINE, linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.set_ylim(0, 1.06)
    ax.set_xlabel("windows in the batch")
    ax.set_title("cosine with the gradient of a large batch", loc="left")
    ax.legend(frameon=False, loc="lower right")
    return figure
