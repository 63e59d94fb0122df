"""Figures and tables of the book, drawn from measured results only.

Every function takes what a run recorded (`run.metrics`, `run.results`) or what a page has measured
itself, and returns a matplotlib `Figure` or a piece of HTML. Nothing here makes up a number.

Figures are transparent and use dark ink: in the dark theme the book puts them on a white card.
The three models have the same colours everywhere (Okabe-Ito, safe for colour-blind readers), and
every series also has a label or a marker of its own, so that colour is never the only sign.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course_lib.chat import Turn, render, segments, supervised_targets
from course_lib.data import IGNORE_INDEX
from course_lib.ppo import policy_loss
from course_lib.tokenizer import BPETokenizer

INK, SOFT, LINE = "#1f2733", "#505b69", "#ccd3dc"
BLUE, GREEN, VERMILION, AMBER, PINK = "#0072b2", "#009e73", "#d55e00", "#e69f00", "#cc79a7"
MODEL_COLOURS = {"base": BLUE, "sft": GREEN, "rlhf": VERMILION}
MODEL_NAMES = {"base": "Base", "sft": "SFT", "rlhf": "RLHF"}
_MARKERS = {"base": "s", "sft": "o", "rlhf": "D"}

# In inches. A phone shows a figure at 65 dots an inch: 9.5 points are 8.6 pixels there.
WIDTH = 5.5
STYLE = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.titlesize": 10.5,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
}


def use_svg() -> None:
    """Let the notebook draw figures as SVG: sharp on every screen, small, the same at every run."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    plt.rcParams["svg.hashsalt"] = "course"
    plt.rcParams["svg.fonttype"] = "none"  # text stays text: lighter than outlines of every letter
    set_matplotlib_formats("svg", metadata={"Date": None})


def panels(
    height: float, rows: int = 1, columns: int = 1, grid: bool = True
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the book's style, closed, so that a notebook shows it exactly once."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, dpi=110
        )
        for ax in axes.flat:
            ax.set_axisbelow(True)
            if grid:
                ax.grid(True, axis="y")
    plt.close(figure)
    return figure, list(axes.flat)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window - 1` before it.

    >>> smooth([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    out = []
    for i in range(len(values)):
        part = values[max(0, i - window + 1) : i + 1]
        out.append(sum(part) / len(part))
    return out


# -- figures ------------------------------------------------------------------------------------


def legend(figure: Figure, where: str = "lower", ncols: int = 2, **look) -> None:
    """One legend for all panels, outside of them: "lower" or "upper". It names the first panel's
    series, which the others share."""
    handles = figure.axes[0].get_legend_handles_labels()
    place = {"loc": f"outside {where} center", "ncols": min(ncols, len(handles[1]))}
    figure.legend(*handles, frameon=False, **place, **look)


def band(
    ax: Axes, xs: Sequence[float], ys: Sequence[float], width: int, window: int, colour: str, **look
) -> list[float]:
    """A long noisy curve: a faint band from the least to the greatest of `width` neighbours, and on
    top the running mean of `window` values, which is also returned."""
    starts = range(0, len(ys), width)  # a point for every step would make a heavy picture
    groups, where = [ys[i : i + width] for i in starts], [xs[i] for i in starts]
    low, high = list(map(min, groups)), list(map(max, groups))
    ax.fill_between(where, low, high, color=colour, alpha=0.25, linewidth=0)
    mean = smooth(ys, window)
    ax.plot(where, mean[::width], color=colour, **look)
    return mean


def loss_curve(rows: Sequence[dict], label: str = "loss", name: str = "sft") -> Figure:
    """Loss by step: a faint band from the least to the greatest of neighbouring steps, the running
    mean on top, first and last mean as numbers."""
    steps, losses = [r["step"] for r in rows], [r["loss"] for r in rows]
    figure, (ax,) = panels(3.2)
    n = len(losses)
    mean = band(ax, steps, losses, max(1, n // 100), max(1, n // 50), MODEL_COLOURS[name])
    for i, side, offset in ((0, "left", (8, -4)), (-1, "right", (0, 8))):
        ax.annotate(
            f"{mean[i]:.2f}",
            (steps[i], mean[i]),
            offset,
            textcoords="offset points",
            ha=side,
            weight="bold",
        )
    ax.set_xlabel("step")
    ax.set_title(label, loc="left")
    ax.set_ylim(bottom=0)
    return figure


def percent_bars(ax: Axes, shares: Sequence[float], names: Sequence[str], colours) -> None:
    """A bar for each share, the first on top, with its per cent beside it."""
    ax.barh(range(len(shares)), [100 * share for share in shares], 0.7, color=colours)
    for i, share in enumerate(shares):
        ax.annotate(
            f"{100 * share:.0f}" if share >= 0.005 else "<1",
            (100 * share, i),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=SOFT,
        )
    ax.set_yticks(range(len(shares)) if names else [], names, color=INK)
    ax.invert_yaxis()


def behaviour_chart(shares: dict[str, dict[str, dict[str, float]]]) -> Figure:
    """Share of each behaviour class for each model, with 95 % intervals.

    Args:
        shares: for each of "base", "sft", "rlhf" what `behaviour_shares` returned.
    """
    models = list(shares)
    names = list(next(iter(shares.values())))
    figure, (ax,) = panels(0.62 * len(names) * len(models) * 0.45 + 1.1, grid=False)
    thick = 0.8 / len(models)
    for j, model in enumerate(models):
        places = [i + (j - (len(models) - 1) / 2) * thick for i in range(len(names))]
        rows = [shares[model][name] for name in names]
        values = [100 * row["share"] for row in rows]
        below = [max(0.0, 100 * (row["share"] - row["low"])) for row in rows]
        above = [max(0.0, 100 * (row["high"] - row["share"])) for row in rows]
        ax.barh(places, values, 0.9 * thick, color=MODEL_COLOURS[model], label=MODEL_NAMES[model])
        ax.errorbar(
            values, places, xerr=[below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=2
        )
        for place, value, row in zip(places, values, rows, strict=True):
            ax.annotate(
                f"{MODEL_NAMES[model]} {value:.0f}",
                (100 * row["high"], place),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
                color=SOFT,
            )
    ax.set_yticks(range(len(names)), names, color=INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 118)
    ax.set_xticks(range(0, 101, 25))
    ax.set_xlabel("per cent of sampled replies, with 95 % intervals")
    return figure


def reward_calibration(rows: Sequence[dict]) -> Figure:
    """How often the reward model is right against how sure it is, with 95 % intervals.

    Args:
        rows: what `reward.calibration` returned; each needs `confidence`, `right`, `count`,
            and may carry `low` and `high`.
    """
    figure, (ax,) = panels(4.2)
    sure = [100 * r["confidence"] for r in rows]
    right = [100 * r["right"] for r in rows]
    least = min([50.0, *sure, *right, *(100 * r.get("low", 1.0) for r in rows)])
    ax.plot([50, 100], [50, 100], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    ax.annotate(
        "as often right as sure", (57, 57), (6, -14), textcoords="offset points", color=SOFT
    )
    for x, row in zip(sure, rows, strict=True):
        if "low" in row:
            ax.plot([x, x], [100 * row["low"], 100 * row["high"]], color=BLUE, linewidth=1.2)
    ax.plot(sure, right, "o-", color=BLUE, markersize=6)
    ax.set_xlim(48, 102)
    ax.set_ylim(least - 4, 103)
    ax.set_xlabel("how sure the reward model is, in per cent")
    ax.set_title("held-out pairs ranked rightly, in per cent", loc="left")
    return figure


PPO_PANELS = {
    "score": "score (reward model)",
    "kl": "KL to the SFT model, nats a reply",
    "entropy": "entropy, nats a token",
    "length": "length, tokens a reply",
    "clip_share": "tokens clipped, per cent",
    "ended": "replies that end, per cent",
}


def ppo_curves(rows: Sequence[dict]) -> Figure:
    """Six small charts of PPO by iteration; each shows its first and last five-step mean."""
    figure, axes = panels(6.6, 3, 2)
    steps = [row["step"] for row in rows]
    for ax, (key, title) in zip(axes, PPO_PANELS.items(), strict=True):
        scale = 100 if key in ("clip_share", "ended") else 1
        values = [scale * row[key] for row in rows]
        mean = smooth(values, 5)
        ax.plot(steps, values, color=VERMILION, alpha=0.3, linewidth=0.8)
        ax.plot(steps, mean, color=VERMILION)
        ax.margins(y=0.22)
        ax.set_title(title, fontsize=10, loc="left")
        ax.locator_params(nbins=4)
        ax.annotate(
            f"{mean[-1]:.2f}" if scale == 1 else f"{mean[-1]:.1f}",
            (steps[-1], mean[-1]),
            (0, 7),
            textcoords="offset points",
            ha="right",
            weight="bold",
            fontsize=10,
        )
    for ax in axes[-2:]:
        ax.set_xlabel("iteration")
    return figure


def clip_objective(clip_range: float = 0.2) -> Figure:
    """What one token adds to PPO's objective against its ratio, computed by `policy_loss`."""
    ratios = torch.linspace(0.4, 1.6, 241)
    old, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    figure, axes = panels(3.0, 1, 2)
    for ax, sign in zip(axes, (1.0, -1.0), strict=True):
        advantage = torch.full((1, 1), sign)
        gain = [
            -policy_loss(r.log().view(1, 1), old, advantage, mask, clip_range)[0].item()
            for r in ratios
        ]
        ax.axvspan(1 - clip_range, 1 + clip_range, color=LINE, alpha=0.5, linewidth=0)
        ax.plot(ratios, sign * ratios, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        ax.plot(ratios, gain, color=VERMILION, linewidth=2.4)
        ax.plot([1], [sign], "o", color=INK, markersize=6)
        ax.set_title("better than expected" if sign > 0 else "worse than expected", loc="left")
        ax.set_xticks([1 - clip_range, 1, 1 + clip_range])
        ax.set_xlabel("ratio, new to old probability")
    axes[0].set_ylabel("share in the objective")
    return figure


def points_chart(
    points: dict[str, tuple[float, float, float]], label: str = "judge's points, mean of a reply"
) -> Figure:
    """Means with their 95 % intervals, one line a model: `(mean, low, high)`."""
    figure, (ax,) = panels(0.55 * len(points) + 0.8, grid=False)
    for i, (model, (mean, low, high)) in enumerate(points.items()):
        colour = MODEL_COLOURS[model]
        ax.plot([low, high], [i, i], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot([mean], [i], _MARKERS[model], color=colour, markersize=9)
        text = f"{mean:.2f}".replace("-", "−")
        ax.annotate(text, (mean, i), (0, 9), textcoords="offset points", ha="center", weight="bold")
    ax.set_yticks(range(len(points)), [MODEL_NAMES[model] for model in points], color=INK)
    ax.set_ylim(len(points) - 0.4, -0.8)
    ax.margins(x=0.15)
    ax.grid(True, axis="x")
    ax.set_xlabel(label)
    return figure


def probability_bars(rows: Sequence[dict]) -> Figure:
    """The most likely next tokens under each model.

    Args:
        rows: what `evaluate.next_token_bars` returned.
    """
    models = list(rows[0]["probs"])
    figure, axes = panels(0.33 * len(rows) + 0.9, 1, len(models), grid=False)
    tokens = [token_text(row["token"]) for row in rows]
    for ax, model in zip(axes, models, strict=True):
        shares = [row["probs"][model] for row in rows]
        percent_bars(ax, shares, tokens if ax is axes[0] else [], MODEL_COLOURS[model])
        ax.set_xlim(0, 125)
        ax.set_xticks([0, 50, 100])
        ax.set_title(MODEL_NAMES[model], weight="bold", loc="left")
    axes[len(axes) // 2].set_xlabel("probability of the next token, in per cent")
    return figure


# -- tables -------------------------------------------------------------------------------------


def token_text(token: str) -> str:
    """A token with its blanks made visible.

    >>> token_text(" Paris"), token_text(chr(10))
    ('␣Paris', '⏎')
    """
    return token.replace(" ", "␣").replace("\n", "⏎")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence],
    numbers: Sequence[int] = (),
    compact: bool = False,
) -> str:
    """An HTML table; every cell is escaped, line breaks stay, columns in `numbers` align right.

    The first cell of a row is its heading; a row of one cell is a heading over the rows below it.
    """

    room = "; padding: 0.1rem 0.5rem" if compact else ""

    def cell(text, column: int, tag: str, scope: str = "") -> str:
        style = f"text-align: {'right' if column in numbers else 'left'}{room}"
        body = escape(str(text)).replace("\n", "<br>")
        return f'<{tag}{scope} style="{style}">{body}</{tag}>'

    names = escape(", ".join(filter(None, header)), quote=True)
    label = f"Table of {len(rows)} rows: {names}"
    head = "".join(cell(h, i, "th", ' scope="col"') for i, h in enumerate(header))
    lines = []
    for row in rows:
        if len(row) == 1:
            lines.append(f'<tr><th colspan="{len(header)}">{escape(str(row[0]))}</th></tr>')
            continue
        cells = [cell(row[0], 0, "th", ' scope="row"')]
        cells += [cell(text, i, "td") for i, text in enumerate(row[1:], start=1)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="table-wrapper" tabindex="0" role="region" aria-label="{label}">'
        '<table class="table" style="width: 100%; margin: 0 0 1rem">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def mask_table(
    turns: Sequence[Turn], tokenizer: BPETokenizer, template: str = "chatml", limit: int = 64
) -> str:
    """A conversation token by token: who wrote it, whether it is learned, and the target.

    A target stands in the row of the position that is asked for it, one before the token itself.
    """
    rendered = render(turns, tokenizer, template)
    targets = [*supervised_targets(rendered.ids, rendered.mask), IGNORE_INDEX]
    writers: list[str] = []
    for segment in segments(turns, template):
        ids = tokenizer.encode(segment.text, "all" if segment.control else ())
        who = "assistant" if segment.supervised else "user"
        if ("system", segment.text) in turns:
            who = "system"
        if segment.control and not segment.supervised:
            who = "template"
        writers += [who] * len(ids)
    rows = []
    for place, (i, learned, target) in enumerate(
        zip(rendered.ids, rendered.mask, targets, strict=True)
    ):
        asked = "–" if target == IGNORE_INDEX else token_text(tokenizer.decode([target]))
        token = token_text(tokenizer.decode([i]))
        rows.append((place, token, i, writers[place], "learned" if learned else "·", asked))
    header = ("position", "token", "id", "written by", "mask", "target here")
    return table(header, rows[:limit], numbers=(0, 2), compact=True)


def diagram(name: str, caption: str) -> str:
    """A drawing of the course, as HTML: `block`, `mask` or `ppo`, in the colours of the page.

    What it shows is said in its `<title>` and `<desc>`, for readers who cannot see it.
    """
    folder = resources.files(__name__) / "diagrams"
    style = (folder / "diagram.css").read_text(encoding="utf-8")
    drawing = (folder / f"{name}.svg").read_text(encoding="utf-8")
    text = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<style>{style}</style><figure class="diagram">{drawing}{text}</figure>'


def without_docstring(code: str) -> str:
    """The source of one function without its docstring; comments and layout stay."""
    lines = code.splitlines()
    body = ast.parse(code).body[0].body
    if ast.get_docstring(ast.parse(code).body[0]) is not None and len(body) > 1:
        del lines[body[0].lineno - 1 : body[0].end_lineno]
    return "\n".join(lines)


def source(*things: Callable) -> str:
    """The source of library functions as highlighted HTML, so that a page cannot drift from it.

    Docstrings are left out: the page around it explains.
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    parts = (without_docstring(textwrap.dedent(inspect.getsource(thing))) for thing in things)
    code = highlight("\n\n\n".join(parts), PythonLexer(), HtmlFormatter(cssclass="highlight"))
    return code.replace("<pre>", '<pre tabindex="0">')


class Claims:
    """What a page says of its models, checked in each build; it shows those that do not hold.

    Another machine or seed trains other weights. A sentence that is no longer true must not stay
    on the page without a word, and must not keep the book from being built.

    >>> claim = Claims()
    >>> claim(1 > 2, "One is more than two.")
    >>> "One is more than two." in claim._repr_html_()
    True
    """

    def __init__(self):
        self.failed: list[str] = []

    def __call__(self, holds: bool, sentence: str) -> None:
        """Check one sentence of the page."""
        if not holds:
            self.failed.append(sentence)

    def _repr_html_(self) -> str:
        if not self.failed:
            return "<span hidden></span>"
        rows = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.failed)
        return (
            '<div class="admonition warning"><p class="admonition-title">Not so in this build</p>'
            "<p>This book was built with newly trained models, and for them some sentences of "
            f"this page are not true. Trust the numbers.</p><ul>{rows}</ul></div>"
        )
