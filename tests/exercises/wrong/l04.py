"""Wrong answers of L04. `<exercise>__<misconception>`: the docstring is in the check's message."""

import torch.nn.functional as F


def split_heads__view_without_transpose(x, n_heads):
    """the numbers are mixed"""
    B, T, C = x.shape
    return x.view(B, n_heads, T, C // n_heads)


def split_heads__forgets_the_transpose(x, n_heads):
    """the heads stand behind the positions"""
    B, T, C = x.shape
    return x.view(B, T, n_heads, C // n_heads)


def split_heads__every_nth_column(x, n_heads):
    """it must take neighbours"""
    B, T, C = x.shape
    return x.view(B, T, C // n_heads, n_heads).permute(0, 3, 1, 2)


def split_heads__two_heads_always(x, n_heads):
    """(line"""
    return x.view(x.size(0), x.size(1), 2, 4).transpose(1, 2)


def merge_heads__view_without_transpose(x):
    """the numbers are mixed"""
    B, n_heads, T, d_head = x.shape
    return x.reshape(B, T, n_heads * d_head)


def merge_heads__interleaves(x):
    """put whole heads side by side"""
    B, n_heads, T, d_head = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, T, n_heads * d_head)


def merge_heads__view_after_transpose(x):
    """it stops with RuntimeError"""
    B, n_heads, T, d_head = x.shape
    return x.transpose(1, 2).view(B, T, n_heads * d_head)


def merge_heads__sums_the_heads(x):
    """the result has shape"""
    return x.sum(1)


def _heads(y, n_heads):
    return y.view(y.size(0), y.size(1), n_heads, -1).transpose(1, 2)


def _joined(y):
    return y.transpose(1, 2).flatten(2)


def _attend(x, weights, n_heads, mask=None, scale=None):
    q, k, v = (_heads(x @ w, n_heads) for w in weights)
    return _joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))


def multi_head_attention__weights_transposed(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """nn.Linear computes x @ w.T"""
    return _attend(x, (w_q, w_k, w_v), n_heads, mask) @ w_out


def multi_head_attention__no_projection(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """the output projection is missing"""
    return _attend(x, (w_q.T, w_k.T, w_v.T), n_heads, mask)


def multi_head_attention__one_big_head(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """one big head"""
    return _attend(x, (w_q.T, w_k.T, w_v.T), 1, mask) @ w_out.T


def multi_head_attention__scale_by_the_width(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """the root of C"""
    return _attend(x, (w_q.T, w_k.T, w_v.T), n_heads, mask, x.size(-1) ** -0.5) @ w_out.T


def multi_head_attention__view_without_transpose(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """view without transpose"""
    B, T, C = x.shape
    q, k, v = ((x @ w.T).view(B, n_heads, T, -1) for w in (w_q, w_k, w_v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(B, T, C) @ w_out.T


def multi_head_attention__heads_attend_to_heads(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """the heads of one position attend to each other"""
    B, T, C = x.shape
    q, k, v = ((x @ w.T).view(B, T, n_heads, -1) for w in (w_q, w_k, w_v))
    return F.scaled_dot_product_attention(q, k, v).reshape(B, T, C) @ w_out.T


def multi_head_attention__merged_without_transpose(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """merged without transposing back"""
    q, k, v = (_heads(x @ w.T, n_heads) for w in (w_q, w_k, w_v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(x.shape) @ w_out.T


def multi_head_attention__mask_ignored(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """the mask is ignored"""
    return _attend(x, (w_q.T, w_k.T, w_v.T), n_heads) @ w_out.T


def multi_head_attention__mask_inverted(x, w_q, w_k, w_v, w_out, n_heads, mask=None):
    """True is where a query may look"""
    mask = None if mask is None else (~mask).index_fill(1, x.new_zeros(1).long(), True)
    return _attend(x, (w_q.T, w_k.T, w_v.T), n_heads, mask) @ w_out.T


def repeat_kv__in_turns(x, group):
    """neighbours must share"""
    return x.repeat(1, group, 1, 1)


def repeat_kv__along_time(x, group):
    """the result has shape"""
    return x.repeat_interleave(group, dim=2)


def repeat_kv__along_the_batch(x, group):
    """the result has shape"""
    return x.repeat_interleave(group, dim=0)


def repeat_kv__first_head_for_all(x, group):
    """must use key head"""
    return x[:, :1].expand(-1, x.size(1) * group, -1, -1)
