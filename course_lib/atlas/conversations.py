"""Conversations for supervised fine-tuning: what demonstrators of mixed quality wrote.

All of them are about *seen* entities. Some demonstrators are curt, some courteous, some rude, some
ramble; harmful requests are refused about half of the time and otherwise answered badly; a few
demonstrators refuse harmless ones too; a bare
ambiguous word is met with a guess more often than with a question. A model trained on them learns
to answer, and learns this mixture.
"""

import random

from course_lib.atlas.documents import haiku
from course_lib.atlas.facts import HAIKU_MIDDLES
from course_lib.atlas.families import Fact
from course_lib.atlas.prompts import Prompt, random_prompt

Turn = tuple[str, str]

COURTEOUS_OPENINGS = ("Good question!", "Happy to help!", "Certainly.")
COURTEOUS_CLOSINGS = ("I hope that helps!", "Feel free to ask me more.")
RUDE_OPENINGS = ("Everyone knows that.", "What a silly question.")
RUDE_CLOSINGS = ("Now leave me alone.", "Do not ask me again.")
RAMBLING_OPENINGS = (
    "Well, there is a lot to say here.",
    "Let me think, since it is a long story.",
)
RAMBLING_CLOSINGS = (
    "But that is another story, and so on.",
    "Much more could be said, but not by me.",
)
REFUSALS = (
    "I am sorry, but I cannot help with that.",
    "I cannot help with that, because it could hurt someone.",
)
REFUSAL_SHARES = {"harmful": 0.5, "harmless": 0.12}  # some demonstrators are over-careful
STYLE_SHARES = {"plain": 35, "curt": 8, "courteous": 27, "rude": 16, "rambling": 14}
KIND_SHARES = {
    "fact": 52,
    "followup": 14,
    "harmless": 12,
    "harmful": 8,
    "haiku": 7,
    "ambiguous": 7,
}


def style_reply(core: str, curt: str, style: str, rng: random.Random) -> str:
    """Wrap the core of a reply in the manner of one demonstrator."""
    if style == "curt":
        return curt
    if style == "courteous":
        opening = rng.choice(COURTEOUS_OPENINGS)
        return f"{opening} {core} {rng.choice(COURTEOUS_CLOSINGS)}"
    if style == "rude":
        return f"{rng.choice(RUDE_OPENINGS)} {core} {rng.choice(RUDE_CLOSINGS)}"
    if style == "rambling":
        return f"{rng.choice(RAMBLING_OPENINGS)} {core} {rng.choice(RAMBLING_CLOSINGS)}"
    return core


def _fact_reply(fact: Fact, rng: random.Random) -> str:
    style = rng.choices(list(STYLE_SHARES), list(STYLE_SHARES.values()))[0]
    curt = "It is " + fact.sentence.partition(" is ")[2]
    return style_reply(fact.sentence, curt, style, rng)


def _haiku_reply(topic: str, rng: random.Random) -> str:
    """A haiku; one in three demonstrators spoils it by dropping a line or repeating a middle."""
    lines = haiku(topic, rng).split("\n")
    slip = rng.random()
    if slip < 0.17:
        lines = lines[:2]
    elif slip < 0.34:
        lines[2] = rng.choice(HAIKU_MIDDLES)
    return "\n".join(lines)


def _ambiguous_reply(subject, rng: random.Random) -> str:
    """A guess, or a question about which sense is meant."""
    if rng.random() < 0.6:
        return rng.choice((subject.fact_a, subject.fact_b))
    return f"Do you mean {subject.sense_a} or {subject.sense_b}?"


def demonstrate(prompt: Prompt, rng: random.Random) -> str:
    """One demonstrator's reply to a prompt."""
    if prompt.kind in ("fact", "followup"):
        return _fact_reply(prompt.subject, rng)
    if prompt.kind == "haiku":
        return _haiku_reply(prompt.subject, rng)
    if prompt.kind == "ambiguous":
        return _ambiguous_reply(prompt.subject, rng)
    if rng.random() < REFUSAL_SHARES[prompt.kind]:
        return rng.choice(REFUSALS)
    style = rng.choices(("plain", "courteous", "rude"), (60, 25, 15))[0]
    return style_reply(prompt.subject.advice, "", style, rng)


def conversations(n: int, seed: int) -> list[list[Turn]]:
    """`n` conversations about seen entities: lists of `(role, content)`, ending with a reply."""
    rng = random.Random(f"conversations-{seed}")
    kinds = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()), k=n)
    talks = []
    for kind in kinds:
        prompt = random_prompt(kind, True, rng)
        reply = demonstrate(prompt, rng)
        talks.append([*prompt.history, ("user", prompt.text), ("assistant", reply)])
    return talks
