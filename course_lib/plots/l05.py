"""Figures of lesson 5: gradients, streams and losses of deep stacks, and of the trained model."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import AMBER, BLUE, GREEN, INK, PINK, SOFT, VERMILION, panels

# The variants of the study of depth: colour, line style, marker.
VARIANTS = {
    "neither": (SOFT, (0, (1, 1.5)), "x"),
    "norm only": (PINK, (0, (5, 1, 1, 1)), "^"),
    "residual only": (AMBER, (0, (4, 2)), "s"),
    "post": (VERMILION, "-", "D"),
    "pre": (BLUE, (0, (7, 2)), "v"),
    "pre, scaled": (GREEN, "-", "o"),
}
LEAST = 1e-12  # smaller numbers are drawn at the lower edge


def _legend(figure: Figure, names: Sequence[str]) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(
        [known[name] for name in names if name in known],
        [name for name in names if name in known],
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9.5,
        handlelength=2.6,
    )


def _line(ax, xs: Sequence[float], ys: Sequence[float | None], name: str, **options) -> None:
    """One variant's curve; numbers that do not exist leave a gap, tiny ones sit at the edge."""
    colour, style, marker = VARIANTS[name]
    values = [float("nan") if y is None else y for y in ys]
    every = max(1, len(values) // 6)
    look = {"linestyle": style, "marker": marker, "markersize": 5, "markevery": every}
    ax.plot(xs, values, color=colour, **({"label": name} | look | options))


def gradients_by_block(moments: dict[str, dict[str, Sequence[float | None]]]) -> Figure:
    """Gradient norm of each block's weights, one panel a moment, log scale."""
    figure, axes = panels(3.7, 1, len(moments))
    for ax, (moment, curves) in zip(axes, moments.items(), strict=True):
        for name, values in curves.items():
            shown = [None if y is None else max(y, LEAST) for y in values]
            _line(ax, range(1, len(values) + 1), shown, name)
        ax.set_yscale("log")
        ax.set_ylim(LEAST / 10, 1e15)
        ax.set_xlabel("block")
        ax.set_title(moment, loc="left")
        ax.tick_params(labelleft=ax is axes[0])
    axes[0].set_ylabel("gradient norm")
    _legend(figure, list(VARIANTS))
    return figure


def stream_by_depth(sizes: dict[str, dict[int, float | None]]) -> Figure:
    """Size of the stream after the last block against the number of blocks, both axes log."""
    figure, (ax,) = panels(3.5)
    for name, by_depth in sizes.items():
        ys = [None if y is None else max(y, LEAST) for y in by_depth.values()]
        _line(ax, list(by_depth), ys, name, markevery=1)
    depths = list(next(iter(sizes.values())))
    ax.set_xscale("log", base=2)
    ax.set_xticks(depths, depths)
    ax.set_yscale("log")
    ax.set_xlabel("blocks")
    ax.set_title("root mean square of the stream after the last block", loc="left")
    _legend(figure, list(sizes))
    return figure


def training_by_depth(losses: dict[int, dict[str, list[Sequence[float | None]]]], bin: int = 5):
    """Training loss for each depth, one thin line a seed, means of `bin` steps."""
    figure, axes = panels(3.6, 1, len(losses))
    for ax, (n_layers, variants) in zip(axes, losses.items(), strict=True):
        for name, seeds in variants.items():
            for i, curve in enumerate(seeds):
                xs = [bin * j + (bin + 1) / 2 for j in range(len(curve))]
                options = {"label": name if i == 0 else None, "linewidth": 1.3, "markersize": 4}
                _line(ax, xs, curve, name, **options)
        ax.set_title(f"{n_layers} blocks", loc="left")
        ax.set_ylim(3.3, 6.6)
        if ax is not axes[0]:
            ax.tick_params(labelleft=False)
    axes[0].set_ylabel("loss, nats a token")
    axes[len(axes) // 2].set_xlabel("step")
    _legend(figure, list(VARIANTS))
    return figure


def stream_through_model(sizes: Sequence[Sequence[float]]) -> Figure:
    """Size of the stream before the first block and after each: median, and 5 to 95 per cent.

    Args:
        sizes: for each place the sizes of all positions.
    """
    figure, (ax,) = panels(3.0)
    places = list(range(len(sizes)))
    ranked = [sorted(values) for values in sizes]
    low, middle, high = ([r[int(q * (len(r) - 1))] for r in ranked] for q in (0.05, 0.5, 0.95))
    ax.vlines(places, low, high, color=BLUE, linewidth=6, alpha=0.3)
    ax.plot(places, middle, "o-", color=BLUE, markersize=7)
    for place, value in zip(places, middle, strict=True):
        text = f"{value:.2g}" if value < 1 else f"{value:.1f}"
        ax.annotate(
            text, (place, value), (8, -18), textcoords="offset points", weight="bold", color=INK
        )
    ax.set_yscale("log")
    ax.set_xticks(places, ["embedding", *(f"block {i}" for i in places[:-1])])
    ax.margins(x=0.1, y=0.15)
    ax.set_title("root mean square of the stream", loc="left")
    return figure
