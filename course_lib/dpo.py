"""Direct preference optimisation: learning from comparisons with no reward model and no samples.

The policy that is best under "reward minus KL price" fixes the reward up to a constant of each
prompt: beta times the log-ratio of policy and reference. Put that into the reward model's loss, the
constant cancels, and the policy itself is what is trained.

Source: Rafailov et al. 2023, sections 4 and 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from course_lib.data import step_generator
from course_lib.evaluate import response_logprobs
from course_lib.gpt import GPT
from course_lib.reward import Pair, pair_margins, pair_scores, pairwise_loss
from course_lib.train import TrainSettings, train


@dataclass(frozen=True)
class DPOSettings:
    """How the loop runs, and how far the policy may go.

    Attributes:
        beta: price of one nat of KL, in units of the reward that explains the comparisons.
        batch_size: pairs in one step.
    """

    train: TrainSettings
    beta: float = 0.1
    batch_size: int = 32


def implicit_reward(logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> Tensor:
    """The reward for which a policy would be best, up to a constant of the prompt.

    Args:
        logprobs, ref_logprobs: of whole replies, `(B,)`.
    """
    return beta * (logprobs - ref_logprobs)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """Mean negative log-probability that the chosen reply wins, by implicit rewards, in nats.

    Args:
        chosen, rejected: log-probabilities of whole replies under the policy, `(B,)`.
        ref_chosen, ref_rejected: the same under the reference, `(B,)`.

    >>> dpo_loss(*torch.zeros(4, 1), beta=0.1)
    tensor(0.6931)
    """
    return pairwise_loss(
        implicit_reward(chosen, ref_chosen, beta), implicit_reward(rejected, ref_rejected, beta)
    )


# -- training -----------------------------------------------------------------------------------


def reply_logprobs(model: GPT, contexts: list[list[int]], responses: list[list[int]]) -> Tensor:
    """Log-probability of each whole response given its context, `(B,)`, in nats."""
    return response_logprobs(model, contexts, responses)[0].sum(-1)


def preference_loss(
    policy: GPT, reference: GPT, pairs: Sequence[Pair], settings: DPOSettings, seed: int, step: int
) -> Tensor:
    """DPO's loss on a random batch of pairs: a number, in nats a pair.

    Args:
        reference: gives log-probabilities, and learns nothing.
        seed, step: choose the pairs.
    """
    draw = torch.randint(len(pairs), (settings.batch_size,), generator=step_generator(seed, step))
    drawn = [pairs[i] for i in draw.tolist()]
    chosen, rejected = pair_scores(partial(reply_logprobs, policy), drawn)
    with torch.no_grad():
        ref_chosen, ref_rejected = pair_scores(partial(reply_logprobs, reference), drawn)
    return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, settings.beta)


def implicit_scorer(policy: GPT, reference: GPT, beta: float) -> Callable:
    """A policy as a reward model, for `pair_margins` and `score_replies`.

    Returns:
        A function of contexts and responses that gives implicit rewards, `(B,)`.
    """

    def score(contexts: list[list[int]], responses: list[list[int]]) -> Tensor:
        logprobs = reply_logprobs(policy, contexts, responses)
        return implicit_reward(logprobs, reply_logprobs(reference, contexts, responses), beta)

    return score


def train_dpo(
    policy: GPT,
    reference: GPT,
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: DPOSettings,
    directory: Path,
    seed: int,
) -> None:
    """Train the policy in place on preference pairs; the reference stays as it is.

    Metrics and checkpoints go to `directory`, from which a killed training goes on. The accuracy
    on the held-out pairs is that of the implicit rewards.

    Raises:
        CourseError: the loss or the gradient is not finite.
    """

    def loss_at(policy: GPT, step: int) -> Tensor:
        return preference_loss(policy, reference, pairs, settings, seed, step)

    def evaluate(policy: GPT, step: int) -> dict:
        margins = pair_margins(implicit_scorer(policy, reference, settings.beta), heldout)
        return {"pair_accuracy": (margins > 0).float().mean().item()}

    train(policy, loss_at, settings.train, directory, "dpo", evaluate)
