"""The GPT: initialisation, cache, trace, variants, bad configs. Parity is in `parity/`."""

import math
import shutil

import pytest
import torch

from course_lib.errors import CourseError
from course_lib.gpt import GPT, GPTConfig
from course_lib.positions import POSITIONS
from course_lib.train import cross_entropy


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_loss_starts_near_that_of_guessing(positions):
    torch.manual_seed(0)
    model = GPT(GPTConfig(512, d_model=32, n_heads=2, positions=positions))
    idx, targets = torch.randint(512, (2, 4, 32))
    assert abs(cross_entropy(model(idx), targets).item() - math.log(512)) < 0.05


def test_initialisation(make_model):
    model = make_model(400, d_model=64, n_layers=8)
    stds = {name: p.std().item() for name, p in model.named_parameters() if p.dim() > 1}
    for name, std in stds.items():
        writes = "attention.out" in name or "mlp.down" in name
        assert std == pytest.approx(0.02 / 4 if writes else 0.02, rel=0.05), name


VARIANTS = [
    *({"positions": p} for p in POSITIONS),
    {"rope_interleaved": True, "rope_theta": 100.0, "rope_scaling": 2.0},
    {"norm_position": "post", "norm": "layernorm", "bias": True, "activation": "gelu_tanh"},
    {"tie_embeddings": False, "activation": "relu", "d_ff": 24},
    {"fused": False, "n_heads": 4},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c))
@pytest.mark.parametrize("cuts", [[1] * 10, [7, 1, 2]])
def test_cached_equals_uncached(make_model, changes, cuts):
    model = make_model(**changes, n_kv_heads=1)
    idx = torch.randint(40, (2, 10))
    caches = model.new_caches(2)
    parts = [model(piece, caches=caches) for piece in idx.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(idx))


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c))
def test_no_gradient_from_the_future(make_model, changes):
    model = make_model(**changes)
    states = []
    model.embedding.register_forward_hook(lambda _m, _i, out: states.append(out) or out)
    logits = model(torch.arange(8)[None])
    states[0].retain_grad()
    logits[0, 4].sum().backward()
    reach = states[0].grad[0].abs().sum(-1)
    assert (reach[:5] > 0).all() and (reach[5:] == 0).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_order_matters_only_where_there_are_positions(make_model, positions):
    """One layer without positions sees a bag of tokens."""
    model = make_model(positions=positions, n_layers=1)
    for parameter in model.parameters():
        parameter.data.mul_(20 if parameter.dim() > 1 else 1)
    a, b = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert torch.allclose(a[:, -1], b[:, -1], atol=1e-4) == (positions == "none")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_equals_plain(make_model):
    """`model.compile()` is optional: the same numbers, and the names of the weights stay."""
    plain, compiled = make_model(), make_model()
    compiled.compile()
    idx, targets = torch.randint(40, (2, 4, 16))
    logits = [model(idx) for model in (plain, compiled)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
    for scores in logits:
        cross_entropy(scores, targets).backward()
    theirs = dict(compiled.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_default_sizes():
    config = GPTConfig(100, d_model=96, n_heads=4)
    assert (config.n_kv_heads, config.d_ff, config.d_head) == (4, 256, 24)
    assert GPTConfig(100, d_model=96, n_heads=4, activation="gelu").d_ff == 384
    assert GPTConfig(**config.to_dict()) == config


def test_count_of_parameters(make_model):
    model = make_model(40)
    block = 3 * 16 * 16 + 16 * 16 + 3 * 16 * 48 + 2 * 16
    assert model.n_parameters == 40 * 16 + 2 * block + 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=16"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads=3 does not divide"),
        ({"n_heads": 16}, "even head width"),
        ({"positions": "relative"}, "positions='relative': choose one of"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"norm_position": "middle"}, "norm_position='middle'"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"n_layers": 0}, "n_layers must be a positive"),
        ({"context_length": -1}, "context_length must be"),
        ({"d_ff": 1.5}, "d_ff must be a positive whole number"),
        ({"d_model": -16}, "d_model must be a positive"),
        ({"d_model": "16"}, "d_model must be a positive whole number"),
        ({"n_heads": 0}, "n_heads must be a positive"),
        ({"n_kv_heads": 4}, "n_kv_heads=4 does not divide n_heads=2"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"rope_scaling": -1.0}, "rope_scaling must be positive"),
        ({"norm_eps": float("nan")}, "norm_eps must be positive, not nan"),
        ({"dropout": 1.0}, "0 <= dropout < 1, not 1.0"),
        ({"dropout": -0.1}, "0 <= dropout < 1"),
        ({"positions": "sinusoidal", "d_model": 15, "n_heads": 3}, "even d_model, not 15"),
        ({"positions": "learned", "rope_theta": 5e5}, "rope_theta without rotary positions"),
        (
            {"positions": "none", "rope_scaling": 2.0, "rope_interleaved": True},
            "rope_scaling, rope_interleaved without rotary",
        ),
    ],
)
def test_bad_configs_are_errors(make_model, changes, message):
    with pytest.raises(CourseError, match=message):
        make_model(**changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_models_in_half_precision(make_model, dtype, fused):
    """Rotary angles are in fp32; queries and keys come back to the type of the weights."""
    idx = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = make_model()(idx)
        model = make_model(fused=fused).to(dtype)
        assert model(idx).dtype == model.trace(idx).logits.dtype == dtype
        torch.testing.assert_close(model(idx).float(), expected, rtol=0.1, atol=0.02)


def test_a_config_of_before_there_were_variants_still_loads():
    old = {
        **{"vocab_size": 40, "context_length": 64, "d_model": 16, "n_layers": 2, "n_heads": 2},
        **{"n_kv_heads": 2, "d_ff": 48, "positions": "rotary", "norm": "rmsnorm"},
        **{"activation": "swiglu", "bias": False},
    }
    model = GPT(GPTConfig(**old))
    names = {name.replace("blocks.1.", "blocks.0.") for name in model.state_dict()}
    of_block = ("norm1", "norm2", "attention.qkv", "attention.out", "mlp.up", "mlp.down")
    assert names == {"embedding.weight", "norm.weight", *(f"blocks.0.{n}.weight" for n in of_block)}


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c))
def test_the_trace_is_the_forward_pass(make_model, changes):
    model = make_model(**changes)
    idx = torch.randint(40, (2, 10))
    trace = model.trace(idx)
    torch.testing.assert_close(trace.logits, model(idx))
    assert len(trace.residuals) == 3 and len(trace.attention) == 2
    torch.testing.assert_close(model.norm(trace.residuals[-1]), model.hidden(idx))
    for weights in trace.attention:
        assert weights.shape == (2, model.config.n_heads, 10, 10)
        assert (weights.triu(1) == 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    for block, x, after in zip(model.blocks, trace.residuals, trace.residuals[1:], strict=False):
        if model.config.positions != "rotary":
            torch.testing.assert_close(block(x), after)


def test_the_attention_of_a_trace_is_what_was_mixed(make_model):
    """From the weights and the values, the attention layer's output follows."""
    model = make_model(positions="none", n_kv_heads=1)
    idx = torch.randint(40, (1, 6))
    trace = model.trace(idx)
    for block, x, weights in zip(model.blocks, trace.residuals, trace.attention, strict=False):
        read = block.norm1(x)
        values = block.attention.qkv(read)[..., -8:]  # one value head for both query heads
        mixed = torch.cat([weights[:, head] @ values for head in range(2)], dim=-1)
        torch.testing.assert_close(block.attention.out(mixed), block.attention(read))


def test_a_trace_of_a_padded_batch(make_model):
    model = make_model()
    row = torch.tensor([[3, 1, 4, 1]])
    padded = torch.tensor([[0, 0, 3, 1, 4, 1]])
    positions = torch.tensor([[0, 0, 0, 1, 2, 3]])
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].clone()
    mask[..., 2:, :2] = False
    ours = model.trace(padded, positions, mask)
    for a, b in zip(ours.attention, model.trace(row).attention, strict=True):
        torch.testing.assert_close(a[:, :, 2:, 2:], b)


def test_sinusoidal_positions_do_not_drown_the_tokens(make_model):
    """With embeddings of std 1 / sqrt(d_model), as in the paper, both parts are of one size."""
    model = make_model(positions="sinusoidal", d_model=64)
    model.embedding.weight.data.normal_(std=64**-0.5)
    [state] = model.trace(torch.arange(20)[None]).residuals[0]
    tokens = state - model.position_table[:20]
    torch.testing.assert_close(tokens, 8 * model.embedding.weight[:20])
    assert 0.5 < tokens.norm() / model.position_table[:20].norm() < 2


def test_dropout_is_only_for_training(make_model):
    idx = torch.randint(40, (2, 10))
    plain, dropped = make_model(), make_model(dropout=0.5)
    assert torch.equal(plain(idx), dropped(idx))
    assert torch.equal(plain.train()(idx), plain.eval()(idx))
    dropped.train()
    assert not torch.equal(dropped(idx), dropped(idx))
    zeros = [(state == 0).float().mean().item() for state in dropped.trace(idx).residuals[:1]]
    assert zeros[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("bad", [40, -1])
def test_an_id_outside_the_vocabulary_is_an_error(make_model, bad):
    with pytest.raises(CourseError, match=f"{min(bad, 3)} to {max(bad, 3)}.* knows 0 to 39"):
        make_model()(torch.tensor([[3, bad]]))


def test_more_tokens_than_the_context_is_an_error(make_model):
    model = make_model(context_length=8)
    model(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(CourseError, match="9 tokens do not fit the context of 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    caches = model.new_caches(1)
    model(torch.zeros(1, 8, dtype=torch.long), caches=caches)
    with pytest.raises(CourseError, match="9 tokens do not fit"):
        model(torch.zeros(1, 1, dtype=torch.long), caches=caches)
