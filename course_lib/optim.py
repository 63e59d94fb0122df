"""The optimiser's parts written out: AdamW, Muon, clipping of the gradient norm, the schedule.

This is the file to read. The training loop takes its schedule from here; its optimisers and its
clipping are PyTorch's, which compute the same steps faster (the tests hold the two equal).

Sources: Kingma and Ba 2015 (Adam); Loshchilov and Hutter 2019 (decoupled weight decay);
Pascanu et al. 2013 (clipping); Loshchilov and Hutter 2017 (cosine); Jordan et al. 2024 (Muon);
Liu et al. 2025 (Muon's step at AdamW's scale).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class AdamState:
    """What Adam remembers of one parameter: running means of the gradient and of its square."""

    mean: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def zeros_like(cls, parameter: Tensor) -> "AdamState":
        """The state before the first step."""
        return cls(torch.zeros_like(parameter), torch.zeros_like(parameter))


@torch.no_grad()
def adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    state: AdamState,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> None:
    """Move one parameter, of any shape, in place; `state` is updated too.

    Both means start at zero and are too small at first: dividing by `1 - beta ** steps` corrects
    that. The decay acts on the weight itself. Added to the gradient instead, it would be divided
    by the root too, and would hardly touch weights with large gradients.
    """
    state.steps += 1
    state.mean.lerp_(gradient, 1 - betas[0])
    state.square.lerp_(gradient**2, 1 - betas[1])
    mean = state.mean / (1 - betas[0] ** state.steps)
    square = state.square / (1 - betas[1] ** state.steps)
    parameter.mul_(1 - learning_rate * weight_decay)
    parameter.sub_(learning_rate * mean / (square.sqrt() + eps))


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """Push every singular value of a matrix towards 1, with matrix products alone.

    With `matrix = U diag(s) V^T` the result is about `U V^T`, the nearest orthogonal matrix. Each
    step maps `s` to `3.4445 s - 4.7750 s^3 + 2.0315 s^5`: steep at zero, so that five steps lift
    all but the tiniest values into about 0.7 to 1.2. Muon asks for no more. `(m, n)` in and out.
    """
    if matrix.size(0) > matrix.size(1):
        return newton_schulz(matrix.T, steps).T  # the smaller Gram matrix
    x = matrix / matrix.norm().clamp(min=1e-7)  # all singular values are now at most 1
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@torch.no_grad()
def muon_step(
    parameter: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    learning_rate: float,
    beta: float = 0.95,
    weight_decay: float = 0.1,
) -> None:
    """Move one matrix `(m, n)` in place, equally far in every direction; `momentum` is updated too.

    The momentum of a matrix is dominated by a few directions. Muon keeps the directions and drops
    their sizes (PyTorch runs `newton_schulz` in bfloat16, which is a few percent off and enough).
    The factor gives entries of about 0.2 root mean square, the size of AdamW's usual steps, so
    that both can share a learning rate.
    """
    momentum.lerp_(gradient, 1 - beta)
    ahead = gradient.lerp(momentum, beta)  # Nesterov: the momentum as it will be a step later
    parameter.mul_(1 - learning_rate * weight_decay)
    parameter.sub_(learning_rate * 0.2 * math.sqrt(max(parameter.shape)) * newton_schulz(ahead))


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Shrink all gradients, in place, to a joint norm of at most `max_norm`.

    One factor for all keeps the direction of the step. Parameters without a gradient are passed
    over.

    Returns:
        The norm before clipping, a number. Where it is not finite the gradients are lost: look at
        it before the optimiser steps.

    Source: Pascanu et al. 2013, section 3.2.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    for gradient in gradients:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
    return norm


def rate_share(step: int, steps: int, warmup: int, final_share: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine.

    Steps count from 0. The first step already moves (share `1 / warmup`), the last of the warm-up
    is at the peak, and the last of all, `steps - 1`, has `final_share`.

    >>> [round(rate_share(step, 6, 2, 0.1), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.775, 0.325, 0.1]
    """
    if step < warmup:
        return (step + 1) / warmup
    turn = math.pi * (step - warmup) / max(1, steps - 1 - warmup)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(turn))
