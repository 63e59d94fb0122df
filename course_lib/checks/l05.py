"""Checks of L05: layer norm, RMS norm, the pre-norm block."""

import torch
import torch.nn.functional as F

from course_lib.checks import Check
from course_lib.checks.tools import close, devices, is_tensor, randn


@Check
def check_layer_norm(fn):
    """Against PyTorch's own; known wrong formulas are named."""
    got = fn(torch.tensor([1.0, 3.0]), torch.ones(2), torch.zeros(2), 0.0)
    is_tensor(got, (2,))
    assert not close(got, torch.tensor([-1.0, 1.0]) / 2**0.5), (
        "the variance is divided by C - 1: divide by C (var(..., correction=0))"
    )
    assert close(got, torch.tensor([-1.0, 1.0])), f"[1, 3] becomes [-1, 1], not {got.tolist()}"
    for shape in ((2, 5, 6), (4, 8), (3, 2, 2, 4)):
        x, C = 3 * randn(len(shape), *shape) + 1, shape[-1]
        weight, bias = randn(1, C) + 2, randn(2, C)
        for eps in (1e-5, 0.5):
            got = fn(x, weight, bias, eps)
            is_tensor(got, shape, x.dtype)
            _explain_layer_norm(got, x, weight, bias, eps)
            want = F.layer_norm(x, (C,), weight, bias, eps)
            assert close(got, want), f"it differs from F.layer_norm for eps={eps:g}"
    flat = torch.full((2, 3), 7.0)
    got = fn(flat, torch.ones(3), torch.ones(3))
    is_tensor(got, (2, 3))
    assert close(got, torch.ones(2, 3)), "equal values become 0, then the bias is added"
    _check_dtypes(lambda x, w: fn(x, w, 0 * w), lambda x, w: F.layer_norm(x, w.shape, w))


def _explain_layer_norm(got, x, weight, bias, eps):
    def normed(dims):
        centred = x - x.mean(dims, keepdim=True)
        return centred / (centred.pow(2).mean(dims, keepdim=True) + eps).sqrt() * weight + bias

    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    for wrong, why in (
        (
            normed(0),
            "you normalise over the batch (axis 0): use the last axis, position by position",
        ),
        (normed(-2), "you normalise over the positions: use the last axis"),
        (
            normed((-2, -1)),
            "you normalise over positions and width at once: use the last axis alone",
        ),
        (normed(tuple(range(x.dim()))), "you normalise the whole tensor: use the last axis"),
        (normed(-1) - bias, "the bias is missing"),
        ((normed(-1) - bias) / weight + bias, "the gain `weight` is missing"),
        ((normed(-1) - bias) / weight, "gain and bias are missing"),
        (centred / (variance + eps) * weight + bias, "divide by the root of the variance"),
        (x / (variance + eps).sqrt() * weight + bias, "the mean is not subtracted"),
        (((normed(-1) - bias) / weight + bias) * weight, "first the gain, then the bias"),
    ):
        assert not close(got, wrong), why
    outside = centred / (variance.sqrt() + eps) * weight + bias
    assert eps < 0.1 or not close(got, outside), (
        "eps stands outside the root: add it to the variance"
    )
    ignored = F.layer_norm(x, weight.shape, weight, bias, 1e-5)
    assert eps < 0.1 or not close(got, ignored), "eps is ignored: use the argument"


def _check_dtypes(ours, theirs):
    """float64 and bfloat16 in, the same out; the gradient passes; every device."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.bfloat16, 0.05)):
        x, weight = randn(5, 3, 16, dtype=dtype), randn(6, 16, dtype=dtype)
        got = ours(x, weight)
        is_tensor(got, x.shape, dtype)
        assert close(got, theirs(x, weight), tolerance), f"digits are lost in {dtype}"
    for device in devices():
        x = randn(7, 2, 8, device=device)
        got = ours(x, torch.ones(8, device=device))
        assert got.device == x.device, "the result must stay on the device of the input"
    x = randn(8, 2, 8).requires_grad_()
    got = ours(x, torch.ones(8))
    assert got.requires_grad, "no gradient passes: stay with tensors, without item() or detach()"
    back = torch.autograd.grad((got * randn(9, 2, 8)).sum(), x)[0]
    want = torch.autograd.grad((theirs(x, torch.ones(8)) * randn(9, 2, 8)).sum(), x)[0]
    assert close(back, want, 1e-4), "the gradient is wrong: mean and variance depend on x, too"


@Check
def check_rms_norm(fn):
    """Against PyTorch's own; known wrong formulas are named."""
    got = fn(torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.ones(4), 0.0)
    is_tensor(got, (4,))
    assert not close(got, torch.tensor([0.6, 0.8, 0.0, 0.0])), (
        "you divide by the length of the vector: divide by the root of the *mean* of the squares"
    )
    assert close(got, torch.tensor([1.2, 1.6, 0.0, 0.0])), (
        "[3, 4, 0, 0] has the root mean square 2.5 and becomes [1.2, 1.6, 0, 0], not "
        f"{got.tolist()}"
    )
    for shape in ((2, 5, 6), (4, 8), (3, 2, 2, 4)):
        x, C = 3 * randn(len(shape), *shape) + 1, shape[-1]
        weight = randn(1, C) + 2
        for eps in (1e-5, 0.5):
            got = fn(x, weight, eps)
            is_tensor(got, shape, x.dtype)
            _explain_rms_norm(got, x, weight, eps)
            want = F.rms_norm(x, (C,), weight, eps)
            assert close(got, want), f"it differs from F.rms_norm for eps={eps:g}"
    zero = fn(torch.zeros(2, 3), torch.ones(3))
    assert not zero.isnan().any(), "zeros give NaN: eps keeps the root away from 0"
    _check_dtypes(fn, lambda x, w: F.rms_norm(x, w.shape, w, 1e-5))


def _explain_rms_norm(got, x, weight, eps):
    def normed(y, dims):
        return y / (y.pow(2).mean(dims, keepdim=True) + eps).sqrt() * weight

    square = x.pow(2).mean(-1, keepdim=True)
    for wrong, why in (
        (normed(x - x.mean(-1, keepdim=True), -1), "the mean is subtracted: that is layer norm"),
        (
            x / (x.var(-1, keepdim=True, correction=0) + eps).sqrt() * weight,
            "you divide by the standard deviation: the squares are taken as they are",
        ),
        (normed(x, 0), "you normalise over the batch (axis 0): use the last axis"),
        (normed(x, -2), "you normalise over the positions: use the last axis"),
        (normed(x, tuple(range(x.dim()))), "you normalise the whole tensor: use the last axis"),
        (normed(x, -1) / weight, "the gain `weight` is missing"),
        (x / (square + eps) * weight, "take the root: you divide by the mean of the squares"),
    ):
        assert not close(got, wrong), why
    outside = x / (square.sqrt() + eps) * weight
    assert eps < 0.1 or not close(got, outside), "eps stands outside the root: add it to the mean"
    ignored = F.rms_norm(x, weight.shape, weight, 1e-5)
    assert eps < 0.1 or not close(got, ignored), "eps is ignored: use the argument"


@Check
def check_pre_norm_block(fn):
    """Parts that can be told apart; every usual wiring mistake gives another number."""
    x = randn(0, 2, 3, 4, dtype=torch.float64)
    w1, w2 = randn(1, 4, 4, dtype=torch.float64), randn(2, 4, 4, dtype=torch.float64)
    calls = []

    def part(name, function):
        def called(y):
            calls.append(name)
            return function(y)

        return called

    parts = {
        "attention": lambda y: y.cumsum(1) @ w1,
        "mlp": lambda y: (y @ w2).relu(),
        "norm1": lambda y: y / (y.pow(2).mean(-1, keepdim=True) + 1).sqrt(),
        "norm2": lambda y: y / (y.abs().mean(-1, keepdim=True) + 2),
    }
    got = fn(x, **{name: part(name, function) for name, function in parts.items()})
    is_tensor(got, x.shape, x.dtype)
    for name in parts:
        assert calls.count(name) > 0, f"{name} is never called"
        assert calls.count(name) == 1, f"{name} is called {calls.count(name)} times: once is enough"
    a, m, n1, n2 = parts.values()
    h = x + a(n1(x))
    for wrong, why in (
        (a(n1(x)) + m(n2(a(n1(x)))), "the stream is lost at the attention: add its output to x"),
        (m(n2(h)), "the stream is lost at the MLP: add its output to what was there"),
        (m(n2(a(n1(x)))), "both additions are missing: each part adds to the stream"),
        (
            n2(n1(x + a(x)) + m(n1(x + a(x)))),
            "that is post-norm: each part must read a normalised "
            "copy, and nothing normalises the stream",
        ),
        (h + m(n2(x)), "the MLP reads the old x: it must read what attention has written"),
        (x + m(n2(h)), "what attention wrote is lost: add the MLP to the new stream"),
        (
            n1(x) + a(n1(x)) + m(n2(n1(x) + a(n1(x)))),
            "the normalised copy is added instead of x: the stream itself stays as it is",
        ),
        (h + m(n1(h)), "norm1 and norm2 are mixed up"),
        (x + a(n2(x)) + m(n1(x + a(n2(x)))), "norm1 belongs to the attention, norm2 to the MLP"),
        (x + m(n1(x)) + a(n2(x + m(n1(x)))), "attention comes first, then the MLP"),
        (x + n1(a(x)) + m(n2(x + n1(a(x)))), "normalise before attention, not its output"),
    ):
        assert not close(got, wrong), why
    assert close(got, h + m(n2(h))), "x = x + attention(norm1(x)), then x = x + mlp(norm2(x))"
