"""Depth browser: what a stack of blocks does at the start, and whether it learns.

The reader picks a depth, a quantity, and which variants to compare. Every curve is a mean over the
seeds of the recorded study of depth (`course_lib/studies/depth.py`); nothing is computed here but
these means: geometric ones for gradients and stream, which span many powers of ten.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import traitlets

from course_lib.errors import CourseError

from .base import CourseWidget

QUANTITIES = {
    "gradients": "gradient of each block, at the start",
    "gradients_end": "gradient of each block, after training",
    "stream": "size of the stream, at the start",
    "losses": "training loss",
}
BIN = 5  # steps of a loss curve that are averaged into one point


def seed_mean(curves: Sequence[Sequence[float | None]], geometric: bool) -> list[float | None]:
    """Mean of several curves, point by point; None where any of them has left the numbers.

    >>> seed_mean([[1.0, 4.0, None], [3.0, 16.0, 1.0]], geometric=False)
    [2.0, 10.0, None]
    >>> seed_mean([[4.0], [16.0]], geometric=True)
    [8.0]
    """
    out: list[float | None] = []
    for point in zip(*curves, strict=True):
        if any(x is None for x in point):
            out.append(None)
        elif not geometric:
            out.append(float(f"{sum(point) / len(point):.4g}"))
        elif min(point) <= 0:
            out.append(0.0)
        else:
            mean = math.exp(sum(map(math.log, point)) / len(point))
            out.append(float(f"{mean:.4g}"))
    return out


def binned(losses: Sequence[float | None]) -> list[float | None]:
    """Means of `BIN` steps each; None where a step has no number."""
    groups = [losses[i : i + BIN] for i in range(0, len(losses), BIN)]
    return [None if None in group else sum(group) / len(group) for group in groups]


def depth_curves(study: dict) -> dict[str, dict[str, list]]:
    """The study's runs as one set of curves for each stack, named like "pre, 16"."""
    curves = {}
    for n_layers in study["depths"]:
        for variant in dict.fromkeys(run["variant"] for run in study["runs"]):
            runs = [
                r for r in study["runs"] if (r["variant"], r["n_layers"]) == (variant, n_layers)
            ]
            entry = {
                "gradients": seed_mean([r["start"]["gradients"] for r in runs], True),
                "stream": seed_mean([r["start"]["stream"] for r in runs], True),
            }
            if n_layers in study["trained"]:
                entry["gradients_end"] = seed_mean([r["end"]["gradients"] for r in runs], True)
                entry["losses"] = seed_mean([binned(r["losses"]) for r in runs], False)
            curves[f"{variant}, {n_layers}"] = entry
    return curves


class DepthBrowser(CourseWidget):
    """The recorded stacks by depth and variant.

    Args:
        study: the results of the study "depth".
        depth, quantity, shown: where the reader is; synchronised both ways.

    Raises:
        CourseError: a depth, quantity or variant that the study does not have.
    """

    widget_name = "depth_browser"
    title = "Depth browser: gradients, streams and losses of stacks of blocks"

    curves = traitlets.Dict().tag(sync=True)
    depths = traitlets.List(traitlets.Int()).tag(sync=True)
    variants = traitlets.List(traitlets.Unicode()).tag(sync=True)
    bin = traitlets.Int(BIN).tag(sync=True)
    depth = traitlets.Int(16).tag(sync=True)
    quantity = traitlets.Unicode("gradients").tag(sync=True)
    shown = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, study: dict, *, key: str = "", **state: Any) -> None:
        variants = list(dict.fromkeys(run["variant"] for run in study["runs"]))
        given = {"depths": list(study["depths"]), "variants": variants, "shown": variants}
        super().__init__(key=key, curves=depth_curves(study), **(given | state))
        self._check()

    def _check(self) -> None:
        unknown = set(self.shown) - set(self.variants)
        if self.depth not in self.depths or self.quantity not in QUANTITIES or unknown:
            raise CourseError(
                f"depth {self.depth}, quantity {self.quantity!r}, shown {self.shown}: choose from "
                f"{self.depths}, {list(QUANTITIES)} and {self.variants}"
            )

    def fallback_html(self) -> str:
        """First and last value of the chosen quantity for every variant at the chosen depth."""

        def number(x: float | None) -> str:
            return "beyond all numbers" if x is None else f"{x:.3g}"

        rows = []
        for variant in self.shown:
            values = self.curves[f"{variant}, {self.depth}"].get(self.quantity)
            ends = (number(values[0]), number(values[-1])) if values else ("not trained",) * 2
            cells = "".join(f'<td class="cw-number">{text}</td>' for text in ends)
            rows.append(f'<tr><th scope="row">{html.escape(variant)}</th>{cells}</tr>')
        return (
            f"<table><caption>{self.depth} blocks: {QUANTITIES[self.quantity]}</caption>"
            '<thead><tr><th scope="col">variant</th><th scope="col">first</th>'
            f'<th scope="col">last</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        )
