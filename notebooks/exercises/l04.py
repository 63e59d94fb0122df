"""L04 Multi-head attention: write each function, then run `pytest tests/exercises -k L04`.

In a notebook: `from course_lib.checks.l04 import check_split_heads`, then
`check_split_heads(split_heads)`.
"""

import torch


def split_heads(x, n_heads):
    """Cut the width into heads, and bring the heads forward.
    Easy, 5 minutes.

    x: (B, T, C), n_heads divides C. Returns
    (B, n_heads, T, C / n_heads); head h holds the columns
    h * d_head to (h + 1) * d_head of every position.

    >>> split_heads(torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]), 2)
    tensor([[[[1, 2],
              [5, 6]],
             [[3, 4],
              [7, 8]]]])
    """
    raise NotImplementedError


def merge_heads(x):
    """Undo split_heads. Easy, 5 minutes.

    x: (B, n_heads, T, d_head). Returns (B, T, n_heads * d_head): at
    each position, the heads side by side.

    >>> merge_heads(torch.tensor([[[[1, 2], [5, 6]], [[3, 4], [7, 8]]]]))
    tensor([[[1, 2, 3, 4],
             [5, 6, 7, 8]]])
    """
    raise NotImplementedError


def multi_head_attention(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """Split, attend, merge, project: the whole module as one
    function. Medium, 20 minutes.

    x: (B, T, C). The four weights are (C, C), as nn.Linear keeps
    them: y = x @ w.T. mask: fits (T, T), True where a query may
    look. Returns (B, T, C). You may use
    F.scaled_dot_product_attention.

    >>> w = torch.eye(4)
    >>> multi_head_attention(torch.ones(1, 3, 4), w, w, w, w, 2).shape
    torch.Size([1, 3, 4])
    """
    raise NotImplementedError


def repeat_kv(x, group):
    """Let each key head serve a group of query heads.
    Easy, 5 minutes.

    x: (B, n_kv_heads, T, d_head). Returns
    (B, n_kv_heads * group, T, d_head): query head h uses key head h
    // group, so that neighbours share.

    >>> repeat_kv(torch.tensor([[[[1.0]], [[2.0]]]]), 2).flatten()
    tensor([1., 1., 2., 2.])
    """
    raise NotImplementedError
