"""Norms against PyTorch's, the feed-forward layer by its formula, and what a block adds."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_lib.attention import causal_mask
from course_lib.gpt import GPTConfig
from course_lib.layers import ACTIVATIONS, MLP, Block, LayerNorm, RMSNorm, make_norm


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_norms_by_hand():
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]])  # mean square 25 / 4
    torch.testing.assert_close(RMSNorm(4)(x), x / 2.5, rtol=1e-4, atol=1e-5)
    y = torch.tensor([[1.0, 3.0]])  # mean 2, variance 1
    torch.testing.assert_close(LayerNorm(2)(y), torch.tensor([[-1.0, 1.0]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm_equals_torch(bias):
    ours, theirs = LayerNorm(8, bias), torch.nn.LayerNorm(8, bias=bias)
    for layer in (ours, theirs):
        torch.manual_seed(1)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
    x = 5 + torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_rmsnorm_equals_torch():
    ours, theirs = RMSNorm(8), torch.nn.RMSNorm(8, eps=1e-5)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = 5 + torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def gelu_by_tanh(x):
    """Hendrycks and Gimpel 2016, section 2."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_the_two_gelus_differ_a_little():
    x = torch.linspace(-4, 4, 100)
    assert 1e-4 < (gelu_by_tanh(x) - F.gelu(x)).abs().max() < 1e-3


def test_mlp_by_its_formula():
    x = torch.randn(2, 3, 8)
    bends = {"gelu": F.gelu, "relu": F.relu, "gelu_tanh": gelu_by_tanh}
    assert {*bends, "swiglu"} == set(ACTIVATIONS)
    for activation, bend in bends.items():
        mlp = MLP(8, 32, activation, bias=True)
        expected = bend(x @ mlp.up.weight.T + mlp.up.bias) @ mlp.down.weight.T + mlp.down.bias
        torch.testing.assert_close(mlp(x), expected)
    mlp = MLP(8, 24)
    gate, value = (x @ mlp.up.weight.T).split(24, dim=-1)
    expected = (gate * torch.sigmoid(gate) * value) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected)


def test_a_block_adds_to_the_stream():
    """With both writing matrices at zero a block changes nothing: norms act on copies only."""
    block = Block(GPTConfig(10, d_model=16, n_heads=2))
    x = 3 + torch.randn(2, 4, 16)
    assert not torch.allclose(block(x), x)
    torch.nn.init.zeros_(block.attention.out.weight)
    torch.nn.init.zeros_(block.mlp.down.weight)
    assert torch.equal(block(x), x)


def test_post_norm_equals_torch():
    """The encoder layer of PyTorch is the original block: post-norm, with biases and ReLU."""
    config = GPTConfig(
        *(10, 8, 16, 1, 2),
        **{"d_ff": 24, "norm": "layernorm", "norm_position": "post", "activation": "relu"},
        **{"bias": True, "positions": "none"},
    )
    ours = Block(config)
    theirs = torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    names = {
        **{"norm1": "norm1", "norm2": "norm2", "mlp.up": "linear1", "mlp.down": "linear2"},
        "attention.out": "self_attn.out_proj",
    }
    state = ours.state_dict()
    for own, other in names.items():
        for part in ("weight", "bias"):
            state[f"{other}.{part}"] = torch.randn_like(state.pop(f"{own}.{part}"))
            ours.get_parameter(f"{own}.{part}").data.copy_(state[f"{other}.{part}"])
    for part in ("weight", "bias"):
        state[f"self_attn.in_proj_{part}"] = state.pop(f"attention.qkv.{part}")
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 16)
    expected = theirs(x, src_mask=~causal_mask(5), is_causal=True)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


def test_make_norm():
    assert make_norm(GPTConfig(10, norm_eps=0.5)).eps == 0.5
    assert make_norm(GPTConfig(10, norm="layernorm", norm_eps=0.5)).eps == 0.5
    assert isinstance(make_norm(GPTConfig(10)), RMSNorm)
    norm = make_norm(GPTConfig(10, norm="layernorm", bias=True))
    assert isinstance(norm, LayerNorm) and norm.bias is not None
