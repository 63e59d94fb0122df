"""The GPT against Hugging Face's Llama and GPT-2, both random and tiny; cache; bad configs."""

import math

import pytest
import torch
import torch.nn.functional as F

from course_lib.errors import CourseError
from course_lib.gpt import GPT, GPTConfig
from course_lib.positions import POSITIONS
from course_lib.train import cross_entropy

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def shake(model):
    """Large random weights everywhere, gains and biases included, so that no part can hide."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def compare(ours, theirs, pairs):
    """Logits, loss and gradients agree; `pairs` are (our parameter, their gradient)."""
    torch.manual_seed(1)
    idx = torch.randint(ours.config.vocab_size, (3, 12))
    targets = torch.randint(ours.config.vocab_size, (3, 12))
    targets[0, :4] = -100
    logits, expected = ours(idx), theirs(idx).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    loss = cross_entropy(logits, targets)
    reference = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, reference, **TOLERANCE)
    loss.backward()
    reference.backward()
    for parameter, gradient in pairs():
        torch.testing.assert_close(parameter.grad, gradient, **TOLERANCE)


def copy_all(pairs):
    with torch.no_grad():
        for parameter, value in pairs:
            parameter.copy_(value)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_equals_llama(n_kv_heads):
    transformers = pytest.importorskip("transformers")
    config = GPTConfig(
        50, context_length=32, d_model=32, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads, d_ff=48
    )
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=n_kv_heads,
            max_position_embeddings=32,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
    )
    shake(theirs)
    ours = GPT(config)

    def pairs(value=lambda p: p.grad):
        """Each of our parameters and what stands for it in their model."""
        yield ours.embedding.weight, value(theirs.model.embed_tokens.weight)
        yield ours.norm.weight, value(theirs.model.norm.weight)
        for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
            a, m = layer.self_attn, layer.mlp
            qkv = [value(p.weight) for p in (a.q_proj, a.k_proj, a.v_proj)]
            yield block.attention.qkv.weight, torch.cat(qkv)
            yield block.attention.out.weight, value(a.o_proj.weight)
            up = [value(p.weight) for p in (m.gate_proj, m.up_proj)]
            yield block.mlp.up.weight, torch.cat(up)
            yield block.mlp.down.weight, value(m.down_proj.weight)
            yield block.norm1.weight, value(layer.input_layernorm.weight)
            yield block.norm2.weight, value(layer.post_attention_layernorm.weight)

    copy_all(pairs(lambda p: p.data))
    assert len(list(pairs(lambda p: p.data))) == len(list(ours.parameters()))
    compare(ours, theirs, pairs)


def test_equals_gpt2():
    transformers = pytest.importorskip("transformers")
    config = GPTConfig(
        50,
        context_length=32,
        d_model=32,
        n_layers=2,
        n_heads=4,
        positions="learned",
        norm="layernorm",
        activation="gelu",
        bias=True,
    )
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50,
            n_positions=32,
            n_embd=32,
            n_layer=2,
            n_head=4,
            activation_function="gelu",  # the exact one; GPT-2's own is an approximation by tanh
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    shake(theirs)
    ours = GPT(config)

    body = theirs.transformer
    layers = [(ours.norm, body.ln_f)]
    for block, layer in zip(ours.blocks, body.h, strict=True):
        layers += [
            (block.norm1, layer.ln_1),
            (block.norm2, layer.ln_2),
            (block.attention.qkv, layer.attn.c_attn),
            (block.attention.out, layer.attn.c_proj),
            (block.mlp.up, layer.mlp.c_fc),
            (block.mlp.down, layer.mlp.c_proj),
        ]

    def pairs(value=lambda p: p.grad):
        """Each of our parameters and theirs; their linear maps are stored transposed."""
        yield ours.embedding.weight, value(body.wte.weight)
        yield ours.position_embedding.weight, value(body.wpe.weight)
        for own, other in layers:
            yield own.weight, value(other.weight).t()  # of a gain: the gain itself
            yield own.bias, value(other.bias)

    copy_all(pairs(lambda p: p.data))
    assert len(list(pairs(lambda p: p.data))) == len(list(ours.parameters()))
    compare(ours, theirs, pairs)


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


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("cuts", [[1] * 10, [7, 1, 2]])
def test_cached_equals_uncached(make_model, positions, cuts):
    model = make_model(positions=positions, n_kv_heads=1)
    idx = torch.randint(40, (2, 10))
    caches = model.new_caches(2)
    parts = [model(piece, caches=caches) for piece in idx.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(idx))


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_gradient_from_the_future(make_model, positions):
    model = make_model(positions=positions)
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
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"n_layers": 0}, "n_layers must be a positive"),
        ({"context_length": -1}, "context_length must be"),
        ({"d_ff": 1.5}, "d_ff must be a positive whole number"),
    ],
)
def test_bad_configs_are_errors(make_model, changes, message):
    with pytest.raises(CourseError, match=message):
        make_model(**changes)


def test_more_tokens_than_the_context_is_an_error(make_model):
    model = make_model(context_length=8)
    model(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(CourseError, match="9 tokens do not fit the context of 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    caches = model.new_caches(1)
    model(torch.zeros(1, 8, dtype=torch.long), caches=caches)
    with pytest.raises(CourseError, match="9 tokens do not fit"):
        model(torch.zeros(1, 1, dtype=torch.long), caches=caches)
