"""Learning rate, schedule and batch size, on one small model, with several seeds.

Three questions. Arms: how does the loss depend on the peak rate, for this book's training, without
its warm-up, without its decay, and with AdamW alone (with warm-up and without)? Equal tokens:
batches of several sizes read the same number of tokens, in more or fewer steps, each at several
rates. Equal steps: the same sizes for the same number of steps, so that larger batches read more.

A model of seed s starts from the same weights in every arm. The warm-up, where there is one, takes
a sixth of the steps. The loss is that of fresh documents, in nats a token; None stands for a
training that ended in numbers that are not finite.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from course_lib.data import windows
from course_lib.errors import CourseError
from course_lib.gpt import GPT, GPTConfig
from course_lib.studies.ablations import corpus
from course_lib.train import TrainSettings, cross_entropy, train

TITLE = "Learning rate, schedule and batch size"
CODE = (
    *("pieces.py", "bpe.py", "tokenizer.py", "positions.py", "attention.py", "layers.py"),
    *("gpt.py", "atlas", "data.py", "optim.py", "train.py", "studies/ablations.py"),
)
BOOK = "as in this book"
# What each arm changes in the settings of the training.
ARMS = {
    BOOK: {},
    "no warm-up": {"warmup": 0},
    "no decay": {"final_share": 1.0},
    "AdamW alone": {"muon": False},
    "AdamW alone, no warm-up": {"muon": False, "warmup": 0},
}
SHAPE = {"d_model": 64, "n_layers": 2, "n_heads": 4}
SIZES = {
    "full": {
        "steps": 120,
        "rates": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        "batches": (4, 16, 64),
        "batch_rates": (1e-2, 3e-2, 1e-1),
        "seeds": (0, 1, 2),
        "n_documents": 8000,
        "vocab_size": 512,
    },
    "small": {
        "steps": 8,
        "rates": (1e-2, 3e-2),
        "batches": (4, 16, 64),
        "batch_rates": (3e-2,),
        "seeds": (0, 1),
        "n_documents": 200,
        "vocab_size": 300,
    },
}
BATCH, LENGTH, RATE = 16, 32, 3e-2  # where a question does not vary them


def run(scale: str) -> dict:
    """Train every job of `jobs` with every seed; see the module's docstring."""
    sizes = SIZES[scale]
    tokenizer, stream, fresh = corpus(sizes["n_documents"], sizes["vocab_size"])
    config = GPTConfig(tokenizer.vocab_size, LENGTH, **SHAPE)
    rows = [
        job | {"seed": seed, "loss": trained_loss(config, job, seed, stream, fresh)}
        for job in jobs(sizes)
        for seed in sizes["seeds"]
    ]
    settings = {"batch": BATCH, "length": LENGTH, "rate": RATE}
    return {"runs": rows, "model": SHAPE, **settings, **sizes}


def jobs(sizes: dict) -> list[dict]:
    """Arm, batch size, steps and rate of every training, each once: the questions share some."""
    steps = sizes["steps"]
    wanted = [(arm, BATCH, steps, rate) for arm in ARMS for rate in sizes["rates"]]
    for batch in sizes["batches"]:
        wanted += [(BOOK, batch, steps * BATCH // batch, rate) for rate in sizes["batch_rates"]]
        wanted.append((BOOK, batch, steps, RATE))
    names = ("arm", "batch", "steps", "rate")
    return [dict(zip(names, job, strict=True)) for job in dict.fromkeys(wanted)]


def trained_loss(
    config: GPTConfig, job: dict, seed: int, stream: Tensor, fresh: Tensor
) -> float | None:
    """Train one model; its loss on fresh text."""
    torch.manual_seed(seed)
    model, steps = GPT(config), job["steps"]
    changes = {"warmup": steps // 6, "checkpoint_every": steps} | ARMS[job["arm"]]

    def loss_at(model, step):
        idx, targets = windows(stream, job["batch"], LENGTH, seed, step)
        return cross_entropy(model(idx), targets)

    title = f"{job['arm']}, batch {job['batch']}, rate {job['rate']:g}, seed {seed}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(model, loss_at, TrainSettings(steps, job["rate"], **changes), Path(folder), title)
        except CourseError:
            return None
    idx, targets = windows(fresh, 256, LENGTH, 0, 0)
    with torch.no_grad():
        return round(cross_entropy(model(idx), targets).item(), 5)
