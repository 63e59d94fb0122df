"""Mask stepper: step through a sentence, choose what the live base model may see.

A rule makes the mask of every layer and head; single entries can be flipped on top of it. One pass
over the whole sentence gives the next-token distribution at every step, as in training.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from course_lib.attention import causal_mask
from course_lib.errors import CourseError
from course_lib.runs import Run

from .live import LiveWidget
from .probability_shift import percent, show, visible
from .reading import table, tokens_of

TEXT = "The capital of Portugal is Lisbon."
RULES = {
    "all": "everything so far (causal, as trained)",
    "window": "only the last tokens",
    "future": "the future as well (no mask)",
}
N_BETS = 8


class MaskStepper(LiveWidget):
    """The next-token distribution at each step of a sentence, under a mask of the reader's choice.

    Args:
        run: the trained run; its base model reads.
        text: the sentence; synchronised both ways, like the choices below.
        step: place of the token after which the model bets; by default the one before the last
            word.
        rule: a key of `RULES`.
        window: how many tokens the rule "window" shows, the token itself included.
        flips: entries `[query, key]` of the mask that are turned round.

    Raises:
        CourseError: an unknown rule, a window below 1, no such step, or a text that does not fit
            the context.
    """

    widget_name = "mask_stepper"
    title = "Mask stepper"

    text = traitlets.Unicode(TEXT).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    rule = traitlets.Unicode("all").tag(sync=True)
    window = traitlets.Int(3).tag(sync=True)
    flips = traitlets.List().tag(sync=True)
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Run, *, key: str = "", **state: Any) -> None:
        given = {"text": TEXT, "rule": "all", "window": 3, "flips": [], **state}
        if given["rule"] not in RULES:
            raise CourseError(f"rule is {given['rule']!r}: use one of {tuple(RULES)}")
        if given["window"] < 1:
            raise CourseError(f"window is {given['window']}: a token sees at least itself, so 1")
        tokens = tokens_of(run, given["text"])[1]
        before_last = len(tokens_of(run, given["text"].rpartition(" ")[0])[1]) - 1
        given.setdefault("step", before_last)
        if not 0 <= given["step"] < len(tokens):
            raise CourseError(f"step is {given['step']}: choose one from 0 to {len(tokens) - 1}")
        given["first"] = {
            "tokens": tokens,
            "window": given["window"],
            "flips": given["flips"],
            "steps": {
                rule: steps(run, given["text"], rule, given["window"], given["flips"])
                for rule in RULES
            },
        }
        super().__init__(run, key=key, **given)

    def fallback_html(self) -> str:
        """The bets at the step in view, under all rules."""
        tokens = self.first["tokens"]
        parts = [
            f"<p>The base model reads “{html.escape(self.text)}” and bets on what follows token "
            f"{self.step + 1}, “{html.escape(visible(tokens[self.step]))}”.</p>"
        ]
        for rule, name in RULES.items():
            rows = self.first["steps"][rule][self.step]["rows"]
            parts.append(
                table(
                    f"It may see {name}" + (f": {self.window}" if rule == "window" else ""),
                    ["next token", "everything so far", "this mask"],
                    [[visible(token), percent(full), percent(now)] for token, full, now in rows],
                )
            )
        return "".join(parts)


def make_mask(rule: str, window: int, flips: Iterable[Sequence[int]], length: int) -> Tensor:
    """True where a query (row) may look: `(T, T)`. Flips outside the text are left out."""
    mask = causal_mask(length)
    if rule == "window":
        mask &= ~causal_mask(length).tril(-window)
    if rule == "future":
        mask[:] = True
    for query, at in flips:
        if 0 <= query < length and 0 <= at < length:
            mask[query, at] ^= True
    return mask


@torch.no_grad()
def steps(run: Run, text: str, rule: str, window: int, flips: Sequence) -> list[dict]:
    """The bets of the base model at every step, under the causal mask and under another.

    Returns:
        For each token: `rows`, the most likely next tokens under either, `[text, causal, other]`;
        `next`, the same for the token that follows in the text (None after the last).
    """
    tokenizer, model = run.tokenizer(), run.model("base")
    ids, _ = tokens_of(run, text)
    idx = torch.tensor([ids], device=run.device)
    mask = make_mask(rule, window, flips, len(ids)).to(run.device)
    full, now = (model(idx, mask=m)[0].softmax(-1).cpu() for m in (None, mask))  # (T, V)

    def row(t: int, i: int) -> list:
        text = show(tokenizer.decode([i]))
        return [text, round(full[t, i].item(), 4), round(now[t, i].item(), 4)]

    out = []
    for t, following in enumerate([*ids[1:], None]):
        best = torch.maximum(full[t], now[t]).topk(N_BETS).indices.tolist()
        after = None if following is None else row(t, following)
        out.append({"rows": [row(t, i) for i in best], "next": after})
    return out
