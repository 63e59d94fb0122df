"""Figures of lesson 8: what choices cost, what they bring, and how loss falls with size."""

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure

from course_lib.plots import AMBER, BLUE, GREEN, INK, PINK, SOFT, VERMILION, panels, table
from course_lib.sizing import Published, kv_cache_bytes, parameter_count

_LINES = ((BLUE, "-"), (VERMILION, (0, (5, 2))), (GREEN, (0, (1.5, 1))), (AMBER, (0, (5, 1, 1, 1))))


def cache_growth(
    gigabytes: dict[str, Sequence[float]], lengths: Sequence[int], free: float, label: str
) -> Figure:
    """KV cache by length for several models, and the memory that is free for it."""
    figure, (ax,) = panels(3.4)
    for (name, values), (colour, style) in zip(gigabytes.items(), _LINES, strict=False):
        ax.plot(lengths, values, color=colour, linestyle=style, linewidth=2.2, label=name)
    ax.axhline(free, color=INK, linewidth=1)
    ax.annotate(label, (lengths[0], free), (2, 5), textcoords="offset points", color=INK)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_ylim(top=5 * free)
    ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45)
    ax.minorticks_off()
    ax.legend(frameon=False, loc="lower right")
    ax.set_xlabel("positions in the cache")
    ax.set_title("KV cache of one sequence, gigabytes", loc="left")
    return figure


def differences(
    rows: dict[str, tuple[float, float, float]], singles: dict[str, Sequence[float]]
) -> Figure:
    """Loss of each variant minus the default's: every seed, the mean and its 95 % interval.

    Args:
        rows: variant -> mean, low, high. Left of zero is better than the default.
        singles: variant -> the difference of each seed.
    """
    figure, (ax,) = panels(0.46 * len(rows) + 0.9, grid=False)
    ax.axvline(0, color=SOFT, linewidth=1)
    for i, (name, (mean, low, high)) in enumerate(rows.items()):
        sure = low > 0 or high < 0
        colour = (VERMILION if mean > 0 else GREEN) if sure else SOFT
        ax.plot([low, high], [i, i], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6)
        ax.plot(singles[name], [i] * len(singles[name]), "|", color=INK, markersize=9)
        ax.plot([mean], [i], "D" if sure else "o", color=colour, markersize=8)
        text = f"{mean:+.3f}".replace("-", "−")
        ax.annotate(text, (high, i), (6, 0), textcoords="offset points", va="center", color=INK)
    ax.set_yticks(range(len(rows)), list(rows), color=INK)
    ax.invert_yaxis()
    ax.margins(x=0.18)
    ax.grid(True, axis="x")
    ax.set_xlabel("loss minus the default's, nats a token")
    return figure


def scaling(
    fitted: dict[float, Sequence[float]],
    predicted: dict[float, Sequence[float]],
    laws: dict[str, Callable[[float], float]],
    label: str,
) -> Figure:
    """Loss by size, every seed, with fitted laws drawn on to the size they had not seen.

    Args:
        fitted, predicted: size -> the loss of each seed.
        laws: name -> a function of the size.
    """
    figure, (ax,) = panels(3.7)
    for points, marker, colour, name in (
        (fitted, "o", BLUE, "fitted"),
        (predicted, "D", VERMILION, "kept out of the fit"),
    ):
        xs = [n for n, losses in points.items() for _ in losses]
        ys = [loss for losses in points.values() for loss in losses]
        ax.plot(xs, ys, marker, color=colour, markersize=7, fillstyle="none", label=name)
    grid = torch.logspace(
        torch.tensor(min(fitted)).log10(), torch.tensor(max(predicted)).log10(), 60
    ).tolist()
    for (name, law), (colour, style) in zip(
        laws.items(), ((INK, "-"), (PINK, (0, (5, 2)))), strict=False
    ):
        ax.plot(grid, [law(n) for n in grid], color=colour, linestyle=style, label=name)
    ax.set_xscale("log")
    known = sorted(fitted | predicted)
    ax.set_xticks(known, [f"{n / 1000:,.0f}" for n in known])
    ax.minorticks_off()
    ax.legend(frameon=False)
    ax.set_xlabel(label)
    ax.set_title("loss on fresh text, nats a token", loc="left")
    return figure


def published_table(models: dict[str, Published]) -> str:
    """Configurations that others published, beside what follows from them.

    "heads" gives query and key heads where they differ, "billion" the parameters, "cache" the kB
    that a position keeps in 16 bits.
    """
    rows = []
    for name, model in models.items():
        c = model.config
        heads = f"{c.n_heads}" if c.n_heads == c.n_kv_heads else f"{c.n_heads}/{c.n_kv_heads}"
        sizes = (
            f"{c.vocab_size / 1000:.0f}k",
            c.n_layers,
            f"{c.d_model:,}",
            heads,
            c.d_head,
            f"{c.d_ff:,}",
        )
        counted = parameter_count(c) / 1e9
        name = name.replace(" ", "\u00a0").replace("-", "\u2011")  # in one line
        rows.append((name, *sizes, f"{counted:.3g}", f"{kv_cache_bytes(c, 1) / 1000:,.0f}"))
    header = ("model", "vocab", "layers", "width", "heads", "d_head", "d_ff", "billion", "cache")
    return table(header, rows, numbers=range(1, len(header)), compact=True)
