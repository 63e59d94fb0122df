"""From REINFORCE to PPO: every variant's gradient against the exact one, and a small run."""

import oracles
import pytest
import torch

from course_lib import ppo
from course_lib.studies import ppo_steps
from course_lib.studies.ppo_steps import VARIANTS, Variant, weigh

REPLIES = [list(reply) for reply in oracles.REPLIES]


@pytest.fixture(scope="module")
def results(small_study):
    return small_study("ppo_steps")["results"]


def all_replies(players):
    """Every reply of the tiny world once, as a rollout."""
    contexts = [[0]] * len(REPLIES)
    with torch.no_grad():
        logprobs, entropy, mask = ppo.response_logprobs(players.policy, contexts, REPLIES)
        ref_logprobs, _, _ = ppo.response_logprobs(players.reference, contexts, REPLIES)
        values = ppo.response_values(players.value, contexts, REPLIES)
    scores = players.reward(contexts, REPLIES)
    ended = [True] * len(REPLIES)
    return ppo.Rollout(
        contexts, REPLIES, scores, logprobs, ref_logprobs, entropy, values, mask, ended
    )


def reply_logprobs(players):
    return ppo.response_logprobs(players.policy, [[0]] * len(REPLIES), REPLIES)[0]


def gradient(players, objective):
    found = torch.autograd.grad(objective, list(players.policy.parameters()))
    return torch.cat([g.flatten() for g in found])


def expected_gradient(players, weight, probs):
    """What the weighted log-probabilities give on average over all replies."""
    return gradient(players, (probs[:, None] * weight * reply_logprobs(players)).sum())


@pytest.fixture
def tiny():
    players = oracles.tiny_players(ppo.PPOSettings(1))
    with torch.no_grad():
        players.reference.embedding.weight.mul_(0.8)
    return players


@pytest.mark.parametrize("name", ["REINFORCE", "REINFORCE, scores + 3", "baseline"])
def test_the_rungs_without_a_value_model_follow_the_exact_gradient(tiny, name):
    probs = reply_logprobs(tiny).sum(-1).exp()
    exact = gradient(tiny, (probs * tiny.reward([[0]] * len(REPLIES), REPLIES)).sum())
    roll = all_replies(tiny)
    roll.scores += VARIANTS[name].offset
    weight = weigh(VARIANTS[name], roll)[0]
    found = expected_gradient(tiny, weight, probs.detach())
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)


def test_the_price_is_that_of_the_divergence(tiny):
    """With kl_coef the gradient is that of score - kl_coef * KL, whose KL can be summed exactly."""
    logprobs = reply_logprobs(tiny).sum(-1)
    roll = all_replies(tiny)
    distance = logprobs - roll.ref_logprobs.sum(-1)
    exact = gradient(tiny, (logprobs.exp() * (roll.scores - 0.3 * distance)).sum())
    weight = weigh(Variant("none", kl_coef=0.3), roll)[0]
    found = expected_gradient(tiny, weight, logprobs.exp().detach())
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)


def test_the_value_model_sets_other_weights_for_each_token(tiny):
    roll = all_replies(tiny)
    weight, returns = weigh(VARIANTS["value model"], roll)
    advantages, expected = ppo.gae(
        ppo.token_rewards(roll.scores, roll.logprobs, roll.ref_logprobs, roll.mask, 0.0),
        *(roll.values, roll.mask, 1.0, ppo_steps.LAM),
    )
    torch.testing.assert_close(weight, ppo.masked_whiten(advantages, roll.mask))
    torch.testing.assert_close(returns, expected)
    flat = weigh(VARIANTS["baseline"], roll)[0]
    two = roll.mask.sum(-1) == 2
    assert torch.allclose(flat[two, 0], flat[two, 1])
    assert not torch.allclose(weight[two, 0], weight[two, 1])


def test_an_iteration_starts_at_ratio_one_and_clips_only_where_it_should(monkeypatch):
    monkeypatch.setattr(ppo_steps, "REPLY_TOKENS", 2)
    for name in ("epochs", "clip"):
        settings = ppo.PPOSettings(1, learning_rate=3e-2)
        players = oracles.tiny_players(settings)
        dice = torch.Generator().manual_seed(0)
        metrics, roll = ppo_steps.iterate(VARIANTS[name], players, [[0]] * 32, {oracles.STOP}, dice)
        assert metrics["first_ratio"] == pytest.approx(1, abs=1e-5)
        assert (metrics["clip_share"] > 0) == (name == "clip")
        assert metrics["score"] == pytest.approx(roll.scores.mean().item(), abs=1e-5)


def test_the_noise_of_a_gradient():
    """Against the exact mean and variance over all replies of the tiny world."""
    players = oracles.tiny_players(ppo.PPOSettings(1))
    probs = reply_logprobs(players).sum(-1).exp().detach()
    roll = all_replies(players)
    n = 4096
    draw = torch.multinomial(probs, n, True, generator=torch.Generator().manual_seed(0))
    many = ppo.Rollout(
        *([x[i] for i in draw.tolist()] for x in (roll.contexts, roll.responses)),
        *(x[draw] for x in (roll.scores, roll.logprobs, roll.ref_logprobs, roll.entropy)),
        *(roll.values[draw], roll.mask[draw], [True] * n),
    )
    found = ppo_steps.gradient_noise(players, many)
    weight = weigh(VARIANTS["REINFORCE"], roll)[0]
    singles = torch.stack(
        [
            ppo_steps.part_gradients(players, roll, {"": weight}, [i])[""]
            for i in range(len(REPLIES))
        ]
    )
    mean = probs @ singles
    noise = probs @ (singles - mean).square().sum(-1)
    assert found["REINFORCE"]["signal"] == pytest.approx((mean @ mean).item(), rel=0.3)
    assert found["REINFORCE"]["noise"] == pytest.approx(noise.item(), rel=0.1)
    assert found["REINFORCE, scores + 3"]["noise"] > 1.5 * found["baseline"]["noise"]
    assert found["REINFORCE, scores + 3"]["signal"] == pytest.approx(
        found["baseline"]["signal"], rel=0.4
    )


def test_a_small_run_has_every_rung(results):
    assert [row["variant"] for row in results["runs"]] == list(VARIANTS)
    for row in results["runs"]:
        lengths = {len(curve) for curve in row["curve"].values()}
        assert lengths == {results["iterations"]}
        assert row["curve"]["kl"][0] == pytest.approx(0, abs=1e-3)
        assert (row["curve"]["clip_share"][0] == 0) or VARIANTS[row["variant"]].clip_range < 1
    starts = {row["curve"]["score"][0] for row in results["runs"]}
    assert len(starts) == 1  # the same first batch for all, and no offset in what is reported
    assert [set(row) for row in results["noise"]] == [set(list(VARIANTS)[:4])]
