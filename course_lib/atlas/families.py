"""Families of facts, and how Atlas asks for and states each of them.

A `Fact` is one true statement: family, entity, answer. A `Family` holds the wordings: questions a
person might ask, the sentence a helpful reply uses, and the ways a document may put it.

In every wording `{e}` is the entity and `{a}` the answer; `{E}` and `{A}` are the same with a
capital first letter, for the start of a sentence.
"""

import re
from dataclasses import dataclass

from course_lib.atlas.facts import ANIMALS, COUNTRIES, ELEMENTS

LEGS = {0: "zero", 2: "two", 4: "four", 6: "six", 8: "eight"}


@dataclass(frozen=True)
class Family:
    """The wordings of one kind of fact.

    Attributes:
        questions: full questions; `short` is the same asked about the entity of the turn before.
        sentence: the reply in one sentence.
        statements: how documents state it.
        value: regular expression of any possible answer, or "" when the answers are a known set.
    """

    name: str
    questions: tuple[str, ...]
    short: str
    sentence: str
    statements: tuple[str, ...]
    value: str = ""


@dataclass(frozen=True)
class Fact:
    """One true statement of Atlas."""

    family: str
    entity: str
    answer: str

    def fill(self, wording: str) -> str:
        """Put entity and answer into a wording.

        >>> Fact("capital", "France", "Paris").fill("The capital of {e} is {a}.")
        'The capital of France is Paris.'
        """
        e, a = self.entity, self.answer
        return wording.format(e=e, a=a, E=capitalise(e), A=capitalise(a))

    @property
    def sentence(self) -> str:
        """The fact as the one full sentence that a reply uses."""
        return self.fill(FAMILIES[self.family].sentence)


def capitalise(text: str) -> str:
    """First letter upper case, the rest untouched (`str.capitalize` would lower it)."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


_FAMILIES = (
    Family(
        "capital",
        (
            "What is the capital of {e}?",
            "Which city is the capital of {e}?",
            "Can you tell me the capital of {e}?",
        ),
        "And its capital?",
        "The capital of {e} is {a}.",
        (
            "The capital of {e} is {a}.",
            "{A} is the capital of {e}.",
            "{E} is governed from {a}, its capital.",
        ),
    ),
    Family(
        "continent",
        (
            "Which continent is {e} in?",
            "On which continent is {e}?",
            "Can you tell me the continent of {e}?",
        ),
        "And its continent?",
        "The continent of {e} is {a}.",
        ("{E} is in {a}.", "{E} is a country in {a}.", "The continent of {e} is {a}."),
    ),
    Family(
        "currency",
        (
            "What is the currency of {e}?",
            "Which currency is used in {e}?",
            "Can you tell me the currency of {e}?",
        ),
        "And its currency?",
        "The currency of {e} is the {a}.",
        (
            "The currency of {e} is the {a}.",
            "People in {e} pay with the {a}.",
            "The {a} is the currency of {e}.",
        ),
    ),
    Family(
        "language",
        (
            "What is the main language of {e}?",
            "Which language is spoken in {e}?",
            "Can you tell me the main language of {e}?",
        ),
        "And its main language?",
        "The main language of {e} is {a}.",
        (
            "The main language of {e} is {a}.",
            "In {e} the main language is {a}.",
            "{A} is the main language of {e}.",
        ),
    ),
    Family(
        "population",
        (
            "What is the population of {e}?",
            "How many people live in {e}?",
            "Can you tell me the population of {e}?",
        ),
        "And its population?",
        "The population of {e} is about {a}.",
        (
            "The population of {e} is about {a}.",
            "About {a} people live in {e}.",
            "{E} has about {a} people.",
        ),
        value=r"\d+(?:\.\d+)? million",
    ),
    Family(
        "symbol",
        ("What is the chemical symbol of {e}?", "Which symbol stands for {e}?"),
        "And its symbol?",
        "The symbol of {e} is {a}.",
        ("The symbol of {e} is {a}.", "Chemists write {a} for {e}.", "{A} stands for {e}."),
        value=r"(?<=is )[A-Z][a-z]?\b|^[A-Z][a-z]?(?=\.)",
    ),
    Family(
        "number",
        ("What is the atomic number of {e}?", "Which atomic number has {e}?"),
        "And its atomic number?",
        "The atomic number of {e} is {a}.",
        (
            "The atomic number of {e} is {a}.",
            "{E} has the atomic number {a}.",
            "{E} is element number {a}.",
        ),
        value=r"\d+",
    ),
    Family(
        "kind",
        ("What is the animal class of {e}?", "Which animal class does {e} belong to?"),
        "And its animal class?",
        "The animal class of {e} is {a}.",
        ("The animal class of {e} is {a}.", "{E} belongs to the animal class {a}."),
    ),
    Family(
        "legs",
        ("What is the number of legs of {e}?", "How many legs has {e}?"),
        "And its number of legs?",
        "The number of legs of {e} is {a}.",
        ("The number of legs of {e} is {a}.", "{E} has {a} legs."),
    ),
    Family(
        "young",
        ("What is the young of {e} called?", "How do you call the young of {e}?"),
        "And what is its young called?",
        "The young of {e} is called {a}.",
        ("The young of {e} is called {a}.", "{A} is the young of {e}."),
    ),
    Family(
        "sum",
        ("What is the sum of {e}?", "Can you tell me the sum of {e}?"),
        "",
        "The sum of {e} is {a}.",
        ("The sum of {e} is {a}.", "{A} is the sum of {e}."),
        value=r"(?:(?<=is )|^)\d+",
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
TOPICS = {
    "country": ("capital", "continent", "currency", "language", "population"),
    "element": ("symbol", "number"),
    "animal": ("kind", "legs", "young"),
    "arithmetic": ("sum",),
}


def _population(millions: float) -> str:
    return f"{millions:g} million"


def _all_facts() -> dict[tuple[str, str], Fact]:
    facts = []
    for c in COUNTRIES:
        values = (
            c.capital,
            c.continent,
            c.currency,
            c.language,
            _population(c.population_millions),
        )
        facts += [Fact(f, c.name, v) for f, v in zip(TOPICS["country"], values, strict=True)]
    for e in ELEMENTS:
        facts += [Fact("symbol", e.name, e.symbol), Fact("number", e.name, str(e.number))]
    for a in ANIMALS:
        values = (a.kind, LEGS[a.legs], with_article(a.young))
        facts += [
            Fact(f, with_article(a.name), v) for f, v in zip(TOPICS["animal"], values, strict=True)
        ]
    facts += [Fact("sum", f"{a} and {b}", str(a + b)) for a in range(1, 11) for b in range(1, 11)]
    return {(fact.family, fact.entity): fact for fact in facts}


FACTS: dict[tuple[str, str], Fact] = _all_facts()


def entities(topic: str) -> list[str]:
    """All entities of a topic ("country", "element", "animal", "arithmetic"), in table order."""
    first = TOPICS[topic][0]
    return [entity for family, entity in FACTS if family == first]


def facts_of(topic: str, entity: str) -> list[Fact]:
    """The facts about one entity."""
    return [FACTS[family, entity] for family in TOPICS[topic]]


def _value_pattern(family: str) -> re.Pattern:
    if FAMILIES[family].value:
        return re.compile(FAMILIES[family].value)
    values = {fact.answer for fact in FACTS.values() if fact.family == family}
    # Longest first, so that "West African CFA franc" is not read as a shorter name inside it.
    words = "|".join(re.escape(v) for v in sorted(values, key=lambda v: (-len(v), v)))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


_PATTERNS = {name: _value_pattern(name) for name in FAMILIES}
_NAMES = sorted({entity for _, entity in FACTS}, key=lambda name: (-len(name), name))
_OF_ENTITY = re.compile(rf"\b(?:of|in) ({'|'.join(map(re.escape, _NAMES))})(?!\w)")
# Answers that hold such words themselves: "Port of Spain" says nothing of Spain.
_NOT_OF_ENTITY = [fact.answer for fact in FACTS.values() if _OF_ENTITY.search(fact.answer)]


def _entities_named(text: str) -> list[str]:
    """The entities that `text` speaks of, as in "of France", "in France" or "of a lion"."""
    for answer in _NOT_OF_ENTITY:
        text = text.replace(answer, "")
    return _OF_ENTITY.findall(text)


def stated_answer(fact: Fact, text: str) -> bool | None:
    """Does `text` answer the question behind `fact`, and rightly?

    Returns:
        True for the right answer, False for another value of the family or for a right value
        said about another entity, None when no value is stated.

    >>> stated_answer(FACTS["capital", "France"], "The capital of France is Lima.")
    False
    """
    named = _entities_named(text)
    if named and fact.entity not in named:
        return False
    bare = text.replace(f"of {fact.entity}", "of it").replace(f"in {fact.entity}", "in it")
    found = _PATTERNS[fact.family].search(bare)
    if found is None:
        return None
    return found.group().lower() == fact.answer.lower()
