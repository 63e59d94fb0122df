"""Probability shift: what base, SFT and RLHF bet on at every token of one answer.

For each prompt three answers are recorded, the greedy one of every model. Along each answer all
three models are asked for their next-token distribution, and everything that the widget shows is
measured from these: nothing is typed by hand.

What each model reads before the answer so far:

* base: the bare document, `<|endoftext|>` and the prompt's text (`evaluate.document_ids`). There is
  no template, no line break after the prompt, and no earlier turn;
* SFT and RLHF: the whole conversation in the ChatML template with the assistant's turn opened
  (`evaluate.chat_ids`).

Shape of the state, kept small (probabilities have four decimals)::

    prompts[i] = {"kind", "text", "history": [[role, content], ...],
                  "answers": {"base": PATH, "sft": PATH, "rlhf": PATH}}
    PATH = {"ended": bool, "steps": [STEP, ...]}
    STEP = {"token": text,                       # what the followed model wrote here
            "bars": [[text, base, sft, rlhf]],   # likely next tokens, with their probabilities
            "chosen": 0,                         # the row of `bars` that holds `token`
            "moved": [base to SFT, SFT to RLHF], # total variation distance, 0 to 1
            "kl": [KL(SFT || base), KL(RLHF || SFT)]}  # nats
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import torch
import traitlets

from course_lib.atlas.prompts import Prompt
from course_lib.chat import IM_END, IM_START
from course_lib.data import END_OF_TEXT
from course_lib.errors import CourseError
from course_lib.evaluate import chat_ids, document_ids, next_token_bars, replies
from course_lib.gpt import GPT
from course_lib.runs import MODELS, Run
from course_lib.tokenizer import BPETokenizer

from .live import LiveWidget

LABELS = {"base": "Base", "sft": "SFT", "rlhf": "RLHF"}
CONTROL_LABELS = {
    END_OF_TEXT: "⟨end of text⟩",
    IM_START: "⟨start of turn⟩",
    IM_END: "⟨end of turn⟩",
}
N_TOKENS = 14  # of an answer; a base model would ramble on


# -- measuring ----------------------------------------------------------------------------------


def shift_record(
    models: dict[str, GPT],
    tokenizer: BPETokenizer,
    prompt: Prompt,
    answer_by: str = "rlhf",
    n_bars: int = 6,
    n_tokens: int = N_TOKENS,
) -> dict:
    """The greedy answer of one model, with the bets of all three at each of its tokens.

    Args:
        models: "base", "sft" and "rlhf". Base reads the bare document, the others the chat
            template (see the module's docstring).
        answer_by: whose answer is followed.
        n_bars: rows at every token: the most likely tokens of `next_token_bars`. The token that
            was written is always among them.
        n_tokens: where a longer answer is cut.

    Returns:
        A PATH (see the module's docstring).

    Raises:
        CourseError: a model is missing or unknown, or the prompt does not fit the context.
    """
    if set(models) != set(MODELS) or answer_by not in models:
        raise CourseError(
            f"models {sorted(models)}, answer by {answer_by!r}: both need exactly {MODELS}"
        )
    if n_bars < 1 or n_tokens < 1:
        raise CourseError(f"n_bars is {n_bars} and n_tokens {n_tokens}: both must be at least 1")
    models = {name: models[name] for name in MODELS}
    contexts = {
        name: (document_ids if name == "base" else chat_ids)(prompt, tokenizer) for name in models
    }
    [reply] = replies(models[answer_by], tokenizer, [prompt], as_document=answer_by == "base")
    room = min(m.config.context_length - len(contexts[name]) for name, m in models.items()) + 1
    ids = reply.ids[: max(1, min(n_tokens, room))]
    logprobs = [next_logprobs(m, contexts[name], ids) for name, m in models.items()]
    steps = []
    for t, token in enumerate(ids):
        so_far = {name: context + ids[:t] for name, context in contexts.items()}
        rows = next_token_bars(models, tokenizer, so_far, min(n_bars, tokenizer.vocab_size))
        bars = [[show(row["token"]), *_rounded(row["probs"].values())] for row in rows]
        base, sft, rlhf = (lp[t] for lp in logprobs)
        written = [
            show(tokenizer.decode([token])),
            *_rounded(lp[t, token].exp() for lp in logprobs),
        ]
        steps.append(
            {
                "token": written[0],
                "bars": bars,
                "chosen": _place(bars, written),
                "moved": _rounded((total_variation(sft, base), total_variation(rlhf, sft))),
                "kl": _rounded((kl_divergence(sft, base), kl_divergence(rlhf, sft))),
            }
        )
    return {"ended": reply.ended and len(ids) == len(reply.ids), "steps": steps}


def prompt_record(
    models: dict[str, GPT], tokenizer: BPETokenizer, prompt: Prompt, n_bars: int = 6
) -> dict:
    """A prompt and the three answers to it: one entry of the widget's `prompts`."""
    return {
        "kind": prompt.kind,
        "text": prompt.text,
        "history": [list(turn) for turn in prompt.history],
        "answers": {name: shift_record(models, tokenizer, prompt, name, n_bars) for name in MODELS},
    }


@torch.no_grad()
def next_logprobs(model: GPT, context: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities of every next token along an answer: `(len(answer), vocab_size)`.

    Row t is what the model says after the context and the answer's first t tokens.
    """
    idx = torch.tensor([context + answer[:-1]], device=model.embedding.weight.device)
    return model(idx)[0, len(context) - 1 :].cpu().double().log_softmax(-1)


def total_variation(logp: torch.Tensor, logq: torch.Tensor) -> float:
    """Share of the probability that must move to turn one distribution into the other.

    >>> total_variation(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log())
    0.25
    """
    return (logp.exp() - logq.exp()).abs().sum().item() / 2


def kl_divergence(logp: torch.Tensor, logq: torch.Tensor) -> float:
    """KL(p || q) in nats.

    >>> round(kl_divergence(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()), 3)
    0.144
    """
    return (logp.exp() * (logp - logq)).sum().item()


def show(token: str) -> str:
    """A control token as a readable label; any other token as it is."""
    return CONTROL_LABELS.get(token, token)


def _rounded(values) -> list[float]:
    return [round(float(v), 4) + 0.0 for v in values]  # + 0.0: no minus zero


def _place(bars: list[list], written: list) -> int:
    """The row of the written token; where it is not among the bars, it replaces the last one.

    Text alone does not tell tokens apart: every incomplete piece of a character reads "\ufffd".
    """
    for place, row in enumerate(bars):
        if row[0] == written[0] and max(map(_gap, row[1:], written[1:])) < 1e-3:
            return place
    bars[-1] = written
    return len(bars) - 1


def _gap(a: float, b: float) -> float:
    return abs(a - b)


# -- the widget ---------------------------------------------------------------------------------


class ProbabilityShift(LiveWidget):
    """Next-token bars of base, SFT and RLHF along an answer.

    With a run, the reader can also type prompts of their own, which the live models answer in the
    page; the ES module then makes the same record.

    Args:
        prompts: entries of `prompt_record`. `from_run` measures them.
        run: the run of the live models, if there shall be any.
        prompt_index, answer_by, position: where the reader is; synchronised both ways. By default
            the token of the first prompt's RLHF answer at which most probability moved.

    Raises:
        CourseError: `prompts` is empty or malformed, or the choice is out of range.
    """

    widget_name = "probability_shift"
    title = "Next-token probabilities of base, SFT and RLHF along an answer"

    prompts = traitlets.List().tag(sync=True)
    prompt_index = traitlets.Int(0).tag(sync=True)
    answer_by = traitlets.Unicode("rlhf").tag(sync=True)
    position = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        prompts: Sequence[dict] = (),
        *,
        run: Run | None = None,
        key: str = "",
        **state: Any,
    ) -> None:
        check_prompts(prompts)
        choice = {"prompt_index": 0, "answer_by": "rlhf", **state}
        check_choice(prompts, choice["prompt_index"], choice["answer_by"])
        if "position" not in choice:
            path = prompts[choice["prompt_index"]]["answers"][choice["answer_by"]]
            choice["position"] = largest_shift(path["steps"])
        super().__init__(run, key=key, prompts=list(prompts), **choice)

    @classmethod
    def from_run(cls, run: Run, prompts: Sequence[Prompt], **state: Any) -> "ProbabilityShift":
        """Measure the prompts with the three models of a run, which also answer typed ones."""
        models, tokenizer = {name: run.model(name) for name in MODELS}, run.tokenizer()
        return cls([prompt_record(models, tokenizer, p) for p in prompts], run=run, **state)

    @traitlets.validate("prompt_index", "answer_by", "position")
    def _known(self, proposal: dict) -> Any:
        """Refuse a choice that does not exist; the page's own choices always do."""
        name, value = proposal["trait"].name, proposal["value"]
        index = value if name == "prompt_index" else self.prompt_index
        check_choice(self.prompts, index, value if name == "answer_by" else self.answer_by)
        return max(0, value) if name == "position" else value

    @property
    def steps(self) -> list[dict]:
        """The answer that is followed, token by token."""
        return self.prompts[self.prompt_index]["answers"][self.answer_by]["steps"]

    def fallback_html(self) -> str:
        """Prompt, answer so far and the table of bars at the chosen token."""
        prompt, steps = self.prompts[self.prompt_index], self.steps
        at = min(self.position, len(steps) - 1)
        so_far = "".join(step["token"] for step in steps[:at])
        turns = [*prompt["history"], ["user", prompt["text"]]]
        lines = [
            f"<p><strong>{html.escape(who)}:</strong> {html.escape(x)}</p>" for who, x in turns
        ]
        who = f"assistant ({LABELS[self.answer_by]})"
        lines.append(f"<p><strong>{who}:</strong> {html.escape(so_far)} …</p>")
        head = "".join(f'<th scope="col" class="cw-number">{LABELS[m]}</th>' for m in MODELS)
        rows = [
            _fallback_row(row, i == steps[at]["chosen"]) for i, row in enumerate(steps[at]["bars"])
        ]
        caption = f"Probability of the next token: token {at + 1} of {len(steps)} of the answer"
        return (
            f"{''.join(lines)}<table><caption>{caption}</caption>"
            f'<thead><tr><th scope="col">next token</th>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>"
        )


def _fallback_row(row: list, chosen: bool) -> str:
    token = html.escape(visible(row[0])) + (" (written)" if chosen else "")
    cells = "".join(f'<td class="cw-number">{html.escape(percent(p))}</td>' for p in row[1:])
    return f'<tr><th scope="row">{token}</th>{cells}</tr>'


def largest_shift(steps: Sequence[dict]) -> int:
    """The token at which most probability moved, both trainings together; the first of equals."""
    moved = [sum(step["moved"]) for step in steps]
    return moved.index(max(moved))


def visible(token: str) -> str:
    """A token with its blanks and line breaks made visible, as in the figures of the book."""
    return token if token in CONTROL_LABELS.values() else token.replace(" ", "␣").replace("\n", "⏎")


def percent(p: float) -> str:
    """A probability in words; the ES module writes it in the same way.

    >>> [percent(p) for p in (0.9999, 0.814, 0.0321, 0.0001)]
    ['100\\xa0%', '81\\xa0%', '3.2\\xa0%', '<0.1\\xa0%']
    """
    if p < 0.0005:
        return "<0.1\u00a0%"
    if p < 0.0995:
        return f"{math.floor(1000 * p + 0.5) / 10:.1f}\u00a0%"
    return f"{math.floor(100 * p + 0.5)}\u00a0%"


# -- checks -------------------------------------------------------------------------------------


def check_choice(prompts: Sequence[dict], index: int, answer_by: str) -> None:
    """Raise `CourseError` unless the prompt and the model exist."""
    if not 0 <= index < len(prompts):
        raise CourseError(f"prompt_index is {index}, but there are {len(prompts)} prompts")
    if answer_by not in MODELS:
        raise CourseError(f"answer_by is {answer_by!r}: use one of {MODELS}")


def check_prompts(prompts: Sequence[dict]) -> None:
    """Raise `CourseError` unless every entry has the shape of `prompt_record`."""
    if not prompts:
        raise CourseError("no prompts: give ProbabilityShift.from_run at least one")
    for i, prompt in enumerate(prompts):
        try:
            _check_prompt(prompt, f"prompt {i}")
        except CourseError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise CourseError(
                f"prompt {i} is malformed ({error!r}): build it with prompt_record"
            ) from None


def _check_prompt(prompt: dict, where: str) -> None:
    texts = [prompt["kind"], prompt["text"], *(x for turn in prompt["history"] for x in turn)]
    _need(all(isinstance(x, str) for x in texts), where, "kind, text or history is no text")
    _need(set(prompt["answers"]) == set(MODELS), where, f"the answers are not by {MODELS}")
    for name, path in prompt["answers"].items():
        answer = f"{where}, answer by {name!r}"
        _need(isinstance(path["ended"], bool), answer, "`ended` is not true or false")
        _need(len(path["steps"]) > 0, answer, "it has no token")
        for t, step in enumerate(path["steps"]):
            _check_step(step, f"{answer}, token {t}")


def _check_step(step: dict, where: str) -> None:
    """One token of an answer: its rows are probabilities, its shifts are numbers in range."""
    rows = step["bars"]
    _need(isinstance(step["token"], str) and len(rows) > 0, where, "no token or no bars")
    for text, *probs in rows:
        _need(isinstance(text, str) and len(probs) == len(MODELS), where, f"bad row for {text!r}")
        _need(all(0 <= p <= 1 for p in probs), where, f"{text!r} has a probability outside 0 to 1")
    known = isinstance(step["chosen"], int) and 0 <= step["chosen"] < len(rows)
    _need(known and rows[step["chosen"]][0] == step["token"], where, "`chosen` is not its row")
    moved, kl = step["moved"], step["kl"]
    _need(len(moved) == 2 and all(0 <= x <= 1 for x in moved), where, "`moved` is not two shares")
    _need(len(kl) == 2 and all(math.isfinite(x) for x in kl), where, "`kl` is not two numbers")


def _need(condition: bool, where: str, problem: str) -> None:
    if not condition:
        raise CourseError(f"{where}: {problem}; build the entry with prompt_record")
