"""Our GPT against Hugging Face's GPT-2, Llama and the first GPT, all random and tiny.

Their weights are copied into ours; logits, loss and the gradient of every parameter must agree.
"""

import pytest
import torch
import torch.nn.functional as F

from course_lib.gpt import GPT, GPTConfig
from course_lib.train import cross_entropy

transformers = pytest.importorskip("transformers")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
SIZES = {"context_length": 32, "d_model": 32, "n_layers": 2, "n_heads": 4}


def shake(model):
    """Large random weights everywhere, gains and biases included, so that no part can hide."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def compare(ours, theirs, pairs):
    """Copy their weights into ours, then compare logits, loss and gradients.

    `pairs(value)` yields each of our parameters and what stands for it in their model, where
    `value` takes a parameter of theirs to its data or to its gradient.
    """
    shake(theirs)
    theirs.eval()
    copied = list(pairs(lambda p: p.data))
    assert {id(p) for p, _ in copied} == {id(p) for p in ours.parameters()}
    with torch.no_grad():
        for parameter, value in copied:
            parameter.copy_(value)
    torch.manual_seed(1)
    idx = torch.randint(50, (3, 12))
    targets = torch.randint(50, (3, 12))
    targets[0, :4] = -100
    logits, expected = ours(idx), theirs(idx).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    loss = cross_entropy(logits, targets)
    reference = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, reference, **TOLERANCE)
    loss.backward()
    reference.backward()
    for parameter, gradient in pairs(lambda p: p.grad):
        torch.testing.assert_close(parameter.grad, gradient, **TOLERANCE)


# -- Llama ----------------------------------------------------------------------------------------


def llama(**changes):
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    if "factor" in changes:
        rope |= {"rope_type": "linear", "factor": changes.pop("factor")}
    rope["rope_theta"] = changes.pop("theta", rope["rope_theta"])
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": rope,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | changes)))


def llama_pairs(ours, theirs, value, rows=lambda p: p):
    """`rows` reorders the rows of the query and key matrices."""
    yield ours.embedding.weight, value(theirs.model.embed_tokens.weight)
    yield ours.norm.weight, value(theirs.model.norm.weight)
    if not ours.config.tie_embeddings:
        yield ours.lm_head.weight, value(theirs.lm_head.weight)
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        a, m = layer.self_attn, layer.mlp
        q, k, v = (value(p.weight) for p in (a.q_proj, a.k_proj, a.v_proj))
        yield block.attention.qkv.weight, torch.cat([rows(q), rows(k), v])
        yield block.attention.out.weight, value(a.o_proj.weight)
        yield block.mlp.up.weight, torch.cat([value(p.weight) for p in (m.gate_proj, m.up_proj)])
        yield block.mlp.down.weight, value(m.down_proj.weight)
        yield block.norm1.weight, value(layer.input_layernorm.weight)
        yield block.norm2.weight, value(layer.post_attention_layernorm.weight)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"n_kv_heads": 4}, {"num_key_value_heads": 4}),
        ({"n_kv_heads": 2}, {}),
        ({"n_kv_heads": 1, "fused": False}, {"num_key_value_heads": 1}),
        ({"tie_embeddings": False}, {"tie_word_embeddings": False}),
        ({"rope_theta": 500.0}, {"theta": 500.0}),
        ({"rope_scaling": 4.0}, {"factor": 4.0}),
        ({"norm_eps": 0.1}, {"rms_norm_eps": 0.1}),
    ],
    ids=lambda changes: "-".join(changes) or "defaults",
)
def test_equals_llama(ours, theirs):
    model = GPT(GPTConfig(50, **(SIZES | {"n_kv_heads": 2, "d_ff": 48} | ours)))
    reference = llama(**theirs)
    compare(model, reference, lambda value: llama_pairs(model, reference, value))


def test_interleaved_rotary_is_llama_with_its_rows_in_the_original_order():
    """Hugging Face's conversion script moves row 2i of a head to i, and 2i + 1 to i + d_head/2."""
    model = GPT(GPTConfig(50, **SIZES, n_kv_heads=2, d_ff=48, rope_interleaved=True))
    reference = llama()

    def rows(matrix):
        return matrix.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2)

    compare(model, reference, lambda value: llama_pairs(model, reference, value, rows))


def test_greedy_text_with_the_cache_equals_llama():
    model = GPT(GPTConfig(50, **SIZES, n_kv_heads=2, d_ff=48))
    reference = llama()
    compare(model, reference, lambda value: llama_pairs(model, reference, value))  # copies
    idx = torch.tensor([[7, 1, 30]])
    expected = reference.generate(
        idx, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    caches, step = model.new_caches(1), idx
    for _ in range(20):
        step = model(step, caches=caches)[:, -1:].argmax(-1)
        idx = torch.cat((idx, step), dim=1)
    assert torch.equal(idx, expected)
    assert len(set(idx[0].tolist())) > 3


# -- GPT-2 and GPT --------------------------------------------------------------------------------


def layer_pairs(parts, value):
    """Their linear maps are stored transposed; `.t()` of a gain is the gain itself."""
    for own, other in parts:
        yield own.weight, value(other.weight).t()
        yield own.bias, value(other.bias)


def block_parts(block, layer):
    return [
        (block.norm1, layer.ln_1),
        (block.norm2, layer.ln_2),
        (block.attention.qkv, layer.attn.c_attn),
        (block.attention.out, layer.attn.c_proj),
        (block.mlp.up, layer.mlp.c_fc),
        (block.mlp.down, layer.mlp.c_proj),
    ]


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"fused": False}, {"attn_implementation": "eager"}),
        ({"activation": "gelu"}, {"activation_function": "gelu"}),
        ({"activation": "relu"}, {"activation_function": "relu"}),
        ({"tie_embeddings": False}, {"tie_word_embeddings": False}),
        ({"d_ff": 40}, {"n_inner": 40}),
        ({"norm_eps": 0.1}, {"layer_norm_epsilon": 0.1}),
    ],
    ids=lambda changes: "-".join(changes) or "defaults",
)
def test_equals_gpt2(ours, theirs):
    model = GPT(GPTConfig(50, **(SIZES | GPT2 | ours)))
    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = transformers.GPT2Config(**(sizes | NO_DROPOUT | theirs))
    reference = transformers.GPT2LMHeadModel(config)
    body = reference.transformer
    parts = [(model.norm, body.ln_f)]
    for block, layer in zip(model.blocks, body.h, strict=True):
        parts += block_parts(block, layer)

    def pairs(value):
        yield model.embedding.weight, value(body.wte.weight)
        yield model.position_embedding.weight, value(body.wpe.weight)
        if not model.config.tie_embeddings:
            yield model.lm_head.weight, value(reference.lm_head.weight)
        yield from layer_pairs(parts, value)

    compare(model, reference, pairs)


def test_post_norm_equals_the_first_gpt():
    model = GPT(GPTConfig(50, **SIZES, **GPT2, norm_position="post"))
    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    reference = transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(**sizes, **NO_DROPOUT)
    )
    body = reference.transformer
    parts = []
    for block, layer in zip(model.blocks, body.h, strict=True):
        parts += block_parts(block, layer)

    def pairs(value):
        yield model.embedding.weight, value(body.tokens_embed.weight)
        yield model.position_embedding.weight, value(body.positions_embed.weight)
        yield from layer_pairs(parts, value)

    compare(model, reference, pairs)
