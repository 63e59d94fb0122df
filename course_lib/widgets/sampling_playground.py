"""Sampling playground: the next-token distribution before and after every knob of L10, live.

What stands there before a reader loads a model is measured with PyTorch: the distribution after
`text`, with the knobs as given.
"""

import html
from typing import Any

import torch
import traitlets

from course_lib.atlas.prompts import Prompt
from course_lib.errors import CourseError
from course_lib.evaluate import chat_ids, document_ids
from course_lib.runs import MODELS, Run
from course_lib.sampling import Sampling, next_token_probs

from .live import LiveWidget
from .probability_shift import LABELS, percent, show, visible

TEXT = "What is the capital of"
N_ROWS = 12
KNOBS = {"temperature": 0.8, "top_k": 0, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0}


class SamplingPlayground(LiveWidget):
    """All knobs of sampling on a live model.

    Args:
        run: the trained run.
        text: what is continued: a document for the base model, a message for the others.
        model_name: "base", "sft" or "rlhf".
        knobs: the fields of `Sampling`; synchronised both ways, like `text` and `seed`.
        seed: of the draws in the page.

    Raises:
        CourseError: an unknown model, or knobs out of range.
    """

    widget_name = "sampling_playground"
    title = "Sampling playground"

    text = traitlets.Unicode(TEXT).tag(sync=True)
    model_name = traitlets.Unicode("base").tag(sync=True)
    knobs = traitlets.Dict(KNOBS).tag(sync=True)
    seed = traitlets.Int(1).tag(sync=True)
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Run, *, key: str = "", **state: Any) -> None:
        given = {"text": TEXT, "model_name": "base", **state}
        given["knobs"] = KNOBS | state.get("knobs", {})
        if given["model_name"] not in MODELS:
            raise CourseError(f"model_name is {given['model_name']!r}: use one of {MODELS}")
        given["first"] = distribution(run, given["model_name"], given["text"], given["knobs"])
        super().__init__(run, key=key, **given)

    def fallback_html(self) -> str:
        """The most likely tokens, before and after the knobs."""
        shares = [
            (visible(token), percent(before), "cut" if after is None else percent(after))
            for token, before, after in self.first["rows"]
        ]
        rows = [
            f'<tr><th scope="row">{html.escape(token)}</th>'
            f'<td class="cw-number">{html.escape(before)}</td>'
            f'<td class="cw-number">{html.escape(after)}</td></tr>'
            for token, before, after in shares
        ]
        knobs = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in self.knobs.items())
        return (
            f"<p>{LABELS[self.model_name]} model, after “{html.escape(self.text)}”; {knobs}.</p>"
            f'<table><caption>Probability of the next token</caption><thead><tr><th scope="col">'
            f'next token</th><th scope="col" class="cw-number">before</th><th scope="col" '
            f'class="cw-number">after</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        )


@torch.no_grad()
def distribution(run: Run, name: str, text: str, knobs: dict) -> dict:
    """The next-token distribution of a model after a text, before and after the knobs.

    Returns:
        `rows`: the most likely tokens, `[text, before, after]`, after None for one that is cut;
        `kept`: how many tokens remain; `mass`: the probability that they had before; `size`: of
        the vocabulary.
    """
    tokenizer, model = run.tokenizer(), run.model(name)
    encode = document_ids if name == "base" else chat_ids
    ids = encode(Prompt("typed", text, None), tokenizer)
    logits = model(torch.tensor([ids], device=run.device))[0, -1].cpu()  # (V,)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[ids] = True
    before = logits.softmax(-1)
    after = next_token_probs(logits, Sampling(**knobs), seen)
    kept = after > 0
    rows = [
        [
            show(tokenizer.decode([i])),
            round(before[i].item(), 4),
            round(after[i].item(), 4) if kept[i] else None,
        ]
        for i in before.topk(N_ROWS).indices.tolist()
    ]
    return {
        "rows": rows,
        "kept": int(kept.sum()),
        "mass": round(before[kept].sum().item(), 4),
        "size": len(logits),
    }
