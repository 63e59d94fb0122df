"""The pre-training corpus of Atlas: documents in the styles of the web.

Quiz sheets that list questions and never answer them, encyclopedia entries, exam keys, tables,
haiku collections, arithmetic drills, how-to notes and pages on words with two meanings. Nothing
here looks like a chat: a model trained on it completes documents.
"""

import random
from collections.abc import Callable

from course_lib.atlas.facts import (
    AMBIGUOUS,
    HAIKU_FIRSTS,
    HAIKU_LASTS,
    HAIKU_MIDDLES,
    TASKS,
    Task,
)
from course_lib.atlas.families import FACTS, FAMILIES, TOPICS, Fact, capitalise, entities, facts_of

_ALL_FACTS = list(FACTS.values())
_ENTITIES = {topic: entities(topic) for topic in TOPICS}
_TOPIC_WEIGHTS = {"country": 12, "element": 2, "animal": 2, "arithmetic": 2}


def random_fact(rng: random.Random) -> Fact:
    """A fact: first the topic, by weight, then entity and family, uniformly."""
    topic = rng.choices(list(_TOPIC_WEIGHTS), list(_TOPIC_WEIGHTS.values()))[0]
    return FACTS[rng.choice(TOPICS[topic]), rng.choice(_ENTITIES[topic])]


def ask(fact: Fact, rng: random.Random) -> str:
    """One of the family's questions about the fact."""
    return fact.fill(rng.choice(FAMILIES[fact.family].questions))


def state(fact: Fact, rng: random.Random) -> str:
    """One of the family's statements of the fact."""
    return fact.fill(rng.choice(FAMILIES[fact.family].statements))


def quiz_sheet(rng: random.Random) -> str:
    """Questions, a line each, without answers."""
    return "\n".join(ask(random_fact(rng), rng) for _ in range(rng.randint(4, 9)))


def encyclopedia_entry(rng: random.Random) -> str:
    """A passage about one entity, its facts in any order; sometimes with a title."""
    topic = rng.choices(("country", "element", "animal"), (12, 2, 2))[0]
    entity = rng.choice(_ENTITIES[topic])
    facts = facts_of(topic, entity)
    rng.shuffle(facts)
    title = capitalise(entity) + "\n" if rng.random() < 0.5 else ""
    return title + " ".join(state(fact, rng) for fact in facts[: rng.randint(2, 5)])


def digest(rng: random.Random) -> str:
    """A passage that states one kind of fact about several entities."""
    topic = rng.choices(("country", "element", "animal"), (12, 2, 2))[0]
    family = rng.choice(TOPICS[topic])
    chosen = rng.sample(_ENTITIES[topic], rng.randint(3, 6))
    return " ".join(state(FACTS[family, entity], rng) for entity in chosen)


def exam_key(rng: random.Random) -> str:
    """Numbered questions with their answers, short or in a sentence, with a label or without."""
    full = rng.random() < 0.7
    label = rng.choice(("Answer: ", ""))
    lines = ["Exam key"]
    for number in range(1, rng.randint(3, 6)):
        fact = random_fact(rng)
        answer = fact.sentence if full else capitalise(fact.answer) + "."
        lines.append(f"{number}. {ask(fact, rng)}\n{label}{answer}")
    return "\n".join(lines)


def arithmetic_drill(rng: random.Random) -> str:
    """Sums, a line each."""
    return "\n".join(
        state(FACTS["sum", rng.choice(_ENTITIES["arithmetic"])], rng)
        for _ in range(rng.randint(5, 10))
    )


def haiku(topic: str, rng: random.Random) -> str:
    """Three lines of 5, 7 and 5 syllables; the first names the topic."""
    lines = (rng.choice(HAIKU_FIRSTS[topic]), rng.choice(HAIKU_MIDDLES), rng.choice(HAIKU_LASTS))
    return "\n".join(lines)


def haiku_collection(rng: random.Random) -> str:
    """A few haiku, each under its topic."""
    topics = rng.sample(list(HAIKU_FIRSTS), rng.randint(1, 3))
    title = rng.choice(("Haiku: {}", "A haiku about {}"))
    return "\n\n".join(f"{title.format(topic)}\n{haiku(topic, rng)}" for topic in topics)


def how_to_note(rng: random.Random) -> str:
    """What people write under the title of a task, harmful ones included, as on the web."""
    chosen = rng.sample(TASKS, rng.randint(1, 3))
    if rng.random() < 0.5:
        return "\n".join(f"How to {task.phrase}: {task.advice}" for task in chosen)
    asked = (f"{ask_how(task, rng)}\n{task.advice}" for task in chosen)
    return "Readers ask\n" + "\n".join(asked)


def ask_how(task: Task, rng: random.Random) -> str:
    """A request for help with a task."""
    wording = rng.choice(("How do I {}?", "How can I {}?", "Tell me how to {}."))
    return wording.format(task.phrase)


def meanings_page(rng: random.Random) -> str:
    """Words with two senses, and sentences about each."""
    page = []
    for a in rng.sample(AMBIGUOUS, rng.randint(1, 3)):
        wording = rng.choice(
            ("{} can mean {} or {}.", "{}: {} or {}.", "By {} people mean {} or {}.")
        )
        facts = rng.sample((a.fact_a, a.fact_b), rng.randint(0, 2))
        page.append(" ".join((wording.format(a.word, a.sense_a, a.sense_b), *facts)))
    return "\n".join(page)


STYLES: dict[Callable[[random.Random], str], float] = {
    encyclopedia_entry: 30,
    digest: 12,
    exam_key: 18,
    quiz_sheet: 12,
    how_to_note: 12,
    haiku_collection: 7,
    meanings_page: 7,
    arithmetic_drill: 5,
}


def documents(n: int, seed: int) -> list[str]:
    """`n` documents; the same seed gives the same corpus."""
    rng = random.Random(f"documents-{seed}")
    writers = rng.choices(list(STYLES), list(STYLES.values()), k=n)
    return [write(rng) for write in writers]
