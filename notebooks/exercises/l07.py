"""L07 Assembling the GPT: write each function, then run `pytest tests/exercises -k L07`.

In a notebook: `from course_lib.checks.l07 import check_block`, then `check_block(block)`.
"""

import torch


def mlp(x, w_up, w_down):
    """The feed-forward layer of modern models, SwiGLU.
    Easy, 10 minutes.

    x: (B, T, C). w_up: (2 d_ff, C), the gate's rows first, then the
    value's; w_down: (C, d_ff); both as nn.Linear keeps them,
    y = x @ w.T. Returns (silu(gate) * value) narrowed to (B, T, C).

    >>> one = torch.ones(1, 1, 1)
    >>> mlp(one, torch.tensor([[1.0], [2.0]]), one[0])
    tensor([[[1.4621]]])
    """
    raise NotImplementedError


def block(x, weights, n_heads):
    """A whole transformer block from its weights. Hard, 25 minutes.

    x: (B, T, C). weights: what block.state_dict() of course_lib
    holds (bias-free, RMS norm with eps 1e-5, no rotary positions):
    "norm1.weight" and "norm2.weight" (C,), "attention.qkv.weight"
    (3 C, C) with the rows of q, k, v in this order,
    "attention.out.weight" (C, C), "mlp.up.weight" (2 d_ff, C),
    "mlp.down.weight" (C, d_ff). Pre-norm, causal. Returns
    (B, T, C).

    >>> block(torch.randn(2, 5, 16), layer.state_dict(), n_heads=4).shape
    torch.Size([2, 5, 16])
    """
    raise NotImplementedError


def next_token_loss(model, idx):
    """Train on every position at once. Easy, 10 minutes.

    model: a function from ids (B, T) to logits (B, T, V). idx: ids
    (B, T + 1). Every token but the first is a target, predicted
    from those before it. Returns the mean loss in nats, a tensor
    with no dimensions. F.cross_entropy is allowed.

    >>> flat = lambda idx: torch.zeros(*idx.shape, 8)
    >>> next_token_loss(flat, torch.tensor([[1, 5, 2]]))    # ln 8
    tensor(2.0794)
    """
    raise NotImplementedError


def count_parameters(model):
    """Where do the parameters sit? Medium, 10 minutes.

    model: an nn.Module. Returns a dict from the name of each direct
    child (and of each parameter that belongs to the model itself)
    to its number of trained values. A tensor that is used twice
    counts once, where it comes first. Buffers do not count.

    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    >>> count_parameters(model)
    {'0': 9, '1': 0}
    """
    raise NotImplementedError
