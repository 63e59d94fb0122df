"""L01 Tokenization: write each function, then run `pytest tests/exercises -k L01`.

In a notebook: `from course_lib.checks.l01 import check_count_pairs`, then
`check_count_pairs(count_pairs)`.
"""


def count_pairs(words):
    """How often does each pair of neighbours occur?
    Easy, 5 minutes.

    words: dict from a word, a tuple of symbols (bytes), to how
    often it occurs in the corpus. Returns a dict from (left, right)
    to its count over the whole corpus.

    >>> count_pairs({(b"l", b"o", b"w"): 5, (b"l", b"o"): 2})
    {(b'l', b'o'): 7, (b'o', b'w'): 5}
    """
    raise NotImplementedError


def merge_pair(symbols, pair):
    """Join every occurrence of a pair, from left to right.
    Easy, 10 minutes.

    symbols: tuple of bytes. pair: (left, right). Returns a new
    tuple.

    >>> merge_pair((b"a", b"b", b"a", b"b", b"a"), (b"a", b"b"))
    (b'ab', b'ab', b'a')
    """
    raise NotImplementedError


def encode_word(word, ranks):
    """Encode one word by the learned merges. Medium, 15 minutes.

    word: bytes. ranks: dict from a pair to its rank; the merge
    learned first has rank 0. Again and again, merge the pair that
    was learned first, until no pair is in `ranks`. Returns the list
    of symbols (bytes) that are left.

    >>> encode_word(b"abc", {(b"b", b"c"): 0, (b"a", b"b"): 1})
    [b'a', b'bc']
    """
    raise NotImplementedError


def split_special(text, special):
    """Cut a text at its special tokens, and keep them.
    Medium, 10 minutes.

    special: list of strings; where two match at one place, the
    longest counts. Returns a list of strings, none of them empty,
    that join to `text` again.

    >>> split_special("Hi<|im_end|>Yo", ["<|im_end|>"])
    ['Hi', '<|im_end|>', 'Yo']
    """
    raise NotImplementedError
