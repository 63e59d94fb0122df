"""Figures of the pages behind lesson 11: learning curves of PPO's parts, and how noisy they are."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course_lib.plots import AMBER, BLUE, GREEN, INK, PINK, SOFT, VERMILION, legend, panels, smooth

# The variants of the study of PPO's steps: colour, line style, marker.
VARIANTS = {
    "REINFORCE, scores + 3": (SOFT, (0, (1, 1.5)), "x"),
    "REINFORCE": (AMBER, (0, (4, 2)), "s"),
    "baseline": (PINK, (0, (5, 1, 1, 1)), "^"),
    "value model": (BLUE, (0, (7, 2)), "v"),
    "epochs": (VERMILION, (0, (3, 1)), "D"),
    "clip": (GREEN, "-", "o"),
    "KL price": (INK, "-", "P"),
}
SMALL = {"fontsize": 9.5, "handlelength": 2.6}  # long names beside long line styles
PANELS = {
    "score": "score (reward model)",
    "points": "judge's points",
    "kl": "KL to the SFT model, nats a reply",
    "approx_kl": "KL of one update round, nats a token",
    "entropy": "entropy, nats a token",
    "length": "length, tokens a reply",
}


def seed_curves(ax: Axes, name: str, seeds: Sequence[Sequence[float]], look, window: int) -> None:
    """Every seed as a faint line, their mean on top; all smoothed.

    Args:
        look: colour, line style and marker.
    """
    colour, style, marker = look
    steps = range(1, len(seeds[0]) + 1)
    for curve in seeds:
        ax.plot(steps, smooth(curve, window), color=colour, alpha=0.3, linewidth=0.8)
    mean = [sum(values) / len(values) for values in zip(*seeds, strict=True)]
    marks = {"linestyle": style, "marker": marker, "markersize": 5}
    every = max(1, len(mean) // 6)
    ax.plot(steps, smooth(mean, window), color=colour, label=name, markevery=every, **marks)


def learning_curves(
    curves: dict[str, dict[str, Sequence[Sequence[float]]]], batch: int, window: int = 3
) -> Figure:
    """One panel a metric: its curve for each variant by iteration.

    Args:
        curves: metric -> variant -> one curve a seed.
        batch: replies sampled in an iteration.
    """
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = panels(2.6 * rows + 0.6, rows, columns)
    for ax, (metric, variants) in zip(axes, curves.items(), strict=False):
        for name, seeds in variants.items():
            seed_curves(ax, name, seeds, VARIANTS[name], window)
        ax.set_title(PANELS[metric], loc="left", fontsize=10)
        ax.locator_params(nbins=5)
        ax.set_xlabel(f"iteration, {batch} replies each")
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    legend(figure, "upper", 3, **SMALL)
    return figure


def noise_bars(scales: dict[str, Sequence[float]]) -> Figure:
    """Noise scale of each way to weigh the same replies: every seed, and the mean as a number.

    Args:
        scales: variant -> for each seed the number of replies at which half the gradient is signal.
    """
    figure, (ax,) = panels(0.5 * len(scales) + 0.9, grid=False)
    for i, (name, values) in enumerate(scales.items()):
        colour, _, marker = VARIANTS[name]
        mean = sum(values) / len(values)
        ax.barh(i, mean, 0.6, color=colour, alpha=0.45)
        ax.plot(values, [i] * len(values), marker, color=INK, markersize=5, fillstyle="none")
        where = (max(mean, *values), i)
        ax.annotate(
            f"{mean:,.0f}", where, (8, 0), textcoords="offset points", va="center", weight="bold"
        )
    ax.set_yticks(range(len(scales)), list(scales), color=INK)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.grid(True, axis="x")
    ax.set_xlabel("replies in a batch whose gradient is half signal, half chance")
    return figure
