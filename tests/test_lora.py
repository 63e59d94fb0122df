"""LoRA: the formula, what is trained, merging, and the file of adapters."""

import copy

import oracles
import pytest
import torch

from course_lib import lora
from course_lib.errors import CourseError
from course_lib.sft import sft_loss

NAMES = ("qkv", "out", "up", "down")
IDX = torch.arange(10).view(2, 5)


def adapted(seed=0, **changes):
    """A tiny GPT with adapters that say something."""
    model = oracles.loud_model(seed=seed, n_layers=2, **changes)
    lora.add_lora(model, NAMES, rank=3, alpha=6.0)
    torch.manual_seed(1)
    for layer in lora.lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_b)
    return model


def test_forward():
    oracles.check_lora_forward(lora.LoRALinear.forward)


@pytest.mark.parametrize("bias", [True, False])
def test_fresh_adapters_change_nothing(bias):
    model = oracles.loud_model(bias=bias)
    before = model(IDX)
    lora.add_lora(model, NAMES)
    assert torch.equal(model(IDX), before)


def test_only_the_adapters_are_trained():
    model = oracles.loud_model(n_layers=2)
    before = copy.deepcopy(model.state_dict())
    lora.add_lora(model, ["qkv"], rank=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    places = ("blocks.0.attention.qkv", "blocks.1.attention.qkv")
    assert trained == {f"{place}.lora_{x}" for place in places for x in "ab"}
    assert model.blocks[0].attention.qkv.lora_a.shape == (2, 16)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first = sft_loss(model, IDX[:, :-1], IDX[:, 1:])
    for _ in range(5):
        optimizer.zero_grad()
        sft_loss(model, IDX[:, :-1], IDX[:, 1:]).backward()
        optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert sft_loss(model, IDX[:, :-1], IDX[:, 1:]) < first


def test_the_scale_is_alpha_over_rank():
    model = oracles.loud_model()
    lora.add_lora(model, ["up"], rank=4, alpha=6.0)
    assert model.blocks[0].mlp.up.scale == 1.5


def test_merge_by_hand():
    oracles.check_merge(lora.merge)


def test_merge_and_unmerge_are_exact():
    model = adapted()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        before = model(IDX)
        lora.merge(model)
        merged = model(IDX)
        assert not torch.equal(model.blocks[0].mlp.up.weight, weights["blocks.0.mlp.up.weight"])
        lora.unmerge(model)
        assert torch.equal(model(IDX), before)
    torch.testing.assert_close(merged, before, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_a_merged_model_becomes_a_plain_one():
    model, plain = adapted(), oracles.loud_model(n_layers=2)
    with torch.no_grad():
        before = model(IDX)
    lora.merge(model)
    lora.remove_lora(model)
    assert not lora.lora_layers(model) and all(p.requires_grad for p in model.parameters())
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(IDX), before, rtol=1e-3, atol=1e-3)
    model = adapted()
    lora.remove_lora(model)  # without merging: the model of before
    with torch.no_grad():
        assert torch.equal(model(IDX), oracles.loud_model(n_layers=2)(IDX))


def test_adapters_fit_any_linear_layer():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    x = torch.randn(3, 4)
    before = model(x)
    lora.add_lora(model, ["2"], rank=1)
    assert torch.equal(model(x), before) and list(lora.lora_layers(model)) == ["2"]


def test_bad_input():
    model = oracles.loud_model()
    with pytest.raises(CourseError, match=r"no linear layer called \['norm', 'query'\]"):
        lora.add_lora(model, ["qkv", "query", "norm"])
    with pytest.raises(CourseError, match="at least rank 1"):
        lora.add_lora(model, NAMES, rank=0)
    model = adapted()
    with pytest.raises(CourseError, match="has adapters already"):
        lora.add_lora(model, NAMES)
