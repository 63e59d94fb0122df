"""Low-rank adapters: fine-tune a few small matrices beside the frozen big ones.

A layer's change is the product of a thin and a flat matrix, `scale * b @ a`. The second starts at
zero, so that a model with fresh adapters is the model without them. The trained change can be added
to the weights (merge), which costs nothing at inference.

Source: Hu et al. 2022, section 4.1.
"""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.errors import CourseError


class LoRALinear(nn.Linear):
    """A linear layer with its own frozen weights and a low-rank change, `scale * b @ a`.

    Attributes:
        lora_a: `(rank, in_features)`, random; lora_b: `(out_features, rank)`, zero at first.
        scale: `alpha / rank`, so that another rank needs no other learning rate.

    Shapes as those of `nn.Linear`: `(..., in_features)` to `(..., out_features)`.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.unmerged: Tensor | None = None  # the plain weights, while the change is merged

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)  # (..., out_features)
        if self.unmerged is not None:
            return y
        return y + self.scale * (x @ self.lora_a.T) @ self.lora_b.T


def add_lora(model: nn.Module, names: Collection[str], rank: int = 8, alpha: float = 16.0) -> None:
    """Put adapters on linear layers, and freeze everything else.

    Args:
        names: last parts of the layers' names, such as `{"qkv", "out", "up", "down"}` in a GPT.

    Raises:
        CourseError: rank below one, adapters already there, or a name that fits no linear layer.
    """
    if rank < 1:
        raise CourseError(f"the rank is {rank}: an adapter needs at least rank 1")
    if lora_layers(model):
        raise CourseError("the model has adapters already: remove them first")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in names
    ]
    missing = set(names) - {name.rpartition(".")[2] for name, _ in found}
    if missing or not found:
        raise CourseError(f"the model has no linear layer called {sorted(missing)}")
    model.requires_grad_(False)
    for name, module in found:
        _replace(model, name, LoRALinear(module, rank, alpha))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers with adapters, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every change to its weights: the same outputs to rounding, at the plain model's cost."""
    for layer in lora_layers(model).values():
        if layer.unmerged is None:
            layer.unmerged = layer.weight.clone()
            layer.weight += layer.scale * layer.lora_b @ layer.lora_a


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Take the changes out again: the weights of before, bit by bit."""
    for layer in lora_layers(model).values():
        if layer.unmerged is not None:
            layer.weight.copy_(layer.unmerged)
            layer.unmerged = None


def remove_lora(model: nn.Module) -> None:
    """Turn the layers back into plain ones, trainable again; after `merge` they keep the change."""
    for name, layer in lora_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        _replace(model, name, plain)
    model.requires_grad_(True)
