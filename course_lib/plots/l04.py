"""Figures of lesson 4: what the heads of the trained model do, and what each is worth."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course_lib.plots import INK, VERMILION, panels


def head_grids(
    tables: dict[str, Sequence[Sequence[float]]], even: dict[str, float] | None = None
) -> Figure:
    """One grid for each job: layers down, heads across, per cent of a head's attention.

    Args:
        tables: for each job the shares `(n_layers, n_heads)`.
        even: what attention spread evenly would give; printed beside the title.
    """
    names = list(tables)
    figure, axes = panels(1.75 * ((len(names) + 1) // 2) + 0.4, (len(names) + 1) // 2, 2, False)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes, names, strict=False):
        values = [[100 * x for x in row] for row in tables[name]]
        most = max(max(row) for row in values)
        ax.imshow(values, cmap="Blues", vmin=0, vmax=most, aspect="auto")
        _numbers(ax, values, "{:.0f}", most)
        note = f", even {100 * even[name]:.0f}" if even else ""
        ax.set_title(name + note, loc="left", fontsize=10)
    return figure


def damage_grids(tables: dict[str, Sequence[Sequence[float]]], formats: dict[str, str]) -> Figure:
    """What happens when one head is removed: a grid for each measure, layers down, heads across."""
    figure, axes = panels(2.3, 1, len(tables), False)
    for ax, (name, values) in zip(axes, tables.items(), strict=True):
        most = max(max(map(abs, row)) for row in values)
        ax.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        _numbers(ax, values, formats[name], most)
        ax.set_title(name, loc="left", fontsize=10)
    return figure


def _numbers(ax, values, form: str, most: float) -> None:
    """Write every value into its cell, and mark the axes as layers and heads."""
    for i, row in enumerate(values):
        for j, x in enumerate(row):
            colour = "white" if abs(x) > 0.62 * most else INK
            rounded = float(form.format(x)) + 0.0  # no minus before a zero
            text = form.format(rounded).replace("-", "−")
            ax.text(j, i, text, ha="center", va="center", fontsize=9.5, color=colour)
    ax.set_xticks(range(len(values[0])), [f"{j}" for j in range(len(values[0]))])
    ax.set_yticks(range(len(values)), [f"layer {i}" for i in range(len(values))], color=INK)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    best = max(((x, i, j) for i, row in enumerate(values) for j, x in enumerate(row)))
    box = {"fill": False, "edgecolor": VERMILION, "linewidth": 2}
    _, i, j = best
    ax.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, **box))
