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


def test_interleaved_rotation_by_hand_and_against_gptj():
    x = torch.tensor([[[[1.0, 2.0, 0.0, 0.0]]]])
    cos, sin = torch.zeros(1, 2), torch.ones(1, 2)
    assert rotate(x, cos, sin, interleaved=True).tolist() == [[[[-2.0, 1.0, 0.0, 0.0]]]]
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8)  # theirs: (B, T, n_heads, d_head)
    sin, cos = gptj.create_sinusoidal_positions(5, 8).chunk(2, dim=-1)
    expected = gptj.apply_rotary_pos_emb(x, sin[None], cos[None]).transpose(1, 2)
    angles = rotary_angles(torch.arange(5), 8)
    torch.testing.assert_close(rotate(x.transpose(1, 2), *angles, interleaved=True), expected)


def test_the_two_layouts_differ_by_the_order_of_dimensions():
    torch.manual_seed(0)
    x, angles = torch.randn(1, 2, 5, 8), rotary_angles(torch.arange(5), 8)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    interleaved = rotate(x, *angles, interleaved=True)
    torch.testing.assert_close(interleaved[..., order], rotate(x[..., order], *angles))
    assert not torch.allclose(interleaved, rotate(x, *angles))


def test_theta_and_scaling_by_hand():
    cos, _ = rotary_angles(torch.tensor([6]), 4, theta=100.0, scaling=2.0)
    expected = [math.cos(3), math.cos(3 / 10)]  # 100 ** (-2 / 4) = 1 / 10
    torch.testing.assert_close(cos[0], torch.tensor(expected))


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
