"""The written-out optimiser parts against PyTorch's own, step by step, and the schedule."""

import itertools
import math

import pytest
import torch
from torch.optim import _muon as torch_muon

from course_lib.optim import (
    AdamState,
    adamw_step,
    clip_grad_norm,
    muon_step,
    newton_schulz,
    rate_share,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_first_adam_step_by_hand():
    """Corrected means make the first step `learning_rate` against the sign of the gradient."""
    weight, gradient = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([5.0, -0.001, 0.0])
    state = AdamState.zeros_like(weight)
    adamw_step(weight, gradient, state, learning_rate=0.5, weight_decay=0.2)
    torch.testing.assert_close(weight, torch.tensor([1.3, 2.3, 1.8]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.mean, 0.1 * gradient)
    torch.testing.assert_close(state.square, 0.05 * gradient**2)
    assert state.steps == 1


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_equals_torch(decay):
    ours = torch.randn(5, 7)
    theirs = ours.clone()
    settings = {"betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": decay}
    optimizer = torch.optim.AdamW([theirs], lr=1.0, **settings)
    state = AdamState.zeros_like(ours)
    for step in range(20):
        rate = 0.1 / (1 + step)
        theirs.grad = torch.randn(5, 7) * 3**-step  # soon near eps, so that its place matters
        adamw_step(ours, theirs.grad, state, rate, **settings)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        torch.testing.assert_close(ours, theirs)


SHAPES = pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])


@SHAPES
def test_newton_schulz_equals_torch(shape):
    """Theirs rounds to bfloat16 on the way."""
    matrix = torch.randn(shape)
    theirs = torch_muon._zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert (newton_schulz(matrix) - theirs).norm() < 0.03 * theirs.norm()


@SHAPES
def test_muon_equals_torch(shape, monkeypatch):
    """Around the same Newton-Schulz steps, in full precision, the rest must be equal."""
    monkeypatch.setattr(torch_muon, "_zeropower_via_newtonschulz", lambda m, *_: newton_schulz(m))
    ours = torch.randn(shape)
    theirs = ours.clone()
    settings = {"weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"}
    optimizer = torch.optim.Muon([theirs], lr=0.1, **settings)
    momentum = torch.zeros(shape)
    for _ in range(5):
        theirs.grad = torch.randn(shape)
        muon_step(ours, theirs.grad, momentum, learning_rate=0.1, weight_decay=0.3)
        optimizer.step()
        torch.testing.assert_close(ours, theirs)


@SHAPES
def test_newton_schulz_evens_out_the_singular_values(shape):
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    before = torch.logspace(0, -1.5, len(values))
    evened = newton_schulz(left * before @ right)
    core = left.T @ evened @ right.T  # the directions stay: in their basis it is diagonal
    torch.testing.assert_close(core, core.diag().diag(), rtol=0, atol=1e-4)
    assert core.diag().min() > 0.5 and core.diag().max() < 1.3
    torch.testing.assert_close(
        newton_schulz(1e4 * left * before @ right), evened, rtol=1e-3, atol=1e-4
    )


def test_newton_schulz_step_by_hand():
    """One step on a diagonal matrix of norm 1 is the quintic on each entry."""
    s = torch.tensor([0.6, 0.8])
    expected = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(newton_schulz(s.diag(), steps=1), expected.diag())


def test_muon_moves_as_far_as_adamw_does():
    weight, gradient = torch.zeros(64, 256), torch.randn(64, 256)
    muon_step(weight, gradient, torch.zeros(64, 256), learning_rate=1.0)
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_torch(max_norm):
    shapes = [(3, 4), (5,), ()]
    ours, theirs = ([torch.zeros(s, requires_grad=True) for s in shapes] for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    unused = torch.zeros(2, requires_grad=True)
    norm = clip_grad_norm(iter([*ours, unused]), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    after = torch.cat([p.grad.flatten() for p in ours]).norm().item()
    assert after == pytest.approx(min(max_norm, norm.item()), rel=1e-4)


def test_the_schedule_at_its_borders():
    share = [rate_share(step, 100, 10, 0.05) for step in range(100)]
    assert share[0] == 0.1 and share[8] == pytest.approx(0.9)
    assert share[9] == share[10] == 1
    assert share[99] == pytest.approx(0.05)
    middle = (rate_share(54, 100, 10, 0.05) + rate_share(55, 100, 10, 0.05)) / 2
    assert middle == pytest.approx((1 + 0.05) / 2)
    assert all(a <= b for a, b in itertools.pairwise(share[:10]))
    assert all(a >= b for a, b in itertools.pairwise(share[10:]))


def test_short_schedules_stay_in_range():
    for steps, warmup in ((1, 0), (1, 20), (21, 20), (2, 1)):
        assert all(0 < rate_share(step, steps, warmup, 0.05) <= 1 for step in range(steps))


def test_no_gradient_has_no_norm():
    assert clip_grad_norm([torch.zeros(2, requires_grad=True)], 1.0) == 0


def test_the_schedule_equals_torch():
    """Warm-up and cosine of PyTorch, chained; theirs counts the warm-up's end once."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 10, 1.0, total_iters=9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 89, eta_min=0.05)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [10])
    for step in range(100):
        assert math.isclose(
            optimizer.param_groups[0]["lr"], rate_share(step, 100, 10, 0.05), rel_tol=1e-6
        ), step
        optimizer.step()
        both.step()
