"""Reference answers of L04, the solutions of its page."""

import torch.nn.functional as F


def split_heads(x, n_heads):
    B, T, C = x.shape
    return x.view(B, T, n_heads, C // n_heads).transpose(1, 2)


def merge_heads(x):
    B, n_heads, T, d_head = x.shape
    return x.transpose(1, 2).reshape(B, T, n_heads * d_head)


def multi_head_attention(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    q, k, v = (split_heads(x @ w.T, n_heads) for w in (w_q, w_k, w_v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return merge_heads(mixed) @ w_out.T


def repeat_kv(x, group):
    return x.repeat_interleave(group, dim=1)
