"""Checks of L04: heads, the whole module, shared keys."""

import torch
import torch.nn.functional as F

from course_lib.checks import Check
from course_lib.checks.tools import close, is_tensor, randn


@Check
def check_split_heads(fn):
    """Slices of the width, for several numbers of heads."""
    for B, T, C, n_heads in ((2, 5, 12, 3), (1, 4, 8, 2), (3, 2, 6, 6), (2, 7, 10, 1)):
        x = randn(C, B, T, C)
        d = C // n_heads
        got = fn(x, n_heads)
        assert tuple(got.shape) != (B, T, n_heads, d) or n_heads == T, (
            "the heads stand behind the positions: swap the two axes, transpose(1, 2)"
        )
        is_tensor(got, (B, n_heads, T, d), x.dtype)
        assert n_heads == 1 or not torch.equal(got, x.reshape(B, n_heads, T, d)), (
            "the shape is right, the numbers are mixed: view(B, n_heads, T, d) tears positions "
            "apart. First view(B, T, n_heads, d), then transpose"
        )
        taken = x.view(B, T, d, n_heads).permute(0, 3, 1, 2)
        assert n_heads in (1, C) or not torch.equal(got, taken), (
            "a head takes every n-th column: it must take neighbours, view(B, T, n_heads, d)"
        )
        for h in range(n_heads):
            assert torch.equal(got[:, h], x[:, :, h * d : (h + 1) * d]), (
                f"head {h} must hold the columns {h * d} to {(h + 1) * d - 1} of every position"
            )


@Check
def check_merge_heads(fn):
    """The heads side by side, from contiguous and from transposed tensors."""
    for B, n_heads, T, d in ((2, 3, 5, 4), (1, 2, 4, 3), (3, 4, 1, 2), (2, 1, 3, 5)):
        x = randn(T, B, n_heads, T, d)
        got = fn(x)
        is_tensor(got, (B, T, n_heads * d), x.dtype)
        side_by_side = torch.cat(list(x.unbind(1)), dim=-1)
        assert min(n_heads, T) == 1 or not torch.equal(got, x.reshape(B, T, -1)), (
            "the shape is right, the numbers are mixed: transpose the heads behind the positions "
            "before you reshape"
        )
        taken = x.permute(0, 2, 3, 1).reshape(B, T, -1)
        assert 1 in (n_heads, d) or not torch.equal(got, taken), (
            "the columns of the heads are interleaved: put whole heads side by side"
        )
        assert torch.equal(got, side_by_side), "at each position, head 0 comes first, then head 1"
    x = randn(9, 2, 5, 3, 4).transpose(1, 2)
    assert torch.equal(fn(x), x.transpose(1, 2).reshape(2, 5, 12)), "wrong for a transposed input"


def _theirs(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """PyTorch's own multi-head attention with these weights."""
    C = x.size(-1)
    theirs = torch.nn.MultiheadAttention(C, n_heads, bias=False, batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((w_q, w_k, w_v)))
        theirs.out_proj.weight.copy_(w_out)
        forbidden = None if mask is None else ~mask
        return theirs(x, x, x, attn_mask=forbidden, need_weights=False)[0]


@Check
def check_multi_head_attention(fn):
    """Against nn.MultiheadAttention, with and without a mask."""
    for B, T, C, n_heads in ((2, 5, 12, 3), (1, 4, 8, 4), (3, 6, 8, 1), (2, 3, 6, 2)):
        x = randn(C, B, T, C, dtype=torch.float64)
        weights = [randn(s, C, C, dtype=torch.float64) / C**0.4 for s in (1, 2, 3, 4)]
        got = fn(x, *weights, n_heads)
        is_tensor(got, (B, T, C), x.dtype)
        _explain_heads(fn, got, x, weights, n_heads)
        assert close(got, _theirs(x, *weights, n_heads)), (
            f"it differs from nn.MultiheadAttention with {n_heads} heads"
        )
        mask = torch.ones(T, T).tril().bool()
        got = fn(x, *weights, n_heads, mask)
        is_tensor(got, (B, T, C), x.dtype)
        assert not close(got, _theirs(x, *weights, n_heads)), "the mask is ignored"
        assert close(got, _theirs(x, *weights, n_heads, mask)), (
            "wrong under the causal mask: True is where a query may look"
        )


def _explain_heads(fn, got, x, weights, n_heads):
    """Known wrong results, each with its reason."""
    w_q, w_k, w_v, w_out = weights
    B, T, C = x.shape
    assert not close(got, _theirs(x, w_q.T, w_k.T, w_v.T, w_out.T, n_heads)), (
        "the weights are used transposed: nn.Linear computes x @ w.T"
    )
    assert not close(got, _theirs(x, w_q, w_k, w_v, torch.eye(C, dtype=x.dtype), n_heads)), (
        "the output projection is missing: finish with w_out"
    )
    assert not close(got, _theirs(x, w_q, w_k, w_v, w_out.T, n_heads)), "w_out is transposed"
    if n_heads == 1:
        return
    assert not close(got, _theirs(x, w_q, w_k, w_v, w_out, 1)), (
        "it attends with one big head: split into n_heads first"
    )
    shrink = n_heads**-0.5  # the root of C is that much larger than the root of d_head
    assert not close(got, _theirs(x, w_q * shrink, w_k, w_v, w_out, n_heads)), (
        "the scores are divided by the root of C: a head has the width C / n_heads"
    )
    q, k, v = (x @ w.T for w in (w_q, w_k, w_v))
    torn = [y.reshape(B, n_heads, T, C // n_heads) for y in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*torn)
    for back in (mixed.transpose(1, 2).reshape(B, T, C), mixed.reshape(B, T, C)):
        assert not close(got, back @ w_out.T), (
            "view without transpose: the heads mix the positions, although every shape is right"
        )
    split = [y.view(B, T, n_heads, -1) for y in (q, k, v)]
    across = F.scaled_dot_product_attention(*split).reshape(B, T, C)
    assert not close(got, across @ w_out.T), (
        "the heads of one position attend to each other: transpose, so that positions do"
    )
    good = F.scaled_dot_product_attention(*[y.transpose(1, 2) for y in split])
    assert not close(got, good.reshape(B, T, C) @ w_out.T), (
        "the heads are merged without transposing back: the positions get mixed at the end"
    )


@Check
def check_repeat_kv(fn):
    """Which key head serves which query head."""
    for n_kv_heads, group in ((2, 3), (1, 4), (4, 2), (3, 1)):
        x = randn(group, 2, n_kv_heads, 5, 4)
        got = fn(x, group)
        is_tensor(got, (2, n_kv_heads * group, 5, 4), x.dtype)
        assert min(n_kv_heads, group) == 1 or not torch.equal(got, x.repeat(1, group, 1, 1)), (
            "the heads come round in turns, 0 1 0 1: neighbours must share, 0 0 1 1"
        )
        for h in range(n_kv_heads * group):
            assert torch.equal(got[:, h], x[:, h // group]), (
                f"query head {h} must use key head {h // group} when {group} of them share one"
            )
