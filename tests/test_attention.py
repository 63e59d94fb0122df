"""Attention against PyTorch's own, its two paths against each other, and the causal border."""

import pytest
import torch
import torch.nn.functional as F

from course_lib.attention import (
    KVCache,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    scaled_dot_product_attention,
    softmax,
)
from course_lib.positions import rotary_angles


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def twins(n_heads=4, n_kv_heads=4, bias=True):
    """The same layer, fused and plain."""
    layers = [MultiHeadAttention(32, n_heads, n_kv_heads, bias, fused) for fused in (True, False)]
    layers[1].load_state_dict(layers[0].state_dict())
    return layers


def test_softmax_by_hand_and_with_large_numbers():
    log = torch.tensor([1.0, 2.0, 5.0]).log()
    torch.testing.assert_close(softmax(log), torch.tensor([0.125, 0.25, 0.625]))
    torch.testing.assert_close(softmax(log + 1e4), softmax(log), rtol=1e-3, atol=1e-3)
    x = torch.randn(3, 4)
    torch.testing.assert_close(softmax(x, dim=0), torch.softmax(x, 0))


def test_causal_mask_by_hand():
    assert causal_mask(3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_weights_by_hand():
    """Scores ln 3 and 0 give weights 3/4 and 1/4."""
    q = torch.tensor([[2.0, 0.0, 0.0, 0.0]])  # divided by sqrt(4)
    k = torch.tensor([[3.0, 0, 0, 0], [1.0, 0, 0, 0]]).log().nan_to_num(neginf=0.0)
    torch.testing.assert_close(attention_weights(q, k), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize("mask", [None, causal_mask(5)])
def test_equals_torch(mask):
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, mask), expected)


def test_equals_torch_multihead_attention():
    ours = MultiHeadAttention(32, 4, 4, bias=True, fused=False)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(2, 6, 32)
    expected, _ = theirs(x, x, x, attn_mask=~causal_mask(6), need_weights=False)
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_equals_fused_in_outputs_and_gradients(n_kv_heads, masked):
    x = torch.randn(2, 6, 32)
    mask = causal_mask(6).expand(2, 1, 6, 6).clone() if masked else None
    if masked:
        mask[0, :, :, 0] = False  # the first row's query 0 sees nothing
    results = []
    for layer in twins(n_kv_heads=n_kv_heads):
        own = x.clone().requires_grad_()
        out = layer(own, rotary_angles(torch.arange(6), 8), mask)
        (out**2).sum().backward()
        results.append((out, own.grad, layer.qkv.weight.grad, layer.out.bias.grad))
    for fused, plain in zip(*results, strict=True):
        assert fused.isfinite().all()
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_keeps_the_expected_sum(fused):
    """All values are 1, so that the mix is the sum of the weights that are left."""
    layer = MultiHeadAttention(32, 4, 4, fused=fused, dropout=0.25)
    q, k = torch.randn(2, 8, 4, 16, 8)
    mixed = layer._mix(q, k, torch.ones_like(k), None, None)
    assert mixed.mean().item() == pytest.approx(1, abs=0.05)
    first = mixed[:, :, 0]  # one weight of 1: dropped, or grown to 4/3
    assert first.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.15)
    torch.testing.assert_close(
        layer.eval()._mix(q, k, torch.ones_like(k), None, None), torch.ones_like(k)
    )


@pytest.mark.parametrize("fused", [True, False])
def test_kept_weights_are_those_that_mix(fused):
    layer = MultiHeadAttention(32, 4, 2, fused=fused, rope_interleaved=True)
    x, kept = torch.randn(2, 6, 32), []
    angles = rotary_angles(torch.arange(6), 8)
    torch.testing.assert_close(layer(x, angles, keep=kept), layer(x, angles))
    [weights] = kept
    assert weights.shape == (2, 4, 6, 6) and (weights.triu(1) == 0).all()
    values = layer.qkv(x)[..., -16:].view(2, 6, 2, 8).transpose(1, 2).repeat_interleave(2, 1)
    mixed = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.out(mixed), layer(x, angles))


def test_a_row_that_may_look_nowhere_gives_zeros():
    q, k, v = torch.randn(3, 1, 1, 3, 4)
    q.requires_grad_()
    mask = torch.tensor([[True, False, False], [False] * 3, [True] * 3])
    out = scaled_dot_product_attention(q, k, v, mask)
    assert (out[0, 0, 1] == 0).all() and out.isfinite().all()
    assert attention_weights(q, k, mask)[0, 0, 0].tolist() == [1, 0, 0]
    out.sum().backward()
    assert q.grad.isfinite().all()


def test_grouped_heads_equal_repeated_heads():
    grouped = MultiHeadAttention(32, 4, 2, fused=False)
    full = MultiHeadAttention(32, 4, 4, fused=False)
    q, k, v = grouped.qkv.weight.split([32, 16, 16])
    k, v = (w.view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32) for w in (k, v))
    with torch.no_grad():
        full.qkv.weight.copy_(torch.cat((q, k, v)))
        full.out.weight.copy_(grouped.out.weight)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(grouped(x), full(x))


@pytest.mark.parametrize("fused", [True, False])
def test_no_gradient_from_the_future(fused):
    layer = MultiHeadAttention(32, 4, 2, fused=fused)
    x = torch.randn(1, 6, 32, requires_grad=True)
    layer(x)[0, 2].sum().backward()
    reach = x.grad[0].abs().sum(-1)
    assert (reach[:3] > 0).all() and (reach[3:] == 0).all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("cuts", [[1] * 6, [4, 1, 1], [2, 3, 1]])
def test_with_a_cache_equals_without(fused, cuts):
    layer = MultiHeadAttention(32, 4, 2, fused=fused)
    x = torch.randn(2, 6, 32)
    cache, parts, start = KVCache(2, 2, 8, 8, x), [], 0
    for piece in x.split(cuts, dim=1):
        angles = rotary_angles(torch.arange(start, start + piece.size(1)), 8)
        parts.append(layer(piece, angles, cache=cache))
        start += piece.size(1)
    assert cache.length == 6
    whole = layer(x, rotary_angles(torch.arange(6), 8))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
