"""Checks of L03: softmax, scaled dot-product attention, a head set by hand."""

import math

import torch
import torch.nn.functional as F

from course_lib.checks import Check, describe
from course_lib.checks.tools import close, devices, is_tensor, randn


@Check
def check_softmax(fn):
    """Hand values, every axis, large numbers, minus infinity, dtypes, gradients."""
    got = fn(torch.tensor([0.0, math.log(3.0)]))
    is_tensor(got, (2,))
    assert not close(got, torch.tensor([1.0, 3.0])), "divide by the sum, so that it is 1"
    assert close(got, torch.tensor([0.25, 0.75])), (
        f"softmax of [0, ln 3] is [1/4, 3/4], not {got.tolist()}"
    )
    x = randn(0, 3, 5)
    got = fn(x)
    is_tensor(got, (3, 5), x.dtype)
    assert not close(got, x.exp() / x.exp().sum()), (
        "the whole tensor sums to 1: each row must, so sum along `dim` alone"
    )
    assert not close(got, x.softmax(0)), "by default the last axis sums to 1, not the first"
    assert close(got, x.softmax(-1)), "the rows of a matrix are wrong: sum along `dim`"
    x = randn(1, 2, 3, 4)
    for dim in (0, 1, 2, -1, -2):
        got = fn(x, dim)
        is_tensor(got, x.shape, x.dtype)
        assert close(got, x.softmax(dim)), f"with dim={dim} another axis sums to 1: use `dim`"
    _check_large_scores(fn)
    for device in devices():
        x = randn(2, 4, 6, device=device)
        is_tensor(fn(x), x.shape, x.dtype)
        assert fn(x).device == x.device, "the result must stay on the device of the input"
    x = randn(3, 7, dtype=torch.float64)
    is_tensor(fn(x), (7,), torch.float64)
    assert close(fn(x), x.softmax(-1), 1e-12), "in float64 digits are lost: keep the dtype"
    x.requires_grad_()
    assert fn(x).requires_grad, "no gradient passes: stay with tensors, without item() or detach()"


def _check_large_scores(fn):
    """Inputs for which `exp` overflows or underflows."""
    for shift in (1000.0, -1000.0):
        got = fn(torch.tensor([0.0, 1.0]) + shift)
        assert not got.isnan().any(), (
            f"NaN for inputs near {shift:g}: exp overflows or underflows. Subtract the largest "
            "first"
        )
        assert close(got, torch.tensor([0.0, 1.0]).softmax(0), 1e-4), "adding 1000 changes nothing"
    far = torch.tensor([[0.0, 1000.0, 0.0], [0.0, 0.0, 0.0]])
    got = fn(far)
    assert not got.isnan().any(), (
        "NaN where two rows differ by 1000: subtract the largest of each row, not of the tensor"
    )
    assert close(got[1], torch.full((3,), 1 / 3)), "subtract the largest of each row, along `dim`"
    got = fn(torch.tensor([[-2000.0, -2000.0], [0.0, 1.0]]))
    assert not got.isnan().any() and close(got[0], torch.full((2,), 0.5)), (
        "NaN in a row far below another: subtract the largest of each row, not of the tensor"
    )
    got = fn(torch.tensor([0.0, -torch.inf]))
    assert close(got, torch.tensor([1.0, 0.0])), "minus infinity must get weight 0"


@Check
def check_scaled_dot_product_attention(fn):
    """Against PyTorch's own, over shapes, masks and dtypes; hand values first."""
    v = torch.tensor([[1.0], [3.0]])
    got = fn(torch.zeros(1, 4), randn(0, 2, 4), v)
    is_tensor(got, (1, 1))
    assert close(got, torch.tensor([[2.0]])), (
        f"equal scores give the plain mean of the values, 2, not {got.item():.4g}: "
        f"take the softmax over the keys"
    )
    q, k, v = randn(1, 5, 16), randn(2, 7, 16), randn(3, 7, 4)
    got = fn(q, k, v)
    is_tensor(got, (5, 4), q.dtype)
    scores = q @ k.T
    for wrong, why in (
        (scores.softmax(-1) @ v, "the scores are not scaled: divide by the root of d"),
        ((scores / 16).softmax(-1) @ v, "you divide by d: divide by its square root"),
        ((scores * 4).softmax(-1) @ v, "you multiply by the root of d: divide"),
        ((scores / 2).softmax(-1) @ v, "you scale by the width of the values: use that of q and k"),
        (
            (scores / 7**0.5).softmax(-1) @ v,
            "you scale by the number of keys: use the width d of q",
        ),
        ((scores / 5**0.5).softmax(-1) @ v, "you scale by the number of queries: use the width d"),
    ):
        assert not close(got, wrong), why
    assert close(got, F.scaled_dot_product_attention(q, k, v)), "it differs from PyTorch's own"
    for shape in ((2,), (2, 3), (1, 2, 2)):
        q, k, v = randn(4, *shape, 5, 8), randn(5, *shape, 6, 8), randn(6, *shape, 6, 3)
        got = fn(q, k, v)
        is_tensor(got, (*shape, 5, 3))
        assert close(got, F.scaled_dot_product_attention(q, k, v)), (
            f"wrong with leading dimensions {shape}: swap the last two axes, transpose(-2, -1)"
        )
    _check_mask(fn)
    q, k, v = (randn(seed, 2, 3, 4, dtype=torch.float64) for seed in (12, 13, 14))
    is_tensor(fn(q, k, v), (2, 3, 4), torch.float64)
    assert close(fn(q, k, v), F.scaled_dot_product_attention(q, k, v), 1e-12), "digits are lost"
    big = 60 * randn(15, 1, 4, 8)
    assert not fn(big, big, big).isnan().any(), "NaN for large scores: use the safe softmax"


def _check_mask(fn):
    """Masks, of full shape and broadcast: True means "may look"."""
    T = 5
    q, k, v = (randn(seed, 2, 3, T, 8) for seed in (7, 8, 9))
    mask = torch.ones(T, T).tril().bool()
    got = fn(q, k, v, mask)
    is_tensor(got, q.shape)
    weights = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
    assert not close(got, weights @ v), "the mask is ignored"
    assert not close(got, weights * mask @ v), (
        "you mask after the softmax: the rows no longer sum to 1. Mask the scores, before it"
    )
    assert not close(got[..., 0, :], v.mean(-2)), "a masked score must be minus infinity, not 0"
    zeroed = (q @ k.transpose(-2, -1) / 8**0.5 * mask).softmax(-1) @ v
    assert not close(got, zeroed), "a score of 0 is no mask, exp(0) is 1: use minus infinity"
    assert not close(got[..., -1, :], torch.zeros(2, 3, 8)), (
        "the mask is upside down: True may look"
    )
    assert close(got, F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), (
        "wrong under the causal mask: True is where a query may look, False becomes minus infinity"
    )
    mask = randn(10, 2, 1, T, T) > 0
    mask |= torch.eye(T, dtype=torch.bool)
    assert close(fn(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)), (
        "a mask (B, 1, T, T), the same for every head, is applied wrongly: let it broadcast"
    )


@Check
def check_previous_token_head(fn):
    """The weights that the two matrices give, for several lengths."""
    for n in (8, 3, 20, 2):
        got = fn(n)
        assert isinstance(got, tuple | list) and len(got) == 2, (
            f"it returns {describe(got)}: return two matrices, w_q and w_k"
        )
        w_q, w_k = got
        for w in got:
            assert isinstance(w, torch.Tensor), f"w_q and w_k are tensors, this is {describe(w)}"
            assert w.dim() == 2 and len(w) == n, (
                f"for {n} positions the matrices have {n} rows, not shape {tuple(w.shape)}: "
                f"use n_positions, not a fixed number"
            )
        assert w_q.shape == w_k.shape, "w_q and w_k need the same width d"
        scores = w_q.double() @ w_k.double().T / w_q.size(1) ** 0.5
        causal = torch.ones(n, n).tril().bool()
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        assert not weights.isnan().any(), "the scores hold NaN or infinity: large is enough"
        rows = torch.arange(1, n)
        least = weights[rows, rows - 1].min().item()
        if least > 0.99:
            continue
        best = scores.argmax(-1)
        assert not (best[:-1] == rows).all(), (
            "it looks at the next token, which the causal mask hides: turn the shift round"
        )
        assert not (best == torch.arange(n)).all(), "it looks at itself: shift w_q against w_k by 1"
        assert n < 4 or not (best[2:] == torch.arange(n - 2)).all(), (
            "it looks two tokens back: shift by 1"
        )
        assert not (best[1:] == rows - 1).all(), (
            f"it looks at the right token, but with weight {least:.3f} only: multiply by a large "
            f"number, so that the softmax becomes sharp"
        )
        raise AssertionError(f"a position puts only {least:.3f} of its weight on the one before")
