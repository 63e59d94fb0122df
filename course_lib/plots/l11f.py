"""Figure of page L11f: what a chat template moves, and what it does not."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import BLUE, INK, SOFT, VERMILION, panels


def moved(first: dict[str, Sequence[float]], place: dict[str, Sequence[float]]) -> Figure:
    """Two panels over the ways of asking: a thin line for each question, their mean thick.

    Args:
        first: way -> for each question, how far its first token is from the first way's.
        place: way -> for each question, the probability of the answer in its place.
    """
    figure, axes = panels(3.5, 1, 2)
    looks = (  # where the means' numbers stand: clear of the lines
        ("first token: distance from plain text", first, VERMILION, "D", (13, -15)),
        ("answer, where it must come", place, BLUE, "o", (0, 8)),
    )
    for ax, (title, table, colour, marker, offset) in zip(axes, looks, strict=True):
        for line in zip(*table.values(), strict=True):
            ax.plot(range(len(table)), line, color=SOFT, linewidth=0.6, alpha=0.6)
        means = [sum(values) / len(values) for values in table.values()]
        ax.plot(range(len(table)), means, color=colour, marker=marker, linewidth=2.2, markersize=7)
        for x, mean in enumerate(means):
            look = {"textcoords": "offset points", "ha": "center", "weight": "bold", "color": INK}
            ax.annotate(f"{mean:.2f}", (x, mean), offset, **look)
        ticks = [name.replace(" ", "\n", 1) for name in table]
        ax.set_xticks(range(len(table)), ticks, color=INK, fontsize=9.5)
        ax.set_xlim(-0.4, len(table) - 0.5)
        ax.set_ylim(-0.13, 1.06)
        ax.set_title(title, loc="left", fontsize=10)
    return figure
