"""One choice changed at a time, at equal training compute, with several seeds.

Every variant may spend as many operations as "default", counted by `sizing.training_flops` with its
attention scores: a cheaper model trains on more tokens. "deep" and "wide" have about as many
parameters in their blocks as the default. Variants of one seed read the same documents in the same
order and are measured on the same fresh ones, so their losses are compared in pairs. The learning
rate is one for all; nothing was tuned for any variant.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from course_lib.atlas.documents import documents
from course_lib.data import END_OF_TEXT, token_stream, windows
from course_lib.gpt import GPT, GPTConfig
from course_lib.sizing import parameter_count, training_flops
from course_lib.tokenizer import BPETokenizer
from course_lib.train import TrainSettings, cross_entropy, train

TITLE = "Choices of architecture at equal compute"
CODE = (
    *("pieces.py", "bpe.py", "tokenizer.py", "positions.py", "attention.py", "layers.py"),
    *("gpt.py", "sizing.py", "atlas", "data.py", "optim.py", "train.py"),
)
# What each variant changes: in the configuration, and in the training.
VARIANTS = {
    "default": ({}, {}),
    "learned positions": ({"positions": "learned"}, {}),
    "LayerNorm": ({"norm": "layernorm"}, {}),
    "GELU": ({"activation": "gelu"}, {}),
    "one key head": ({"n_kv_heads": 1}, {}),
    "untied": ({"tie_embeddings": False}, {}),
    "deep": ({"n_layers": 4, "d_model": 48}, {}),
    "wide": ({"n_layers": 1, "d_model": 96}, {}),
    "AdamW alone": ({}, {"muon": False}),
}
SHAPE = {"d_model": 64, "n_layers": 2, "n_heads": 4}
SIZES = {
    "full": {"steps": 200, "seeds": (0, 1, 2, 3), "n_documents": 8000, "vocab_size": 512},
    "small": {"steps": 4, "seeds": (0, 1), "n_documents": 200, "vocab_size": 300},
}
BATCH, LENGTH, RATE = 16, 64, 5e-3


def run(scale: str) -> dict:
    """Train every variant with every seed; see the module's docstring."""
    sizes = SIZES[scale]
    tokenizer, stream, fresh = corpus(sizes["n_documents"], sizes["vocab_size"])
    default = config_of("default", tokenizer.vocab_size)
    budget = training_flops(default, sizes["steps"] * BATCH * LENGTH, LENGTH)
    rows = []
    for name, (_, changes) in VARIANTS.items():
        config = config_of(name, tokenizer.vocab_size)
        steps = round(budget / training_flops(config, BATCH * LENGTH, LENGTH))
        row = {"variant": name, "steps": steps, "parameters": parameter_count(config)}
        for seed in sizes["seeds"]:
            settings = TrainSettings(steps, RATE, checkpoint_every=steps, **changes)
            loss = trained_loss(config, settings, seed, stream, fresh)
            rows.append(row | {"seed": seed, "loss": loss})
    settings = {"batch": BATCH, "length": LENGTH, "rate": RATE, "budget": budget}
    return {"runs": rows, "model": SHAPE, **settings, **sizes}


def config_of(variant: str, vocab_size: int) -> GPTConfig:
    """The configuration of a variant."""
    return GPTConfig(vocab_size, LENGTH, **(SHAPE | VARIANTS[variant][0]))


def corpus(n_documents: int, vocab_size: int) -> tuple[BPETokenizer, Tensor, Tensor]:
    """A small tokenizer, the training stream, and a stream of documents kept out of both."""
    texts = documents(n_documents, 7)
    tokenizer = BPETokenizer.train(texts[:400], vocab_size, (END_OF_TEXT,))
    fresh = documents(max(50, n_documents // 10), 9_000_007)
    return tokenizer, token_stream(texts, tokenizer), token_stream(fresh, tokenizer)


def trained_loss(
    config: GPTConfig, settings: TrainSettings, seed: int, stream: Tensor, fresh: Tensor
) -> float:
    """Train one model; returns its loss on fresh text, in nats a token."""
    torch.manual_seed(seed)
    model = GPT(config)

    def loss_at(model, step):
        idx, targets = windows(stream, BATCH, LENGTH, seed, step)
        return cross_entropy(model(idx), targets)

    with tempfile.TemporaryDirectory() as folder:
        train(model, loss_at, settings, Path(folder), f"width {config.d_model}, seed {seed}")
    idx, targets = windows(fresh, 256, LENGTH, 0, 0)
    with torch.no_grad():
        return round(cross_entropy(model(idx), targets).item(), 5)
