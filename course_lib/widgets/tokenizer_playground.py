"""Tokenizer playground: any text, cut by the course's own tokenizer with 0 to all of its merges.

The ES module runs the same algorithm as `tokenizer.py` in the page; it needs no weights.
"""

import html
from typing import Any

import traitlets

from course_lib.errors import CourseError
from course_lib.runs import Run
from course_lib.tokenizer import BPETokenizer

from .live import LiveWidget
from .probability_shift import visible

TEXT = "The capital of Portugal is Lisbon. Unbelievable! 🦊 שלום <|im_end|>"


class TokenizerPlayground(LiveWidget):
    """Tokens of a text, with as many merges as the reader likes.

    Args:
        run: the run whose tokenizer is shown.
        text: what is cut; synchronised both ways, like the next two.
        merges: how many merges count; by default all.
        selected: place of the token whose tree of merges is shown.

    Raises:
        CourseError: fewer than 0 merges, or more than the tokenizer has.
    """

    widget_name = "tokenizer_playground"
    title = "Tokenizer playground"

    text = traitlets.Unicode(TEXT).tag(sync=True)
    merges = traitlets.Int(0).tag(sync=True)
    selected = traitlets.Int(1).tag(sync=True)

    def __init__(self, run: Run, *, key: str = "", **state: Any) -> None:
        self.tokenizer = run.tokenizer()
        super().__init__(run, key=key, **{"merges": len(self.tokenizer.merges), **state})

    @traitlets.validate("merges")
    def _check_merges(self, proposal) -> int:
        most = len(self.tokenizer.merges)
        if not 0 <= proposal["value"] <= most:
            raise CourseError(f"merges is {proposal['value']}: the tokenizer has 0 to {most}")
        return proposal["value"]

    def fallback_html(self) -> str:
        """A table of the tokens: text, id, bytes."""
        part = BPETokenizer(self.tokenizer.merges[: self.merges])
        rows = [
            f'<tr><th scope="row">{html.escape(visible(part.decode([i])))}</th>'
            f'<td class="cw-number">{i}</td><td>{part.vocab[i].hex(" ")}</td></tr>'
            for i in part.encode(self.text)
        ]
        return (
            f"<p>{html.escape(self.text)}</p><table><caption>{len(rows)} tokens with "
            f"{self.merges} merges</caption><thead><tr><th scope='col'>token</th>"
            f'<th scope="col" class="cw-number">id</th><th scope="col">bytes</th></tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
