"""Weights for the page: what is stored comes back, the file says what it is, the cost is known."""

import json

import numpy as np
import pytest
import torch

from course_lib.errors import CourseError
from course_lib.reward import RewardModel
from course_lib.widgets import weights
from course_lib.widgets.weights import GROUP, dequantised, pack, page_config, quantise, read_header

MIXED = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}


@pytest.fixture
def model(make_model):
    return make_model(**MIXED)


def unpacked(data):
    """Read a file back without the code that wrote it."""
    assert data[:4] == b"CGPT"
    assert int.from_bytes(data[8:12], "little") == len(data)
    header = read_header(data)
    tensors = {}
    for row in header["tensors"]:
        at, n = row["offset"], row["size"]
        assert at % 4 == 0
        if row["kind"] == "int8":
            scales = np.frombuffer(data, "<f2", n // GROUP, at).astype(np.float32)
            whole = np.frombuffer(data, np.int8, n, at + 2 * (n // GROUP))
            values = whole.reshape(-1, GROUP) * scales[:, None]
        else:
            dtype = {"fp16": "<f2", "fp32": "<f4"}[row["kind"]]
            values = np.frombuffer(data, dtype, n, at).astype(np.float32)
        tensors[row["name"]] = torch.from_numpy(values.copy()).flatten()
    return header, tensors


@pytest.mark.parametrize("form", weights.FORMATS)
def test_what_is_stored_comes_back(model, form):
    header, tensors = unpacked(pack(model, form))
    state = model.state_dict()
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        expected = {"fp32": tensor, "fp16": tensor.half().float()}.get(form)
        if form == "int8":
            expected = dequantised(tensor) if tensor.dim() > 1 else tensor.half().float()
        assert torch.equal(tensors[name], expected.flatten()), name
    assert header["config"]["n_kv_heads"] == 2
    assert pack(model, form) == pack(model, form)


def test_sizes(model):
    """int8 with scales costs 8.5 bits a weight of a matrix."""
    n = model.n_parameters
    sizes = {form: len(pack(model, form)) for form in weights.FORMATS}
    assert sizes["fp32"] == pytest.approx(4 * n, rel=0.1)
    assert sizes["fp16"] == pytest.approx(2 * n, rel=0.1)
    assert sizes["int8"] == pytest.approx(n * 8.5 / 8, rel=0.1)


def test_rounding_is_to_the_nearest():
    matrix = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    whole, scales = quantise(matrix)
    assert whole.dtype == torch.int8 and whole.abs().max() == 127
    gap = (dequantised(matrix) - matrix).reshape(-1, GROUP).abs()
    assert bool((gap <= 0.51 * scales.float()).all())


def test_extreme_groups():
    matrix = torch.zeros(3, GROUP)
    matrix[1], matrix[2, 0] = 1e-12, 100.0
    back = dequantised(matrix)
    assert back[0].tolist() == [0] * GROUP
    assert back[1].abs().max() < 1e-9
    assert back[2].tolist() == pytest.approx([100.0] + [0] * (GROUP - 1), rel=1e-3)


def test_reward_model(model):
    scorer = RewardModel(model)
    with torch.no_grad():
        scorer.gain.fill_(2.5), scorer.shift.fill_(-1), scorer.head.bias.fill_(0.5)
    header, tensors = unpacked(pack(scorer, "fp32"))
    assert header["head"] == {"bias": 0.5, "gain": 2.5, "shift": -1.0}
    assert torch.equal(tensors["head.weight"], scorer.head.weight.detach().flatten())
    assert torch.equal(tensors["embedding.weight"], model.embedding.weight.detach().flatten())


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned"},
        {"norm": "layernorm"},
        {"activation": "gelu"},
        {"bias": True},
        {"norm_position": "post"},
        {"tie_embeddings": False},
        {"rope_interleaved": True},
        {"rope_scaling": 2.0},
    ],
    ids=str,
)
def test_what_the_page_cannot_run_is_refused(make_model, changes):
    with pytest.raises(CourseError, match=next(iter(changes))):
        pack(make_model(**(MIXED | changes)))


def test_config_holds_what_the_page_reads(make_model):
    config = page_config(make_model(**(MIXED | {"rope_theta": 500.0, "norm_eps": 1e-4})))
    assert config["rope_theta"] == 500.0 and config["norm_eps"] == 1e-4
    json.dumps(config)


def test_odd_widths_and_formats_are_refused(make_model):
    with pytest.raises(CourseError, match="multiple of 32"):
        pack(make_model(vocab_size=41, d_model=12, n_layers=1, n_heads=2))
    with pytest.raises(CourseError, match="int4"):
        pack(make_model(), "int4")
