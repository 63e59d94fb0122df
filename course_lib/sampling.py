"""From logits to the next token: penalty, temperature, filters, and the draw.

Every filter is a function of its own on logits `(..., vocab_size)`: it sets what it drops to minus
infinity. They apply in the order of `next_token_probs`, which is that of Hugging Face.

Sources: Holtzman et al. 2020 (top-p); Fan et al. 2018 (top-k); Nguyen et al. 2024 (min-p);
Keskar et al. 2019, section 4.1 (repetition penalty).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.errors import CourseError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy, 1 the model's own distribution.
        top_k: keep this many; 0 keeps all.
        top_p: keep the most likely tokens that reach this mass together; 1 keeps all.
        min_p: keep tokens with at least this share of the greatest probability; 0 keeps all.
        repetition_penalty: above 1 makes tokens of the text so far less likely; 1 is none.

    Raises:
        CourseError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise CourseError(f"{self}: temperature and top_k must be >= 0, top_p in (0, 1]")
        if not 0 <= self.min_p <= 1 or not self.repetition_penalty > 0:
            raise CourseError(f"{self}: min_p must be in [0, 1], repetition_penalty > 0")


GREEDY = Sampling(temperature=0.0)
Generators = torch.Generator | Sequence[torch.Generator] | None


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens of the text so far less likely.

    A positive logit is divided by `penalty`, a negative one multiplied: dividing both, as the
    paper writes it, would make an unlikely token *more* likely.

    Args:
        seen: True for the tokens of the text so far, the shape of `logits`.
    """
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature (> 0): below 1 sharpens the distribution, above 1 flattens it."""
    return logits / temperature


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` greatest, and what equals the last of them."""
    kth = logits.topk(min(k, logits.size(-1)), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probabilities reach `p`.

    The token that crosses the border is kept.
    """
    ranked, order = logits.softmax(-1).sort(dim=-1, descending=True)
    before = ranked.cumsum(-1) - ranked  # mass of the more likely tokens
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, -torch.inf)


def min_p_filter(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens whose probability is at least `min_p` times the greatest one."""
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -torch.inf)


def next_token_probs(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """The distribution that a token is drawn from: `(..., vocab_size)`, sums to one.

    Order: repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        seen: True for tokens of the text so far, as `logits`; needed for a repetition penalty.
    """
    if sampling.repetition_penalty != 1:
        logits = apply_repetition_penalty(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_k:
        logits = top_k_filter(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = top_p_filter(logits, sampling.top_p)
    if sampling.min_p:
        logits = min_p_filter(logits, sampling.min_p)
    return logits.softmax(-1)


def uniforms(n: int, generator: Generators = None) -> Tensor:
    """`n` random numbers in [0, 1), on the CPU.

    Args:
        generator: one for all, or one for each: then no number depends on another's generator.
    """
    if not isinstance(generator, Sequence):
        return torch.rand(n, generator=generator)
    return torch.cat([torch.rand(1, generator=own) for own in generator])


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """One token a row, on the CPU: `(B, vocab_size)` and `(B,)` numbers in [0, 1) to `(B,)`.

    The probabilities are laid side by side on a line, and the number says where to look (inverse
    of the cumulative distribution). A token of probability zero takes no room and is never drawn.

    Raises:
        CourseError: a probability is NaN.

    >>> draw(torch.tensor([[0.2, 0.0, 0.8]]), torch.tensor([0.2]))
    tensor([2])
    """
    probs = probs.cpu()
    ends = probs.cumsum(-1)  # (B, vocab_size): where each token's part of the line ends
    if ends[:, -1].isnan().any():
        raise CourseError(
            "the probabilities are NaN: the weights or the temperature are out of all bounds"
        )
    place = uniform.to(ends)[:, None] * ends[:, -1:]  # the sum is one but for rounding
    last = (probs > 0).int().cumsum(-1).argmax(-1)  # rounding must not lead past the last part
    return torch.searchsorted(ends, place, right=True)[:, 0].minimum(last)
