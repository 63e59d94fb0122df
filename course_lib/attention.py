"""Attention: softmax, the causal mask, scaled dot products, many heads, and the KV cache.

Departures from the textbook module: one matrix makes all queries, keys and values; keys and
values may have fewer heads than queries (grouped queries); a cache keeps the keys and values of
earlier positions, so that generation computes each of them once.

Sources: Vaswani et al. 2017, section 3.2; Shazeer 2019 and Ainslie et al. 2023 (shared keys).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.positions import rotate


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Exponentials that sum to one along `dim`, in the shape of `x`; safe for large inputs.

    Subtracting the largest value changes nothing in exact arithmetic and keeps `exp` finite.
    """
    exps = (x - x.amax(dim=dim, keepdim=True)).exp()
    return exps / exps.sum(dim=dim, keepdim=True)


def causal_mask(n_queries: int, n_keys: int | None = None, device=None) -> Tensor:
    """True where a query may look: `(n_queries, n_keys)`, the lower triangle.

    With more keys than queries (a cache) the queries are the last positions.
    """
    n_keys = n_queries if n_keys is None else n_keys
    full = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return full.tril(diagonal=n_keys - n_queries)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax of the scaled scores: how much each query takes from each key.

    Args:
        q: `(..., T, d_head)`; k: `(..., S, d_head)`.
        mask: broadcastable to `(..., T, S)`, True where looking is allowed. A row with nothing
            allowed gives zeros, not NaN.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (..., T, S)
    if mask is None:
        return softmax(scores)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return softmax(scores) * mask.any(dim=-1, keepdim=True)


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    keep: list[Tensor] | None = None,
) -> Tensor:
    """Mix the values by the attention weights: `(..., T, d_head)`.

    Args:
        q, k, mask: as in `attention_weights`; v: `(..., S, d_head)`.
        dropout: share of the weights set to zero; the others grow to keep the expected sum.
        keep: a list that gets the weights before dropout, `(..., T, S)`.
    """
    weights = attention_weights(q, k, mask)
    if keep is not None:
        keep.append(weights)
    return F.dropout(weights, dropout) @ v


class KVCache:
    """Keys and values of the positions seen so far, for one layer and one batch.

    The tensors are allocated once, `(B, n_kv_heads, context_length, d_head)`, and filled from the
    left; `length` counts the positions in use.
    """

    def __init__(self, batch: int, n_kv_heads: int, context_length: int, d_head: int, like: Tensor):
        shape = (batch, n_kv_heads, context_length, d_head)
        self.k, self.v = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values `(B, n_kv_heads, T, d_head)`; return all so far."""
        end = self.length + k.size(2)
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class MultiHeadAttention(nn.Module):
    """Causal self-attention with `n_heads` query heads over `n_kv_heads` key and value heads.

    Args:
        d_model: width of the stream; `n_heads` must divide it.
        n_kv_heads: `n_heads` for plain multi-head, 1 for multi-query, between for grouped.
        bias: add biases to the two linear maps.
        fused: use PyTorch's fused kernel; the plain path gives the same numbers, slower.
        dropout: share of attention weights set to zero in training.
        rope_interleaved: layout of rotary pairs, see `positions.rotate`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        bias: bool = False,
        fused: bool = True,
        dropout: float = 0.0,
        rope_interleaved: bool = False,
    ):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.fused = n_heads, n_kv_heads, fused
        self.d_head = d_model // n_heads
        self.dropout, self.rope_interleaved = dropout, rope_interleaved
        self.qkv = nn.Linear(d_model, (n_heads + 2 * n_kv_heads) * self.d_head, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend; returns `(B, T, d_model)`.

        Args:
            x: `(B, T, d_model)`.
            rotary: cosines and sines for these positions, or None for other position schemes.
            mask: True where looking is allowed, broadcastable to `(B, n_heads, T, S)`; None means
                plain causal.
            cache: earlier keys and values; extended in place.
            keep: a list that gets the attention weights `(B, n_heads, T, S)`. The fused kernel
                never forms them, so the plain path runs.
        """
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, -1, self.d_head).transpose(1, 2)  # (B, heads, T, d_head)
        qk, v = heads.split([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=1)
        if rotary is not None:
            qk = rotate(qk, *rotary, self.rope_interleaved)  # in fp32, as the angles are
            if qk.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                qk = qk.to(x.dtype)  # a model in half precision
        q, k = qk.split([self.n_heads, self.n_kv_heads], dim=1)
        if cache is not None:
            k, v = cache.append(k, v)
        if self.n_kv_heads < self.n_heads:
            group = self.n_heads // self.n_kv_heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = self._mix(q, k, v, mask, keep)  # (B, n_heads, T, d_head)
        return self.out(mixed.transpose(1, 2).reshape(B, T, C))

    def _mix(self, q, k, v, mask: Tensor | None, keep: list[Tensor] | None) -> Tensor:
        T, S = q.size(2), k.size(2)
        dropout = self.dropout if self.training else 0.0
        if not self.fused or keep is not None:
            mask = causal_mask(T, S, q.device) if mask is None else mask
            return scaled_dot_product_attention(q, k, v, mask, dropout, keep)
        causal = mask is None and T == S  # the kernel is fastest where it makes the triangle itself
        if mask is None and 1 < T < S:
            mask = causal_mask(T, S, q.device)
        if q.device.type == "cpu" and v.dtype == torch.bfloat16:
            # On a CPU the gradient of the kernel in bf16 takes about five times as long as in fp32.
            with torch.autocast("cpu", enabled=False):
                q, k, v = q.float(), k.float(), v.float()
                return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal).bfloat16()
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
