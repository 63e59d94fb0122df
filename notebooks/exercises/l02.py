"""L02 Embeddings and positions: write each function, then run `pytest tests/exercises -k L02`.

In a notebook: `from course_lib.checks.l02 import check_lookup`, then `check_lookup(lookup)`.
"""

import torch


def lookup(table, idx):
    """Look up token vectors by a matrix product with one-hot rows.
    Easy, 10 minutes.

    table: floats (V, C). idx: ids of any shape, such as (B, T).
    Returns (B, T, C). Do not index the table: the point is that a
    lookup is a linear map.

    >>> table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> lookup(table, torch.tensor([1, 1, 0]))
    tensor([[3., 4.],
            [3., 4.],
            [1., 2.]])
    """
    raise NotImplementedError


def sinusoidal_table(length, width, base=10_000.0):
    """The fixed position vectors of the 2017 transformer.
    Medium, 15 minutes.

    Returns (length, width), width even. With
    f_i = base ** (-2 i / width), column 2 i holds sin(t * f_i) and
    column 2 i + 1 holds cos(t * f_i), for positions t = 0, 1, ...

    >>> sinusoidal_table(2, 4, base=100.0)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0998, 0.9950]])
    """
    raise NotImplementedError


def rotate(x, cos, sin):
    """Turn each pair of dimensions by its angle, half-split layout.
    Medium, 15 minutes.

    x: (B, n_heads, T, d), d even. cos, sin: of the angles,
    (T, d / 2) or (B, 1, T, d / 2). Dimension i turns with dimension
    i + d / 2: (a, b) -> (a cos - b sin, b cos + a sin).

    >>> cos, sin = torch.zeros(1, 1), torch.ones(1, 1)    # 90 degrees
    >>> rotate(torch.tensor([[[[1.0, 0.0]]]]), cos, sin)
    tensor([[[[0., 1.]]]])
    """
    raise NotImplementedError
