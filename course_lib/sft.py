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

from course_lib.chat import Turn, render, supervised_targets
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
        CourseError: nothing is left to learn from.
    """
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


def chat_batch(examples: ChatExamples, batch_size: int, seed: int, step: int) -> tuple:
    """A random batch, padded on the right by length: `idx` and `targets`, both `(B, T)`."""
    draw = torch.randint(
        len(examples.inputs), (batch_size,), generator=step_generator(seed, step)
    ).tolist()
    idx = pad_right([examples.inputs[i] for i in draw], 0)
    targets = pad_right([examples.targets[i] for i in draw], IGNORE_INDEX)
    return idx, targets


def sft_loss(model: GPT, idx: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the supervised tokens, in nats a token."""
    device = model.embedding.weight.device
    return cross_entropy(model(idx.to(device)), targets.to(device))


def replay_loss(model: GPT, stream: Tensor, n_windows: int, seed: int, step: int) -> Tensor:
    """Pre-training loss on random windows of the corpus, in nats a token."""
    idx, targets = windows(stream, n_windows, model.config.context_length, seed, step)
    return sft_loss(model, idx, targets)
