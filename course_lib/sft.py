"""Supervised fine-tuning: the base model learns to answer in the chat format.

The loss counts the assistant's tokens and the end of its turn, nothing else. Part of every step
replays windows of the pre-training corpus: without it a small model forgets facts that no
conversation mentions.

Sources: Ouyang et al. 2022, section 3.5; Wei et al. 2022 (instruction tuning).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.attention import causal_mask
from course_lib.chat import IM_END, IM_START, Turn, render, supervised_targets
from course_lib.data import IGNORE_INDEX, pad_right, step_generator, windows
from course_lib.errors import CourseError
from course_lib.gpt import GPT
from course_lib.tokenizer import BPETokenizer
from course_lib.train import cross_entropy


@dataclass(frozen=True)
class ChatExamples:
    """Encoded conversations: inputs and targets of equal length, and how many were dropped."""

    inputs: list[list[int]]
    targets: list[list[int]]
    dropped: int


def encode_conversations(
    talks: Sequence[Sequence[Turn]], tokenizer: BPETokenizer, context_length: int
) -> ChatExamples:
    """Render conversations, shift by one, cut to the context.

    A conversation whose supervised tokens are all cut off is dropped and counted.

    Raises:
        CourseError: nothing is left to learn from, or the tokenizer lacks the template's tokens: a
            user could then type them.
    """
    if lacking := {IM_START, IM_END} - set(tokenizer.special_ids):
        raise CourseError(
            f"the tokenizer has no {' and no '.join(sorted(lacking))}: turns could not be told "
            f"from what users type"
        )
    inputs, targets, dropped = [], [], 0
    for talk in talks:
        rendered = render(talk, tokenizer)
        asked = supervised_targets(rendered.ids, rendered.mask)[:context_length]
        if all(t == IGNORE_INDEX for t in asked):
            dropped += 1
            continue
        inputs.append(rendered.ids[:-1][:context_length])
        targets.append(asked)
    if not inputs:
        raise CourseError("no conversation holds an assistant turn inside the context length")
    return ChatExamples(inputs, targets, dropped)


# -- packing ------------------------------------------------------------------------------------


def pack(lengths: Sequence[int], context_length: int) -> list[list[int]]:
    """Which conversations share a row: the longest first, each where it leaves the least room.

    Raises:
        CourseError: a conversation is longer than a row.

    >>> pack([3, 9, 4, 2], 10)
    [[1], [2, 0, 3]]
    """
    if max(lengths) > context_length:
        raise CourseError(
            f"a conversation of {max(lengths)} tokens does not fit a row of {context_length}: "
            f"cut it first, or use a longer context"
        )
    rows: list[list[int]] = []
    by_room: list[list[list[int]]] = [[] for _ in range(context_length + 1)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (room for room in range(lengths[i], context_length) if by_room[room])
        room = next(fits, context_length)
        if room == context_length:  # nothing has room: a new row
            rows.append([])
            by_room[room].append(rows[-1])
        row = by_room[room].pop()
        row.append(i)
        by_room[room - lengths[i]].append(row)
    return rows


def block_mask(documents: Tensor) -> Tensor:
    """Where a token may look: back, and inside its own document.

    Args:
        documents: number of each token's document, `(B, T)`.

    Returns:
        `(B, 1, T, T)`, for `GPT.hidden`.
    """
    same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
    return (same & causal_mask(documents.size(1), device=documents.device))[:, None]


def packed_batch(examples: ChatExamples, rows: Sequence[Sequence[int]]) -> tuple:
    """Whole conversations end to end, several a row; none can see another.

    Positions start anew with every conversation. The border needs no care in the targets: the
    last token of a conversation is not an input, since inputs and targets were shifted before.

    Returns:
        `idx`, `targets`, `positions` `(B, T)` and `mask` `(B, 1, T, T)`: what `sft_loss` takes.
    """
    idx = [[t for i in row for t in examples.inputs[i]] for row in rows]
    targets = [[t for i in row for t in examples.targets[i]] for row in rows]
    positions = [[p for i in row for p in range(len(examples.inputs[i]))] for row in rows]
    documents = [[place for place, i in enumerate(row) for _ in examples.inputs[i]] for row in rows]
    return (
        pad_right(idx, 0),
        pad_right(targets, IGNORE_INDEX),
        pad_right(positions, 0),
        block_mask(pad_right(documents, -1)),
    )


def chat_batch(
    examples: ChatExamples, batch_size: int, context_length: int, seed: int, step: int
) -> tuple:
    """`batch_size` conversations drawn at random, packed: see `packed_batch`.

    Raises:
        CourseError: a conversation is longer than the context.
    """
    draw = torch.randint(
        len(examples.inputs), (batch_size,), generator=step_generator(seed, step)
    ).tolist()
    rows = pack([len(examples.inputs[i]) for i in draw], context_length)
    return packed_batch(examples, [[draw[place] for place in row] for row in rows])


# -- losses -------------------------------------------------------------------------------------


def sft_loss(
    model: GPT,
    idx: Tensor,
    targets: Tensor,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Cross-entropy over the supervised tokens, in nats a token; all `(B, T)`.

    Packed rows come with `positions` and `mask`, which `GPT.hidden` describes.

    Raises:
        CourseError: no token is supervised.
    """
    idx, targets, positions, mask = (
        x if x is None else x.to(model.embedding.weight.device)
        for x in (idx, targets, positions, mask)
    )
    logits = model(idx) if mask is None else model(idx, positions, mask)
    return cross_entropy(logits, targets)


def replay_loss(model: GPT, stream: Tensor, n_windows: int, seed: int, step: int) -> Tensor:
    """Pre-training loss on random windows of the corpus: a number, in nats a token.

    Args:
        stream: token ids `(N,)`.
        seed, step: choose the windows.

    Raises:
        CourseError: the stream is shorter than one window.
    """
    idx, targets = windows(stream, n_windows, model.config.context_length, seed, step)
    return sft_loss(model, idx, targets)
