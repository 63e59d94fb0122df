"""Sampling text from a GPT: filters on the distribution, then the loop with a KV cache.

Prompts of different lengths run in one batch: they are padded on the left, the padding is masked,
and positions are counted from each prompt's own first token.

Source: Holtzman et al. 2020 (top-p).
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.gpt import GPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 keep all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise CourseError(f"{self}: temperature and top_k must be >= 0, top_p in (0, 1]")


GREEDY = Sampling(temperature=0.0)


def next_token_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that a token is drawn from: `(..., vocab_size)`, sums to one.

    Order: temperature, top-k, top-p. Top-p keeps the smallest set of most likely tokens whose
    probabilities reach `top_p`; the token that crosses the border is kept.
    """
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.size(-1)), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probs = logits.softmax(-1)
    if sampling.top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True)
        before = ranked.cumsum(-1) - ranked  # mass of the more likely tokens
        ranked = ranked.masked_fill(before >= sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


@dataclass(frozen=True)
class Completion:
    """New token ids (a stop token included) and whether a stop token ended them."""

    ids: list[int]
    ended: bool


@torch.no_grad()
def generate(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    generator: torch.Generator | None = None,
) -> list[Completion]:
    """Continue every prompt.

    Args:
        prompts: token ids, one list a prompt, of any lengths; none may be empty.
        stop_ids: a row ends with the first of these it draws.
        generator: on the CPU; the same generator state gives the same text.

    Raises:
        CourseError: an empty prompt, or one longer than the context. Generation ends early, with
            `ended` False, where the longest prompt fills the context.
    """
    limit, longest = model.config.context_length, max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise CourseError("a prompt is empty: give at least one token (such as <|endoftext|>)")
    if longest >= limit:
        raise CourseError(
            f"the prompt has {longest} tokens, the context holds {limit}: shorten the prompt"
        )
    device = model.embedding.weight.device
    idx, real = _pad_left(prompts, device)  # (B, T), (B, T)
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    mask = (causal & real[:, None, None, :]) | torch.eye(longest, dtype=torch.bool, device=device)
    caches = model.new_caches(len(prompts))
    rows: list[list[int]] = [[] for _ in prompts]
    alive = set(range(len(prompts)))
    hidden = model.hidden(idx, positions, mask, caches)[:, -1]
    for _ in range(min(max_new_tokens, limit - longest)):
        probs = next_token_probs(model.logits(hidden).float(), sampling).cpu()
        drawn = (
            probs.argmax(-1)
            if sampling.temperature == 0
            else torch.multinomial(probs, 1, generator=generator)[:, 0]
        )
        for i in list(alive):
            rows[i].append(int(drawn[i]))
            if rows[i][-1] in stop_ids:
                alive.discard(i)
        if not alive or longest + len(rows[min(alive)]) >= limit:
            break
        real = torch.cat((real, real.new_ones(len(prompts), 1)), dim=1)
        positions = (real.sum(-1) - 1)[:, None]
        step = drawn[:, None].to(device)
        hidden = model.hidden(step, positions, real[:, None, None, :], caches)[:, -1]
    return [Completion(row, bool(row) and row[-1] in stop_ids) for row in rows]


def _pad_left(prompts: list[list[int]], device) -> tuple[Tensor, Tensor]:
    """Prompts as one tensor `(B, T)`, filled up on the left, and where the real tokens are."""
    width = max(map(len, prompts))
    idx = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    real = torch.arange(width, device=device) >= (width - lengths)[:, None]
    return idx, real
