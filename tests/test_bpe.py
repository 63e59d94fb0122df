"""Byte-pair encoding: counting, learning and merging against the slow way.

Whole trainings against the textbook loop are in `test_tokenizer.py`.
"""

from hypothesis import given
from hypothesis import strategies as st

from course_lib.bpe import _apply_to_long_word, apply_merges, count_pairs, learn_merges


def test_count_by_hand():
    assert count_pairs({(b"a", b"a", b"a"): 3}) == {(b"a", b"a"): 6}
    assert count_pairs({"abab": 2, "ab": 1}) == {("a", "b"): 5, ("b", "a"): 2}


def test_learning_by_hand():
    """Counts: ab 5, cd 5, bc 1. The greater of the equal pairs comes first, then the other."""
    merges = learn_merges({b"ab": 4, b"abcd": 1, b"cd": 4}, 3)
    assert merges == [(b"c", b"d"), (b"a", b"b"), (b"ab", b"cd")]
    assert learn_merges({b"aaaa": 2, b"aaa": 1}, 5) == [(b"a", b"a"), (b"aa", b"aa"), (b"aa", b"a")]


def test_a_longer_symbol_is_greater_than_its_own_beginning():
    assert learn_merges({b"xy": 9, b"xyz": 3, b"xz": 3}, 2) == [(b"x", b"y"), (b"xy", b"z")]


@given(st.lists(st.integers(0, 3), max_size=30))
def test_apply_merges_equals_merging_by_hand(ids):
    merges = {(0, 1): 4, (0, 0): 5, (4, 2): 6, (5, 0): 7, (5, 5): 8}
    symbols = tuple(ids)
    for (a, b), product in merges.items():
        out = []
        for symbol in symbols:
            out = [*out[:-1], product] if (out[-1:], symbol) == ([a], b) else [*out, symbol]
        symbols = out
    tables = {pair: rank for rank, pair in enumerate(merges)}, list(merges.values())
    assert apply_merges(list(ids), *tables) == list(symbols)
    assert _apply_to_long_word(list(ids), *tables) == list(symbols)
