"""From text to batches: a stream of token ids, cut into windows with targets shifted by one.

A batch is a pure function of (seed, step). That is what makes a resumed run equal to an
uninterrupted one.

Texts: a file or a folder of one's own, or TinyShakespeare, the 1.1 MB of plays on which many small
models were tried (Karpathy 2015). For corpora larger than memory see `shards.py`.
"""

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.files import write_atomically
from course_lib.tokenizer import BPETokenizer

IGNORE_INDEX = -100  # targets with this value take no part in the loss
END_OF_TEXT = "<|endoftext|>"
TEXT_SUFFIXES = (".txt", ".md")
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def read_text(path: str | os.PathLike) -> str:
    """Read a UTF-8 text file.

    Raises:
        CourseError: missing, not readable, empty, or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CourseError(f"no text file at {path}") from None
    except OSError as error:
        raise CourseError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CourseError(
            f"{path} is not UTF-8 (byte {error.start}): convert it first, for example with iconv"
        ) from None
    if not text.strip():
        raise CourseError(f"{path} is empty: there is nothing to learn from it")
    return text


def read_corpus(path: str | os.PathLike) -> list[str]:
    """One text file, or all `.txt` and `.md` files in a folder and its subfolders, by name.

    Raises:
        CourseError: nothing there, or a file that is empty or not UTF-8.
    """
    path = Path(path)
    if not path.is_dir():
        return [read_text(path)]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file())
    if not files:
        raise CourseError(f"the folder {path} holds no {' or '.join(TEXT_SUFFIXES)} file")
    return [read_text(file) for file in files]


def data_dir() -> Path:
    """Where downloaded texts are kept: `$COURSE_DATA_DIR`, else a cache folder of the user."""
    return Path(os.environ.get("COURSE_DATA_DIR") or Path.home() / ".cache" / "course_lib")


def tiny_shakespeare() -> str:
    """The text of TinyShakespeare, downloaded once into `data_dir()` and checked by its SHA-256.

    Raises:
        CourseError: no connection, a full disk, or a text that is not the original.
    """
    path = data_dir() / "tinyshakespeare.txt"
    if not path.exists():
        write_atomically(path, _fetch_shakespeare)
    return _original(path.read_bytes(), path).decode()


def _fetch_shakespeare(path: Path) -> None:
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as answer:
            path.write_bytes(_original(answer.read(), SHAKESPEARE_URL))
    except (OSError, http.client.HTTPException) as error:
        raise CourseError(
            f"cannot download TinyShakespeare ({error}): save {SHAKESPEARE_URL} yourself as "
            f"tinyshakespeare.txt and set COURSE_DATA_DIR to its folder"
        ) from None


def _original(content: bytes, source: str | os.PathLike) -> bytes:
    if (digest := hashlib.sha256(content).hexdigest()) != SHAKESPEARE_SHA256:
        raise CourseError(
            f"{source} is not the original TinyShakespeare (SHA-256 {digest[:12]}..., not "
            f"{SHAKESPEARE_SHA256[:12]}...): delete it and download it again"
        )
    return content


class CharTokenizer:
    """One id a character: the smallest tokenizer, for small models on one text.

    Raises:
        CourseError: the text is empty.

    >>> CharTokenizer("hello").encode("hole")
    [1, 3, 2, 0]
    """

    def __init__(self, text: str):
        if not text:
            raise CourseError("the text is empty: there are no characters to number")
        self.characters = sorted(set(text))
        self._ids = {character: i for i, character in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        """Number of different characters."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Text to ids.

        Raises:
            CourseError: a character that the first text did not have.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise CourseError(
                f"the character {error.args[0]!r} is not among the {self.vocab_size} known ones"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text.

        Raises:
            CourseError: an id that no character has.
        """
        ids = [int(i) for i in ids]
        if unknown := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise CourseError(
                f"the id {unknown[0]} stands for no character: ids go from 0 to "
                f"{self.vocab_size - 1}"
            )
        return "".join([self.characters[i] for i in ids])


def split(stream: Tensor, validation_share: float = 0.1) -> tuple[Tensor, Tensor]:
    """Cut a stream `(N,)` into training and validation: the last share is never trained on.

    A cut in one place, not at random: neighbouring windows overlap, and a model that has trained on
    the neighbours has seen the text.

    Raises:
        CourseError: one of the two parts would be empty.
    """
    border = round(len(stream) * (1 - validation_share))
    if not 0 < border < len(stream):
        raise CourseError(
            f"a validation share of {validation_share} of {len(stream)} tokens leaves one part "
            f"empty"
        )
    return stream[:border], stream[border:]


def end_of_text(tokenizer: BPETokenizer) -> int:
    """The id that stands between documents.

    Raises:
        CourseError: the tokenizer has no such token.
    """
    if END_OF_TEXT not in tokenizer.special_ids:
        raise CourseError(
            f"the tokenizer has no {END_OF_TEXT} to put between documents: train it with "
            f"special_tokens=[{END_OF_TEXT!r}]"
        )
    return tokenizer.special_ids[END_OF_TEXT]


def token_stream(documents: Iterable[str], tokenizer: BPETokenizer) -> Tensor:
    """All documents as one tensor of ids `(N,)`, each after an end-of-text token.

    Raises:
        CourseError: there is no document, or the tokenizer has no end-of-text token.
    """
    border = end_of_text(tokenizer)
    ids: list[int] = []
    for document in documents:
        ids.append(border)
        ids.extend(tokenizer.encode(document))
    if not ids:
        raise CourseError("the corpus holds no documents: there is nothing to learn from it")
    ids.append(border)
    return torch.tensor(ids)


def step_generator(seed: int, step: int) -> torch.Generator:
    """A random generator that depends on the seed and the step alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))


def windows(stream, batch_size: int, length: int, seed: int, step: int) -> tuple:
    """Random windows of a stream and the same windows one step later.

    Args:
        stream: ids `(N,)`, or `shards.Shards`, which gives them from files.

    Returns:
        `idx` and `targets`, both `(batch_size, length)`; `targets[:, t]` follows `idx[:, t]`.

    Raises:
        CourseError: the stream is shorter than one window and its target.
    """
    if len(stream) < length + 1:
        raise CourseError(
            f"the corpus has {len(stream)} tokens, fewer than one window of {length + 1}: "
            f"use more text or a shorter context"
        )
    starts = torch.randint(
        len(stream) - length, (batch_size,), generator=step_generator(seed, step)
    )
    index = starts[:, None] + torch.arange(length + 1)  # (B, T + 1)
    chunk = stream[index].long()
    return chunk[:, :-1], chunk[:, 1:]


def pad_right(rows: list[list[int]], value: int) -> Tensor:
    """Stack lists of different lengths into `(B, longest)`, filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
