"""Normalisation, the feed-forward layer, and the block that holds them together.

Sources: Ba et al. 2016 (LayerNorm); Zhang and Sennrich 2019 (RMSNorm); Shazeer 2020 (SwiGLU);
Vaswani et al. 2017 (post-norm); Xiong et al. 2020 (pre-norm).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.attention import KVCache, MultiHeadAttention

NORMS = ("rmsnorm", "layernorm")
NORM_POSITIONS = ("pre", "post")
ACTIVATIONS = ("swiglu", "gelu", "gelu_tanh", "relu")


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over the last dimension, then a learned gain (and bias).

    Takes and gives `(..., width)`.
    """

    def __init__(self, width: int, bias: bool = False, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root mean square 1 over the last dimension, then a learned gain: no mean, no bias.

    Takes and gives `(..., width)`.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class MLP(nn.Module):
    """The feed-forward layer: widen to `d_ff`, bend, narrow again: `(..., d_model)` in and out.

    `swiglu` makes two wide maps and multiplies one by the SiLU of the other. `gelu` is exact,
    `gelu_tanh` the approximation that GPT-2 was trained with (Hendrycks and Gimpel 2016).
    """

    def __init__(self, d_model: int, d_ff: int, activation: str = "swiglu", bias: bool = False):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(d_model, d_ff * (2 if activation == "swiglu" else 1), bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.up(x)  # (B, T, d_ff), or twice that for swiglu
        if self.activation == "swiglu":
            gate, value = wide.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        if self.activation == "relu":
            return self.down(F.relu(wide))
        return self.down(F.gelu(wide, approximate="tanh" if "tanh" in self.activation else "none"))


class Block(nn.Module):
    """One transformer block: attention and MLP each add to the stream.

    `pre` norm: each part reads a normalised copy, and the stream itself is never changed.
    `post` norm, the original order: the stream is normalised after each addition.

    Takes and gives `(B, T, d_model)`; the other arguments are those of `MultiHeadAttention`.
    """

    def __init__(self, config):
        super().__init__()
        c = config
        self.norm1, self.norm2 = make_norm(c), make_norm(c)
        self.attention = MultiHeadAttention(
            c.d_model, c.n_heads, c.n_kv_heads, c.bias, c.fused, c.dropout, c.rope_interleaved
        )
        self.mlp = MLP(c.d_model, c.d_ff, c.activation, c.bias)
        self.dropout = nn.Dropout(c.dropout)
        self.norm_position = c.norm_position

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        if self.norm_position == "post":
            x = self.norm1(x + self.dropout(self.attention(x, rotary, mask, cache, keep)))
            return self.norm2(x + self.dropout(self.mlp(x)))  # (B, T, C)
        x = x + self.dropout(self.attention(self.norm1(x), rotary, mask, cache, keep))
        return x + self.dropout(self.mlp(self.norm2(x)))  # (B, T, C)


def make_norm(config) -> nn.Module:
    """The normalisation that the config names."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.bias, config.norm_eps)
