"""Figures of page L11e: what changes with the seed, and what does not."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import (
    BLUE,
    INK,
    MODEL_COLOURS,
    MODEL_NAMES,
    SOFT,
    panels,
)

Interval = tuple[float, float, float]  # mean, low, high


def by_seed(measures: dict[str, Sequence[Interval]]) -> Figure:
    """A panel for each measure, a dot for each seed with the interval that its run alone would
    give; the band is that of the first.

    Args:
        measures: title -> share and interval of every seed.
    """
    figure, axes = panels(2.8, 1, len(measures))
    for ax, (title, values) in zip(axes, measures.items(), strict=True):
        ax.axhspan(100 * values[0][1], 100 * values[0][2], color=BLUE, alpha=0.14, linewidth=0)
        for seed, (mean, low, high) in enumerate(values):
            ax.plot([seed, seed], [100 * low, 100 * high], color=BLUE, linewidth=1.4)
            ax.plot([seed], [100 * mean], "o", color=BLUE, markersize=7)
        ax.set_xticks(range(len(values)), [str(seed) for seed in range(len(values))])
        ax.set_xlabel("seed")
        ax.set_title(title, loc="left")
    return figure


def slopes(measures: dict[str, Sequence[tuple[float, float]]]) -> Figure:
    """A panel for each measure, a line for each seed from the SFT to the RLHF model; means thick.

    Args:
        measures: title -> `(SFT, RLHF)` of every seed.
    """
    columns = 3
    figure, axes = panels(2.3 * -(-len(measures) // columns), -(-len(measures) // columns), columns)
    for ax, (title, pairs) in zip(axes, measures.items(), strict=False):
        for pair in pairs:
            ax.plot([0, 1], pair, color=SOFT, linewidth=0.9, marker=".", markersize=5)
        ends = [sum(side) / len(pairs) for side in zip(*pairs, strict=True)]
        ax.plot([0, 1], ends, color=INK, linewidth=2.4)
        for x, name, marker in ((0, "sft", "o"), (1, "rlhf", "D")):
            ax.plot([x], [ends[x]], marker, color=MODEL_COLOURS[name], markersize=8, zorder=3)
        names = [MODEL_NAMES[name] for name in ("sft", "rlhf")]
        ax.set_xticks([0, 1], names, color=INK)
        ax.set_xlim(-0.3, 1.3)
        ax.set_title(title, loc="left", fontsize=10)
    for ax in axes[len(measures) :]:
        ax.set_visible(False)
    return figure


def shares(table: dict[str, dict[str, Interval]]) -> Figure:
    """Share of each class for each model: mean of the seeds with its interval, cut at 0 and 100.

    Args:
        table: model -> class -> interval over the seeds.
    """
    names = list(next(iter(table.values())))
    figure, (ax,) = panels(0.27 * len(names) * len(table) + 1.1, grid=False)
    thick = 0.8 / len(table)
    for j, (model, rows) in enumerate(table.items()):
        for i, name in enumerate(names):
            mean, low, high = (100 * min(1.0, max(0.0, x)) for x in rows[name])
            place = i + (j - (len(table) - 1) / 2) * thick
            label = MODEL_NAMES[model] if i == 0 else None
            ax.barh(place, mean, 0.9 * thick, color=MODEL_COLOURS[model], label=label)
            ax.plot([low, high], [place, place], color=INK, linewidth=1)
            text = {"textcoords": "offset points", "va": "center", "fontsize": 9.5, "color": SOFT}
            ax.annotate(f"{MODEL_NAMES[model]} {mean:.0f}", (high, place), (5, 0), **text)
    ax.set_yticks(range(len(names)), names, color=INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 118)
    ax.set_xticks(range(0, 101, 25))
    ax.set_xlabel("per cent of sampled replies, mean of the seeds with 95 % t intervals")
    return figure
