"""Three ways to tell a transformer where a token stands.

`learned` adds a trained vector per position, `sinusoidal` adds a fixed one, `rotary` turns the
queries and keys so that their dot product depends on the distance alone. `none` adds nothing.

Sources: Vaswani et al. 2017, section 3.5 (sinusoidal); Radford et al. 2019 (learned);
Su et al. 2021, section 3.4 (rotary); Chen et al. 2023 (linear scaling).
"""

import torch
from torch import Tensor

POSITIONS = ("learned", "sinusoidal", "rotary", "none")


def sinusoidal_table(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """Sines in the even columns, cosines in the odd ones; returns `(length, width)`.

    Wavelengths grow geometrically from 2*pi to 2*pi*base positions. `width` must be even.
    """
    frequencies = base ** (-torch.arange(0, width, 2) / width)  # (width/2,)
    angles = torch.outer(torch.arange(length).float(), frequencies)  # (length, width/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (length, width)


def rotary_angles(
    positions: Tensor, d_head: int, theta: float = 10_000.0, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation of each pair of dimensions at each position.

    Args:
        positions: integer positions, shape `(T,)` or `(B, T)`.
        d_head: width of a head, even.
        theta: the slowest pair turns once in about `2 * pi * theta` positions.
        scaling: positions are divided by it ("linear scaling", Chen et al. 2023): 2 fits twice
            the trained length into the angles that training has seen.

    Returns:
        Two tensors of shape `positions.shape + (d_head / 2,)`.
    """
    frequencies = theta ** (-torch.arange(0, d_head, 2, device=positions.device) / d_head)
    angles = positions[..., None].float() / scaling * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn each pair of dimensions by its angle; returns the shape of `x`.

    Args:
        x: queries or keys `(B, n_heads, T, d_head)`.
        cos, sin: `(T, d_head / 2)`, or `(B, 1, T, d_head / 2)` for positions by row.
        interleaved: pair dimension `2i` with `2i + 1`, as the paper and Llama's original weights
            do. Otherwise `i` goes with `i + d_head / 2` ("half-split"), as in Hugging Face's
            Llama. Weights trained with one layout are wrong with the other.

    >>> rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(2), torch.ones(2))
    tensor([-3., -4.,  1.,  2.])
    """
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)  # each (..., d_head/2)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
