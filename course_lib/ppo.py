"""Proximal policy optimisation on text: every formula is a function of its own.

State: prompt and tokens so far. Action: the next token. Episode: one reply. One iteration is
numbered in `ppo_iteration`. Besides the clipped objective, each update carries a share of the
pre-training loss ("PPO-ptx"), since the reward says nothing about what the policy must not forget.

Sources: Schulman et al. 2016 (GAE); Schulman et al. 2017 (clipping); Ziegler et al. 2019 (KL
reward); Ouyang et al. 2022, section 3.5 (PPO-ptx); Huang et al. 2024 (details).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_lib.data import pad_right
from course_lib.errors import CourseError
from course_lib.evaluate import response_logprobs, response_positions
from course_lib.generate import Completion, Sampling, generate
from course_lib.gpt import GPT
from course_lib.reward import RewardModel


@dataclass(frozen=True)
class PPOSettings:
    """Names follow TRL.

    Attributes:
        iterations: rollout-and-update rounds.
        kl_coef: price of one nat of KL to the reference, in units of reward.
        missing_end_penalty: added to the score of a reply that never ends its turn.
        ptx_coef: weight of the pre-training loss in each policy update.
    """

    iterations: int
    batch_size: int = 64
    minibatch_size: int = 32
    epochs: int = 2
    learning_rate: float = 1e-4
    value_learning_rate: float = 3e-4
    kl_coef: float = 0.1
    clip_range: float = 0.2
    clip_range_value: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0
    max_new_tokens: int = 56
    missing_end_penalty: float = -2.0
    ptx_coef: float = 1.0
    clip: float = 1.0
    checkpoint_every: int = 20


# -- formulas -----------------------------------------------------------------------------------


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the positions where `mask` is True: both `(B, R)`, a number.

    The mask must hold at least one position; without any, the mean is NaN.
    """
    return (x * mask).sum() / mask.sum()


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the positions where `mask` is True; zero elsewhere.

    `x`, `mask` and the result are `(B, R)`; the mean is that of the whole batch, not of each row
    (Huang et al. 2024).
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * (variance + 1e-8).rsqrt() * mask


def kl_estimates(logprobs: Tensor, ref_logprobs: Tensor) -> dict[str, Tensor]:
    """Three estimates of KL(policy || reference) from samples of the policy.

    k1 is unbiased and noisy, k2 biased and calm, k3 unbiased, calm and never negative
    (Schulman 2020).

    Args:
        logprobs, ref_logprobs: of the sampled tokens, any shape, in nats.

    Returns:
        Three tensors of that shape, in nats a token.
    """
    d = logprobs - ref_logprobs
    return {"k1": d, "k2": d**2 / 2, "k3": torch.expm1(-d) + d}


def adapt_kl_coef(kl_coef: float, kl: float, target: float, n_steps: int, horizon: int) -> float:
    """The next `kl_coef`: higher where the KL came out above its target, lower where below.

    The relative error counts up to 20 %, so that one odd batch changes little (Ziegler et al. 2019,
    section 2.2).

    Args:
        kl, target: nats a reply, measured and wanted.
        n_steps, horizon: replies since the last change, and replies in which an error of 20 % that
            lasts changes the price by about 20 %.

    >>> round(adapt_kl_coef(0.1, kl=9.0, target=6.0, n_steps=64, horizon=640), 6)
    0.102
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * n_steps / horizon)


def penalise_missing_end(scores: Tensor, ended: list[bool], penalty: float) -> Tensor:
    """Scores `(B,)`, with `penalty` (below zero) added where the reply never ended its turn."""
    missing = ~torch.tensor(ended, device=scores.device)
    return scores + penalty * missing


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """Reward of every token, `(B, R)`: the KL price everywhere, the score at the last token.

    Args:
        scores: `(B,)`, in units of reward.
        logprobs, ref_logprobs, mask: `(B, R)`, in nats; responses are padded on the right.
        kl_coef: units of reward a nat.
    """
    rewards = -kl_coef * kl_estimates(logprobs, ref_logprobs)["k1"] * mask
    last = mask.sum(-1, keepdim=True) - 1  # (B, 1)
    return rewards.scatter_add(1, last, scores[:, None])


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, backwards over each response.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with V = A = 0
    beyond the end.

    Args:
        rewards, values, mask: `(B, R)`; responses are padded on the right.

    Returns:
        Advantages and returns (advantages plus values), `(B, R)`, zero where padded.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    following_value = following_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.size(1))):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = (delta + gamma * lam * following_advantage) * mask[:, t]
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, (advantages + values) * mask


def policy_loss(
    new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss, and the share of tokens at which the clip is active.

    The worse of the two objectives counts, so that nothing is gained by moving the ratio further
    than `clip_range` from 1 in the direction the advantage pays for (Schulman et al. 2017,
    equation 7, with the sign of a loss).

    Args:
        new_logprobs, logprobs: of the sampled tokens, `(B, R)`, in nats: under the policy as it is,
            and as it was when it sampled. Gradients go through the first alone.
        advantages, mask: `(B, R)`.

    Returns:
        Two numbers.
    """
    ratio = (new_logprobs - logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    clip_share = masked_mean((clipped > plain).float(), mask)
    return masked_mean(torch.maximum(plain, clipped), mask), clip_share


def value_loss(
    new_values: Tensor, values: Tensor, returns: Tensor, mask: Tensor, clip_range_value: float
) -> Tensor:
    """Half the squared error, with the step away from the old values clipped: a number.

    The worse of the clipped and the plain error counts (Huang et al. 2024).

    Args:
        new_values, values: estimates now, and those of the rollout, `(B, R)`, in units of reward.
        returns, mask: `(B, R)`.
    """
    clipped = values + (new_values - values).clamp(-clip_range_value, clip_range_value)
    worse = torch.maximum((new_values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * masked_mean(worse, mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 for a perfect value model, 0 for a constant at the mean of the returns, less for worse.

    Args:
        values, returns, mask: `(B, R)`; only positions where the mask is True count.
    """
    mean = masked_mean(returns, mask)
    spread = masked_mean((returns - mean) ** 2, mask)
    return (1 - masked_mean((returns - values) ** 2, mask) / (spread + 1e-8)).item()


# -- one iteration ------------------------------------------------------------------------------


@dataclass
class Rollout:
    """What one batch of replies and its scores hold; tensors are `(B, R)` unless noted."""

    contexts: list[list[int]]
    responses: list[list[int]]
    scores: Tensor  # (B,)
    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor | None  # None without a value model
    mask: Tensor
    ended: list[bool]


@dataclass
class Players:
    """The four models of RLHF, and the optimisers of those that learn: policy, then value.

    All in evaluation mode: with dropout the ratio would not be 1 in the first minibatch.
    """

    policy: GPT
    reference: GPT
    reward: RewardModel
    value: RewardModel | None
    optimizers: list[torch.optim.Optimizer]


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Adam with eps 1e-5 (Huang et al. 2024) for all parameters that learn."""
    learning = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(learning, lr=rate, eps=1e-5, weight_decay=0.0, fused=True)
    adam.param_groups[0]["peak"] = rate
    return adam


def make_optimizers(policy: GPT, value: RewardModel, settings: PPOSettings) -> list:
    """One optimiser for the policy, one for the value model."""
    return [
        make_optimizer(policy, settings.learning_rate),
        make_optimizer(value, settings.value_learning_rate),
    ]


def response_values(value: RewardModel, contexts: list, responses: list) -> Tensor:
    """The value model's estimate before each response token, `(B, R)`."""
    rows = [c + r for c, r in zip(contexts, responses, strict=True)]
    values = value.values(pad_right(rows, 0).to(value.head.weight.device))
    index, mask = response_positions(contexts, responses)
    return values.gather(1, index.to(values.device)) * mask.to(values.device)


@torch.no_grad()
def roll_out(
    players: Players,
    contexts: list[list[int]],
    stop_ids: set[int],
    settings: PPOSettings,
    generator: torch.Generator,
) -> Rollout:
    """Sample replies, and score them with every model, without gradients.

    Raises:
        CourseError: a context is empty or leaves no room for a reply.
    """
    sampling = Sampling(settings.temperature)
    done: list[Completion] = generate(
        players.policy, contexts, settings.max_new_tokens, stop_ids, sampling, generator
    )
    responses = [c.ids for c in done]
    ended = [c.ended for c in done]
    t = settings.temperature
    logprobs, entropy, mask = response_logprobs(players.policy, contexts, responses, t)
    ref_logprobs, _, _ = response_logprobs(players.reference, contexts, responses, t)
    scores = players.reward(contexts, responses)
    return Rollout(
        contexts,
        responses,
        penalise_missing_end(scores, ended, settings.missing_end_penalty),
        logprobs,
        ref_logprobs,
        entropy,
        None if players.value is None else response_values(players.value, contexts, responses),
        mask,
        ended,
    )


def ppo_iteration(
    players: Players,
    contexts: list[list[int]],
    stop_ids: set[int],
    settings: PPOSettings,
    generator: torch.Generator,
    rate_share: float,
    ptx_loss: Callable[[GPT], Tensor] | None = None,
) -> dict[str, float]:
    """One round of PPO; returns its metrics.

    Args:
        contexts: rendered prompts.
        rate_share: share of the peak learning rates (linear decay over the iterations).
        ptx_loss: the pre-training loss of the policy on a fresh batch.

    Raises:
        CourseError: a context leaves no room for a reply, or the gradient is not finite.
    """
    # 1. sample replies; 2. score them
    roll = roll_out(players, contexts, stop_ids, settings, generator)
    # 3. rewards by token: KL price plus score; 4. advantages and returns; 5. whiten
    rewards = token_rewards(
        roll.scores, roll.logprobs, roll.ref_logprobs, roll.mask, settings.kl_coef
    )
    advantages, returns = gae(rewards, roll.values, roll.mask, settings.gamma, settings.lam)
    advantages = masked_whiten(advantages, roll.mask)
    set_rates(players.optimizers, rate_share)
    # 6. several epochs of shuffled minibatches
    seen: list[dict[str, float]] = []
    for part in minibatches(len(contexts), settings, generator):
        row = update_policy(players, roll, advantages, part, settings, ptx_loss)
        row["value_loss"] = _update_value(players, roll, returns, part, settings)
        seen.append(row)
    # 7. what to watch
    metrics = mean_metrics(seen) | rollout_metrics(roll, settings.kl_coef)
    metrics["explained_variance"] = explained_variance(roll.values, returns, roll.mask)
    return metrics


def set_rates(optimizers: list[torch.optim.Optimizer], rate_share: float) -> None:
    """Set every learning rate to this share of its peak."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = rate_share * optimizer.param_groups[0]["peak"]


def minibatches(n: int, settings, generator: torch.Generator) -> Iterator[list[int]]:
    """Indices of the minibatches: each epoch goes through all `n` replies in a new order."""
    for _ in range(settings.epochs):
        for part in torch.randperm(n, generator=generator).split(settings.minibatch_size):
            yield part.tolist()


def update_policy(
    players: Players,
    roll: Rollout,
    advantages: Tensor,
    part: list[int],
    settings,
    ptx_loss: Callable[[GPT], Tensor] | None,
) -> dict[str, float]:
    """One step of the policy on the replies `part`; returns its metrics.

    Args:
        advantages: whitened, `(B, R)`.
        part: which of the B replies.
        ptx_loss: as in `ppo_iteration`.

    Returns:
        Surrogate loss, share of clipped tokens, mean ratio, and the KL of the step in nats a token.

    Raises:
        CourseError: the gradient is not finite.
    """
    contexts, responses = [roll.contexts[i] for i in part], [roll.responses[i] for i in part]
    width = max(map(len, responses))
    mask, old = roll.mask[part, :width], roll.logprobs[part, :width]
    new, _, _ = response_logprobs(players.policy, contexts, responses, settings.temperature)
    surrogate, clip_share = policy_loss(
        new, old, advantages[part, :width], mask, settings.clip_range
    )
    loss = surrogate
    if ptx_loss is not None:
        loss = loss + settings.ptx_coef * ptx_loss(players.policy)
    loss.backward()
    _step(players.policy, players.optimizers[0], settings.clip)
    with torch.no_grad():
        ratio = masked_mean((new - old).exp(), mask).item()
        approx_kl = masked_mean(kl_estimates(old, new)["k3"], mask).item()
    return {
        "policy_loss": surrogate.item(),
        "clip_share": clip_share.item(),
        "ratio": ratio,
        "approx_kl": approx_kl,
    }


def _update_value(players: Players, roll: Rollout, returns: Tensor, part, settings) -> float:
    """One step of the value model on the replies `part`; returns its loss."""
    contexts, responses = [roll.contexts[i] for i in part], [roll.responses[i] for i in part]
    width = max(map(len, responses))
    loss = value_loss(
        response_values(players.value, contexts, responses),
        roll.values[part, :width],
        returns[part, :width],
        roll.mask[part, :width],
        settings.clip_range_value,
    )
    loss.backward()
    _step(players.value, players.optimizers[1], settings.clip)
    return loss.item()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
    """Clip the gradients, move, and forget them."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    if not norm.isfinite():
        optimizer.zero_grad(set_to_none=True)  # a second try must not begin with them
        raise CourseError(
            f"the gradient norm is {norm.item()}: training stopped before this step. Try a smaller "
            f"learning rate than {optimizer.param_groups[0]['peak']}, or go on from a checkpoint"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def mean_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the minibatches, and the ratio of the first, which must be 1."""
    metrics = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return metrics | {"first_ratio": rows[0]["ratio"]}


def rollout_metrics(roll: Rollout, kl_coef: float) -> dict[str, float]:
    """Score, KL a reply, objective, entropy, length, and the share of replies that end."""
    kl = (roll.logprobs - roll.ref_logprobs).sum(-1).mean().item()
    score = roll.scores.mean().item()
    return {
        "score": score,
        "kl": kl,
        "objective": score - kl_coef * kl,
        "entropy": masked_mean(roll.entropy, roll.mask).item(),
        "length": roll.mask.sum(-1).float().mean().item(),
        "ended": sum(roll.ended) / len(roll.ended),
    }
