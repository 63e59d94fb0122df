"""Figures of lesson 7: what a GPT is made of, its stream, and where an answer appears."""

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure
from torch import nn

from course_lib.plots import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    PINK,
    VERMILION,
    legend,
    panels,
    percent_bars,
    table,
    token_text,
)

# The parts of `sizing.parameters`, with their colour and hatching in every figure of parameters.
PARTS = {
    "embedding": ("token embedding", BLUE, ""),
    "positions": ("positions", PINK, "xx"),
    "attention": ("attention", AMBER, "//"),
    "mlp": ("feed-forward", GREEN, ""),
    "lm_head": ("separate output matrix", VERMILION, ".."),
}


def parameter_shares(models: dict[str, dict[str, int]]) -> Figure:
    """Share of each part in the parameters of several models, one bar each.

    Args:
        models: name -> what `sizing.parameters` returned. Norms are too few to be seen.
    """
    figure, (ax,) = panels(0.42 * len(models) + 1.3, grid=False)
    shown = [part for part in PARTS if any(counts[part] for counts in models.values())]
    for i, counts in enumerate(models.values()):
        left, total = 0.0, sum(counts.values())
        for part in shown:
            share = 100 * counts[part] / total
            label, colour, hatch = PARTS[part]
            ax.barh(
                i,
                share,
                0.74,
                left,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.6,
                label=label if i == 0 else None,
            )
            if share >= 7:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
                place = left + share / 2
                ax.text(place, i, f"{share:.0f}", ha="center", va="center", fontsize=9.5, bbox=box)
            left += share
    ax.set_yticks(range(len(models)), list(models), color=INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set_xlabel("per cent of all parameters")
    legend(figure, ncols=3)
    return figure


def stream_sizes(sizes: dict[str, Sequence[float]]) -> Figure:
    """Root mean square of the residual stream before the first block and after each."""
    figure, (ax,) = panels(3.2)
    for (name, values), colour, style in zip(
        sizes.items(), (BLUE, VERMILION, AMBER), ("o-", "s--", "^:"), strict=False
    ):
        ax.plot(range(len(values)), values, style, color=colour, markersize=6, label=name)
        for x in (0, len(values) - 1):
            ax.annotate(
                f"{values[x]:.2g}",
                (x, values[x]),
                (0, 8),
                textcoords="offset points",
                ha="center",
                weight="bold",
            )
    depth = len(next(iter(sizes.values()))) - 1
    ax.set_xticks(range(depth + 1), ["embedding", *(f"block {i}" for i in range(depth))])
    ax.set_yscale("log")
    ax.margins(x=0.08, y=0.2)
    ax.legend(frameon=False)
    ax.set_title("typical size of an entry of the stream", loc="left")
    return figure


def lens_table(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """The most likely tokens that the logit lens reads at each place.

    Args:
        rows: name of the place, and pairs of token and probability, most likely first.
    """
    cells = [
        (place, *(f"{token_text(token)} {100 * p:.0f}\u00a0%" for token, p in best))
        for place, best in rows
    ]
    places = ("read after", *(("first", "second", "third", "fourth")[: len(rows[0][1])]))
    return table(places, cells, compact=True)


def lens_steps(places: Sequence[str], probabilities: Sequence[float]) -> Figure:
    """Mean probability of the right token, read off the stream after each write."""
    figure, (ax,) = panels(0.3 * len(places) + 0.9, grid=False)
    colours = [
        GREEN if "feed" in place else AMBER if "attention" in place else BLUE for place in places
    ]
    percent_bars(ax, probabilities, places, colours)
    ax.set_xlim(0, 108)
    ax.set_xlabel("probability of the right token, per cent")
    return figure


def removal_map(
    shares: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """A share for each row and column, in per cent, written into its cell; low is dark."""
    figure, (ax,) = panels(0.45 * len(rows) + 0.9, grid=False)
    ax.imshow(shares, cmap="Blues_r", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            colour = "white" if share < 0.4 else INK
            ax.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(columns)), list(columns), color=INK)
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(rows)), list(rows), color=INK)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return figure


def anatomy(model: nn.Module, name: str = "model", total: int = 0) -> str:
    """Every part of a model as nested lines to open: its class, shapes, parameters and share."""
    count = sum(p.numel() for p in model.parameters())
    total = total or count
    tensors = "".join(
        f"<li><code>{escape(key)}</code> {' × '.join(map(str, p.shape))}</li>"
        for key, p in model.named_parameters(recurse=False)
    )
    inside = "".join(
        anatomy(child, key, total)
        for key, child in model.named_children()
        if any(True for _ in child.parameters())
    )
    body = (f"<ul>{tensors}</ul>" if tensors else "") + inside
    share = f"{100 * count / total:.1f} %"
    kind = escape(type(model).__name__)
    return (
        f'<details style="margin-left: 1.1rem"{" open" if count == total else ""}>'
        f"<summary><strong>{escape(name)}</strong> ({kind}): {count:,} parameters, {share}"
        f"</summary>{body}</details>"
    )
