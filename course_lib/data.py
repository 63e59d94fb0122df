"""From text to batches: a stream of token ids, cut into windows with targets shifted by one.

A batch is a pure function of (seed, step). That is what makes a resumed run equal to an
uninterrupted one.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.tokenizer import BPETokenizer

IGNORE_INDEX = -100  # targets with this value take no part in the loss
END_OF_TEXT = "<|endoftext|>"


def read_text(path: str | os.PathLike) -> str:
    """Read a UTF-8 text file.

    Raises:
        CourseError: missing, empty, or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CourseError(f"no text file at {path}") from None
    except UnicodeDecodeError as error:
        raise CourseError(
            f"{path} is not UTF-8 (byte {error.start}): convert it first, for example with iconv"
        ) from None
    if not text.strip():
        raise CourseError(f"{path} is empty: there is nothing to learn from it")
    return text


def token_stream(documents: Iterable[str], tokenizer: BPETokenizer) -> Tensor:
    """All documents as one tensor of ids `(N,)`, each after an end-of-text token."""
    border = tokenizer.special_ids[END_OF_TEXT]
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


def windows(stream: Tensor, batch_size: int, length: int, seed: int, step: int) -> tuple:
    """Random windows of a stream and the same windows one step later.

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
    chunk = stream[index]
    return chunk[:, :-1], chunk[:, 1:]


def pad_right(rows: list[list[int]], value: int) -> Tensor:
    """Stack lists of different lengths into `(B, longest)`, filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
