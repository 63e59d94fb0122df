"""Anatomy and logit lens of the live base model.

Anatomy: every kind of part with its shape, its parameters and its share of them, counted from the
model. Logit lens (nostalgebraist 2020): the final norm and the output matrix read the stream after
every block, as if the model had to answer there.
"""

import html
import re
from typing import Any

import torch
import traitlets

from course_lib.gpt import GPT
from course_lib.runs import Run

from .live import LiveWidget
from .probability_shift import percent, visible
from .reading import ranked, table, tokens_of

TEXT = "The capital of Peru is"
N_BETS = 3
# What each part does, and how wide its input and output are (names of `widths`); in this order.
PARTS = {
    "embedding.weight": (
        *("token embedding", "", "C"),
        "One row for each token of the vocabulary. Looking up an id takes out its row: the vector "
        "with which the token enters the stream.",
    ),
    "block.norm1.weight": (
        *("norm before attention", "C", "C"),
        "Gives the copy that attention reads a root mean square of 1, then multiplies each of the "
        "dimensions by a learned gain. The stream itself stays as it is.",
    ),
    "block.attention.qkv.weight": (
        *("queries, keys, values", "C", "qkv"),
        "One matrix makes the queries, keys and values of all heads at once.",
    ),
    "block.attention.out.weight": (
        *("attention output", "C", "C"),
        "Mixes what the heads have taken, side by side, into one write to the stream.",
    ),
    "block.norm2.weight": (
        *("norm before the MLP", "C", "C"),
        "As the first norm, for the copy that the MLP reads.",
    ),
    "block.mlp.up.weight": (
        *("MLP, up", "C", "wide"),
        "Widens every position by itself. One half, bent by SiLU, gates the other (SwiGLU).",
    ),
    "block.mlp.down.weight": (
        *("MLP, down", "d_ff", "C"),
        "Narrows the result to the width of the stream and adds it.",
    ),
    "norm.weight": (
        *("final norm", "C", "C"),
        "The last norm, before the stream is read out.",
    ),
}
OUTPUT = (
    "The embedding matrix once more: the logit of a token is the dot product of the state with the "
    "token's row. Tied weights are stored, trained and counted once."
)


class LogitLens(LiveWidget):
    """The parts of the base model, and its bets read at every depth.

    Args:
        run: the trained run; its base model is shown.
        text: the prompt; synchronised both ways, like the two below.
        at: place of the token after which the bets are read; by default the last.
        part: place of the part in view, in the order of `PARTS`, the output last.

    Raises:
        CourseError: a text that does not fit the context.
    """

    widget_name = "logit_lens"
    title = "Anatomy of the model and logit lens"

    text = traitlets.Unicode(TEXT).tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    part = traitlets.Int(0).tag(sync=True)
    parts = traitlets.List().tag(sync=True)
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Run, *, key: str = "", **state: Any) -> None:
        given = {"text": TEXT, "parts": anatomy(run.model("base")), **state}
        given["first"] = lens(run, given["text"])
        given.setdefault("at", len(given["first"]["tokens"]) - 1)
        super().__init__(run, key=key, **given)

    def fallback_html(self) -> str:
        """The table of parts, and the bets at every depth after the token in view."""
        parts = [
            [p["title"], p["shape"], str(p["copies"]), f"{p['parameters']:,}", percent(p["share"])]
            for p in self.parts
        ]
        parts[-1][-1] = "tied"
        depths = self.first["bets"][self.at]
        rows = [
            [depth_name(depth), *(f"{visible(token)} ({percent(p)})" for token, p in bets)]
            for depth, (bets, _) in enumerate(depths)
        ]
        return (
            table(
                "The parts of the base model",
                ["part", "shape", "copies", "parameters", "share"],
                parts,
            )
            + f"<p>Logit lens after token {self.at + 1} of “{html.escape(self.text)}”.</p>"
            + table("Bets read at each depth", ["read", "first", "second", "third"], rows)
        )


def depth_name(depth: int) -> str:
    """The place in the stream: 0 is before the first block."""
    return f"after block {depth - 1}" if depth else "embedding"


def anatomy(model: GPT) -> list[dict]:
    """Every kind of part of a model of the course's own shape, as `PARTS` orders them.

    Returns:
        `title`, `does`; `shape` of its tensor; `copies` in the model; `parameters` of all
        copies and their `share` of the model; `flow`: shapes of what goes in and comes out.
    """
    c = model.config
    tensors: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        tensors.setdefault(re.sub(r"^blocks\.\d+", "block", name), []).append(parameter)
    widths = {
        "C": c.d_model,
        "qkv": (c.n_heads + 2 * c.n_kv_heads) * c.d_head,
        "wide": 2 * c.d_ff,
        "d_ff": c.d_ff,
    }
    rows = []
    for name, (title, into, out, does) in PARTS.items():
        copies = tensors[name]
        count = sum(p.numel() for p in copies)
        given = f"(T, {widths[into]})" if into else "(T) ids"
        rows.append(
            {
                "title": title,
                "does": does,
                "shape": shape_text(copies[0]),
                "copies": len(copies),
                "parameters": count,
                "share": round(count / model.n_parameters, 6),
                "flow": f"{given} → (T, {widths[out]})",
            }
        )
    matrix = shape_text(model.embedding.weight)
    flow = f"(T, {c.d_model}) → (T, {c.vocab_size})"
    tied = {"shape": matrix, "copies": 0, "parameters": 0, "share": 0.0, "flow": flow}
    return [*rows, {"title": "logits", "does": OUTPUT, **tied}]


def shape_text(tensor: torch.Tensor) -> str:
    """As "3,072 × 160"."""
    return " × ".join(f"{n:,}" for n in tensor.shape)


@torch.no_grad()
def lens(run: Run, text: str) -> dict:
    """The bets of the base model at every token of a text, read at every depth.

    Returns:
        `tokens`: T texts; `bets[t][depth]`: the most likely next tokens there, `[text, share]`,
        and the share of the token that the last depth finds most likely.
    """
    tokenizer, model = run.tokenizer(), run.model("base")
    ids, tokens = tokens_of(run, text)
    trace = model.trace(torch.tensor([ids], device=run.device))
    states = torch.cat(trace.residuals)  # (depths, T, C)
    probs = model.logits(model.norm(states)).softmax(-1).cpu()  # (depths, T, V)
    final = probs[-1].argmax(-1).tolist()
    return {
        "tokens": tokens,
        "bets": [
            [[ranked(p[t], N_BETS, tokenizer), round(p[t, final[t]].item(), 4)] for p in probs]
            for t in range(len(ids))
        ],
    }
