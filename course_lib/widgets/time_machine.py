"""Training time machine: scrub through the snapshots of the base model's training.

At each snapshot the widget shows the loss so far, how many facts the model completes, what it
writes after a prompt (greedily, and sampled with one seed for all snapshots), its five likeliest
next tokens, and a map of token embeddings. All of it is measured from the run's own snapshots; the
page moves between them and computes nothing.

Shape of the state::

    steps = [0, 50, ...]                       # of the snapshots
    heldout = [loss, ...]                      # at each snapshot, nats a token
    facts = {"capital": [share, ...], ...}     # at each snapshot
    curve = [[step, loss], ...]                # training loss, means of neighbouring steps
    prompts[i] = {"text", "answer",            # the words that are right next, "" if none are
                  "moments": [{"greedy", "sampled",         # texts, one entry a snapshot
                               "bars": [[token, probability], ...],
                               "chance": probability of the whole answer}]}
    words = [[token, group], ...]              # of the map
    places = [[[x, y], ...], ...]              # for each snapshot, one point a word
    kept = share of the words' spread, in the last snapshot, that the map shows
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
import traitlets
from torch import Tensor

from course_lib.atlas.documents import documents
from course_lib.atlas.facts import ANIMALS, COUNTRIES, ELEMENTS
from course_lib.data import end_of_text, token_stream
from course_lib.errors import CourseError
from course_lib.evaluate import fact_completion, response_logprobs, text_loss
from course_lib.files import read_json
from course_lib.generate import generate
from course_lib.gpt import GPT
from course_lib.runs import Run, load_model
from course_lib.sampling import GREEDY, Sampling
from course_lib.tokenizer import BPETokenizer

from .base import CourseWidget
from .probability_shift import percent, visible
from .reading import ranked, table

# Beginnings of documents, and the words that are right after each, where some are.
PROMPTS = {
    "The capital of France is": " Paris",
    "Tokyo is the capital of": " Japan",
    "Brazil is in": " South America",
    "People in Poland pay with the": " zloty",
    "What is the capital of": "",
    "Haiku:": "",
    "The": "",
}
N_BARS, N_TOKENS, CURVE_POINTS, PER_GROUP = 5, 24, 140, 9
WORDS = {
    "countries": [c.name for c in COUNTRIES],
    "capitals": [c.capital for c in COUNTRIES],
    "currencies": [c.currency.split()[-1] for c in COUNTRIES],
    "languages": [c.language for c in COUNTRIES],
    "elements": [e.name for e in ELEMENTS],
    "animals": [a.name for a in ANIMALS],
    "numbers": [str(n) for n in range(1, 100)],
}


# -- measuring ----------------------------------------------------------------------------------


def word_tokens(tokenizer: BPETokenizer) -> list[tuple[str, str, int]]:
    """Word, group and id of words that are one token after a blank: `PER_GROUP` of each group.

    Where more are one token, they are taken evenly from the whole list.
    """
    chosen, seen = [], set()
    for group, words in WORDS.items():
        whole = []
        for word in dict.fromkeys(words):
            ids = tokenizer.encode(f" {word}")
            if len(ids) == 1 and ids[0] not in seen:
                seen.add(ids[0])
                whole.append((word, group, ids[0]))
        n = min(PER_GROUP, len(whole))
        chosen += [whole[i * len(whole) // n] for i in range(n)]
    return chosen


def projection(vectors: Tensor) -> tuple[Tensor, Tensor, float]:
    """The plane that keeps most of a cloud's spread: its centre, two axes, the share it keeps.

    Args:
        vectors: `(N, C)`. The sign of an axis is chosen so that its largest entry is positive.

    Returns:
        centre `(C,)`, axes `(C, 2)`, and a share of the summed squares.
    """
    centre = vectors.mean(0)
    _, sizes, axes = torch.linalg.svd(vectors - centre, full_matrices=False)
    axes = axes[:2].T  # (C, 2)
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return centre, axes * signs, (sizes[:2].square().sum() / sizes.square().sum()).item()


@torch.no_grad()
def embedding_map(snapshots: Sequence[GPT], ids: Sequence[int]) -> tuple[list, float]:
    """Where tokens stand at each snapshot, in the plane of the last one: `[[[x, y], ...], ...]`.

    One plane for all, so that a point that moves has really moved.
    """
    tables = [model.embedding.weight[list(ids)].float().cpu() for model in snapshots]
    centre, axes, kept = projection(tables[-1])
    places = [((vectors - centre) @ axes).tolist() for vectors in tables]
    return [[[round(x, 3), round(y, 3)] for x, y in place] for place in places], round(kept, 3)


@torch.inference_mode()
def moments(model: GPT, tokenizer: BPETokenizer, prompts: dict[str, str]) -> list[dict]:
    """What one snapshot makes of each prompt, read as the beginning of a document.

    Args:
        prompts: text -> the right words after it, "" where there are none.
    """
    border = end_of_text(tokenizer)
    contexts = [[border, *tokenizer.encode(text)] for text in prompts]
    written = []
    for rule in (GREEDY, Sampling()):
        dice = [torch.Generator().manual_seed(0) for _ in contexts]
        done = generate(model, contexts, N_TOKENS, {border}, rule, dice)
        written.append([tokenizer.decode(c.ids[:-1] if c.ended else c.ids) for c in done])
    rows = zip(contexts, prompts.values(), *written, strict=True)
    return [
        {
            "greedy": greedy,
            "sampled": sampled,
            "bars": ranked(model(torch.tensor([ids]))[0, -1].softmax(-1), N_BARS, tokenizer),
            "chance": chance(model, ids, tokenizer.encode(answer)) if answer else 0.0,
        }
        for ids, answer, greedy, sampled in rows
    ]


def chance(model: GPT, ids: list[int], answer: list[int]) -> float:
    """The probability that a text goes on with all tokens of an answer."""
    logprobs, _, _ = response_logprobs(model, [ids], [answer])
    return round(logprobs.sum().exp().item(), 4)


def history(run: Run, first: GPT) -> dict:
    """Loss and facts at each snapshot, and the training loss by step.

    The run measured every snapshot but the first, which is measured here, on the same text.
    """
    steps, rows = run.snapshots(), run.metrics("base")
    by_step = {row["step"] + 1: row for row in rows}
    tokenizer, seed = run.tokenizer(), read_json(run.path / "manifest.json")["seed"]
    heldout = token_stream(documents(400, seed + 1_000_000), tokenizer)
    losses, facts = [text_loss(first, heldout)], [fact_completion(first, tokenizer)]
    losses += [by_step[step]["heldout_loss"] for step in steps[1:]]
    facts += [by_step[step]["facts"] for step in steps[1:]]
    width = max(1, len(rows) // CURVE_POINTS)
    groups = [rows[i : i + width] for i in range(0, len(rows), width)]
    curve = [[g[-1]["step"] + 1, round(fmean(row["loss"] for row in g), 3)] for g in groups]
    return {
        "steps": steps,
        "heldout": [round(loss, 3) for loss in losses],
        "facts": {name: [round(share[name], 3) for share in facts] for name in facts[0]},
        "curve": curve,
    }


# -- the widget ---------------------------------------------------------------------------------


class TimeMachine(CourseWidget):
    """The base model's training, snapshot by snapshot.

    Args:
        steps, heldout, facts, curve, prompts, words, places, kept: see the top of the file;
            `from_run` measures them.
        at: number of the snapshot; by default the one in the middle.
        prompt: number of the prompt.
        group: whose names the map shows. All three are synchronised both ways.

    Raises:
        CourseError: no snapshots, parts of different lengths, or a choice that does not exist.
    """

    widget_name = "time_machine"
    title = "Training time machine: the base model at each snapshot of its training"

    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    heldout = traitlets.List(traitlets.Float()).tag(sync=True)
    facts = traitlets.Dict().tag(sync=True)
    curve = traitlets.List().tag(sync=True)
    prompts = traitlets.List().tag(sync=True)
    words = traitlets.List().tag(sync=True)
    places = traitlets.List().tag(sync=True)
    kept = traitlets.Float().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    prompt = traitlets.Int(0).tag(sync=True)
    group = traitlets.Unicode("").tag(sync=True)

    def __init__(self, *, key: str = "", **state: Any) -> None:
        check_state(state)
        first = {"at": len(state["steps"]) // 2, "group": state["words"][0][1]}
        super().__init__(key=key, **(first | state))

    @classmethod
    def from_run(cls, run: Run, prompts: dict[str, str] = PROMPTS, **state: Any) -> "TimeMachine":
        """Measure a run's snapshots.

        Args:
            prompts: beginning of a document -> the words that are right next, "" if none are.

        Raises:
            CourseError: the run has kept no snapshots.
        """
        if len(run.snapshots()) < 2:
            raise CourseError(f"{run.path} has kept no snapshots of its base model: train it anew")
        models = [load_model(run.snapshot(step)) for step in run.snapshots()]
        tokenizer = run.tokenizer()
        chosen = word_tokens(tokenizer)
        places, kept = embedding_map(models, [i for _, _, i in chosen])
        seen = zip(*(moments(model, tokenizer, prompts) for model in models), strict=True)
        measured = {
            **history(run, models[0]),
            "prompts": [
                {"text": text, "answer": answer, "moments": list(by_step)}
                for (text, answer), by_step in zip(prompts.items(), seen, strict=True)
            ],
            "words": [[word, group] for word, group, _ in chosen],
            "places": places,
            "kept": kept,
        }
        return cls(**measured, **state)

    @traitlets.validate("at", "prompt", "group")
    def _known(self, proposal: dict) -> Any:
        """Refuse a choice that does not exist; the page's own choices always do."""
        name, value = proposal["trait"].name, proposal["value"]
        state = {"steps": self.steps, "prompts": self.prompts, "words": self.words}
        check_choice(state | {name: value})
        return value

    def fallback_html(self) -> str:
        """The run as a table: loss, facts and the greedy text at each snapshot."""
        prompt = self.prompts[self.prompt]
        heads = ["steps", "held-out loss", *self.facts, f"greedy text after “{prompt['text']}”"]
        rows = []
        for i, step in enumerate(self.steps):
            shares = [percent(values[i]) for values in self.facts.values()]
            text = prompt["moments"][i]["greedy"].split("\n")[0]
            rows.append([str(step), f"{self.heldout[i]:.2f}", *shares, text])
        bars = prompt["moments"][self.at]["bars"]
        after = f"Next token after “{prompt['text']}”, {self.steps[self.at]} steps"
        return table("The base model in training", heads, rows) + table(
            after, ("token", "probability"), [(visible(token), percent(p)) for token, p in bars]
        )


def check_state(state: dict) -> None:
    """Raise `CourseError` unless all parts of the state belong to the same snapshots."""
    n = len(state.get("steps", ()))
    if n < 2 or not state.get("prompts") or not state.get("words"):
        raise CourseError("no snapshots, prompts or words: measure them with TimeMachine.from_run")
    lengths = {
        "heldout": len(state["heldout"]),
        "places": len(state["places"]),
        **{f"facts of {name}": len(shares) for name, shares in state["facts"].items()},
        **{f"moments of {p['text']!r}": len(p["moments"]) for p in state["prompts"]},
    }
    wrong = [f"{name} has {length}" for name, length in lengths.items() if length != n]
    wrong += [
        f"snapshot {i} of the map has {len(place)} of {len(state['words'])} words"
        for i, place in enumerate(state["places"])
        if len(place) != len(state["words"])
    ]
    if wrong:
        raise CourseError(f"there are {n} snapshots, but {'; '.join(wrong)}")
    check_choice(state)


def check_choice(state: dict) -> None:
    """Raise `CourseError` unless snapshot, prompt and group exist."""
    at, prompt = state.get("at", 0), state.get("prompt", 0)
    if not 0 <= at < len(state["steps"]):
        raise CourseError(f"at is {at}, but there are {len(state['steps'])} snapshots")
    if not 0 <= prompt < len(state["prompts"]):
        raise CourseError(f"prompt is {prompt}, but there are {len(state['prompts'])} prompts")
    groups = list(dict.fromkeys(group for _, group in state["words"]))
    if state.get("group", groups[0]) not in groups:
        raise CourseError(f"group is {state['group']!r}: use one of {groups}")
