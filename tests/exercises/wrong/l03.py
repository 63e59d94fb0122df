"""Wrong answers of L03. `<exercise>__<misconception>`: the docstring is in the check's message."""

import math

import torch


def softmax__overflows(x, dim=-1):
    """Subtract the largest first"""
    return x.exp() / x.exp().sum(dim=dim, keepdim=True)


def softmax__whole_tensor(x, dim=-1):
    """sum along `dim` alone"""
    exps = (x - x.max()).exp()
    return exps / exps.sum()


def softmax__last_axis_always(x, dim=-1):
    """another axis sums to 1: use `dim`"""
    return x.softmax(-1)


def softmax__first_axis(x, dim=-1):
    """not the first"""
    return x.softmax(0)


def softmax__largest_of_the_tensor(x, dim=-1):
    """subtract the largest of each row"""
    exps = (x - x.max()).exp()
    return exps / exps.sum(dim=dim, keepdim=True)


def softmax__not_normalised(x, dim=-1):
    """divide by the sum"""
    return x.exp()


def softmax__in_place(x, dim=-1):
    """changes its argument `x` in place"""
    x -= x.amax(dim=dim, keepdim=True)
    return x.exp() / x.exp().sum(dim=dim, keepdim=True)


def softmax__always_float32(x, dim=-1):
    """it must be torch.float64"""
    return x.float().softmax(dim)


def softmax__cut_from_the_graph(x, dim=-1):
    """no gradient passes"""
    return x.detach().softmax(dim)


def softmax__prints(x, dim=-1):
    """an answer must `return`, not print"""
    print(x.softmax(dim))


def _attention(q, k, v, mask, scale, dim=-1):
    scores = q @ k.transpose(-2, -1) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim) @ v


def scaled_dot_product_attention__no_scale(q, k, v, mask=None):
    """not scaled"""
    return _attention(q, k, v, mask, 1.0)


def scaled_dot_product_attention__scale_by_d(q, k, v, mask=None):
    """divide by its square root"""
    return _attention(q, k, v, mask, 1 / q.size(-1))


def scaled_dot_product_attention__scale_by_the_values_width(q, k, v, mask=None):
    """width of the values"""
    return _attention(q, k, v, mask, v.size(-1) ** -0.5)


def scaled_dot_product_attention__scale_by_the_length(q, k, v, mask=None):
    """number of queries"""
    return _attention(q, k, v, mask, q.size(-2) ** -0.5)


def scaled_dot_product_attention__softmax_over_queries(q, k, v, mask=None):
    """take the softmax over the keys"""
    return _attention(q, k, v, mask, q.size(-1) ** -0.5, dim=-2)


def scaled_dot_product_attention__three_dimensions_only(q, k, v, mask=None):
    """it stops with IndexError"""
    scores = q @ k.transpose(1, 2) / q.size(-1) ** 0.5
    return scores.softmax(-1) @ v


def scaled_dot_product_attention__swaps_fixed_axes(q, k, v, mask=None):
    """swap the last two axes"""
    swapped = k.T if k.dim() == 2 else k.transpose(1, 2)
    scores = q @ swapped / q.size(-1) ** 0.5 if k.dim() < 4 else q @ k.mT
    return scores.softmax(-1) @ v


def scaled_dot_product_attention__k_dot_t(q, k, v, mask=None):
    """(line"""
    return (q @ k.T / math.sqrt(q.size(-1))).softmax(-1) @ v


def scaled_dot_product_attention__mask_after_softmax(q, k, v, mask=None):
    """you mask after the softmax"""
    weights = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(-1)
    return (weights if mask is None else weights * mask) @ v


def scaled_dot_product_attention__zero_scores(q, k, v, mask=None):
    """use minus infinity"""
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    return (scores if mask is None else scores * mask).softmax(-1) @ v


def scaled_dot_product_attention__mask_inverted(q, k, v, mask=None):
    """NaN"""
    return _attention(q, k, v, None if mask is None else ~mask, q.size(-1) ** -0.5)


def scaled_dot_product_attention__mask_inverted_safely(q, k, v, mask=None):
    """True is where a query may look"""
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask, -1e9) + 0.0
    return scores.softmax(-1) @ v


def scaled_dot_product_attention__mask_ignored(q, k, v, mask=None):
    """the mask is ignored"""
    return _attention(q, k, v, None, q.size(-1) ** -0.5)


def scaled_dot_product_attention__own_softmax_overflows(q, k, v, mask=None):
    """use the safe softmax"""
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    exps = scores.exp()
    return exps / exps.sum(-1, keepdim=True) @ v


def scaled_dot_product_attention__for_ever(q, k, v, mask=None):
    """loop that never ends"""
    while True:
        q = q + 1


def previous_token_head__looks_ahead(n_positions):
    """it looks at the next token"""
    eye = torch.eye(n_positions)
    return 100 * n_positions * eye.roll(1, dims=1), eye


def previous_token_head__looks_at_itself(n_positions):
    """it looks at itself"""
    eye = torch.eye(n_positions)
    return 100 * n_positions * eye, eye


def previous_token_head__two_back(n_positions):
    """two tokens back"""
    eye = torch.eye(n_positions)
    return 100 * n_positions * eye.roll(-2, dims=1), eye


def previous_token_head__too_soft(n_positions):
    """so that the softmax becomes sharp"""
    eye = torch.eye(n_positions)
    return eye.roll(-1, dims=1), eye


def previous_token_head__always_eight(n_positions):
    """use n_positions"""
    eye = torch.eye(8)
    return 100 * eye.roll(-1, dims=1), eye


def previous_token_head__one_matrix(n_positions):
    """return two matrices"""
    return torch.eye(n_positions).roll(-1, dims=1)
