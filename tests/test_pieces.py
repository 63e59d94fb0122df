"""Cutting text: GPT-2's pattern and its variant by hand, special tokens, unusable patterns.

Chunked text against whole text is in `test_tokenizer.py`.
"""

import pytest

from course_lib.errors import CourseError
from course_lib.pieces import DIGITS_PATTERN, GPT2_PATTERN, compile_pattern, pieces_of
from course_lib.tokenizer import BPETokenizer


def cut(text, pattern=GPT2_PATTERN, special=()):
    return pieces_of(text, compile_pattern(pattern), special)


def test_gpt2_pattern_by_hand():
    assert cut("You're  12 up!\n\n x") == ["You", "'re", " ", " 12", " up", "!", "\n\n", " x"]
    assert cut("a \n\tb  ") == ["a", " \n", "\t", "b", "  "]


def test_digits_stand_alone():
    assert cut("in 1 234x  5", DIGITS_PATTERN) == [
        *("in", " ", "1", " "),
        *"234",
        *("x", "  ", "5"),
    ]
    assert cut("a  b ½", DIGITS_PATTERN) == ["a", " ", " b", " ", "½"]


def test_the_longest_special_token_wins_and_cuts_words():
    assert cut("ab<s><s><s>c", special={"<s>", "<s><s>"}) == ["ab", "<s><s>", "<s>", "c"]


@pytest.mark.parametrize(
    ("pattern", "problem"), [("(a)|.", "groups"), ("(", "not valid"), (r"\w+", "leaves out")]
)
def test_unusable_patterns_are_errors(pattern, problem):
    with pytest.raises(CourseError, match=problem):
        BPETokenizer([], pattern=pattern).encode("a b")
    with pytest.raises(CourseError, match=problem):
        BPETokenizer.train("a b", 300, pattern=pattern)
