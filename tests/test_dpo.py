"""DPO: its loss by hand, on real log-probabilities, and the exact optimum."""

import math

import oracles
import pytest
import torch

from course_lib import dpo, ppo, reward
from course_lib.files import MetricLog
from course_lib.train import TrainSettings


def test_implicit_reward_and_loss():
    oracles.check_implicit_reward(dpo.implicit_reward)
    oracles.check_dpo_loss(dpo.dpo_loss)


def test_a_policy_that_is_its_reference_is_undecided():
    x = torch.randn(2, 9)
    assert dpo.dpo_loss(*x, *x, 0.3).item() == pytest.approx(math.log(2))


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dpo.dpo_loss(*x, 0.7), (x,))


def test_the_loss_is_that_of_the_reward_model_on_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6)
    expected = reward.pairwise_loss(2 * (chosen - ref_chosen), 2 * (rejected - ref_rejected))
    assert dpo.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 2.0) == expected


def test_reply_logprobs():
    oracles.check_reply_logprobs(dpo.reply_logprobs)


def test_preference_loss():
    oracles.check_preference_loss(dpo.preference_loss)


def test_a_table_reaches_the_optimum():
    oracles.check_dpo_reaches_the_optimum(dpo.dpo_loss)


@pytest.mark.slow
def test_the_trainer_reaches_the_optimum(tmp_path):
    oracles.check_train_dpo_reaches_the_optimum(dpo.train_dpo, tmp_path)


def test_the_trainer_writes_its_metrics_and_leaves_the_reference(tmp_path):
    policy, reference = oracles.loud_model(), oracles.loud_model()
    before = [p.clone() for p in reference.parameters()]
    settings = dpo.DPOSettings(TrainSettings(30, learning_rate=1e-2, muon=False), 0.1, 8)
    dpo.train_dpo(policy, reference, oracles.PAIRS, oracles.PAIRS, settings, tmp_path, 0)
    rows = MetricLog.read(tmp_path / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(2), rel=1e-3)
    assert rows[-1]["loss"] < 0.3 and rows[-1]["pair_accuracy"] == 1
    assert all(map(torch.equal, before, reference.parameters()))


def test_a_policy_scores_replies_like_a_reward_model():
    policy, reference, pair = oracles.loud_model(), oracles.loud_model(seed=1), oracles.PAIRS[1]
    scorer = dpo.implicit_scorer(policy, reference, 0.2)
    margin = reward.pair_margins(scorer, [pair]).item()
    by_hand = [
        ppo.response_logprobs(policy, [pair.context], [r])[0].sum()
        - ppo.response_logprobs(reference, [pair.context], [r])[0].sum()
        for r in (pair.chosen, pair.rejected)
    ]
    assert margin == pytest.approx(0.2 * (by_hand[0] - by_hand[1]).item(), rel=1e-3)
