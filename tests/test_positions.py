"""Positions: the tables by hand, and the one property that rotary is made for."""

import math

import pytest
import torch

from course_lib.positions import rotary_angles, rotate, sinusoidal_table


def test_sinusoidal_table_by_hand():
    table = sinusoidal_table(3, 4)
    assert table.shape == (3, 4)
    slow = 10_000 ** (-2 / 4)
    for t in range(3):
        row = [math.sin(t), math.cos(t), math.sin(t * slow), math.cos(t * slow)]
        torch.testing.assert_close(table[t], torch.tensor(row))


def test_rotating_by_hand():
    """A quarter turn takes (1, 0) to (0, 1); dimension i turns together with i + d_head / 2."""
    x = torch.tensor([[[[1.0, 2.0, 0.0, 0.0]]]])
    cos, sin = torch.zeros(1, 2), torch.ones(1, 2)
    assert rotate(x, cos, sin).tolist() == [[[[0.0, 0.0, 1.0, 2.0]]]]


def test_position_zero_does_not_turn_and_lengths_stay():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 8)
    turned = rotate(x, *rotary_angles(torch.arange(5), 8))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[:, :, 1], x[:, :, 1])


@pytest.mark.parametrize("shift", [1, 7, 100])
def test_rotary_scores_depend_on_the_distance_alone(shift):
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(m, n):
        turned_q = rotate(q, *rotary_angles(torch.tensor([m]), 8))
        turned_k = rotate(k, *rotary_angles(torch.tensor([n]), 8))
        return (turned_q * turned_k).sum()

    torch.testing.assert_close(score(3 + shift, 1 + shift), score(3, 1), rtol=1e-4, atol=1e-5)
    assert (score(3, 1) - score(4, 1)).abs() > 1e-3


def test_positions_by_row():
    rows = torch.tensor([[0, 1, 2], [5, 6, 7]])
    cos, sin = rotary_angles(rows, 4)
    assert cos.shape == sin.shape == (2, 3, 2)
    torch.testing.assert_close(cos[1], rotary_angles(rows[1], 4)[0])
