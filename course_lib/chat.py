"""Chat templates: how a conversation becomes one token sequence, and which tokens are learned.

A template turns messages into segments. Each segment knows whether it may hold control tokens and
whether the model is trained to produce it. Ids and mask come out of one pass, so that they cannot
differ in length, and what a user typed is always encoded as plain text.

The mask covers the assistant's words *and* its end-of-turn token: a model that is never trained on
the end of a turn never ends one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from course_lib.data import END_OF_TEXT, IGNORE_INDEX
from course_lib.errors import CourseError
from course_lib.tokenizer import BPETokenizer

ROLES = ("system", "user", "assistant")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

Turn = tuple[str, str]  # (role, content)


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation.

    Attributes:
        text: what is written.
        control: the template wrote it, so special tokens in it count as such.
        supervised: the model learns to produce it.
    """

    text: str
    control: bool = False
    supervised: bool = False


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation and, for each, whether it is a training target."""

    ids: list[int]
    mask: list[bool]


def check_turns(turns: Sequence[Turn]) -> None:
    """See that roles are known and that user and assistant take turns.

    Raises:
        CourseError: no user turn, an unknown role, a system turn that is not the first, two turns
            of one role in a row, or an assistant that speaks first.
    """
    if not turns:
        raise CourseError("the conversation is empty: it needs at least one user turn")
    previous = None
    for number, (role, _) in enumerate(turns):
        if role not in ROLES:
            raise CourseError(f"unknown role {role!r} in turn {number}: use one of {ROLES}")
        if role == "system" and number > 0:
            raise CourseError(f"the system turn must come first, not as turn {number}")
        if role == previous:
            raise CourseError(f"turns {number - 1} and {number} are both {role!r}: join them")
        if role == "assistant" and previous in (None, "system"):
            raise CourseError("the assistant speaks first: a user turn must come before it")
        previous = role
    if previous == "system":
        raise CourseError("the system turn stands alone: it needs at least one user turn after it")


def chatml(turns: Sequence[Turn], reply: bool) -> list[Segment]:
    """ChatML: every turn between `<|im_start|>role` and `<|im_end|>`."""
    out = []
    for role, content in turns:
        learned = role == "assistant"
        out += [
            Segment(f"{IM_START}{role}\n", control=True),
            Segment(content, supervised=learned),
            Segment(IM_END, control=True, supervised=learned),
            Segment("\n", control=True),
        ]
    return [*out, Segment(f"{IM_START}assistant\n", control=True)] if reply else out


def llama2(turns: Sequence[Turn], reply: bool) -> list[Segment]:
    """Llama-2: user turns in `[INST] ... [/INST]`, the system text inside the first of them."""
    out, system = [], ""
    for role, content in turns:
        if role == "system":
            system = content
        elif role == "user":
            out.append(Segment("<s>[INST] ", control=True))
            if system:
                out.append(Segment("<<SYS>>\n", control=True))
                out.append(Segment(system))
                out.append(Segment("\n<</SYS>>\n\n", control=True))
                system = ""
            out += [Segment(content), Segment(" [/INST] ", control=True)]
        else:
            out.append(Segment(content, supervised=True))
            out.append(Segment(" </s>", control=True, supervised=True))
    return out


def alpaca(turns: Sequence[Turn], reply: bool) -> list[Segment]:
    """Alpaca: `### Instruction:` and `### Response:` headings."""
    out = []
    for role, content in turns:
        if role == "assistant":
            out.append(Segment(content, supervised=True))
            out.append(Segment(END_OF_TEXT, control=True, supervised=True))
            out.append(Segment("\n\n", control=True))
        elif role == "system":
            out += [Segment(content), Segment("\n\n", control=True)]
        else:
            out.append(Segment("### Instruction:\n", control=True))
            out += [Segment(content), Segment("\n\n### Response:\n", control=True)]
    return out


TEMPLATES: dict[str, Callable[[Sequence[Turn], bool], list[Segment]]] = {
    "chatml": chatml,
    "llama2": llama2,
    "alpaca": alpaca,
}


def segments(turns: Sequence[Turn], template: str = "chatml", reply: bool = False) -> list[Segment]:
    """The conversation in pieces; `reply` opens the assistant's next turn.

    Raises:
        CourseError: unknown role or template, or turns out of order.
    """
    check_turns(turns)
    if template not in TEMPLATES:
        raise CourseError(f"unknown template {template!r}: use one of {sorted(TEMPLATES)}")
    return TEMPLATES[template](turns, reply)


def render(
    turns: Sequence[Turn], tokenizer: BPETokenizer, template: str = "chatml", reply: bool = False
) -> Rendered:
    """The conversation as token ids and the mask of what is learned.

    A control token that the tokenizer does not have is encoded as the text that it is.

    Raises:
        CourseError: as in `check_turns`, or an unknown template.

    >>> render([("user", "Hi"), ("assistant", "Hello")], tokenizer)  # doctest: +SKIP
    Rendered(ids=[...], mask=[False, ..., True, True, False])
    """
    ids: list[int] = []
    mask: list[bool] = []
    for segment in segments(turns, template, reply):
        piece = tokenizer.encode(segment.text, "all" if segment.control else ())
        ids += piece
        mask += [segment.supervised] * len(piece)
    return Rendered(ids, mask)


def supervised_targets(ids: list[int], mask: list[bool]) -> list[int]:
    """Targets of a rendered conversation: the next id where it is supervised, else ignored.

    The shift by one happens here and nowhere else: position t is asked for token t + 1.
    """
    return [i if m else IGNORE_INDEX for i, m in zip(ids[1:], mask[1:], strict=True)]
