"""Group-relative policy optimisation: PPO without a value model.

Several replies are sampled for every prompt, and each is measured against its own group. A reply
better than its group's mean becomes more likely, all its tokens alike; one that is worse, less.

Two departures from the paper. The price of the KL is part of the reward, as in PPO: as a term of
the loss it would not tell a token what the tokens after it will cost, and the optimum would be
another one. The loss is a mean over tokens, not over replies of token means, so that a long reply
is not let off lightly (Yu et al. 2025).

Sources: Shao et al. 2024, section 4.1; Yu et al. 2025, section 3.3; Ahmadian et al. 2024.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.gpt import GPT
from course_lib.ppo import (
    Players,
    mean_metrics,
    minibatches,
    roll_out,
    rollout_metrics,
    set_rates,
    token_rewards,
    update_policy,
)


@dataclass(frozen=True)
class GRPOSettings:
    """Names follow TRL; those that PPO has too mean the same as in `PPOSettings`.

    Attributes:
        group_size: replies to each prompt, at least two.
        minibatch_size: replies in one step of the policy.

    Raises:
        CourseError: groups of less than two.
    """

    group_size: int = 8
    minibatch_size: int = 32
    epochs: int = 2
    learning_rate: float = 1e-4
    kl_coef: float = 0.1
    clip_range: float = 0.2
    temperature: float = 1.0
    max_new_tokens: int = 56
    missing_end_penalty: float = -2.0
    ptx_coef: float = 1.0
    clip: float = 1.0

    def __post_init__(self):
        if self.group_size < 2:
            raise CourseError(
                f"group_size is {self.group_size}: a reply is compared with others to the same "
                f"prompt, so at least two are needed"
            )


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Each reward's distance from the mean of its group, in standard deviations of the group.

    Args:
        rewards: `(B,)`, the replies to one prompt side by side; `group_size` divides B.

    Returns:
        `(B,)`; zero where all rewards of a group are equal: nothing is to be learned there.

    >>> group_advantages(torch.tensor([1.0, 3.0, 7.0, 7.0]), 2)
    tensor([-0.7071,  0.7071,  0.0000,  0.0000])
    """
    groups = rewards.view(-1, group_size)  # (prompts, group_size)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + 1e-4)).flatten()


def grpo_iteration(
    players: Players,
    contexts: list[list[int]],
    stop_ids: set[int],
    settings: GRPOSettings,
    generator: torch.Generator,
    rate_share: float,
    ptx_loss: Callable[[GPT], Tensor] | None = None,
) -> dict[str, float]:
    """One round of GRPO; returns its metrics. Arguments and errors as in
    `ppo_iteration`.

    Args:
        players: without a value model, and with one optimiser:
            `Players(policy, reference, reward, None, [make_optimizer(policy, rate)])`.
        contexts: rendered prompts; `group_size` replies are sampled for each.
    """
    # 1. sample a group of replies to every prompt; 2. score them
    repeated = [context for context in contexts for _ in range(settings.group_size)]
    roll = roll_out(players, repeated, stop_ids, settings, generator)
    # 3. reward of a reply: its score less the price of its KL; 4. compare within the group
    rewards = token_rewards(
        roll.scores, roll.logprobs, roll.ref_logprobs, roll.mask, settings.kl_coef
    ).sum(-1)
    advantages = group_advantages(rewards, settings.group_size)[:, None] * roll.mask  # (B, R)
    set_rates(players.optimizers, rate_share)
    # 5. several epochs of shuffled minibatches, with PPO's clipped loss
    seen = [
        update_policy(players, roll, advantages, part, settings, ptx_loss)
        for part in minibatches(len(repeated), settings, generator)
    ]
    return mean_metrics(seen) | rollout_metrics(roll, settings.kl_coef)
