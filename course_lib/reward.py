"""The reward model: a GPT body with one number on top, trained on comparisons.

Two replies to one prompt are compared; the model learns scores whose difference explains who won
(Bradley-Terry). The score of a reply is read at its last real token.

Sources: Bradley and Terry 1952; Stiennon et al. 2020, section 3.4; Ouyang et al. 2022, section 3.5;
Huang et al. 2024 (head initialisation, normalisation).
"""

import copy
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.data import pad_right, step_generator
from course_lib.errors import CourseError
from course_lib.evaluate import Reply, chat_ids
from course_lib.gpt import GPT
from course_lib.tokenizer import BPETokenizer


class RewardModel(nn.Module):
    """A scalar head on the final hidden states of a GPT.

    The same class serves as PPO's value model, which reads the head at every position.
    `gain` and `shift` normalise the scores; they are stored with the weights.
    """

    def __init__(self, body: GPT):
        super().__init__()
        self.body = body
        width = body.config.d_model
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    @classmethod
    def from_policy(cls, policy: GPT) -> "RewardModel":
        """A fresh head on a copy of the policy's body."""
        return cls(copy.deepcopy(policy))

    def values(self, idx: Tensor) -> Tensor:
        """A number at every position of `idx`: `(B, T)` to `(B, T)`.

        Raises:
            CourseError: a row is longer than the context.
        """
        return self.head(self.body.hidden(idx))[..., 0] * self.gain + self.shift

    def forward(self, contexts: list[list[int]], responses: list[list[int]]) -> Tensor:
        """The score of each response, `(B,)`, read at its last token.

        The place is known from the lengths. Looking for padding instead goes wrong as soon as the
        padding id is also a real token.

        Raises:
            CourseError: a context and its response are longer than the model's context.
        """
        rows = [c + r for c, r in zip(contexts, responses, strict=True)]
        last = torch.tensor([len(row) - 1 for row in rows])
        values = self.values(pad_right(rows, 0).to(self.head.weight.device))
        return values.gather(1, last[:, None].to(values.device))[:, 0]


# How much better the labeler finds a reply: points of difference, and the margin it asks for
# (Touvron et al. 2023, section 3.2.2 and table 27: significantly, clearly, slightly, negligibly).
STRENGTHS = ((3.0, 3.0), (2.0, 2.0), (1.0, 1.0), (0.0, 0.0))


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt; `label_right` is False where the labeler's choice was flipped.

    `group` numbers the prompt that the pair belongs to, `margin` says how sure the labeler was.
    """

    context: list[int]
    chosen: list[int]
    rejected: list[int]
    label_right: bool
    kind: str
    margin: float = 0.0
    group: int = 0


def label_pairs(
    samples: Sequence[Sequence[Reply]], tokenizer: BPETokenizer, flip_share: float, seed: int
) -> list[Pair]:
    """Compare the replies to each prompt, two by two, as noisy labelers would.

    The judge's points decide; equal points and identical texts give no pair; each label is flipped
    with probability `flip_share`. This stands in for human labelers, who also err.

    Args:
        samples: K lists of replies to the same prompts: up to K(K-1)/2 pairs a prompt
            (Ouyang et al. 2022, section 3.5).

    Raises:
        CourseError: no two replies differ.
    """
    rng = random.Random(f"labels-{seed}")
    pairs = []
    for group, answers in enumerate(zip(*samples, strict=True)):
        context = chat_ids(answers[0].prompt, tokenizer)
        for a, b in itertools.combinations(answers, 2):
            gap = a.verdict.points - b.verdict.points
            if gap == 0 or a.ids == b.ids:
                continue
            better, worse = (a, b) if gap > 0 else (b, a)
            right = rng.random() >= flip_share
            chosen, rejected = (better, worse) if right else (worse, better)
            margin = next(margin for least, margin in STRENGTHS if abs(gap) >= least)
            kind = a.prompt.kind
            pairs.append(Pair(context, chosen.ids, rejected.ids, right, kind, margin, group))
    if not pairs:
        raise CourseError("no two replies differ in points: there is nothing to compare")
    return pairs


def pairwise_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Mean negative log-probability that the chosen reply wins (Bradley-Terry), in nats.

    `logsigmoid` stays finite where `log(sigmoid(x))` is already minus infinity.

    Args:
        chosen, rejected: scores, `(B,)`.
        margin: by how much the chosen one should win, `(B,)` or one number.

    >>> pairwise_loss(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """
    return -F.logsigmoid(chosen - rejected - margin).mean()


def pair_scores(model: RewardModel, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and of the rejected replies, each `(len(pairs),)`.

    A reply that stands in several pairs is scored once.
    """
    chosen = [(tuple(p.context), tuple(p.chosen)) for p in pairs]
    rejected = [(tuple(p.context), tuple(p.rejected)) for p in pairs]
    place = {row: i for i, row in enumerate(dict.fromkeys(chosen + rejected))}
    scores = model([list(c) for c, _ in place], [list(r) for _, r in place])
    return tuple(scores[[place[row] for row in rows]] for rows in (chosen, rejected))


def by_prompt(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs, prompt by prompt."""
    return [list(group) for _, group in itertools.groupby(pairs, key=lambda pair: pair.group)]


def reward_loss(
    model: RewardModel, prompts: Sequence[Sequence[Pair]], batch_size: int, seed: int, step: int
) -> Tensor:
    """Pairwise loss of all pairs of `batch_size` random prompts, plus a small centring term.

    The loss is a number, in nats a pair. The centring term is 0.01 times the mean square of the two
    scores' sum, as in TRL (Eisenstein et al. 2023): comparisons fix differences of scores alone.

    Args:
        prompts: the pairs, prompt by prompt, see `by_prompt`.
        seed, step: choose the prompts.
    """
    draw = torch.randperm(len(prompts), generator=step_generator(seed, step))[:batch_size]
    pairs = [pair for i in draw.tolist() for pair in prompts[i]]
    chosen, rejected = pair_scores(model, pairs)
    margin = torch.tensor([pair.margin for pair in pairs], device=chosen.device)
    return pairwise_loss(chosen, rejected, margin) + 0.01 * ((chosen + rejected) ** 2).mean()


@torch.no_grad()
def pair_margins(model: RewardModel, pairs: Sequence[Pair], batch_size: int = 64) -> Tensor:
    """Score of the truly better reply minus that of the worse one, `(len(pairs),)`.

    Raises:
        CourseError: there is no pair.
    """
    if not pairs:
        raise CourseError("no pairs to measure on: give at least one")
    margins = []
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        chosen, rejected = pair_scores(model, chunk)
        sign = torch.tensor([1.0 if p.label_right else -1.0 for p in chunk])
        margins.append((chosen - rejected).cpu() * sign)
    return torch.cat(margins)


@torch.no_grad()
def score_replies(
    model: RewardModel, tokenizer: BPETokenizer, answers: Sequence[Reply], batch_size: int = 64
) -> Tensor:
    """The model's score of each reply, `(len(answers),)`."""
    scores = []
    for start in range(0, len(answers), batch_size):
        chunk = answers[start : start + batch_size]
        contexts = [chat_ids(r.prompt, tokenizer) for r in chunk]
        scores.append(model(contexts, [r.ids for r in chunk]).cpu())
    return torch.cat(scores)


# -- best of n ----------------------------------------------------------------------------------


def best_of_n(scores: Tensor, values: Tensor, n: int) -> Tensor:
    """What the best-scored of n replies is worth, estimated from N >= n replies to each prompt.

    The reply of rank k among N (1 is the worst) is the best of n random ones with probability
    C(k - 1, n - 1) / C(N, n). No estimate from the same N samples has less noise.

    Args:
        scores: what the choice goes by, `(B, N)`.
        values: what the choice is judged by, `(B, N)`: the scores themselves, or the true reward.

    Returns:
        `(B,)`.

    Raises:
        CourseError: n is not between 1 and N.

    Source: Nakano et al. 2021.

    >>> x = torch.tensor([[1.0, 2.0, 6.0]])
    >>> [best_of_n(x, x, n).item() for n in (1, 3)]
    [3.0, 6.0]
    """
    total = scores.size(1)
    if not 1 <= n <= total:
        raise CourseError(f"the best of {n} cannot be told from {total} replies a prompt")
    chance = [math.comb(k, n - 1) / math.comb(total, n) for k in range(total)]
    ranked = values.to(scores).gather(1, scores.argsort(dim=1))  # worst first
    return ranked @ torch.tensor(chance, device=scores.device).to(scores)


def best_of_n_kl(n: int) -> float:
    """KL of the best of n to the policy that is sampled from, in nats (Stiennon et al. 2020).

    Exact where no two samples agree; an upper bound otherwise.
    """
    return math.log(n) - (n - 1) / n


def normalise(model: RewardModel, scores: Tensor) -> None:
    """Set gain and shift so that these scores of reference samples, `(N,)`, get mean 0, std 1."""
    gain = 1 / scores.std().clamp(min=1e-6)
    model.shift.copy_((model.shift - scores.mean()) * gain)
    model.gain.mul_(gain)


def calibration(margins: Tensor, n_bins: int = 8) -> list[dict]:
    """Does "80 % sure" win 80 % of the time? Bins of equal size over the model's confidence.

    Args:
        margins: score of the truly better reply minus that of the worse one, `(N,)`, see
            `pair_margins`.

    Returns:
        Rows with mean confidence, share right and count, least confident first.
    """
    confidence = margins.abs().sigmoid()
    right = (margins > 0).float()
    order = confidence.argsort()
    return [
        {
            "confidence": confidence[part].mean().item(),
            "right": right[part].mean().item(),
            "count": len(part),
        }
        for part in order.tensor_split(n_bins)
        if len(part)
    ]
