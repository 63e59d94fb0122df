"""Loss against size, at one amount of data: five sizes are fitted, a larger one is predicted.

All models have two layers and heads of width 8, see the same number of tokens, and differ in width
alone. The fitted law is L(N) = floor + amount * N ** -exponent (Kaplan et al. 2020, section 1.2,
with the floor of Hoffmann et al. 2022, section 3.3, which there also holds what the data cost).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from course_lib.gpt import GPTConfig
from course_lib.sizing import parameters, training_flops
from course_lib.studies.ablations import BATCH, LENGTH, corpus, trained_loss
from course_lib.train import TrainSettings

TITLE = "A scaling law of small models, and its prediction for a larger one"
CODE = (
    *("pieces.py", "bpe.py", "tokenizer.py", "positions.py", "attention.py", "layers.py"),
    *("gpt.py", "sizing.py", "atlas", "data.py", "optim.py", "train.py"),
    "studies/ablations.py",
)
D_HEAD, N_LAYERS = 8, 2
SIZES = {
    "full": {
        "fitted": (16, 24, 32, 48, 64),
        "predicted": 112,
        "steps": 200,
        "seeds": (0, 1, 2),
        "n_documents": 8000,
        "vocab_size": 512,
        "rate": 5e-3,
    },
    "small": {
        "fitted": (8, 16, 24),
        "predicted": 32,
        "steps": 3,
        "seeds": (0,),
        "n_documents": 200,
        "vocab_size": 300,
        "rate": 5e-3,
    },
}


def run(scale: str) -> dict:
    """Train every width with every seed; the fit itself is made where it is shown."""
    sizes = SIZES[scale]
    tokenizer, stream, fresh = corpus(sizes["n_documents"], sizes["vocab_size"])
    settings = TrainSettings(sizes["steps"], sizes["rate"], checkpoint_every=sizes["steps"])
    tokens, rows = sizes["steps"] * BATCH * LENGTH, []
    for width in (*sizes["fitted"], sizes["predicted"]):
        shape = (tokenizer.vocab_size, LENGTH, width, N_LAYERS, width // D_HEAD)
        config = GPTConfig(*shape)
        counted = parameters(config)
        row = {"width": width, "parameters": sum(counted.values())}
        row |= {"embedding": counted["embedding"], "tokens": tokens}
        row["flops"] = training_flops(config, tokens, LENGTH)
        for seed in sizes["seeds"]:
            loss = trained_loss(config, settings, seed, stream, fresh)
            rows.append(row | {"seed": seed, "loss": loss})
    return {"runs": rows, "batch": BATCH, "length": LENGTH, **sizes}


@dataclass(frozen=True)
class PowerLaw:
    """L(N) = floor + amount * N ** -exponent."""

    floor: float
    amount: float
    exponent: float

    def __call__(self, n: float) -> float:
        """The loss that the law expects of `n` parameters."""
        return self.floor + self.amount * n**-self.exponent


def fit(sizes: Sequence[float], losses: Sequence[float], floor: float | None = None) -> PowerLaw:
    """The law with the least squared error; the floor is fitted too unless it is given.

    For each exponent from 0.01 to 2 the other two numbers follow by linear least squares; the best
    exponent wins. A floor below zero makes no sense and is refused.

    >>> law = fit([1e3, 1e4, 1e5, 1e6], [1 + 8 * n**-0.3 for n in (1e3, 1e4, 1e5, 1e6)])
    >>> round(law.floor, 3), round(law.amount, 3), round(law.exponent, 3)
    (1.0, 8.0, 0.3)
    """
    n, y = (torch.tensor(values, dtype=torch.float64) for values in (sizes, losses))
    best, least = PowerLaw(0.0, 0.0, 0.0), float("inf")
    for step in range(10, 2001):
        powers = n ** (-step / 1000)
        if floor is None:
            columns = torch.stack((torch.ones_like(powers), powers), dim=1)
            level, amount = torch.linalg.lstsq(columns, y).solution.tolist()
        else:
            level, amount = floor, ((y - floor) @ powers / (powers @ powers)).item()
        law = PowerLaw(level, amount, step / 1000)
        error = (y - torch.tensor([law(x) for x in sizes])).square().sum().item()
        if level >= 0 and error < least:
            best, least = law, error
    return best
