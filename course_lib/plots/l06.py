"""Figures of lesson 6: what a mask changes in training, and where information flows."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import AMBER, BLUE, INK, SOFT, VERMILION, panels, smooth, token_text

# The three trainings of the lesson: colour, line style, and how far a label stands off its line.
VARIANTS = {
    "no mask": (VERMILION, "-", 7),
    "mask after softmax": (AMBER, (0, (5, 2)), -18),
    "causal mask": (BLUE, (0, (1.5, 1)), 12),
}


def training_curves(losses: dict[str, Sequence[float]]) -> Figure:
    """Training loss by step, running means of 20 steps, each with its last value as a number."""
    figure, (ax,) = panels(3.2)
    for name, values in losses.items():
        colour, style, offset = VARIANTS[name]
        mean = smooth(values, 20)
        ax.plot(range(1, len(mean) + 1), mean, color=colour, linestyle=style, linewidth=2.2)
        ax.annotate(
            f"{name} {mean[-1]:.2f}",
            (len(mean), mean[-1]),
            (0, offset),
            textcoords="offset points",
            ha="right",
            weight="bold",
        )
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step")
    ax.set_title("training loss, nats a token", loc="left")
    return figure


def loss_by_position(losses: dict[str, Sequence[float]]) -> Figure:
    """Loss on fresh text at each position of a window; the last positions are marked."""
    figure, (ax,) = panels(3.2)
    for name, values in losses.items():
        colour, style, _ = VARIANTS[name]
        places = range(1, len(values) + 1)
        ax.plot(places, values, color=colour, linestyle=style, linewidth=2.2, label=name)
        ax.plot([len(values)], values[-1:], "o", color=colour, markeredgecolor=INK, markersize=7)
    ax.legend(frameon=False, loc="upper center", ncols=len(losses), fontsize=9.5, handlelength=2.4)
    ax.set_ylim(0, 1.18 * max(max(values) for values in losses.values()))
    ax.set_xlabel("position in the window")
    ax.set_title("loss on fresh text, nats a token", loc="left")
    return figure


def influence_grid(shares: Sequence[Sequence[float]], tokens: Sequence[str]) -> Figure:
    """How much each output depends on each input: a row an output, in per cent of the row.

    Exact zeros are empty. The cells above the diagonal, the future, lie right of the line.
    """
    n = len(tokens)
    figure, (ax,) = panels(3.9, grid=False)
    ax.imshow([[100 * x for x in row] for row in shares], cmap="Blues", vmin=0, vmax=100)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if share:
                text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
                colour = "white" if share > 0.55 else INK
                ax.text(j, i, text, ha="center", va="center", fontsize=9.5, color=colour)
    stairs = [(x, y) for i in range(n - 1) for x, y in ((i + 0.5, i - 0.5), (i + 0.5, i + 0.5))]
    ax.plot(*zip(*stairs, strict=True), color=VERMILION, linewidth=1.4)
    names = [token_text(token) for token in tokens]
    ax.set_xticks(range(n), names, rotation=45, ha="left", color=INK)
    ax.xaxis.tick_top()
    ax.set_yticks(range(n), names, color=INK)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("input, read from left to right", color=SOFT)
    ax.set_ylabel("output at")
    return figure
