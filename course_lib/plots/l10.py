"""Figures of lesson 10: what temperature and filters do, and what decoding costs."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    PINK,
    SOFT,
    VERMILION,
    legend,
    panels,
    percent_bars,
    token_text,
)

Interval = tuple[float, float, float]  # mean, low, high

# Contexts of one figure, by line; filters of one figure, by marker.
LINES = ((BLUE, "-"), (VERMILION, (0, (5, 2))), (GREEN, (0, (1.5, 1))), (PINK, (0, (6, 1, 1, 1))))
MARKERS = ("o", "s", "D", "^")


def temperature_bars(tokens: Sequence[str], probs: dict[str, Sequence[float]]) -> Figure:
    """One distribution at several temperatures: a panel each, a bar for each token.

    Args:
        probs: title of the panel -> probability of each of `tokens`.
    """
    figure, axes = panels(0.3 * len(tokens) + 0.9, 1, len(probs), grid=False)
    for ax, (title, values) in zip(axes, probs.items(), strict=True):
        names = [token_text(token) for token in tokens] if ax is axes[0] else []
        percent_bars(ax, values, names, BLUE)
        ax.set_xlim(0, 130 * max(map(max, probs.values())))
        ax.locator_params(axis="x", nbins=3)
        ax.set_title(title, weight="bold", loc="left")
    axes[len(axes) // 2].set_xlabel("probability, in per cent")
    return figure


def trade(rows: Sequence[tuple[float, Interval, Interval]]) -> Figure:
    """Quality against diversity, one point for each temperature, with both 95 % intervals.

    Args:
        rows: `(temperature, diversity, quality)`, by temperature.
    """
    figure, (ax,) = panels(3.9)
    ax.plot([x[0] for _, x, _ in rows], [y[0] for _, _, y in rows], color=SOFT, linewidth=1)
    for temperature, (x, left, right), (y, low, high) in rows:
        ax.plot([left, right], [y, y], color=BLUE, linewidth=1.1)
        ax.plot([x, x], [low, high], color=BLUE, linewidth=1.1)
        ax.plot([x], [y], "o", color=BLUE, markersize=7)
        name = f"{temperature:g}"
        place = {"textcoords": "offset points", "weight": "bold", "fontsize": 10}
        ax.annotate(name, (x, y), (6, 6), **place)
    ax.set_xlim(0.9, 4.15)
    ax.set_xlabel("different replies out of four")
    ax.set_title("judge's points, mean of a reply", loc="left")
    return figure


def filter_cuts(
    curves: dict[str, Sequence[float]], cuts: dict[str, dict[str, int]], shown: int = 600
) -> Figure:
    """Probability by rank, both axes logarithmic, and where each filter cuts each curve.

    Args:
        curves: context -> probabilities, greatest first.
        cuts: filter -> context -> how many tokens it keeps.
    """
    figure, (ax,) = panels(4.0)
    for (name, probs), (colour, style) in zip(curves.items(), LINES, strict=False):
        ranks = range(1, min(shown, len(probs)) + 1)
        ax.plot(ranks, probs[:shown], color=colour, linestyle=style, label=name)
    contexts = list(curves)
    for (name, kept), marker in zip(cuts.items(), MARKERS, strict=False):
        for context, n in kept.items():
            colour = LINES[contexts.index(context)][0]
            fill = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.8}
            ax.plot([n], [curves[context][n - 1]], marker, markersize=8, zorder=3, **fill)
        ax.plot([], [], marker, color="white", markeredgecolor=INK, markersize=8, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(1e-5, 1.4)
    ax.minorticks_off()
    ax.set_xticks([1, 10, 100], ["1", "10", "100"])
    ax.set_xlabel("rank of the token")
    ax.set_title("probability", loc="left")
    legend(figure)
    return figure


def likelihood_map(methods: dict[str, tuple[Interval, Interval]]) -> Figure:
    """How likely the model finds a text against how much it repeats, a point for each method.

    Args:
        methods: name -> (log-probability a token, share of repeated 4-grams), with intervals;
            the first is real text and gets a star.
    """
    figure, (ax,) = panels(4.2)
    styles = ((INK, "*"), (VERMILION, "s"), (AMBER, "D"), (BLUE, "o"), (GREEN, "^"))
    for (name, ((x, left, right), shares)), style in zip(methods.items(), styles, strict=False):
        colour, marker = style
        y, low, high = (100 * max(0.0, share) for share in shares)
        ax.plot([left, right], [y, y], color=colour, linewidth=1.1)
        ax.plot([x, x], [low, high], color=colour, linewidth=1.1)
        size = 15 if marker == "*" else 8
        ax.plot([x], [y], marker, color=colour, markersize=size, zorder=3, label=name)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("log-probability, nats a token: likelier to the right")
    ax.set_title("repeated runs of four tokens, in per cent", loc="left")
    ax.legend(frameon=False, loc="upper left")
    return figure


def by_length(
    lengths: Sequence[int], milliseconds: dict[str, Sequence[float]], label: str
) -> Figure:
    """Time by number of new tokens: one line a method, its last value as a number."""
    figure, (ax,) = panels(3.2)
    styles = ((VERMILION, "s"), (BLUE, "o"), (AMBER, "^"))
    for (name, values), (colour, marker) in zip(milliseconds.items(), styles, strict=False):
        ax.plot(lengths, values, f"{marker}-", color=colour, markersize=6)
        place = {"textcoords": "offset points", "ha": "right", "weight": "bold"}
        ax.annotate(f"{name}: {values[-1]:,.0f}", (lengths[-1], values[-1]), (0, 9), **place)
    ax.set_ylim(0, 1.2 * max(max(values) for values in milliseconds.values()))
    ax.set_xticks(lengths, [str(n) for n in lengths])
    ax.set_xlabel("new tokens")
    ax.set_title(label, loc="left")
    return figure
