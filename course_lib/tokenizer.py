"""Byte-level byte-pair encoding (BPE), trained and applied from scratch.

Text is cut into pieces by GPT-2's pattern; every piece starts as UTF-8 bytes; training merges the
most frequent pair of neighbours again and again; encoding replays the merges *in the order they
were learned*. Every string has an encoding, and decoding gives back exactly the same bytes.

Departure from the textbook loop: training keeps a count for every pair and, for each pair, the
words that hold it, so that a merge touches only those words. The result is the same.

Sources: Sennrich et al. 2016, section 3.2 (BPE); Radford et al. 2019, section 2.2 (bytes, pattern).
"""

import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import regex

from course_lib.errors import CourseError

# GPT-2's split pattern: contractions, words, numbers, punctuation, trailing and inner spaces.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Pair = tuple[bytes, bytes]


def count_pairs(words: dict[tuple[bytes, ...], int]) -> Counter[Pair]:
    """Count neighbouring symbols over words with multiplicities.

    >>> count_pairs({(b"a", b"b", b"b"): 2})
    Counter({(b'a', b'b'): 2, (b'b', b'b'): 2})
    """
    counts: Counter[Pair] = Counter()
    for word, n in words.items():
        for pair in itertools.pairwise(word):
            counts[pair] += n
    return counts


def merge_pair(symbols: tuple[bytes, ...], pair: Pair) -> tuple[bytes, ...]:
    """Replace every occurrence of `pair`, left to right, by its concatenation.

    >>> merge_pair((b"a", b"a", b"a"), (b"a", b"a"))
    (b'aa', b'a')
    """
    out, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


class BPETokenizer:
    """A byte-level BPE vocabulary with its merges and special tokens.

    Args:
        merges: pairs in the order they were learned; earlier pairs merge first.
        special_tokens: control strings. They get the last ids, and plain text never becomes one
            unless `encode` is told so.
        pattern: the pre-tokenisation pattern; merges never cross its borders.

    Attributes:
        vocab: `dict[int, bytes]`, ids 0..255 are the single bytes, then one id a merge, then the
            special tokens.
        special_ids: `dict[str, int]`.
    """

    def __init__(
        self,
        merges: list[Pair],
        special_tokens: Collection[str] = (),
        pattern: str = GPT2_PATTERN,
    ):
        self.merges = list(merges)
        self.pattern = pattern
        self.vocab: dict[int, bytes] = {i: bytes([i]) for i in range(256)}
        for left, right in self.merges:
            self.vocab[len(self.vocab)] = left + right
        self.special_ids: dict[str, int] = {}
        for token in special_tokens:
            if not token or token in self.special_ids:
                raise CourseError(f"special token {token!r} is empty or given twice")
            self.special_ids[token] = len(self.vocab)
            self.vocab[len(self.vocab)] = token.encode()
        self._ids = {self.vocab[i]: i for i in range(256 + len(self.merges))}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._split = regex.compile(pattern)
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.vocab)

    # -- training ---------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        text: str | Iterable[str],
        vocab_size: int,
        special_tokens: Collection[str] = (),
        pattern: str = GPT2_PATTERN,
    ) -> "BPETokenizer":
        """Learn merges until the vocabulary holds `vocab_size` ids, or no pair is left.

        Ties between equally frequent pairs go to the lexicographically greater pair of bytes, so
        that the result depends on the text alone. Special tokens inside `text` cut it: no merge
        can contain a part of one.

        Raises:
            CourseError: empty text, or a vocabulary smaller than 256 plus the special tokens.
        """
        least = 256 + len(special_tokens)
        if vocab_size < least:
            raise CourseError(
                f"vocab_size is {vocab_size}, but 256 bytes and {len(special_tokens)} special "
                f"tokens already need {least}: choose at least {least}"
            )
        chunks = [text] if isinstance(text, str) else text
        counts = _count_words(chunks, special_tokens, regex.compile(pattern))
        if not counts:
            raise CourseError("the training text is empty: give the tokenizer some text")
        words: Counter[tuple[bytes, ...]] = Counter()
        for word, n in counts.items():
            words[tuple(bytes([b]) for b in _utf8(word))] += n
        merges = _learn_merges(words, vocab_size - least)
        return cls(merges, special_tokens, pattern)

    # -- encoding and decoding ----------------------------------------------------------------

    def encode(self, text: str, allowed_special: Collection[str] | str = ()) -> list[int]:
        """Text to ids.

        Args:
            text: any string; an unpaired surrogate, which has no UTF-8, becomes "?".
            allowed_special: special tokens that may be recognised in `text`, or `"all"`. By
                default none: `<|im_end|>` typed by a user is encoded as ordinary characters.
        """
        allowed = set(self.special_ids) if allowed_special == "all" else set(allowed_special)
        unknown = allowed - set(self.special_ids)
        if unknown:
            raise CourseError(f"unknown special tokens {sorted(unknown)}")
        ids: list[int] = []
        for piece in _split_on(text, allowed):
            if piece in allowed:
                ids.append(self.special_ids[piece])
            else:
                for word in self._split.findall(piece):
                    ids.extend(self._encode_word(word))
        return ids

    def encode_iterable(self, chunks: Iterable[str]) -> Iterator[int]:
        """Encode a stream (for example an open file, line by line) in constant memory.

        Equal to encoding the whole text when no pre-token crosses a chunk border.
        """
        for chunk in chunks:
            yield from self.encode(chunk)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; bytes that are not valid UTF-8 become the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids to the exact bytes they stand for."""
        try:
            return b"".join(self.vocab[int(i)] for i in ids)
        except KeyError as error:
            raise CourseError(
                f"token id {error.args[0]} is outside the vocabulary of {self.vocab_size} ids"
            ) from None

    def _encode_word(self, word: str) -> list[int]:
        """Merge the bytes of one pre-token, lowest rank first."""
        if word in self._cache:
            return self._cache[word]
        symbols = tuple(bytes([b]) for b in _utf8(word))
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            symbols = merge_pair(symbols, best)
        ids = [self._ids[symbol] for symbol in symbols]
        if len(self._cache) < 1 << 16:  # bounded, so that a stream stays in constant memory
            self._cache[word] = ids
        return ids

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write one JSON file, atomically. Bytes are written as Latin-1 characters."""
        state = {
            "pattern": self.pattern,
            "special_tokens": list(self.special_ids),
            "merges": [[a.decode("latin-1"), b.decode("latin-1")] for a, b in self.merges],
        }
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BPETokenizer":
        """Read a file that `save` wrote.

        Raises:
            CourseError: the file is missing, cut short, or not a tokenizer.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            merges = [(a.encode("latin-1"), b.encode("latin-1")) for a, b in state["merges"]]
            return cls(merges, state["special_tokens"], state["pattern"])
        except FileNotFoundError:
            raise CourseError(f"no tokenizer at {path}: train one first") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CourseError(f"{path} is not a complete tokenizer file ({error})") from None


def _utf8(word: str) -> bytes:
    """The bytes of a word; an unpaired surrogate, which has none, becomes "?"."""
    return word.encode("utf-8", errors="replace")


def _split_on(text: str, tokens: Collection[str]) -> list[str]:
    """Cut `text` at the given tokens, keeping them; the longest wins where they overlap."""
    if not tokens:
        return [text]
    longest_first = sorted(tokens, key=len, reverse=True)
    return regex.split("(" + "|".join(regex.escape(t) for t in longest_first) + ")", text)


def _count_words(
    chunks: Iterable[str], special_tokens: Collection[str], pattern: regex.Pattern
) -> Counter[str]:
    """Pre-tokens and how often each occurs; special tokens are left out."""
    counts: Counter[str] = Counter()
    special = set(special_tokens)
    for chunk in chunks:
        for piece in _split_on(chunk, special):
            if piece not in special:
                counts.update(pattern.findall(piece))
    return counts


def _learn_merges(counted: Counter[tuple[bytes, ...]], n_merges: int) -> list[Pair]:
    """The training loop: the most frequent pair, `n_merges` times.

    `counts` and `where` are kept up to date, so that one merge costs only the words it touches.
    """
    words, freqs = list(counted), list(counted.values())
    counts = count_pairs(counted)
    where: dict[Pair, set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            where[pair].add(i)
    merges: list[Pair] = []
    while len(merges) < n_merges and counts:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for i in where.pop(best):
            for pair in itertools.pairwise(words[i]):
                counts[pair] -= freqs[i]
                if counts[pair] <= 0:
                    del counts[pair]
            words[i] = merge_pair(words[i], best)
            for pair in itertools.pairwise(words[i]):
                counts[pair] += freqs[i]
                where[pair].add(i)
    return merges
