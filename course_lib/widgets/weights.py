"""Weights for the models in the page: one file a model, 8 bits a weight.

A matrix is stored as int8 with one half-precision scale for every 32 weights; vectors
(the norms' gains) stay in half precision. All weights in half precision would be closer to the
trained model, but four models would weigh almost twice what a page may load. What rounding costs
is measured in tests/browser/test_live_models.py.

File: "CGPT", header length, file length (both uint32, little-endian), the header as JSON, then the
tensors, each at a multiple of 4 bytes. `static/gpt.js` reads it.

Source: Dettmers et al. 2022, section 2 (absmax quantisation, by blocks).
"""

import json

import torch
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.gpt import GPT
from course_lib.reward import RewardModel

GROUP = 32  # weights that share a scale
FORMATS = ("int8", "fp16", "fp32")
MAGIC = b"CGPT"
# What static/gpt.js computes. Other choices of a configuration do not run in the page.
RUNS_IN_PAGE = {
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "norm_position": "pre",
    "tie_embeddings": True,
    "rope_interleaved": False,
    "rope_scaling": 1.0,
}


def pack(model: GPT | RewardModel, form: str = "int8") -> bytes:
    """The file of one model; equal weights give equal bytes.

    Args:
        form: how matrices are stored: "int8", "fp16" or "fp32" (then vectors are fp32 too).

    Raises:
        CourseError: an unknown format, or a configuration that the page cannot run.
    """
    if form not in FORMATS:
        raise CourseError(f"unknown format {form!r}: use one of {FORMATS}")
    body = model.body if isinstance(model, RewardModel) else model
    header: dict = {"config": page_config(body), "group": GROUP, "tensors": []}
    tensors = dict(body.state_dict())
    if isinstance(model, RewardModel):
        tensors["head.weight"] = model.head.weight
        numbers = {"bias": model.head.bias, "gain": model.gain, "shift": model.shift}
        header["head"] = {name: value.item() for name, value in numbers.items()}
    parts, offset = [], 0
    for name, tensor in tensors.items():
        kind = "fp16" if form == "int8" and tensor.dim() < 2 else form
        data = _encode(tensor.detach().float().cpu(), kind)
        row = {"name": name, "kind": kind, "size": tensor.numel(), "offset": offset}
        header["tensors"].append(row)
        parts.append(data + bytes(-len(data) % 4))
        offset += len(parts[-1])
    return _assemble(header, parts)


def page_config(model: GPT) -> dict:
    """The part of a configuration that `static/gpt.js` reads."""
    config = model.config.to_dict()
    for name, value in RUNS_IN_PAGE.items():
        if config.get(name, value) != value:
            raise CourseError(f"{name} is {config[name]!r}: models in the page need {value!r}")
    names = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")
    return {
        **{name: config[name] for name in names},
        "norm_eps": config["norm_eps"],
        "rope_theta": config["rope_theta"],
    }


def read_header(data: bytes) -> dict:
    """The header of a weights file: config, tensors, and the reward model's head."""
    return json.loads(data[12 : 12 + int.from_bytes(data[4:8], "little")])


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and the scales that undo it.

    A group is `GROUP` weights that follow each other, row by row.

    Args:
        matrix: any shape; the number of weights a multiple of `GROUP`.

    Returns:
        int8 `(n, GROUP)` and fp16 scales `(n, 1)`.
    """
    if matrix.numel() % GROUP:
        raise CourseError(
            f"a matrix of {tuple(matrix.shape)} does not divide into groups of {GROUP} weights: "
            f"choose a width that is a multiple of {GROUP}"
        )
    groups = matrix.reshape(-1, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    return (groups / scales.float().clamp(min=1e-12)).round().clamp(-127, 127).char(), scales


def dequantised(matrix: Tensor) -> Tensor:
    """What a matrix is after `quantise` and back; the same shape."""
    whole, scales = quantise(matrix)
    return (whole.float() * scales.float()).reshape(matrix.shape)


def _encode(tensor: Tensor, kind: str) -> bytes:
    if kind == "int8":
        whole, scales = quantise(tensor)
        return scales.numpy().tobytes() + whole.numpy().tobytes()
    dtype = torch.float16 if kind == "fp16" else torch.float32
    return tensor.to(dtype).numpy().tobytes()


def _assemble(header: dict, parts: list[bytes]) -> bytes:
    """The file; offsets in the header become absolute, whatever its own length."""
    start = 0
    while True:  # the header holds numbers whose digits count towards its own length
        moved = [{**row, "offset": row["offset"] + start} for row in header["tensors"]]
        text = json.dumps({**header, "tensors": moved}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        if start == 12 + len(text):
            break
        start = 12 + len(text)
    total = start + sum(map(len, parts))
    sizes = len(text).to_bytes(4, "little") + total.to_bytes(4, "little")
    return MAGIC + sizes + text + b"".join(parts)
