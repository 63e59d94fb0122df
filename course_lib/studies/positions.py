"""The same small model with four ways to know positions, and with none at all.

Each is trained on windows of one length and measured on longer ones, position by position. What a
model knows about order is measured too: the loss of one token after its context, and after the
same context shuffled. A model that sees a bag of words pays nothing for the shuffling. And so is
the cost of counting positions through padding, as if other tokens stood before the text.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from course_lib.atlas.documents import documents
from course_lib.data import END_OF_TEXT, token_stream, windows
from course_lib.files import MetricLog
from course_lib.gpt import GPT, GPTConfig
from course_lib.tokenizer import BPETokenizer
from course_lib.train import TrainSettings, cross_entropy, train

TITLE = "Positions: none, learned, sinusoidal, rotary"
CODE = (
    *("tokenizer.py", "positions.py", "attention.py", "layers.py", "gpt.py", "atlas"),
    *("data.py", "optim.py", "train.py"),
)
# The variants: scheme and number of layers. One layer without positions is exactly a bag of words.
VARIANTS = {
    "none": ("none", 2),
    "learned": ("learned", 2),
    "sinusoidal": ("sinusoidal", 2),
    "rotary": ("rotary", 2),
    "none, 1 layer": ("none", 1),
}
PROMPT = "The currency of Japan is the"


@dataclass(frozen=True)
class Sizes:
    """How much is trained and measured; windows of `trained` tokens, measured up to `longest`."""

    n_documents: int
    vocab_size: int
    steps: int
    batch: int
    trained: int
    longest: int
    bucket: int
    n_windows: int
    n_shuffles: int
    seeds: tuple[int, ...]


SIZES = {
    "full": Sizes(12_000, 1024, 320, 16, 64, 256, 16, 192, 256, (0, 1, 2)),
    "small": Sizes(300, 320, 8, 4, 16, 64, 16, 8, 8, (0,)),
}


def run(scale: str) -> dict:
    """Train every variant with every seed; see the module's docstring for what is measured."""
    sizes = SIZES[scale]
    texts = documents(sizes.n_documents, 7)
    tokenizer = BPETokenizer.train(texts, sizes.vocab_size, (END_OF_TEXT,))
    stream = token_stream(texts, tokenizer)
    fresh = token_stream(documents(sizes.n_documents // 4, 9_000_007), tokenizer)
    rows = []
    for name, (scheme, n_layers) in VARIANTS.items():
        for seed in sizes.seeds:
            model, losses = _train(scheme, n_layers, seed, stream, tokenizer, sizes)
            row = {"variant": name, "seed": seed, "train_loss": losses}
            row["by_position"] = loss_by_position(model, fresh, sizes)
            row |= shuffle_cost(model, fresh, sizes) | padding_cost(model, fresh, sizes)
            row["samples"] = _samples(model, tokenizer) if seed == sizes.seeds[0] else {}
            row["similarity"] = learned_similarity(model, sizes) if scheme == "learned" else []
            rows.append(row)
    config = {"d_model": 64, "n_heads": 4, "vocab_size": tokenizer.vocab_size}
    return {"runs": rows, "model": config, **vars(sizes)}


def _train(scheme: str, n_layers: int, seed: int, stream: Tensor, tokenizer, sizes: Sizes):
    """A trained model and its loss by step, as means of ten steps."""
    torch.manual_seed(seed)
    config = GPTConfig(tokenizer.vocab_size, sizes.longest, 64, n_layers, 4, positions=scheme)
    model = GPT(config)

    def loss_at(model: GPT, step: int) -> Tensor:
        idx, targets = windows(stream, sizes.batch, sizes.trained, seed, step)
        return cross_entropy(model(idx), targets)

    settings = TrainSettings(sizes.steps, 5e-3, checkpoint_every=sizes.steps + 1)
    with tempfile.TemporaryDirectory() as folder:
        train(model, loss_at, settings, Path(folder), f"{scheme}, {n_layers} layers, seed {seed}")
        losses = [row["loss"] for row in MetricLog.read(Path(folder) / "metrics.jsonl")]
    tens = [losses[i : i + 10] for i in range(0, len(losses), 10)]
    return model, [round(statistics.fmean(ten), 4) for ten in tens]


@torch.no_grad()
def loss_by_position(model: GPT, stream: Tensor, sizes: Sizes) -> list[float]:
    """Mean loss of each bucket of positions, over fresh windows of the longest length."""
    total = torch.zeros(sizes.longest)
    for step in range(sizes.n_windows // 8):
        idx, targets = windows(stream, 8, sizes.longest, 1, step)
        logprobs = model(idx).log_softmax(-1)  # (B, T, V)
        total -= logprobs.gather(-1, targets[..., None])[..., 0].mean(0)
    mean = total / (sizes.n_windows // 8)  # (T,)
    return [round(x, 4) for x in mean.view(-1, sizes.bucket).mean(-1).tolist()]


@torch.no_grad()
def shuffle_cost(model: GPT, stream: Tensor, sizes: Sizes) -> dict[str, float]:
    """Loss of the token after a window, with the window in order and with all but its last token
    shuffled: the words and their number are the same, only the order is lost."""
    idx, targets = windows(stream, sizes.n_shuffles, sizes.trained, 2, 0)
    generator = torch.Generator().manual_seed(0)
    order = torch.argsort(torch.rand(idx[:, :-1].shape, generator=generator), dim=-1)
    shuffled = torch.cat((idx[:, :-1].gather(1, order), idx[:, -1:]), dim=1)
    losses = [cross_entropy(model(x)[:, -1:], targets[:, -1:]).item() for x in (idx, shuffled)]
    return {"in_order": round(losses[0], 6), "shuffled": round(losses[1], 6)}


@torch.no_grad()
def padding_cost(model: GPT, stream: Tensor, sizes: Sizes) -> dict[str, float]:
    """Loss of short windows with positions counted from 0, and counted on from padding that would
    fill up the trained length; no position is new to the model."""
    length = sizes.trained // 4
    idx, targets = windows(stream, sizes.n_shuffles, length, 3, 0)
    starts = {"from_zero": 0, "through_padding": sizes.trained - length}
    return {
        name: round(cross_entropy(model(idx, start + torch.arange(length)), targets).item(), 6)
        for name, start in starts.items()
    }


@torch.no_grad()
def learned_similarity(model: GPT, sizes: Sizes) -> list[float]:
    """Mean cosine of two learned position vectors by their distance, from 0 on, over all pairs of
    positions that were trained."""
    rows = torch.nn.functional.normalize(model.position_embedding.weight[: sizes.trained], dim=-1)
    cosines = rows @ rows.T  # (trained, trained)
    means = [cosines.diagonal(distance).mean().item() for distance in range(sizes.trained)]
    return [round(x, 4) for x in means]


@torch.no_grad()
def _samples(model: GPT, tokenizer: BPETokenizer) -> dict[str, str]:
    """What the model writes, greedily, after a prompt and after the same tokens in another order:
    all but the last one backwards."""
    ids = tokenizer.encode(PROMPT)
    samples = {}
    for prompt in (ids, [*ids[-2::-1], ids[-1]]):
        written = [tokenizer.special_ids[END_OF_TEXT], *prompt]
        for _ in range(12):
            written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
        given = " ".join(tokenizer.decode([i]).strip() for i in prompt)
        samples[given] = tokenizer.decode(written[1 + len(prompt) :])
    return samples
