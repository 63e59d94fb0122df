"""Predicted sizes against real models: their tensors, PyTorch's counter, the bytes of training."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib.gpt import GPT, GPTConfig
from course_lib.sizing import (
    PUBLISHED,
    forward_flops,
    kv_cache_bytes,
    memory,
    parameter_count,
    parameters,
    training_flops,
    training_seconds,
)
from course_lib.train import cross_entropy

SHAPE = {"context_length": 32, "d_model": 48, "n_layers": 3, "n_heads": 4}
GPT2_LIKE = {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True}
VARIANTS = {
    "default": {},
    "grouped": {"n_kv_heads": 2},
    "multi-query": {"n_kv_heads": 1, "tie_embeddings": False},
    "gpt2": GPT2_LIKE,
    "llama with biases": {"bias": True, "d_ff": 100},
    "layernorm without biases": {"norm": "layernorm", "positions": "none", "activation": "relu"},
    "post-norm": GPT2_LIKE | {"norm_position": "post", "positions": "sinusoidal"},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def config_of(changes):
    return GPTConfig(101, **(SHAPE | changes))


@variants
def test_parameters_by_component(changes):
    config = config_of(changes)
    model = GPT(config)
    actual = dict.fromkeys(parameters(config), 0)
    for name, parameter in model.named_parameters():
        part = next(
            (p for p in ("attention", "mlp", "position", "lm_head", "norm") if p in name),
            "embedding",
        )
        actual[{"position": "positions", "norm": "norms"}.get(part, part)] += parameter.numel()
    assert parameters(config) == actual
    assert parameter_count(config) == model.n_parameters


@variants
def test_operations_equal_those_that_pytorch_counts(changes):
    """The plain path, whose products are all visible; 3 passes' worth in training, not one more."""
    config = config_of(changes | {"fused": False})
    model = GPT(config)
    B, T = 2, 24
    idx = torch.randint(101, (B, T))
    with FlopCounterMode(display=False) as counter:
        logits = model(idx)
    assert counter.get_total_flops() == B * sum(forward_flops(config, T).values())
    with FlopCounterMode(display=False) as backward:
        cross_entropy(logits, idx).backward()
    both = counter.get_total_flops() + backward.get_total_flops()
    assert both == training_flops(config, B * T, length=T)


def test_operations_by_kind():
    """Each kind alone: what changes when only its sizes change."""
    config = config_of({"fused": False})

    def counted(**changes):
        model = GPT(config_of({"fused": False} | changes))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 16, dtype=torch.long))
        return counter.get_total_flops()

    kinds = forward_flops(config, 16)
    assert counted() - counted(d_ff=config.d_ff // 2) == kinds["mlp"] / 2
    without_keys = forward_flops(config_of({"n_kv_heads": 2}), 16)
    saved = kinds["projections"] - without_keys["projections"]
    assert counted() - counted(n_kv_heads=2) == saved > 0
    assert kinds["scores"] == 3 * 2 * (2 * 16 * 16 * 48)  # layers, two products
    assert kinds["logits"] == 2 * 16 * 48 * 101


def test_six_n_d_is_close_where_the_width_dwarfs_the_context():
    """For GPT-3 within 5 %; for this course's small models the scores weigh more."""
    config = PUBLISHED["GPT-3 175B"].config
    assert training_flops(config, 2048) == pytest.approx(
        training_flops(config, 2048, length=2048), rel=0.05
    )
    # Brown et al. 2020, table D.1: 3.14e23 operations for 300 billion tokens.
    assert training_flops(config, 300 * 10**9) == pytest.approx(3.14e23, rel=0.01)
    small, tokens = GPTConfig(3072), 1000
    assert training_flops(small, tokens) < 0.95 * training_flops(small, tokens, length=128)


def test_what_is_only_looked_up_does_no_work():
    tied, untied = config_of({}), config_of({"tie_embeddings": False})
    assert training_flops(tied, 7) == training_flops(untied, 7) == 6 * 7 * parameter_count(tied)
    learned = config_of({"positions": "learned"})
    assert training_flops(learned, 7) == training_flops(config_of({"positions": "none"}), 7)


@variants
def test_memory_of_training(changes):
    """Weights, gradients and AdamW's means to the byte; activations within 10 %."""
    config = config_of(changes | {"context_length": 64})
    model = GPT(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    idx = torch.randint(101, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = cross_entropy(model(idx), idx)
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    states = [v for s in optimizer.state.values() for v in s.values() if v.dim()]
    predicted = memory(config, batch_size=4, length=64)
    assert predicted["weights"] == sum(p.nbytes for p in model.parameters())
    assert predicted["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert predicted["optimizer"] == sum(v.nbytes for v in states)
    assert predicted["activations_estimate"] == pytest.approx(sum(held.values()), rel=0.1)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_cache(n_kv_heads):
    config = config_of({"n_kv_heads": n_kv_heads})
    caches = GPT(config).new_caches(3)
    actual = sum(cache.k.nbytes + cache.v.nbytes for cache in caches)
    assert kv_cache_bytes(config, 32, batch_size=3, bytes_per_value=4) == actual
    # Half a MB a token for Llama 2 7B in fp16; a quarter of the key heads for Llama 3 8B.
    assert kv_cache_bytes(PUBLISHED["Llama 2 7B"].config, 1) == 2**19
    assert kv_cache_bytes(PUBLISHED["Llama 3 8B"].config, 1) == 2**17


def test_time():
    assert training_seconds(1e15, 2e14, 0.5) == 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    model = PUBLISHED[name]
    assert parameter_count(model.config) == pytest.approx(model.parameters, rel=0.01)
    assert model.source


def test_exact_counts_of_released_weights():
    """The numbers of values in the files themselves, as their model cards show them."""
    exact = {
        "GPT-2 small": 124_439_808,
        "GPT-2 XL": 1_557_611_200,
        "Llama 2 7B": 6_738_415_616,
        "Llama 3 8B": 8_030_261_248,
        "SmolLM2-135M": 134_515_008,
    }
    for name, count in exact.items():
        assert parameter_count(PUBLISHED[name].config) == count
