"""Head gallery: the attention of all heads of the live base model at once, each with a switch.

A head that is off adds nothing to the stream; the layers above it see what is left.
"""

import html
from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from course_lib.gpt import GPT
from course_lib.runs import Run

from .live import LiveWidget
from .probability_shift import percent, show, visible
from .reading import attention_rows, table, tokens_of, without_heads

TEXT = "The capital of Japan is Tokyo. The capital of Peru is"
N_ROWS = 8


class HeadGallery(LiveWidget):
    """Small maps of every head's attention, and what switching heads off does to the next token.

    Args:
        run: the trained run; its base model reads.
        text: the sentence; synchronised both ways.
        off: heads switched off, `[layer, head]` counted from 0; by default the one head whose
            removal moves the most probability. Synchronised both ways.

    Raises:
        CourseError: a head that the model does not have, or a text that does not fit the context.
    """

    widget_name = "head_gallery"
    title = "Gallery of attention heads"

    text = traitlets.Unicode(TEXT).tag(sync=True)
    off = traitlets.List().tag(sync=True)
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Run, *, key: str = "", **state: Any) -> None:
        given = {"text": TEXT, **state}
        if "off" not in given:
            given["off"] = [weightiest(run, given["text"])]
        given["first"] = switched(run, given["text"], given["off"])
        super().__init__(run, key=key, **given)

    def fallback_html(self) -> str:
        """What the switched-off heads change, and where every head looks from the last token."""
        tokens = self.first["tokens"]
        bets = [
            [visible(token), percent(before), percent(after), f"{100 * (after - before):+.1f}"]
            for token, before, after in self.first["rows"]
        ]
        rows = []
        for layer, heads in enumerate(self.first["attention"]):
            for head, weights in enumerate(heads):
                share, place = max((w, t) for t, w in enumerate(weights[-1]))
                seen = f"{visible(tokens[place])} ({percent(share)})"
                rows.append([f"layer {layer}, head {head}", seen])
        names = ", ".join(f"head {head} of layer {layer}" for layer, head in self.off)
        return (
            f"<p>The base model after “{html.escape(self.text)}”. Switched off: {names or 'none'}. "
            f"That moves {percent(self.first['moved'])} of the probability.</p>"
            + table(
                "Probability of the next token",
                ["next token", "all heads", "as switched", "change in points"],
                bets,
            )
            + table("Where each head looks most, from the last token", ["head", "token"], rows)
        )


def next_probs(model: GPT, ids: list[int], off: Sequence) -> Tensor:
    """The next-token distribution `(V,)` with some heads switched off."""
    with torch.no_grad(), without_heads(model, off):
        idx = torch.tensor([ids], device=model.embedding.weight.device)
        return model(idx)[0, -1].softmax(-1).cpu()


def moved(before: Tensor, after: Tensor) -> float:
    """Share of the probability that has to move to turn one distribution into the other."""
    return (before - after).abs().sum().item() / 2


def weightiest(run: Run, text: str) -> list[int]:
    """The head, `[layer, head]`, whose removal moves the most probability after a text."""
    model = run.model("base")
    ids, _ = tokens_of(run, text)
    before = next_probs(model, ids, [])
    heads = [[x, y] for x in range(model.config.n_layers) for y in range(model.config.n_heads)]
    return max(heads, key=lambda head: moved(before, next_probs(model, ids, [head])))


@torch.no_grad()
def switched(run: Run, text: str, off: Sequence) -> dict:
    """The base model on a text with some heads switched off.

    Returns:
        `tokens`: T texts; `attention[layer][head][t]`: the weights on tokens 0 to t, as the
        model runs with the heads off; `rows`: the most likely next tokens,
        `[text, with all heads, now]`; `moved`: the share of the probability that moved.
    """
    tokenizer, model = run.tokenizer(), run.model("base")
    ids, tokens = tokens_of(run, text)
    before, after = next_probs(model, ids, []), next_probs(model, ids, off)
    with without_heads(model, off):
        trace = model.trace(torch.tensor([ids], device=run.device))
    best = torch.maximum(before, after).topk(N_ROWS).indices.tolist()
    return {
        "tokens": tokens,
        "attention": attention_rows(trace),
        "rows": [
            [show(tokenizer.decode([i])), round(before[i].item(), 4), round(after[i].item(), 4)]
            for i in best
        ],
        "moved": round(moved(before, after), 4),
    }
