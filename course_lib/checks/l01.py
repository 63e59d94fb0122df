"""Checks of L01: counting and merging pairs, encoding by rank, special tokens."""

import random
from collections import Counter
from itertools import pairwise

from course_lib.checks import Check, describe


@Check
def check_count_pairs(fn):
    """Hand counts, multiplicities, runs, and the sum over a random corpus."""
    one = fn({(b"l", b"o", b"w"): 1})
    assert isinstance(one, dict), f"it returns {describe(one)}: return a dict from pair to count"
    assert one, "it found no pair in (l, o, w): the pairs are (l, o) and (o, w)"
    assert all(isinstance(p, tuple) and len(p) == 2 for p in one), (
        "a key must be a tuple of two symbols: keep the symbols apart, do not join them"
    )
    assert (b"l", b"w") not in one, "(l, w) is no pair: only neighbours count"
    assert (b"w", b"l") not in one, "(w, l) is no pair: the last symbol has no right neighbour"
    assert (b"o", b"w") in one, "the last pair of the word is missing: the loop ends too early"
    assert (b"o", b"l") not in one, "the order matters: the left symbol comes first in the pair"
    twice = fn({(b"l", b"o", b"w"): 5, (b"l", b"o"): 2})
    assert twice[b"l", b"o"] != 2, (
        "(l, o) has 2: a word that occurs 5 times counts 5 times. Multiply, and add over the words"
    )
    assert twice[b"l", b"o"] == 7, (
        f"(l, o) occurs 5 + 2 times in the corpus, not {twice[b'l', b'o']}"
    )
    run = fn({(b"a", b"a", b"a"): 3})
    assert run[b"a", b"a"] != 3, (
        "in (a, a, a) the pair (a, a) occurs twice: pairs may overlap when you count"
    )
    assert dict(run) == {(b"a", b"a"): 6}, f"(a, a, a) three times has (a, a) 6 times, not {run}"
    assert not fn({(b"x",): 4}) and not fn({}), "a word of one symbol has no pairs"
    rng = random.Random(0)
    words = {tuple(rng.choice([b"a", b"b", b"cd"]) for _ in range(n)): n for n in range(2, 12)}
    want = Counter()
    for word, n in words.items():
        want.update({p: n * sum(q == p for q in pairwise(word)) for p in pairwise(word)})
    assert dict(fn(words)) == dict(want), "the counts of a random corpus are wrong"


@Check
def check_merge_pair(fn):
    """Hand cases for overlap, ends and borders, and that the bytes stay the same."""
    got = fn((b"a", b"b", b"c"), (b"a", b"b"))
    assert isinstance(got, list | tuple), f"it returns {describe(got)}: return a tuple of symbols"
    assert b"".join(got) == b"abc", "bytes were lost or doubled: after a merge go on two places"
    assert tuple(got) == (b"ab", b"c"), f"(a, b, c) with (a, b) merged is (ab, c), not {got}"
    got = fn((b"a", b"b", b"a", b"b"), (b"a", b"b"))
    assert tuple(got) != (b"ab", b"a", b"b"), "only the first occurrence was merged: merge them all"
    assert tuple(got) == (b"ab", b"ab"), f"(a, b, a, b) must become (ab, ab), not {got}"
    got = fn((b"a", b"a", b"a"), (b"a", b"a"))
    assert b"".join(got) == b"aaa", (
        "in (a, a, a) the middle a is used twice: after a merge skip both"
    )
    assert tuple(got) != (b"a", b"aa"), "merge from left to right: (a, a, a) becomes (aa, a)"
    assert tuple(got) == (b"aa", b"a"), f"(a, a, a) becomes (aa, a), not {got}: one pass, no second"
    got = fn((b"a", b"a", b"a", b"a"), (b"a", b"a"))
    assert tuple(got) == (b"aa", b"aa"), f"(a, a, a, a) becomes (aa, aa), not {got}"
    got = fn((b"b", b"a"), (b"a", b"b"))
    assert tuple(got) == (b"b", b"a"), "(b, a) is not the pair (a, b): the order matters"
    got = fn((b"ab", b"c", b"a", b"bc"), (b"a", b"bc"))
    assert tuple(got) == (b"ab", b"c", b"abc"), (
        "compare whole symbols: (ab, c) spells the same as (a, bc) but is another pair"
    )
    assert tuple(fn((b"x",), (b"x", b"x"))) == (b"x",), "a single symbol stays as it is"
    assert tuple(fn((), (b"x", b"x"))) == (), "no symbols in, no symbols out"
    got = fn((b"c", b"a", b"b"), (b"a", b"b"))
    assert tuple(got) == (b"c", b"ab"), "a pair at the very end must be merged as well"
    assert isinstance(got, tuple), f"it returns {describe(got)}: words are tuples, return a tuple"


@Check
def check_encode_word(fn):
    """Rank before place and frequency; every occurrence; bytes of other scripts."""
    got = fn(b"abc", {(b"b", b"c"): 0, (b"a", b"b"): 1})
    assert isinstance(got, list | tuple), f"it returns {describe(got)}: return a list of symbols"
    assert all(isinstance(s, bytes) for s in got), (
        "the symbols must be bytes: looping over bytes gives numbers, write bytes([b])"
    )
    assert list(got) != [b"ab", b"c"], (
        "(a, b) came first in the word, but (b, c) was learned first: the lowest rank goes first"
    )
    assert list(got) == [b"a", b"bc"], f"abc must become [a, bc], not {got}"
    ranks = {(b"a", b"b"): 0, (b"ab", b"c"): 1, (b"abc", b"abc"): 2}
    got = fn(b"abcabc", ranks)
    assert list(got) != [b"ab", b"c", b"ab", b"c"], (
        "merges build on merges: after (a, b) look again, (ab, c) has become possible"
    )
    assert list(got) == [b"abcabc"], f"abcabc must become one symbol, not {got}"
    got = fn(b"ababc", {(b"b", b"c"): 0, (b"a", b"b"): 1})
    assert list(got) == [b"ab", b"a", b"bc"], (
        f"ababc must become [ab, a, bc], not {got}: go by rank, not by frequency in the word"
    )
    assert list(fn(b"xyz", {})) == [b"x", b"y", b"z"], "without merges the single bytes stay"
    assert list(fn(b"", ranks)) == [], "an empty word has no symbols"
    got = fn("é".encode(), {(b"\xc3", b"\xa9"): 7})
    assert list(got) == [b"\xc3\xa9"], "ranks may be any numbers, and é is two bytes that can merge"
    rng = random.Random(1)
    for _ in range(30):
        merges = {}
        symbols = [b"a", b"b", b"c"]
        for rank in rng.sample(range(50), 6):
            left, right = rng.choice(symbols), rng.choice(symbols)
            merges.setdefault((left, right), rank)
            symbols.append(left + right)
        word = bytes(rng.choice(b"abc") for _ in range(12))
        assert list(fn(word, merges)) == _encode_slowly(word, merges), (
            f"{word!r} with the ranks {merges} is encoded otherwise: again and again, find the "
            "pair "
            f"with the lowest rank and merge it everywhere"
        )


def _encode_slowly(word: bytes, ranks: dict) -> list[bytes]:
    """By lists of single characters and borders between them: another way than the page's."""
    borders = set(range(1, len(word)))

    def pieces():
        cuts = [0, *sorted(borders), len(word)]
        return [word[i:j] for i, j in pairwise(cuts)]

    while True:
        now = pieces()
        known = [ranks[p] for p in pairwise(now) if p in ranks]
        if not known:
            return now
        place, last = 0, None
        for left, right in pairwise(now):
            place += len(left)
            if ranks.get((left, right)) == min(known) and last != place - len(left):
                borders.discard(place)
                last = place


@Check
def check_split_special(fn):
    """Regex characters, ends, neighbours, overlaps, and joining back."""
    end = "<|im_end|>"
    got = fn(f"Hi{end}Yo", [end])
    assert isinstance(got, list | tuple), f"it returns {describe(got)}: return a list of strings"
    assert None not in got, "None is in the list: one group around the alternatives is enough"
    assert end in got or "".join(got) != "HiYo", (
        "the special token itself is lost: keep it as a piece"
    )
    assert "|" not in got and "im_end" not in got, (
        "| means 'or' in a regular expression: escape the special tokens"
    )
    assert list(got) == ["Hi", end, "Yo"], (
        f"Hi<|im_end|>Yo must give [Hi, <|im_end|>, Yo], not {got}"
    )
    got = fn(f"{end}{end}a{end}", [end])
    assert "" not in got, "there are empty pieces: leave them out"
    assert list(got) == [end, end, "a", end], f"neighbours and ends are cut wrongly: {got}"
    assert list(fn("", [end])) == [], "an empty text has no pieces"
    got = fn("plain text", [])
    assert list(got) == ["plain text"], f"without special tokens the text is one piece, not {got}"
    got = fn("a<s><s>>b", ["<s>", "<s>>"])
    assert list(got) == ["a", "<s>", "<s>>", "b"], (
        f"where <s> and <s>> both match, the longest counts: try the long ones first. Got {got}"
    )
    got = fn("x[INST]y.z", ["[INST]", "."])
    assert list(got) == ["x", "[INST]", "y", ".", "z"], (
        f"[, ] and . have a meaning in regular expressions: escape the special tokens. Got {got}"
    )
    rng = random.Random(2)
    tokens = ["<a>", "<a>b", "|", "(x)"]
    for _ in range(20):
        text = "".join(rng.choice([*tokens, "b", " ", "\n", "é"]) for _ in range(8))
        got = fn(text, tokens)
        assert "".join(got) == text, f"the pieces of {text!r} do not join to it again: {got}"
        for piece in got:
            assert piece in tokens or not any(t in piece for t in tokens), (
                f"{piece!r} hides a token"
            )
