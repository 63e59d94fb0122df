"""Figures of L03: scaling, reach, cost, and where a trained head looks."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from course_lib.plots import AMBER, BLUE, INK, VERMILION, legend, panels, percent_bars, token_text

_SERIES = ((BLUE, "o"), (VERMILION, "s"), (AMBER, "^"))


def _lines(ax, xs: Sequence[float], values: dict[str, Sequence[float]]) -> None:
    for (name, ys), (colour, marker) in zip(values.items(), _SERIES, strict=False):
        ax.plot(xs, ys, f"{marker}-", color=colour, markersize=5, label=name)
    ax.minorticks_off()


def scale_curves(
    widths: Sequence[int], entropy: dict[str, Sequence[float]], gradient: dict[str, Sequence[float]]
) -> Figure:
    """Entropy of the attention weights and size of their gradient, by width, for each divisor."""
    figure, (top, bottom) = panels(5.4, 2)
    for ax, values, title in (
        (top, entropy, "entropy of the weights, nats"),
        (bottom, gradient, "gradient that reaches the scores"),
    ):
        _lines(ax, widths, values)
        ax.set_xscale("log", base=2)
        ax.set_xticks(widths, [str(w) for w in widths])
        ax.minorticks_off()
        ax.set_title(title, loc="left")
        ax.set_ylim(bottom=0)
    legend(figure, ncols=3)
    bottom.set_xlabel("width of queries and keys")
    return figure


def reach(distances: Sequence[int], values: dict[str, Sequence[float]]) -> Figure:
    """How strongly the last output depends on an input, by distance; both axes as given."""
    figure, (ax,) = panels(3.2)
    for (name, ys), (colour, marker) in zip(values.items(), _SERIES, strict=False):
        ax.plot(distances, ys, color=colour, marker=marker, markevery=8, markersize=5, label=name)
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.legend(frameon=False)
    ax.set_xlabel("distance to the last position")
    ax.set_title("gradient of the last output", loc="left")
    return figure


def cost(
    lengths: Sequence[int],
    milliseconds: dict[str, Sequence[float]],
    megabytes: dict[str, Sequence[float]],
) -> Figure:
    """Processor time and peak memory of attention by length, both axes logarithmic."""
    figure, axes = panels(3.6, 1, 2)
    for ax, values, title in zip(
        axes,
        (milliseconds, megabytes),
        ("processor time, ms", "memory at the peak, MB"),
        strict=True,
    ):
        _lines(ax, lengths, values)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(lengths, [str(n) for n in lengths], rotation=45)
        ax.minorticks_off()
        ax.set_title(title, loc="left")
        ax.set_xlabel("length")
    legend(figure)
    return figure


def head_map(shares: Tensor) -> Figure:
    """A number for each head, `(n_layers, n_heads)` between 0 and 1, written into its cell."""
    n_layers, n_heads = shares.shape
    figure, (ax,) = panels(0.5 * n_layers + 0.9, grid=False)
    ax.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for layer in range(n_layers):
        for head in range(n_heads):
            share = shares[layer, head].item()
            colour = "white" if share > 0.6 else INK
            text = f"{100 * share:.0f}"
            ax.text(head, layer, text, ha="center", va="center", color=colour)
    ax.set_xticks(range(n_heads), [f"head {i}" for i in range(n_heads)])
    ax.set_yticks(range(n_layers), [f"layer {i}" for i in range(n_layers)])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


def attention_row(tokens: Sequence[str], weights: Sequence[float], found: int) -> Figure:
    """Where one position looks: a bar for each token, the one that was to be found marked."""
    figure, (ax,) = panels(0.25 * len(tokens) + 0.8, grid=False)
    colours = [VERMILION if i == found else BLUE for i in range(len(tokens))]
    percent_bars(ax, weights, [token_text(t) for t in tokens], colours)
    ax.get_yticklabels()[found].set_fontweight("bold")
    ax.set_xlim(0, 112)
    ax.set_xticks([0, 50, 100])
    ax.set_xlabel("attention weight, per cent")
    return figure
