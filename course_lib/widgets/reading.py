"""What the widgets about the inside of a model share: text to tokens, heads taken apart, tables.

Everything that they show before a reader loads a model is measured here with PyTorch.
"""

import html
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from course_lib.atlas.prompts import Prompt
from course_lib.errors import CourseError
from course_lib.evaluate import document_ids
from course_lib.gpt import GPT, Trace
from course_lib.runs import Run
from course_lib.tokenizer import BPETokenizer

from .probability_shift import show


def tokens_of(run: Run, text: str) -> tuple[list[int], list[str]]:
    """Ids of a text at the start of a document, as a base model reads it, and each as text."""
    tokenizer = run.tokenizer()
    ids = document_ids(Prompt("typed", text, None), tokenizer)
    return ids, [show(tokenizer.decode([i])) for i in ids]


def ranked(values: Tensor, n: int, tokenizer: BPETokenizer) -> list[list]:
    """The n largest of `values` (V,), as `[token, value]`, largest first."""
    best = values.topk(n)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[show(tokenizer.decode([i])), round(value, 4)] for i, value in pairs]


def head_writes(model: GPT, ids: Sequence[int]) -> tuple[Trace, Tensor]:
    """The trace of one text, and what each head adds to the stream: `(n_layers, n_heads, T, C)`.

    The output matrix acts on the heads side by side, so its columns split into one part a head.
    """
    mixed = []
    hooks = [
        block.attention.out.register_forward_pre_hook(lambda _, given: mixed.append(given[0][0]))
        for block in model.blocks
    ]
    try:
        trace = model.trace(torch.tensor([ids], device=model.embedding.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    c = model.config
    writes = []
    for block, x in zip(model.blocks, mixed, strict=True):
        heads = x.view(len(ids), c.n_heads, c.d_head).transpose(0, 1)  # (H, T, d_head)
        columns = block.attention.out.weight.view(c.d_model, c.n_heads, c.d_head)
        writes.append(heads @ columns.permute(1, 2, 0))  # (H, T, C)
    return trace, torch.stack(writes)


def attention_rows(trace: Trace) -> list[list[list[list[float]]]]:
    """Weights by layer, head and token t, on the tokens 0 to t; rounded, to keep a page small."""
    return [
        [
            [[round(w, 3) for w in row[: t + 1]] for t, row in enumerate(head)]
            for head in layer[0].tolist()
        ]
        for layer in trace.attention
    ]


@contextmanager
def without_heads(model: GPT, off: Iterable[Sequence[int]]) -> Iterator[None]:
    """Inside, the heads `[layer, head]` add nothing to the stream.

    Raises:
        CourseError: a head that the model does not have.
    """
    c, hooks = model.config, []
    try:
        for layer, head in off:
            if not (0 <= layer < c.n_layers and 0 <= head < c.n_heads):
                raise CourseError(
                    f"there is no head [{layer}, {head}]: the model has {c.n_layers} layers of "
                    f"{c.n_heads} heads, counted from 0"
                )
            own = slice(head * c.d_head, (head + 1) * c.d_head)

            def silence(_, given, own=own):
                mixed = given[0].clone()
                mixed[..., own] = 0
                return (mixed,)

            out = model.blocks[layer].attention.out
            hooks.append(out.register_forward_pre_hook(silence))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts as HTML; the first cell of a row is its header, the others align right."""
    top = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f'<td class="cw-number">{html.escape(cell)}</td>' for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="cw-scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
