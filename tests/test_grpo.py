"""GRPO: the group as a baseline, one iteration from inside, and the exact optimum."""

import oracles
import pytest
import torch
from torch import tensor

from course_lib import grpo, ppo
from course_lib.errors import CourseError


def test_group_advantages():
    oracles.check_group_advantages(grpo.group_advantages)


def test_a_group_needs_two():
    with pytest.raises(CourseError, match="at least two"):
        grpo.GRPOSettings(group_size=1)


def test_the_first_group(monkeypatch):
    oracles.check_first_group(monkeypatch, grpo.grpo_iteration)


@pytest.mark.slow
def test_grpo_reaches_the_optimum():
    oracles.check_grpo_reaches_the_optimum(grpo.grpo_iteration)


def test_metrics_and_the_pretraining_loss():
    settings = grpo.GRPOSettings(4, minibatch_size=8, max_new_tokens=2, ptx_coef=3.0)
    moved = []
    for ptx in (None, lambda policy: policy.embedding.weight.pow(2).sum()):
        players = oracles.grpo_players(settings)
        generator = torch.Generator().manual_seed(0)
        metrics = grpo.grpo_iteration(
            players, [[0]] * 4, {oracles.STOP}, settings, generator, 1.0, ptx
        )
        moved.append(players.policy.embedding.weight.norm().item())
    assert moved[1] < moved[0]
    assert metrics["kl"] == pytest.approx(0, abs=1e-6) and 1 <= metrics["length"] <= 2
    assert "value_loss" not in metrics and "explained_variance" not in metrics


# -- where the price of the KL belongs ------------------------------------------------------------


def two_token_world():
    """Reference and optimal policy over two tokens of four, as logits; scores; the price."""
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(4, generator=generator), torch.randn(4, 4, generator=generator)
    scores, price = torch.randn(4, 4, generator=generator), 0.5
    joint = ref[0].log_softmax(-1)[:, None] + ref[1].log_softmax(-1) + scores / price
    return ref, (joint.logsumexp(-1), joint), scores, price


def all_logprobs(first, second):
    """Log-probabilities of both tokens of all 16 replies: `(16, 2)`."""
    first = first.log_softmax(-1)[:, None].expand(4, 4)
    return torch.stack((first, second.log_softmax(-1)), dim=-1).view(16, 2)


def expected_gradient(loss_of, logits):
    """The gradient of the expected loss, over all replies by their probabilities."""
    logits = [x.clone().requires_grad_() for x in logits]
    new = all_logprobs(*logits)
    loss = (new.detach().sum(-1).exp() * loss_of(new, new.detach())).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, logits)])


def test_at_the_optimum_every_reply_earns_the_same():
    """Its score less its KL price is the same for all, so that no group has anything to learn."""
    ref, best, scores, price = two_token_world()
    mask = torch.ones(16, 2, dtype=torch.bool)
    old, base = all_logprobs(*best), all_logprobs(*ref)
    rewards = ppo.token_rewards(scores.flatten(), old, base, mask, price).sum(-1)
    assert rewards.std() < 1e-5 and scores.std() > 0.5

    def loss(new, old):
        return -((new - old).exp() * (rewards - rewards.mean())[:, None]).sum(-1)

    assert expected_gradient(loss, best).abs().max() < 1e-5


def test_as_a_term_of_the_loss_the_price_has_another_optimum():
    """Why this departs from the paper: there, no token pays for the KL of those after it."""
    ref, best, scores, price = two_token_world()
    base = all_logprobs(*ref)
    for weighted in (True, False):  # with the ratio before k3 (DeepSeek-AI 2025), and without

        def loss(new, old, weighted=weighted):
            ratio = (new - old).exp()
            kl = ppo.kl_estimates(new, base)["k3"] * (ratio if weighted else 1)
            return (price * kl - ratio * scores.view(16, 1)).sum(-1)

        assert expected_gradient(loss, best).abs().max() > 1e-3


def test_the_baseline_takes_no_side():
    """Shifting or stretching all rewards of a group changes no advantage."""
    rewards = tensor([0.3, -1.0, 2.0, 0.1, 5.0, 4.0, 7.0, -2.0])
    advantages = grpo.group_advantages(rewards, 4)
    torch.testing.assert_close(
        grpo.group_advantages(10 * rewards + 3, 4), advantages, atol=1e-3, rtol=1e-3
    )
    assert advantages.view(2, 4).sum(-1).abs().max() < 1e-5
