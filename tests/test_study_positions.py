"""The study of positions: what must hold exactly, at any scale."""

import pytest

from course_lib.studies import positions


@pytest.fixture(scope="module")
def runs(small_study):
    results = small_study("positions")["results"]
    return {row["variant"]: row for row in results["runs"]}


def test_every_variant_ran(runs):
    assert set(runs) == set(positions.VARIANTS)
    for row in runs.values():
        assert row["train_loss"] and len(row["by_position"]) == 4
        assert len(row["samples"]) == 2


def test_one_layer_without_positions_is_a_bag_of_words(runs):
    row = runs["none, 1 layer"]
    assert row["shuffled"] == pytest.approx(row["in_order"], abs=3e-6)
    first, second = row["samples"].values()
    assert first == second
    for name in ("none", "learned", "sinusoidal", "rotary"):  # order reaches the others
        assert abs(runs[name]["shuffled"] - runs[name]["in_order"]) > 3e-6, name


def test_only_added_positions_mind_the_padding(runs):
    for name in ("rotary", "none"):
        row = runs[name]
        assert row["through_padding"] == pytest.approx(row["from_zero"], abs=3e-6)
    for name in ("learned", "sinusoidal"):
        assert abs(runs[name]["through_padding"] - runs[name]["from_zero"]) > 1e-4, name


def test_learned_rows_are_compared_with_themselves_first(runs):
    similarity = runs["learned"]["similarity"]
    assert similarity[0] == 1.0 and len(similarity) == 16
    assert all(-1 <= x < 0.9 for x in similarity[1:])
    assert runs["rotary"]["similarity"] == []
