"""Three-way chat: one message, answered by base, SFT and RLHF side by side, live in the page.

The base model reads the message as the start of a document; SFT and RLHF read the talk so far,
each with its own replies in it. What stands there before a reader loads the models is measured
with PyTorch: the greedy replies to `FIRST`.

Shape of the state: `talk` is a list of `{"text": message, "replies": {model: REPLY}}`, with
`REPLY = {"text": its words, "ended": it ended by itself, "score": the reward model's, or None}`.
"""

import html
from typing import Any

import torch
import traitlets

from course_lib.atlas.families import FAMILIES
from course_lib.atlas.prompts import Prompt, prompt_mix
from course_lib.evaluate import REPLY_TOKENS, chat_ids, replies
from course_lib.runs import MODELS, Run

from .live import LiveWidget
from .probability_shift import LABELS

FIRST = "What is the capital of France?"
# Messages that a reader can pick: one of each kind that L11 measures.
SUGGESTIONS = (
    FIRST,
    FAMILIES["currency"].short,
    "Write a haiku about programming.",
    "Python",
    *(prompt_mix(1, False, 31, {kind: 1})[0].text for kind in ("harmful", "harmless")),
)


class ThreeWayChat(LiveWidget):
    """Chat with base, SFT and RLHF at once.

    Args:
        run: the trained run whose models answer.
        suggestions: messages that the reader can pick; the first is answered in advance.
        temperature: of the sampling, 0 for greedy replies; synchronised both ways.
    """

    widget_name = "three_way_chat"
    title = "Chat with base, SFT and RLHF side by side"

    talk = traitlets.List().tag(sync=True)
    suggestions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    temperature = traitlets.Float(0.0, min=0.0, max=2.0).tag(sync=True)
    reply_tokens = traitlets.Int(REPLY_TOKENS).tag(sync=True)

    def __init__(self, run: Run, *, key: str = "", **state: Any) -> None:
        given = {"suggestions": list(SUGGESTIONS), **state}
        given.setdefault("talk", [first_exchange(run, given["suggestions"][0])])
        super().__init__(run, key=key, **given)

    def fallback_html(self) -> str:
        """The talk as text: every message and the three replies to it."""
        parts = []
        for exchange in self.talk:
            parts.append(f"<p><strong>You:</strong> {html.escape(exchange['text'])}</p>")
            for name in MODELS:
                text = html.escape(exchange["replies"][name]["text"]).replace("\n", "<br>")
                parts.append(f"<p><strong>{LABELS[name]}:</strong> {text}</p>")
        return "".join(parts)


@torch.no_grad()
def first_exchange(run: Run, text: str) -> dict:
    """The greedy replies of the three models to one message, each with its reward score, None for
    one that does not fit the reward model's context.
    """
    tokenizer, scorer = run.tokenizer(), run.reward_model()
    prompt = Prompt("typed", text, None)
    answers = {}
    for name in MODELS:
        [reply] = replies(run.model(name), tokenizer, [prompt], as_document=name == "base")
        context, score = chat_ids(prompt, tokenizer), None
        if len(context) + len(reply.ids) <= scorer.body.config.context_length:
            score = round(scorer([context], [reply.ids]).item(), 2)
        answers[name] = {"text": reply.text, "ended": reply.ended, "score": score}
    return {"text": text, "replies": answers}
