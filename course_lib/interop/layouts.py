"""How other projects name and shape the tensors of a GPT, and the way to and fro.

One table a family. We keep queries, keys and values in one matrix, and the two wide maps of SwiGLU
in another; most others keep them apart. GPT-2 stores the transposes of its linear maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.files import check_tensors
from course_lib.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class Layout:
    """The names of one family.

    Attributes:
        outer: our name of a part outside the blocks -> theirs.
        block: their prefix of block number `{}`.
        inner: our name of a part of a block -> theirs; several where ours is their concatenation.
        transposed: linear maps in the blocks are `(inputs, outputs)`.
    """

    outer: Mapping[str, str]
    block: str
    inner: Mapping[str, tuple[str, ...]]
    transposed: bool = False

    def names(self, own: str) -> list[str]:
        """Their names of one of our tensors.

        >>> LLAMA.names("blocks.0.mlp.up.weight")
        ['model.layers.0.mlp.gate_proj.weight', 'model.layers.0.mlp.up_proj.weight']
        """
        part, kind = own.rsplit(".", 1)
        if part in self.outer:
            return [f"{self.outer[part]}.{kind}"]
        _, number, part = part.split(".", 2)
        return [f"{self.block.format(number)}.{name}.{kind}" for name in self.inner[part]]


GPT2 = Layout(
    {
        "embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "norm": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    "transformer.h.{}",
    {
        "norm1": ("ln_1",),
        "attention.qkv": ("attn.c_attn",),
        "attention.out": ("attn.c_proj",),
        "norm2": ("ln_2",),
        "mlp.up": ("mlp.c_fc",),
        "mlp.down": ("mlp.c_proj",),
    },
    transposed=True,
)
LLAMA = Layout(
    {"embedding": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"},
    "model.layers.{}",
    {
        "norm1": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.out": ("self_attn.o_proj",),
        "norm2": ("post_attention_layernorm",),
        "mlp.up": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down": ("mlp.down_proj",),
    },
)
GGUF = Layout(
    {"embedding": "token_embd", "norm": "output_norm", "lm_head": "output"},
    "blk.{}",
    {
        "norm1": ("attn_norm",),
        "attention.qkv": ("attn_q", "attn_k", "attn_v"),
        "attention.out": ("attn_output",),
        "norm2": ("ffn_norm",),
        "mlp.up": ("ffn_gate", "ffn_up"),
        "mlp.down": ("ffn_down",),
    },
)


def to_layout(own: Mapping[str, Tensor], layout: Layout, config: GPTConfig) -> dict[str, Tensor]:
    """Our tensors under their names, cut and turned as they keep them.

    Args:
        own: a state dict; its matrices are `(out, in)`, as `nn.Linear` keeps them.
    """
    c = config
    rows = {
        "qkv": [c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.n_kv_heads * c.d_head],
        "up": [c.d_ff, c.d_ff],
    }
    theirs = {}
    for name, tensor in own.items():
        names = layout.names(name)
        pieces = tensor.split(rows[name.split(".")[-2]]) if len(names) > 1 else [tensor]
        for their_name, piece in zip(names, pieces, strict=True):
            theirs[their_name] = piece.T if _is_turned(name, piece, layout) else piece
    return theirs


def build(config: GPTConfig, layout: Layout, theirs: Mapping[str, Tensor], source: str) -> GPT:
    """A GPT in evaluation mode from tensors in another layout, in fp32.

    Raises:
        CourseError: tensors are missing, unknown or of another shape; the message lists them.
    """
    with torch.device("meta"):  # shapes without memory or time
        model = GPT(config)
    check_tensors(to_layout(model.state_dict(), layout, config), theirs, source)
    own = {}
    for name in model.state_dict():
        pieces = [theirs[their_name].float() for their_name in layout.names(name)]
        joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        own[name] = (joined.T if _is_turned(name, joined, layout) else joined).contiguous()
    model.load_state_dict(own, assign=True)
    return model.eval()


def _is_turned(name: str, tensor: Tensor, layout: Layout) -> bool:
    return layout.transposed and name.startswith("blocks.") and tensor.dim() == 2


def split_halves(rows: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows of a query or key map from interleaved to half-split rotary pairs.

    Pair `i` of a head is rows `2i, 2i + 1` before, `i, i + d_head / 2` after, as in
    `positions.rotate`. Works for weights `(n_heads * d_head, C)` and biases.
    """
    pairs = rows.unflatten(0, (n_heads, -1, 2))  # (n_heads, d_head / 2, 2, ...)
    return pairs.transpose(1, 2).flatten(0, 2)


def shorten(config: GPTConfig, context_length: int, source: str) -> GPTConfig:
    """The configuration with a shorter context, whose caches need less memory; 0 keeps it.

    Raises:
        CourseError: longer than what the model was trained on.
    """
    if context_length > config.context_length:
        raise CourseError(
            f"{source} was trained on contexts of {config.context_length} tokens, fewer than "
            f"context_length={context_length}"
        )
    return replace(config, context_length=context_length or config.context_length)


def unsupported(source: str, what: str, instead: str) -> CourseError:
    """The error for a choice that our GPT does not have."""
    return CourseError(f"{source}: {what} is not supported here; {instead}")
