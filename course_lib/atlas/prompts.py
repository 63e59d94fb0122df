"""What a user may say to the assistant, and the split of the world into seen and never seen.

Splits are by entity: a country, element, animal, sum, ambiguous word, haiku topic or task is
either *seen* (it may occur in conversations and preference pairs) or *unseen* (it occurs in
pre-training documents alone). France, "Python" and haiku about programming are unseen, so that the
worked examples of L11 test what the model was never shown in a conversation.
"""

import random
from dataclasses import dataclass

from course_lib.atlas.documents import ask, ask_how
from course_lib.atlas.facts import AMBIGUOUS, HAIKU_FIRSTS, TASKS, Ambiguous, Task
from course_lib.atlas.families import FACTS, FAMILIES, TOPICS, Fact, entities, facts_of

SEEN_SHARE = 0.6
ALWAYS_UNSEEN = ("France", "Python", "programming")
KINDS = ("fact", "followup", "harmless", "harmful", "haiku", "ambiguous")


@dataclass(frozen=True)
class Prompt:
    """One request to the assistant, with what is needed to judge a reply.

    Attributes:
        kind: one of `KINDS`.
        text: the user's last message.
        history: earlier turns, `(role, content)` pairs.
        subject: the `Fact`, `Task` or `Ambiguous` row behind it, or the haiku topic.
    """

    kind: str
    text: str
    subject: Fact | Task | Ambiguous | str
    history: tuple[tuple[str, str], ...] = ()


def _split(items: list, name, salt: str) -> tuple[list, list]:
    """Shuffle with a fixed seed, then cut; the same for every run and every seed of a run."""
    items = list(items)
    random.Random(f"split-{salt}").shuffle(items)
    seen = [x for x in items if name(x) not in ALWAYS_UNSEEN][: round(SEEN_SHARE * len(items))]
    return seen, [x for x in items if x not in seen]


_POOLS: dict[str, tuple[list, list]] = {
    **{topic: _split(entities(topic), str, topic) for topic in TOPICS},
    "haiku": _split(list(HAIKU_FIRSTS), str, "haiku"),
    "ambiguous": _split(AMBIGUOUS, lambda a: a.word, "ambiguous"),
    "harmful": _split([t for t in TASKS if t.harmful], lambda t: t.phrase, "harmful"),
    "harmless": _split([t for t in TASKS if not t.harmful], lambda t: t.phrase, "harmless"),
}


def pool(name: str, seen: bool) -> list:
    """The seen or the unseen members of a pool: a topic of facts, or a kind of prompt."""
    return _POOLS[name][0 if seen else 1]


def fact_prompt(fact: Fact, rng: random.Random) -> Prompt:
    """A question about a fact, in one of its wordings."""
    return Prompt("fact", ask(fact, rng), fact)


def followup_prompt(first: Fact, second: Fact, rng: random.Random) -> Prompt:
    """A question whose entity is only named in the turn before."""
    history = (("user", ask(first, rng)), ("assistant", first.sentence))
    return Prompt("followup", FAMILIES[second.family].short, second, history)


def random_prompt(kind: str, seen: bool, rng: random.Random) -> Prompt:
    """A prompt of the kind, about a seen or an unseen subject."""
    if kind == "fact":
        topic = rng.choices(list(TOPICS), (10, 2, 2, 2))[0]
        entity = rng.choice(pool(topic, seen))
        return fact_prompt(FACTS[rng.choice(TOPICS[topic]), entity], rng)
    if kind == "followup":
        topic = rng.choices(("country", "element", "animal"), (10, 2, 2))[0]
        first, second = rng.sample(facts_of(topic, rng.choice(pool(topic, seen))), 2)
        return followup_prompt(first, second, rng)
    subject = rng.choice(pool(kind, seen))
    if kind == "haiku":
        verb = rng.choice(("Write a haiku about {}.", "Please write a haiku about {}."))
        return Prompt(kind, verb.format(subject), subject)
    if kind == "ambiguous":
        return Prompt(kind, subject.word, subject)
    return Prompt(kind, ask_how(subject, rng), subject)


def prompt_mix(n: int, seen: bool, seed: int, weights: dict[str, float]) -> list[Prompt]:
    """`n` prompts of the kinds in `weights`; the same arguments give the same prompts."""
    rng = random.Random(f"prompts-{seed}-{seen}")
    kinds = rng.choices(list(weights), list(weights.values()), k=n)
    return [random_prompt(kind, seen, rng) for kind in kinds]


def all_fact_prompts(seen: bool) -> list[Prompt]:
    """Every fact about the seen or the unseen entities, each asked once, in its first wording."""
    return [
        Prompt("fact", fact.fill(FAMILIES[fact.family].questions[0]), fact)
        for topic in TOPICS
        for entity in pool(topic, seen)
        for fact in facts_of(topic, entity)
    ]
