"""Figures of L11b: true and learned reward against KL."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import AMBER, BLUE, GREEN, PINK, SOFT, VERMILION, legend, panels

# One look a curve, in order: colour, line style, marker.
LOOKS = (
    (VERMILION, "-", "o"),
    (BLUE, (0, (7, 2)), "s"),
    (GREEN, (0, (4, 2)), "D"),
    (AMBER, (0, (1, 1.5)), "^"),
    (PINK, (0, (5, 1, 1, 1)), "v"),
    (SOFT, "-", "x"),
)
TICKS = (0, 0.5, 2, 5, 10, 20, 40, 80, 160)  # nats
TITLES = {"proxy": "score, by the reward model", "judge": "points, by the judge"}


def against_kl(
    curves: dict[str, Sequence[dict]], rewards: Sequence[str] = ("proxy", "judge"), ncols: int = 3
) -> Figure:
    """Each reward against KL, one panel a reward, with 95 % intervals.

    The KL axis is spaced by its square root, as in Gao et al. 2023; an estimate below zero is drawn
    at zero.

    Args:
        curves: for each name its points: `kl`, and for each reward mean, low and high.
    """
    figure, axes = panels(3.7, 1, len(rewards))
    most = max(point["kl"] for points in curves.values() for point in points)
    for ax, reward in zip(axes, rewards, strict=True):
        for (name, points), look in zip(curves.items(), LOOKS, strict=False):
            _curve(ax, points, reward, name, *look)
        ax.set_xscale("function", functions=(_root, _square))
        ax.set_xlim(0, 1.06 * most + 0.02)
        shown = _ticks(most)
        ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
        ax.set_xlabel("KL, nats a reply")
        ax.set_title(TITLES[reward], loc="left")
    legend(figure, "upper", ncols, fontsize=9.5)
    return figure


def _ticks(most: float) -> list[float]:
    """Those of `TICKS` whose labels have room, on an axis that ends at `most`."""
    shown = [TICKS[0]]
    for tick in TICKS[1:]:
        if tick <= most and tick**0.5 - shown[-1] ** 0.5 > 0.09 * most**0.5:
            shown.append(tick)
    return shown


def _root(kl):
    return abs(kl) ** 0.5


def _square(root):
    return root * root


def _curve(ax, points: Sequence[dict], reward: str, name: str, colour, style, marker) -> None:
    kl = [max(0.0, point["kl"]) for point in points]
    mean, low, high = zip(*(point[reward] for point in points), strict=True)
    ax.vlines(kl, low, high, color=colour, linewidth=1, alpha=0.6)
    ax.plot(kl, mean, color=colour, linestyle=style, marker=marker, markersize=5, label=name)
