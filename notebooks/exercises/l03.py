"""L03 Attention: write each function, then run `pytest tests/exercises -k L03`.

In a notebook: `from course_lib.checks.l03 import check_softmax`, then `check_softmax(softmax)`.
"""

import torch


def softmax(x, dim=-1):
    """Exponentials that sum to one along `dim`, safe for large
    inputs. Easy, 10 minutes.

    x: floats of any shape. Returns the same shape and dtype. Do not
    call PyTorch's softmax.

    >>> softmax(torch.tensor([0.0, 0.0, 0.0, 0.0]))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    raise NotImplementedError


def scaled_dot_product_attention(q, k, v, mask=None):
    """Mix the values by how well each query matches each key.
    Medium, 20 minutes.

    q: (..., T, d); k: (..., S, d); v: (..., S, d_v), with any
    number of leading dimensions. mask: fits (..., T, S), True where
    a query may look. Returns (..., T, d_v).

    >>> v = torch.tensor([[1.0], [3.0]])      # zero scores: the plain mean
    >>> scaled_dot_product_attention(torch.zeros(1, 4), torch.ones(2, 4), v)
    tensor([[2.]])
    """
    raise NotImplementedError


def previous_token_head(n_positions):
    """Set a head by hand that looks at the token before.
    Hard, 20 minutes.

    Position t comes as row t of x = torch.eye(n_positions). Return
    two matrices w_q, w_k, both (n_positions, d), for q = x @ w_q
    and k = x @ w_k. With the causal mask, scaled scores and
    softmax, position t >= 1 must put more than 0.99 of its weight
    on t - 1.

    >>> w_q, w_k = previous_token_head(8)
    """
    raise NotImplementedError
