"""Attention explorer: where one head of the live base model looks from a token, and what it takes.

What a head takes is what its write adds to the logits directly, through the final norm (at the
scale that the finished stream gives it) and the embedding matrix: direct logit attribution
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). The mean over the
vocabulary is taken off, since adding the same to every logit changes no probability.
"""

import html
from typing import Any

import torch
import traitlets

from course_lib.errors import CourseError
from course_lib.runs import Run

from .live import LiveWidget
from .probability_shift import percent, visible
from .reading import attention_rows, head_writes, ranked, table, tokens_of

TEXT = "The capital of Japan is Tokyo. The currency of Japan is"
N_TAKEN = 4


class AttentionExplorer(LiveWidget):
    """One head at a time, on a sentence that the reader types.

    Args:
        run: the trained run; its base model reads.
        text: the sentence; synchronised both ways, like the choices below.
        layer, head: the head in view, counted from 0; by default the one whose look from the last
            token back at another is strongest (the first token left out: many heads rest there).
        at: place of the token in view; by default the last.

    Raises:
        CourseError: no such layer, head or token, or a text that does not fit the context.
    """

    widget_name = "attention_explorer"
    title = "Attention explorer"

    text = traitlets.Unicode(TEXT).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    head = traitlets.Int(0).tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Run, *, key: str = "", **state: Any) -> None:
        given = {"text": TEXT, **state}
        given["first"] = first = heads_of(run, given["text"])
        layer, head = strongest(first["attention"])
        given = {"layer": layer, "head": head, "at": len(first["tokens"]) - 1, **given}
        maps = first["attention"]
        limits = {"layer": len(maps), "head": len(maps[0]), "at": len(first["tokens"])}
        for name, n in limits.items():
            if not 0 <= given[name] < n:
                raise CourseError(f"{name}={given[name]}: choose a number from 0 to {n - 1}")
        super().__init__(run, key=key, **given)

    def fallback_html(self) -> str:
        """Where the head in view looks from the token in view, and what it takes."""
        tokens = self.first["tokens"]
        row = self.first["attention"][self.layer][self.head][self.at]
        taken = self.first["takes"][self.layer][self.head][self.at]
        raised = ", ".join(f"“{visible(token)}” {value:+.2f}" for token, value in taken)
        return (
            f"<p>Layer {self.layer}, head {self.head} of the base model, in the sentence "
            f"“{html.escape(self.text)}”, at token {self.at + 1}, "
            f"“{html.escape(visible(tokens[self.at]))}”. What it takes raises the logits of "
            f"{html.escape(raised)}.</p>"
            + table(
                "Where it looks",
                ["token", "attention weight"],
                [[visible(token), percent(w)] for token, w in zip(tokens, row, strict=False)],
            )
        )


@torch.no_grad()
def heads_of(run: Run, text: str) -> dict:
    """All heads of the base model on one text.

    Returns:
        `tokens`: T texts; `attention[layer][head][t]`: the weights on tokens 0 to t;
        `takes[layer][head][t]`: the tokens whose logits rise most, `[text, rise]`;
        `gain`: of the final norm, `d_model` values, with which the page computes the same.
    """
    tokenizer, model = run.tokenizer(), run.model("base")
    ids, tokens = tokens_of(run, text)
    trace, writes = head_writes(model, ids)
    last = trace.residuals[-1][0]  # (T, C)
    scale = (last.pow(2).mean(-1, keepdim=True) + model.config.norm_eps).rsqrt()
    rise = model.logits(writes * model.norm.weight * scale)  # (L, H, T, V)
    rise = (rise - rise.mean(-1, keepdim=True)).cpu()
    return {
        "tokens": tokens,
        "attention": attention_rows(trace),
        "takes": [
            [[short(ranked(row, N_TAKEN, tokenizer)) for row in head] for head in layer]
            for layer in rise
        ],
        "gain": [round(g, 4) for g in model.norm.weight.tolist()],
    }


def short(taken: list[list]) -> list[list]:
    """Two decimals, to keep the page small."""
    return [[token, round(value, 2)] for token, value in taken]


def strongest(attention: list[list[list[list[float]]]]) -> tuple[int, int]:
    """Layer and head with the largest weight from the last token on one between first and last."""
    looks = {
        (layer, head): max(rows[-1][1:-1], default=0.0)
        for layer, heads in enumerate(attention)
        for head, rows in enumerate(heads)
    }
    return max(looks, key=looks.get)
