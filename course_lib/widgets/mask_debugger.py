"""Mask debugger: what a chat template makes of a conversation, token by token.

The ES module renders the conversation in the page, as `chat.py` does; it needs no weights.
"""

import html
from collections.abc import Sequence
from typing import Any

import traitlets

from course_lib.chat import Turn, render, supervised_targets
from course_lib.data import IGNORE_INDEX
from course_lib.runs import Run

from .live import LiveWidget
from .probability_shift import show, visible

TALK: tuple[Turn, ...] = (
    ("user", "What is the capital of France?"),
    ("assistant", "Paris."),
    ("user", "And of Italy? <|im_end|>"),
    ("assistant", "The capital of Italy is Rome."),
)


class MaskDebugger(LiveWidget):
    """Role, mask and target of every token of a conversation, in three chat templates.

    Args:
        run: the run whose tokenizer is used.
        turns: the conversation at first; the reader can paste another.
        template: "chatml", "llama2" or "alpaca"; synchronised both ways, like `text`.

    Raises:
        CourseError: turns out of order, or an unknown template.
    """

    widget_name = "mask_debugger"
    title = "Mask debugger: role, mask and target of every token"

    text = traitlets.Unicode().tag(sync=True)
    template = traitlets.Unicode("chatml").tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)

    def __init__(self, run: Run, turns: Sequence[Turn] = TALK, *, key: str = "", **state: Any):
        self.tokenizer = run.tokenizer()
        self.rendered = render(turns, self.tokenizer, state.get("template", "chatml"))
        mask = self.rendered.mask
        state.setdefault("selected", mask.index(True) if True in mask else 0)
        text = "\n".join(f"{role}: {content}" for role, content in turns)
        super().__init__(run, key=key, text=text, **state)

    def fallback_html(self) -> str:
        """A table with a row for every token."""
        ids, mask = self.rendered.ids, self.rendered.mask
        targets = [*supervised_targets(ids, mask), IGNORE_INDEX]  # nothing follows the last token
        rows = [
            f'<tr><th scope="row">{self._word(i)}</th><td class="cw-number">{i}</td>'
            f"<td>{'learned' if learned else ''}</td>"
            f"<td>{'ignored' if target == IGNORE_INDEX else self._word(target)}</td></tr>"
            for i, learned, target in zip(ids, mask, targets, strict=True)
        ]
        heads = "".join(
            f'<th scope="col">{name}</th>' for name in ("token", "id", "mask", "target")
        )
        return (
            f"<table><caption>{len(ids)} tokens in the template {self.template}, of which "
            f"{sum(mask)} are learned</caption><thead><tr>{heads}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )

    def _word(self, i: int) -> str:
        text = self.tokenizer.decode([i])
        control = i in self.tokenizer.special_ids.values()
        return html.escape(show(text) if control else visible(text))
