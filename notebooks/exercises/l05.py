"""L05 Normalization: write each function, then run `pytest tests/exercises -k L05`.

In a notebook: `from course_lib.checks.l05 import check_rms_norm`, then `check_rms_norm(rms_norm)`.
"""

import torch


def layer_norm(x, weight, bias, eps=1e-5):
    """Mean 0 and variance 1 at every position, then gain and bias.
    Easy, 10 minutes.

    x: (..., C). weight, bias: (C,). Returns the shape of x: with
    the mean and the variance (divided by C) of the last axis,
    (x - mean) / sqrt(variance + eps) * weight + bias. Do not call
    PyTorch's layer norm.

    >>> one, zero = torch.ones(2), torch.zeros(2)
    >>> layer_norm(torch.tensor([1.0, 3.0]), one, zero, eps=0.0)
    tensor([-1.,  1.])
    """
    raise NotImplementedError


def rms_norm(x, weight, eps=1e-5):
    """Root mean square 1 at every position, then a gain.
    Easy, 5 minutes.

    x: (..., C). weight: (C,). Returns
    x / sqrt(mean of squares + eps) * weight, the mean over the last
    axis. Nothing is subtracted. Do not call PyTorch's RMS norm.

    >>> rms_norm(torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.ones(4), eps=0.0)
    tensor([1.2000, 1.6000, 0.0000, 0.0000])
    """
    raise NotImplementedError


def pre_norm_block(x, attention, mlp, norm1, norm2):
    """One transformer block with its two residual additions.
    Medium, 10 minutes.

    x: (B, T, C). The other four are functions from (B, T, C) to
    (B, T, C). Each part reads a normalised copy of the stream and
    adds to the stream; the MLP reads what attention wrote.

    >>> half = lambda x: x / 2
    >>> x = torch.tensor([[[4.0]]])    # becomes 5, then 6.25
    >>> pre_norm_block(x, half, half, half, half)
    tensor([[[6.2500]]])
    """
    raise NotImplementedError
