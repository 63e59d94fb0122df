"""Byte-level byte-pair encoding (BPE), trained and applied from scratch.

Text is cut into pieces by GPT-2's pattern; every piece starts as UTF-8 bytes; training merges the
most frequent pair of neighbours again and again; encoding replays the merges *in the order they
were learned*. Every string has an encoding, and decoding gives back exactly the same bytes.

`pieces.py` does the cutting, `bpe.py` the learning and the merging; here they become a vocabulary
with special tokens, read from and written to files. Words seen before come from a cache.

Sources: Sennrich et al. 2016, section 3.2 (BPE); Radford et al. 2019, section 2.2 (bytes).
"""

import base64
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from course_lib.bpe import Pair, apply_merges, learn_merges
from course_lib.errors import CourseError
from course_lib.files import write_atomically
from course_lib.pieces import GPT2_PATTERN, compile_pattern, pieces_of, stream_pieces


class BPETokenizer:
    """A byte-level BPE vocabulary with its merges and special tokens.

    Args:
        merges: pairs in the order they were learned; earlier pairs merge first.
        special_tokens: control strings; plain text never becomes one unless `encode` is told so.
            They get the last ids, or those that a mapping gives.
        pattern: the pre-tokenisation pattern, see `pieces.py` for what it must keep to.
        vocab: the ordinary tokens of a vocabulary with an order of its own. By default ids 0..255
            are the single bytes, then comes one id a merge.

    Attributes:
        vocab: `dict[int, bytes]`, all tokens, the special ones included.
        merges: `list[tuple[bytes, bytes]]`.
        special_ids: `dict[str, int]`.

    Raises:
        CourseError: a special token is empty or given twice, an id is taken, a merge needs a
            token that the vocabulary lacks, or the pattern is not a usable expression.
    """

    def __init__(
        self,
        merges: Sequence[Pair],
        special_tokens: Collection[str] | Mapping[str, int] = (),
        pattern: str = GPT2_PATTERN,
        vocab: Mapping[int, bytes] | None = None,
    ):
        self.merges = list(merges)
        self.pattern, self._split = pattern, compile_pattern(pattern)
        self.vocab = _standard_vocab(self.merges) if vocab is None else dict(vocab)
        ids = {token: i for i, token in self.vocab.items()}
        self._byte_ids = [ids.get(bytes([b])) for b in range(256)]
        self._products, self._ranks = _merge_tables(self.merges, ids)
        self.special_ids: dict[str, int] = {}
        for token in special_tokens:
            i = special_tokens[token] if isinstance(special_tokens, Mapping) else len(self.vocab)
            if not token or token in self.special_ids:
                raise CourseError(f"special token {token!r} is empty or given twice")
            if i in self.vocab:
                raise CourseError(f"special token {token!r} has the id {i} of another token")
            self.special_ids[token], self.vocab[i] = i, _utf8(token)
        self._words = _WordCache(self._encode_word)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.vocab)

    # -- training ---------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        text: str | Path | Iterable[str | Path],
        vocab_size: int,
        special_tokens: Collection[str] = (),
        pattern: str = GPT2_PATTERN,
    ) -> "BPETokenizer":
        """Learn merges until the vocabulary holds `vocab_size` ids, or no pair is left.

        Ties between equally frequent pairs go to the lexicographically greater pair of bytes, so
        that the result depends on the text alone. Special tokens inside the text cut it: no merge
        can contain a part of one.

        Args:
            text: a text (`str`), a UTF-8 file (`Path`, read in constant memory), or many of them;
                no merge crosses from one text to the next.

        Raises:
            CourseError: empty text, a file that cannot be read, or a vocabulary smaller than 256
                plus the special tokens.
        """
        least = 256 + len(special_tokens)
        if vocab_size < least:
            raise CourseError(
                f"vocab_size is {vocab_size}, but 256 bytes and {len(special_tokens)} special "
                f"tokens already need {least}: choose at least {least}"
            )
        split, special = compile_pattern(pattern), set(special_tokens)
        counts: Counter[str] = Counter()
        for source in [text] if isinstance(text, str | Path) else text:
            if isinstance(source, str):
                counts.update(pieces_of(source, split, special))
            else:
                counts.update(stream_pieces(_read_blocks(source), split, special))
        for token in special:
            del counts[token]
        if not counts:
            raise CourseError("the training text is empty: give the tokenizer some text")
        words: Counter[bytes] = Counter()
        for word, n in counts.items():
            words[_utf8(word)] += n
        return cls(learn_merges(words, vocab_size - least), special_tokens, pattern)

    # -- encoding and decoding ----------------------------------------------------------------

    def encode(self, text: str, allowed_special: Collection[str] | str = ()) -> list[int]:
        """Text to ids.

        Args:
            text: any string; an unpaired surrogate, which has no UTF-8, becomes "?".
            allowed_special: special tokens that may be recognised in `text`, or `"all"`; the
                longest wins where they overlap. By default none: `<|im_end|>` typed by a user is
                encoded as ordinary characters.

        Raises:
            CourseError: an unknown special token, or a byte that a foreign vocabulary lacks.
        """
        allowed = self._allowed(allowed_special)
        return list(self._to_ids(pieces_of(text, self._split, allowed), allowed))

    def encode_iterable(
        self, chunks: Iterable[str], allowed_special: Collection[str] | str = ()
    ) -> Iterator[int]:
        """Encode a text that comes in chunks, such as an open file, in constant memory.

        The ids are those of the whole text, wherever it was cut. Memory is bounded by the chunks
        and the longest piece without a split.

        Raises:
            CourseError: as in `encode`.
        """
        allowed = self._allowed(allowed_special)
        return self._to_ids(stream_pieces(chunks, self._split, allowed), allowed)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; bytes that are not valid UTF-8 become the replacement character.

        Raises:
            CourseError: an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids to the exact bytes they stand for.

        Raises:
            CourseError: an id outside the vocabulary.
        """
        try:
            return b"".join([self.vocab[int(i)] for i in ids])
        except KeyError as error:
            raise CourseError(
                f"token id {error.args[0]} is outside the vocabulary of {self.vocab_size} ids"
            ) from None

    def _allowed(self, allowed_special: Collection[str] | str) -> set[str]:
        allowed = set(self.special_ids) if allowed_special == "all" else set(allowed_special)
        if unknown := allowed - set(self.special_ids):
            raise CourseError(f"unknown special tokens {sorted(unknown)}")
        return allowed

    def _to_ids(self, pieces: Iterable[str], allowed: set[str]) -> Iterator[int]:
        """Ids of pre-tokens and of the special tokens among them."""
        find: Callable[[str], Sequence[int]] = self._words.__getitem__
        if allowed:

            def find(piece):
                return (self.special_ids[piece],) if piece in allowed else self._words[piece]

        return itertools.chain.from_iterable(map(find, pieces))

    def _encode_word(self, word: str) -> list[int]:
        """The ids of one pre-token."""
        data = _utf8(word)
        ids = [self._byte_ids[b] for b in data]
        if None in ids:
            lacking = bytes([data[ids.index(None)]])
            raise CourseError(f"{word[:20]!r} holds the byte {lacking}, which the vocabulary lacks")
        return apply_merges(ids, self._ranks, self._products)

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write one JSON file, atomically. Bytes are written as Latin-1 characters."""
        state = {
            "pattern": self.pattern,
            "special_tokens": list(self.special_ids),
            "merges": [[a.decode("latin-1"), b.decode("latin-1")] for a, b in self.merges],
        }
        if BPETokenizer(self.merges, state["special_tokens"], self.pattern).vocab != self.vocab:
            special = set(self.special_ids.values())
            state["special_tokens"] = self.special_ids
            state["vocab"] = {
                i: token.decode("latin-1") for i, token in self.vocab.items() if i not in special
            }
        write_atomically(path, lambda p: p.write_text(json.dumps(state), encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BPETokenizer":
        """Read a file that `save` wrote.

        Raises:
            CourseError: the file is missing, cut short, or not a tokenizer.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            merges = [(a.encode("latin-1"), b.encode("latin-1")) for a, b in state["merges"]]
            vocab = state.get("vocab")
            if vocab is not None:
                vocab = {int(i): token.encode("latin-1") for i, token in vocab.items()}
            return cls(merges, state["special_tokens"], state["pattern"], vocab)
        except FileNotFoundError:
            raise CourseError(f"no tokenizer at {path}: train one first") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CourseError(f"{path} is not a complete tokenizer file ({error})") from None

    # -- other people's vocabularies ------------------------------------------------------------

    @classmethod
    def from_strings(
        cls,
        tokens: Sequence[str] | Mapping[str, int],
        merges: Iterable[str],
        special_tokens: Collection[str],
        pattern: str = GPT2_PATTERN,
    ) -> "BPETokenizer":
        """A vocabulary written in GPT-2's alphabet, as in `vocab.json` or a GGUF file.

        Args:
            tokens: token by id, or the id of each token.
            merges: two tokens with a space between, in order.
            special_tokens: those of `tokens` that are plain text and control tokens.

        Raises:
            CourseError: a token that is not written in that alphabet, or one that is missing.
        """
        ids = tokens if isinstance(tokens, Mapping) else {t: i for i, t in enumerate(tokens)}
        letters = {letter: bytes([b]) for b, letter in enumerate(byte_letters())}

        def spelled(token: str) -> bytes:
            try:
                return b"".join([letters[c] for c in token])
            except KeyError:
                raise CourseError(
                    f"token {token!r} is not written in GPT-2's byte alphabet: name it among the "
                    f"special tokens, or use another reader"
                ) from None

        if missing := set(special_tokens) - set(ids):
            raise CourseError(f"the vocabulary lacks the special tokens {sorted(missing)}")
        special = {token: ids[token] for token in special_tokens}
        vocab = {i: spelled(token) for token, i in ids.items() if token not in special}
        pairs = []
        for line in merges:
            left, _, right = line.partition(" ")
            pairs.append((spelled(left), spelled(right)))
        return cls(pairs, special, pattern, vocab)

    @classmethod
    def from_gpt2(
        cls,
        vocab_path: str | os.PathLike,
        merges_path: str | os.PathLike,
        special_tokens: Collection[str] = ("<|endoftext|>",),
        pattern: str = GPT2_PATTERN,
    ) -> "BPETokenizer":
        """GPT-2's own two files: `vocab.json` (or `encoder.json`) and `merges.txt`.

        Raises:
            CourseError: a file is missing or not what it should be.
        """
        try:
            tokens = json.loads(_read_file(vocab_path))
        except ValueError as error:
            raise CourseError(f"{vocab_path} is not a complete JSON file ({error})") from None
        lines = _read_file(merges_path).split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        return cls.from_strings(tokens, merges, special_tokens, pattern)

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike,
        special_tokens: Mapping[str, int],
        pattern: str = GPT2_PATTERN,
    ) -> "BPETokenizer":
        """A `.tiktoken` file: one token in base64 and its rank a line.

        The file holds no merges. Each is found by encoding its token with the merges before it:
        the two tokens that this leaves were merged.

        Raises:
            CourseError: the file is missing or not what it should be.
        """
        try:
            lines = [line.split() for line in _read_file(path).splitlines() if line]
            vocab = {int(rank): base64.b64decode(token) for token, rank in lines}
        except ValueError as error:
            raise CourseError(f"{path} is not a complete .tiktoken file ({error})") from None
        ids = {token: i for i, token in vocab.items()}
        merges, ranks, products = [], {}, []
        for i in sorted(i for i, token in vocab.items() if len(token) > 1):
            halves = apply_merges([ids[bytes([b])] for b in vocab[i]], ranks, products)
            if len(halves) != 2:
                raise CourseError(f"{path}: no merge of two earlier tokens makes {vocab[i]!r}")
            ranks[tuple(halves)] = len(merges)
            products.append(i)
            merges.append((vocab[halves[0]], vocab[halves[1]]))
        return cls(merges, special_tokens, pattern, vocab)


def byte_letters() -> list[str]:
    """GPT-2's alphabet: a printable character for each byte, as its `vocab.json` writes them.

    Printable bytes of Latin-1 stand for themselves, the others follow from U+0100 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return [chr(b if b in printable else next(others)) for b in range(256)]


class _WordCache(dict):
    """Ids of the words seen so far; bounded, so that a stream stays in constant memory."""

    def __init__(self, encode: Callable[[str], list[int]]):
        self._encode = encode

    def __missing__(self, word: str) -> list[int]:
        ids = self._encode(word)
        if len(self) < 1 << 16 and len(word) < 64:
            self[word] = ids
        return ids


def _standard_vocab(merges: list[Pair]) -> dict[int, bytes]:
    tokens = [bytes([b]) for b in range(256)] + [left + right for left, right in merges]
    return dict(enumerate(tokens))


def _merge_tables(merges: list[Pair], ids: dict[bytes, int]) -> tuple[list[int], dict[tuple, int]]:
    """The id that each merge makes, and the rank of each pair of ids."""
    try:
        products = [ids[left + right] for left, right in merges]
        return products, {(ids[a], ids[b]): rank for rank, (a, b) in enumerate(merges)}
    except KeyError as error:
        raise CourseError(
            f"a merge needs the token {error.args[0]!r}, which the vocabulary lacks"
        ) from None


def _utf8(word: str) -> bytes:
    """The bytes of a word; an unpaired surrogate, which has none, becomes "?"."""
    return word.encode("utf-8", errors="replace")


# -- reading files ---------------------------------------------------------------------------------


def _read_blocks(path: str | os.PathLike, size: int = 1 << 20) -> Iterator[str]:
    """The text of a UTF-8 file, in blocks of `size` characters."""
    try:
        with open(path, encoding="utf-8") as file:
            while block := file.read(size):
                yield block
    except OSError as error:
        raise CourseError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CourseError(
            f"{path} is not UTF-8: convert it first, for example with iconv"
        ) from None


def _read_file(path: str | os.PathLike) -> str:
    return "".join(_read_blocks(path))
