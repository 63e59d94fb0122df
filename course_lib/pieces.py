"""Cutting text into pieces before byte-pair encoding: pre-tokens and special tokens.

Merges never cross the border of a piece. A pattern must match every character, have no groups, and
look at most one character past its next match: then a text that comes in chunks has the same
pieces as the whole.

Sources: Radford et al. 2019, section 2.2 (the pattern of GPT-2).
"""

import bisect
import itertools
from collections.abc import Collection, Iterable, Iterator

import regex

from course_lib.errors import CourseError

# GPT-2's split pattern: contractions, words, numbers, punctuation, trailing and inner spaces.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same, but every digit stands alone, and its spaces too (SmolLM and SmolLM2).
DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


def compile_pattern(pattern: str) -> regex.Pattern:
    """Compile a split pattern.

    Raises:
        CourseError: it is not a valid expression, or has groups.
    """
    try:
        compiled = regex.compile(pattern)
    except (regex.error, TypeError) as error:
        raise CourseError(f"the split pattern {pattern!r} is not valid: {error}") from None
    if compiled.groups:
        raise CourseError(f"the split pattern {pattern!r} has groups: write (?:...) for (...)")
    return compiled


def _split_on(text: str, tokens: Collection[str]) -> list[str]:
    """Cut `text` at the special tokens, keeping them; the longest wins where they overlap."""
    if not tokens:
        return [text]
    longest_first = sorted(tokens, key=len, reverse=True)
    return regex.split("(" + "|".join(regex.escape(t) for t in longest_first) + ")", text)


def pieces_of(text: str, split: regex.Pattern, special: Collection[str]) -> list[str]:
    """Pre-tokens and special tokens in order; joined they are `text` again.

    Raises:
        CourseError: the pattern does not match every character.
    """
    pieces: list[str] = []
    for part in _split_on(text, special):
        pieces += [part] if part in special else split.findall(part)
    if sum(map(len, pieces)) != len(text):
        raise CourseError(f"the split pattern {split.pattern!r} leaves out characters of the text")
    return pieces


def stream_pieces(
    chunks: Iterable[str], split: regex.Pattern, special: Collection[str]
) -> Iterator[str]:
    """The pieces of a text that comes in chunks, equal to those of the whole.

    A piece is final when the piece after the next has begun: no pattern looks further. With
    special tokens it must have begun so early that no special token can still grow over it.

    Raises:
        CourseError: as in `pieces_of`.
    """
    margin = max(map(len, special), default=1) - 1
    held, wait = "", 0
    for chunk in chunks:
        held += chunk
        if len(held) < wait:
            continue
        pieces = pieces_of(held, split, special)
        starts = [0, *itertools.accumulate(map(len, pieces))]
        final = max(0, bisect.bisect_left(starts, len(held) - margin) - 2)
        yield from pieces[:final]
        held = held[starts[final] :]
        wait = 2 * len(held)  # a long piece in short chunks is not scanned again for each
    yield from pieces_of(held, split, special)
