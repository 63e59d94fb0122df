"""Figures of the museum of bugs: curves of trainings with a mistake, beside the right one."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from course_lib.plots import AMBER, BLUE, GREEN, PINK, VERMILION, legend, panels
from course_lib.plots.l11a import SMALL, seed_curves

_LOOKS = (
    (GREEN, "-", "o"),
    (VERMILION, (0, (3, 1)), "D"),
    (BLUE, (0, (7, 2)), "v"),
    (AMBER, (0, (4, 2)), "s"),
    (PINK, (0, (5, 1, 1, 1)), "^"),
)


def mistake_curves(
    curves: dict[str, dict[str, Sequence[Sequence[float]]]], label: str, window: int = 1
) -> Figure:
    """One panel a title, one line a mistake; the first name of each panel is the right version.

    Args:
        curves: title -> name -> one curve a seed; all panels show the same names.
        label: what is counted along the x axis.
    """
    figure, axes = panels(3.3, 1, len(curves))
    for ax, (title, mistakes) in zip(axes, curves.items(), strict=True):
        for look, (name, seeds) in zip(_LOOKS, mistakes.items(), strict=False):
            seed_curves(ax, name, seeds, look, window)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel(label)
        ax.locator_params(nbins=5)
    legend(figure, "upper", 3, **SMALL)
    return figure
