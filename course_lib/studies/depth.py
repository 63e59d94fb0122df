"""Stacks of 4 to 64 blocks, with and without residuals and norms: gradients, streams, training.

Every variant is the library's own block, minus what its name says is missing. All weight matrices
start with standard deviation 1 / sqrt(inputs), which keeps the size of what a single map passes
on; only "pre, scaled" also divides what writes into the stream by sqrt(2 * n_layers), as the GPT
class does. All train with the same AdamW, at a constant rate, without warm-up and clipping, which
would hide the differences. See Xiong et al. 2020 for the same comparison at scale.
"""

import math

import torch
from torch import Tensor, nn

from course_lib.atlas.documents import documents
from course_lib.data import END_OF_TEXT, token_stream, windows
from course_lib.gpt import GPT, GPTConfig
from course_lib.layers import Block
from course_lib.tokenizer import BPETokenizer
from course_lib.train import TrainSettings, cross_entropy, make_optimizers

TITLE = "Depth: residuals, norms and their places, in stacks of 4 to 64 blocks"
CODE = (
    *("tokenizer.py", "positions.py", "attention.py", "layers.py", "gpt.py", "atlas"),
    *("data.py", "optim.py", "train.py"),
)
VARIANTS = ("neither", "norm only", "residual only", "post", "pre", "pre, scaled")
SIZES = {
    "full": {
        "depths": (4, 8, 16, 32, 64),
        "trained": (4, 16, 64),
        "seeds": (0, 1),
        "steps": 120,
        "n_documents": 3000,
    },
    "small": {
        "depths": (2, 3),
        "trained": (2,),
        "seeds": (0,),
        "steps": 4,
        "n_documents": 100,
    },
}
WIDTH, VOCABULARY, BATCH, LENGTH, RATE = 32, 512, 8, 32, 3e-3


class NoResidual(Block):
    """A block that replaces the stream instead of adding to it."""

    def forward(self, x, rotary=None, mask=None, cache=None, keep=None):
        x = self.attention(self.norm1(x), rotary, mask, cache, keep)
        return self.mlp(self.norm2(x))


def build(variant: str, n_layers: int, seed: int) -> GPT:
    """A GPT of one variant, freshly initialised."""
    torch.manual_seed(seed)
    place = "post" if variant == "post" else "pre"
    shape = (VOCABULARY, LENGTH, WIDTH, n_layers, 2)
    config = GPTConfig(*shape, activation="gelu", norm_position=place)
    model = GPT(config)
    if variant in ("neither", "norm only"):
        model.blocks = nn.ModuleList(NoResidual(config) for _ in range(n_layers))
    for name, parameter in model.blocks.named_parameters():
        if parameter.dim() == 2:
            scaled = variant == "pre, scaled" and name.endswith(("out.weight", "down.weight"))
            shrink = math.sqrt(2 * n_layers) if scaled else 1.0
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.size(1)) / shrink)
    if variant in ("neither", "residual only"):
        model.norm = nn.Identity()
        for block in model.blocks:
            block.norm1 = block.norm2 = nn.Identity()
    return model


def run(scale: str) -> dict:
    """Measure every variant at every depth, and train some; see the module's docstring."""
    sizes = SIZES[scale]
    texts = documents(sizes["n_documents"], 7)
    tokenizer = BPETokenizer.train(texts[:400], VOCABULARY, (END_OF_TEXT,))
    stream = token_stream(texts, tokenizer)
    runs = [
        measure(variant, n_layers, seed, stream, sizes["steps"] * (n_layers in sizes["trained"]))
        for n_layers in sizes["depths"]
        for variant in VARIANTS
        for seed in sizes["seeds"]
    ]
    settings = {"width": WIDTH, "batch": BATCH, "length": LENGTH, "rate": RATE}
    return {"runs": runs, **settings, "vocab_size": tokenizer.vocab_size, **sizes}


def measure(variant: str, n_layers: int, seed: int, stream: Tensor, steps: int) -> dict:
    """One stack: gradient of each block and size of the stream at the start and, if it is trained,
    after `steps` steps, with the loss of every step. None stands for a number beyond float32."""
    model = build(variant, n_layers, seed)
    row = {"variant": variant, "n_layers": n_layers, "seed": seed}
    row |= {"start": snapshot(model, stream)}
    if not steps:
        return row
    settings = TrainSettings(steps, RATE, muon=False)
    (optimizer,), losses = make_optimizers(model, settings), []
    for step in range(steps):
        idx, targets = windows(stream, BATCH, LENGTH, seed, step)
        loss = cross_entropy(model(idx), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return row | {"losses": plain(losses), "end": snapshot(model, stream)}


def snapshot(model: GPT, stream: Tensor) -> dict[str, list]:
    """Gradient norm of each block's weights, and root mean square of the stream before the first
    block and after each, on one batch."""
    model.zero_grad()
    idx, targets = windows(stream, BATCH, LENGTH, 1_000, 0)
    trace = model.trace(idx)
    cross_entropy(trace.logits, targets).backward()
    gradients = [
        torch.stack([p.grad.norm() for p in block.parameters()]).norm().item()
        for block in model.blocks
    ]
    sizes = [x.square().mean().sqrt().item() for x in trace.residuals]
    return {"gradients": plain(gradients), "stream": plain(sizes)}


def plain(values: list[float]) -> list[float | None]:
    """Numbers with four digits, None where they are infinite or NaN: what JSON can hold."""
    return [float(f"{x:.4g}") if math.isfinite(x) else None for x in values]
