"""PPO: every formula against its oracle, one iteration from inside, and the exact optimum."""

import math

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib import evaluate, ppo
from course_lib.errors import CourseError


def test_masked_mean():
    oracles.check_masked_mean(ppo.masked_mean)


def test_masked_whiten():
    oracles.check_masked_whiten(ppo.masked_whiten)


def test_kl_estimates_match_the_exact_divergence():
    oracles.check_kl_estimates(ppo.kl_estimates)


def test_k3_keeps_its_precision_near_zero():
    d = torch.tensor([1e-4])
    assert ppo.kl_estimates(d, torch.zeros(1))["k3"].item() == pytest.approx(5e-9, rel=0.1)


def test_adapt_kl_coef():
    oracles.check_adapt_kl_coef(ppo.adapt_kl_coef)


def test_the_adaptive_price_finds_its_target():
    """A policy whose KL falls as its price rises settles at the KL that was asked for."""
    kl_coef = 0.01
    for _ in range(300):
        kl_coef = ppo.adapt_kl_coef(kl_coef, 2.0 / kl_coef, target=8.0, n_steps=64, horizon=256)
    assert 2.0 / kl_coef == pytest.approx(8.0, rel=1e-3)


def test_penalise_missing_end():
    oracles.check_missing_end(ppo.penalise_missing_end)


def test_rollout_metrics():
    oracles.check_rollout_metrics(ppo.rollout_metrics)


def test_minibatches():
    oracles.check_minibatches(ppo.minibatches)


def test_token_rewards():
    oracles.check_token_rewards(ppo.token_rewards)


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    gamma=st.sampled_from([1.0, 0.9]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 1000),
)
def test_gae_equals_the_sum_over_all_horizons(lengths, gamma, lam, seed):
    oracles.check_gae(ppo.gae, lengths, gamma, lam, seed)


def test_policy_loss():
    oracles.check_policy_loss(ppo.policy_loss)


def test_value_loss():
    oracles.check_value_loss(ppo.value_loss)


def test_explained_variance():
    oracles.check_explained_variance(ppo.explained_variance)


def test_policy_gradient_equals_finite_differences():
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 4, 5, dtype=torch.float64) / 5
    mask = torch.rand(4, 5) < 0.7
    new.requires_grad_()

    def loss(x):
        return ppo.policy_loss(x, old, advantages, mask, 0.2)[0]

    assert torch.autograd.gradcheck(loss, (new,))


def test_formulas_reach_the_optimum():
    oracles.check_formulas_reach_the_optimum()


@pytest.mark.slow
def test_ppo_reaches_the_optimum():
    oracles.check_ppo_reaches_the_optimum(ppo.ppo_iteration)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_minibatch(monkeypatch, temperature):
    metrics = oracles.check_first_minibatch(monkeypatch, temperature)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["clip_share"] == 0
    assert 1 <= metrics["length"] <= 2 and 0 < metrics["ended"] < 1
    assert metrics["objective"] == pytest.approx(metrics["score"], abs=1e-5)


def test_later_minibatches_move_away_from_ratio_one():
    settings = ppo.PPOSettings(1, minibatch_size=8, max_new_tokens=2, learning_rate=1e-2)
    players = oracles.tiny_players(settings)
    before = oracles.reply_probs(players.policy)
    generator = torch.Generator().manual_seed(1)
    metrics = ppo.ppo_iteration(players, [[0]] * 32, {oracles.STOP}, settings, generator, 1.0)
    assert metrics["first_ratio"] != metrics["ratio"] and metrics["approx_kl"] > 1e-6
    assert not torch.allclose(oracles.reply_probs(players.policy), before)
    assert torch.equal(oracles.reply_probs(players.reference), before)  # it never learns


def test_the_objective_subtracts_the_price_of_the_divergence():
    settings = ppo.PPOSettings(1, minibatch_size=16, max_new_tokens=2, kl_coef=0.25)
    players = oracles.tiny_players(settings)
    with torch.no_grad():
        players.reference.embedding.weight.mul_(0.25)
    generator = torch.Generator().manual_seed(0)
    m = ppo.ppo_iteration(players, [[0]] * 64, {oracles.STOP}, settings, generator, 1.0)
    assert m["kl"] > 0.05
    assert m["objective"] == pytest.approx(m["score"] - 0.25 * m["kl"], abs=1e-5)


def test_the_value_model_learns_the_returns():
    """Of a policy that stands still; it ends up better than a constant."""
    settings = ppo.PPOSettings(1, max_new_tokens=2, learning_rate=0.0, value_learning_rate=3e-2)
    players = oracles.tiny_players(settings)
    generator = torch.Generator().manual_seed(0)
    explained = [
        ppo.ppo_iteration(players, [[0]] * 128, {oracles.STOP}, settings, generator, 1.0)
        for _ in range(12)
    ]
    explained = [row["explained_variance"] for row in explained]
    assert explained[0] < -0.5 and min(explained[-4:]) > 0


def test_a_gradient_that_is_not_finite_stops_the_training():
    settings = ppo.PPOSettings(1, max_new_tokens=2)
    players = oracles.tiny_players(settings)
    before = [p.clone() for p in players.policy.parameters()]
    with pytest.raises(CourseError, match="gradient norm is nan"):
        ppo.ppo_iteration(
            players,
            [[0]] * 8,
            {oracles.STOP},
            settings,
            torch.Generator(),
            1.0,
            lambda policy: policy.embedding.weight.sum() * float("nan"),
        )
    assert all(map(torch.equal, before, players.policy.parameters()))


def test_a_rate_share_of_zero_changes_nothing():
    settings = ppo.PPOSettings(1, minibatch_size=8, max_new_tokens=2)
    players = oracles.tiny_players(settings)
    before = [p.clone() for m in (players.policy, players.value) for p in m.parameters()]
    ppo.ppo_iteration(players, [[0]] * 16, {oracles.STOP}, settings, torch.Generator(), 0.0)
    after = [p for m in (players.policy, players.value) for p in m.parameters()]
    assert all(map(torch.equal, before, after))


def test_the_rollout_is_scored_at_the_temperature_of_the_sampling():
    settings = ppo.PPOSettings(1, temperature=0.5, max_new_tokens=2, missing_end_penalty=-7.0)
    players = oracles.tiny_players(settings)
    with torch.no_grad():
        players.reference.embedding.weight.mul_(0.5)
    contexts = [[0]] * 20
    roll = ppo.roll_out(players, contexts, {oracles.STOP}, settings, torch.Generator())
    for model, found in ((players.policy, roll.logprobs), (players.reference, roll.ref_logprobs)):
        with torch.no_grad():
            right = evaluate.response_logprobs(model, contexts, roll.responses, 0.5)[0]
        assert torch.equal(found, right)
    assert not torch.allclose(roll.logprobs, roll.ref_logprobs)
    for response, ended, score in zip(roll.responses, roll.ended, roll.scores, strict=True):
        assert ended == (response[-1] == oracles.STOP)
        expected = players.reward.scores[tuple(response)] - (0 if ended else 7)
        assert score.item() == pytest.approx(expected, abs=1e-5)
    assert not roll.logprobs.requires_grad and not roll.values.requires_grad


def test_values_are_read_before_each_response_token():
    settings = ppo.PPOSettings(1)
    value = oracles.tiny_players(settings).value
    contexts, responses = [[0, 1], [2]], [[1, 3], [2, 1, 3]]
    found = ppo.response_values(value, contexts, responses)
    for row, (c, r) in enumerate(zip(contexts, responses, strict=True)):
        for t in range(len(r)):
            alone = value.values(torch.tensor([c + r[:t]]))[0, -1]
            torch.testing.assert_close(found[row, t], alone, rtol=1e-4, atol=1e-5)
    assert found[0, 2].item() == 0


def test_the_pretraining_loss_takes_part():
    settings = ppo.PPOSettings(1, minibatch_size=8, epochs=2, max_new_tokens=2, ptx_coef=3.0)
    moved = []
    for ptx in (None, lambda policy: policy.embedding.weight.pow(2).sum()):
        players = oracles.tiny_players(settings)
        generator = torch.Generator().manual_seed(0)
        ppo.ppo_iteration(players, [[0]] * 16, {oracles.STOP}, settings, generator, 1.0, ptx)
        moved.append(players.policy.embedding.weight.norm().item())
    assert moved[1] < moved[0] and math.isfinite(moved[1])
