"""Position explorer: what each scheme says about two places in a text.

The reader picks a scheme, one of its pairs of dimensions, and a distance. The upper chart shows
that pair along the text, with its wavelength; the lower one the dot product of two positions
against their distance. Sinusoidal and rotary are computed from their formulas, in the page; the
curve of learned positions was measured on trained ones (the study of positions).
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import torch
import traitlets

from course_lib.errors import CourseError
from course_lib.positions import rotary_angles, rotate, sinusoidal_table

from .base import CourseWidget

SCHEMES = ("sinusoidal", "rotary", "learned", "none")


def similarity(scheme: str, length: int, width: int, theta: float) -> list[float]:
    """Dot product of two positions by their distance, from 0 to `length - 1`, as a share of the
    largest: of two rows of the sinusoidal table, or of two equal vectors turned by rotary.

    >>> [round(x, 3) for x in similarity("rotary", 3, 2, 10_000.0)]  # cosines of 0, 1 and 2
    [1.0, 0.54, -0.416]
    """
    if scheme == "none":
        return [1.0] * length
    if scheme == "sinusoidal":
        rows = sinusoidal_table(length, width, theta)
    else:
        same = torch.ones(length, width)
        rows = rotate(same, *rotary_angles(torch.arange(length), width, theta))
    return (rows @ rows[0] / (rows[0] @ rows[0])).tolist()


def wavelength(pair: int, width: int, theta: float) -> float:
    """Positions in one turn of a pair of dimensions.

    >>> round(wavelength(0, 64, 10_000.0), 3)
    6.283
    """
    return 2 * math.pi * theta ** (2 * pair / width)


class PositionExplorer(CourseWidget):
    """The schemes of `course_lib.positions` side by side.

    Args:
        learned: similarity of learned positions by distance, from 0 on, as measured.
        scheme, pair, distance, theta: where the reader is; synchronised both ways.
        width: of a position vector (sinusoidal) or of a head (rotary).
        length: positions shown.

    Raises:
        CourseError: no measured curve, or a choice out of range.
    """

    widget_name = "position_explorer"
    title = "Position explorer: wavelengths, and similarity by distance, of four schemes"

    learned = traitlets.List(traitlets.Float()).tag(sync=True)
    scheme = traitlets.Unicode("sinusoidal").tag(sync=True)
    pair = traitlets.Int(4).tag(sync=True)
    distance = traitlets.Int(12).tag(sync=True)
    theta = traitlets.Int(10_000).tag(sync=True)
    width = traitlets.Int(64).tag(sync=True)
    length = traitlets.Int(128).tag(sync=True)

    def __init__(self, learned: Sequence[float] = (), *, key: str = "", **state: Any) -> None:
        if not learned or not all(map(math.isfinite, learned)):
            raise CourseError("learned: give the measured similarities, one number a distance")
        super().__init__(key=key, learned=[round(float(x), 4) for x in learned], **state)
        if self.width < 2 or self.width % 2 or self.length < 2:
            raise CourseError(
                f"width {self.width} and length {self.length}: the width must be even, both >= 2"
            )
        if self.pair >= self.width // 2 or self.distance >= self.length:
            raise CourseError(
                f"pair {self.pair} and distance {self.distance}: there are {self.width // 2} pairs "
                f"and {self.length} distances, counted from 0"
            )

    @traitlets.validate("scheme", "pair", "distance", "theta")
    def _known(self, proposal: dict) -> Any:
        """Refuse what does not exist; the page's own choices always do."""
        name, value = proposal["trait"].name, proposal["value"]
        if name == "scheme" and value not in SCHEMES:
            raise CourseError(f"scheme is {value!r}: use one of {SCHEMES}")
        if name == "theta" and value <= 1:
            raise CourseError(f"theta is {value}: it must be greater than 1")
        if name in ("pair", "distance") and value < 0:
            raise CourseError(f"{name} is {value}: it must not be negative")
        return value

    def curve(self) -> list[float]:
        """Similarity by distance for the chosen scheme."""
        if self.scheme == "learned":
            return self.learned
        return similarity(self.scheme, self.length, self.width, self.theta)

    def fallback_html(self) -> str:
        """The chosen scheme's curve at a few distances."""
        curve = self.curve()
        shown = [d for d in (0, 1, 2, 4, 8, 16, 32, 64, 127) if d < len(curve)]
        rows = "".join(
            f'<tr><th scope="row" class="cw-number">{d}</th>'
            f'<td class="cw-number">{curve[d]:.3f}</td></tr>'
            for d in shown
        )
        return (
            f"<table><caption>Dot product of two positions, as a share of the largest: "
            f"{html.escape(self.scheme)}</caption>"
            f'<thead><tr><th scope="col">distance</th><th scope="col">dot product</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )
