"""TinyShakespeare, character by character, at the small setting that nanoGPT publishes for CPUs.

4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no dropout, 90 % for training:
nanoGPT's README gives a validation loss of 1.88. "nanogpt" has its architecture and optimiser (but
beta2 0.95 where nanoGPT has 0.99); "course" has this course's defaults for both. The loss is the
mean over the whole validation text, in nats a character; nanoGPT averages 20 random batches of it.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.atlas.documents import documents
from course_lib.data import CharTokenizer, split, tiny_shakespeare, windows
from course_lib.files import MetricLog
from course_lib.generate import generate
from course_lib.gpt import GPT, GPTConfig
from course_lib.sampling import Sampling
from course_lib.train import TrainSettings, cross_entropy, train

TITLE = "TinyShakespeare at nanoGPT's small CPU setting"
CODE = (
    *("positions.py", "attention.py", "layers.py", "gpt.py", "data.py", "optim.py", "train.py"),
    *("generate.py", "sampling.py"),
)
NANOGPT = {"positions": "learned", "norm": "layernorm", "activation": "gelu"}
VARIANTS = {
    "nanogpt": (NANOGPT, {"learning_rate": 1e-3, "warmup": 100, "final_share": 0.1, "muon": False}),
    "course": ({}, {"learning_rate": 5e-3, "warmup": 20}),
}
PUBLISHED = {
    "validation_loss": 1.88,
    "source": "nanoGPT, README, section 'quick start', 'I only have a macbook'",
}
SIZES = {
    "full": {"n_layers": 4, "d_model": 128, "steps": 2000, "evaluate_every": 250},
    "small": {"n_layers": 1, "d_model": 16, "steps": 6, "evaluate_every": 3},
}
BATCH, LENGTH, N_HEADS = 12, 64, 4


def run(scale: str) -> dict:
    """Train both variants; the small scale reads a text that needs no download."""
    text = tiny_shakespeare() if scale == "full" else "\n".join(documents(60, 1))
    tokenizer = CharTokenizer(text)
    parts = split(torch.tensor(tokenizer.encode(text)))
    results = {name: train_variant(name, tokenizer, parts, SIZES[scale]) for name in VARIANTS}
    settings = {"batch": BATCH, "length": LENGTH, "n_heads": N_HEADS, **SIZES[scale]}
    settings |= {"vocab_size": tokenizer.vocab_size, "n_characters": len(text)}
    return {"variants": results, "published": PUBLISHED, "settings": settings}


def train_variant(
    name: str, tokenizer: CharTokenizer, parts: tuple[Tensor, Tensor], sizes: dict
) -> dict:
    """One training: losses by step, the final validation loss, and what the model then writes."""
    changes, optimizer = VARIANTS[name]
    shape = (tokenizer.vocab_size, LENGTH, sizes["d_model"], sizes["n_layers"], N_HEADS)
    torch.manual_seed(0)
    model = GPT(GPTConfig(*shape, **changes))
    settings = TrainSettings(sizes["steps"], checkpoint_every=sizes["steps"], **optimizer)

    def loss_at(model, step):
        idx, targets = windows(parts[0], BATCH, LENGTH, 0, step)
        return cross_entropy(model(idx), targets)

    def evaluate(model, step):
        return {"validation_loss": validation_loss(model, parts[1])}

    with tempfile.TemporaryDirectory() as folder:
        train(model, loss_at, settings, Path(folder), name, evaluate, sizes["evaluate_every"])
        rows = MetricLog.read(Path(folder) / "metrics.jsonl")
    evaluated = [row for row in rows if "validation_loss" in row]
    return {
        "parameters": model.n_parameters,
        "loss": [round(row["loss"], 4) for row in rows],
        "validation_steps": [row["step"] + 1 for row in evaluated],
        "validation_loss": [round(row["validation_loss"], 4) for row in evaluated],
        "seconds_per_step": round(sum(row["seconds"] for row in rows) / len(rows), 4),
        "sample": sample(model, tokenizer),
    }


@torch.no_grad()
def validation_loss(model: GPT, stream: Tensor) -> float:
    """Mean loss over the windows `(N, LENGTH)` that tile the stream."""
    n = (len(stream) - 1) // LENGTH
    idx = stream[: n * LENGTH].view(n, LENGTH)
    targets = stream[1 : n * LENGTH + 1].view(n, LENGTH)
    batches = zip(idx.split(64), targets.split(64), strict=True)
    total = sum(
        F.cross_entropy(model(i).flatten(0, 1), t.flatten(), reduction="sum").item()
        for i, t in batches
    )
    return total / (n * LENGTH)


def sample(model: GPT, tokenizer: CharTokenizer) -> str:
    """What the model writes after a line break at temperature 0.8, up to the end of its context."""
    generator = torch.Generator().manual_seed(0)
    start = tokenizer.encode("\n")
    [written] = generate(model, [start], 400, (), Sampling(0.8), generator, slide=True)
    return tokenizer.decode(written.ids)
