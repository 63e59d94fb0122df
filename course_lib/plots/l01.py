"""Figures and tables of L01: merges, tokens as chips, bytes a token against vocabulary size."""

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from course_lib.bpe import Pair
from course_lib.plots import AMBER, BLUE, SOFT, panels, table, token_text

_CHIP = (
    "display: inline-block; margin: 0 1px 2px 0; padding: 0 0.2rem; border-radius: 0.2rem; "
    "border: 1px solid {line}; background: {fill}; line-height: 1.35; white-space: pre"
)
# Two tints that work on light and dark pages; the border tells neighbours apart without colour.
_TINTS = (
    ("rgba(0, 114, 178, 0.6)", "rgba(0, 114, 178, 0.14)"),
    ("rgba(213, 94, 0, 0.6)", "rgba(213, 94, 0, 0.14)"),
)


def readable(token: bytes) -> str:
    """A token as text, or its bytes in hexadecimal where it is no complete character.

    >>> readable(b" Peru"), readable(b"\\xf0\\x9f")
    ('␣Peru', 'F0 9F')
    """
    try:
        return token_text(token.decode())
    except UnicodeDecodeError:
        return token.hex(" ").upper()


def chips(tokens: Sequence[bytes]) -> str:
    """Tokens side by side, each in a box of its own."""
    boxes = []
    for i, token in enumerate(tokens):
        line, fill = _TINTS[i % 2]
        style = _CHIP.format(line=line, fill=fill)
        boxes.append(f'<bdi style="{style}">{escape(readable(token))}</bdi>')
    return f'<div style="font-size: 0.9rem">{"".join(boxes)}</div>'


def splits_table(rows: Sequence[tuple[str, list[bytes]]]) -> str:
    """Labelled texts, each cut into its tokens, with the numbers of tokens and of bytes."""
    lines = []  # the table escapes its cells, so the boxes take the place of a mark afterwards
    for label, tokens in rows:
        n_bytes = sum(map(len, tokens))
        lines.append((label, f"{n_bytes}", f"{len(tokens)}", "\0"))
    html = table(("text in", "bytes", "tokens", "cut into"), lines, numbers=(1, 2))
    for _, tokens in rows:
        html = html.replace("\0", chips(tokens), 1)
    return html


def merges_table(learned: Sequence[tuple[Pair, int]]) -> str:
    """Merges in the order they were learned, with how often the pair occurred at that time."""
    rows = [
        (rank, readable(left), readable(right), readable(left + right), f"{count:,}", 256 + rank)
        for rank, ((left, right), count) in enumerate(learned)
    ]
    header = ("rank", "left", "right", "new token", "times", "id")
    return table(header, rows, numbers=(0, 4, 5), compact=True)


def bytes_per_token(
    sizes: Sequence[int], ratios: Sequence[float], shares: Sequence[float], chosen: int
) -> Figure:
    """Above: bytes a token by vocabulary size. Below: share of the parameters that are embeddings.

    Args:
        shares: between 0 and 1.
        chosen: the size that the course's models use.
    """
    figure, (top, bottom) = panels(4.6, 2)
    percents = [100 * share for share in shares]
    series = (
        (top, ratios, BLUE, "bytes a token"),
        (bottom, percents, AMBER, "embedding, per cent"),
    )
    for ax, values, colour, title in series:
        ax.plot(sizes, values, "o-", color=colour, markersize=5)
        ax.axvline(chosen, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [f"{size}" for size in sizes], rotation=30)
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_title(title, loc="left")
    top.annotate(
        "the course's size",
        (chosen, 0),
        (-5, 6),
        textcoords="offset points",
        ha="right",
        color=SOFT,
    )
    bottom.set_xlabel("vocabulary size, ids")
    return figure
