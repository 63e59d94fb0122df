"""Do the oracles bite? Plausible mistakes are put into the library; each must be caught.

A mutant is the source of a function with one piece of text exchanged. When the library changes
and the piece is no longer there, the test says so: choose another mistake then.
"""

import inspect
import textwrap

import oracles
import pytest

from course_lib import chat, evaluate, ppo, reward

o = oracles
# (function, its check, the right text, a plausible mistake)
MUTANTS = [
    # mask and shift
    (chat.render, o.check_mask, '"all" if segment.control else ()', '"all"'),
    (chat.render, o.check_mask, "[segment.supervised]", "[not segment.control]"),
    (chat.chatml, None, "control=True, supervised=learned)", "control=True)"),
    (chat.chatml, None, 'Segment("\\n", control=True)', 'Segment("\\n", supervised=learned)'),
    (chat.supervised_targets, o.check_shift, "zip(ids[1:], mask[1:]", "zip(ids[:-1], mask[:-1]"),
    (chat.supervised_targets, o.check_shift, "zip(ids[1:], mask[1:]", "zip(ids[1:], mask[:-1]"),
    (chat.supervised_targets, o.check_shift, "i if m else", "i if not m else"),
    # reward model
    (reward.pairwise_loss, o.check_pairwise_loss, "chosen - rejected", "rejected - chosen"),
    (reward.pairwise_loss, o.check_pairwise_loss, "- margin", "+ margin"),
    (
        reward.pairwise_loss,
        o.check_pairwise_loss,
        "F.logsigmoid(chosen - rejected - margin)",
        "torch.sigmoid(chosen - rejected - margin).log()",
    ),
    (
        reward.RewardModel.forward,
        o.check_pooled_position,
        "len(row) - 1 for",
        "-1 % max(map(len, rows)) for",
    ),
    (reward.RewardModel.forward, o.check_pooled_position, "len(row) - 1 for", "len(row) - 2 for"),
    (
        reward.RewardModel.forward,
        o.check_pooled_position,
        "len(row) - 1 for",
        "(row.index(0) if 0 in row else len(row)) - 1 for",  # padding looked for by its id
    ),
    (reward.normalise, o.check_normalise, "scores.mean()) * gain", "scores.mean())"),
    (reward.normalise, o.check_normalise, "model.gain.mul_(gain)", "model.gain.copy_(gain)"),
    # log-probabilities
    (evaluate.response_positions, o.check_response_positions, "len(c) - 1", "len(c)"),
    (evaluate.response_positions, o.check_response_positions, "len(r) for r", "len(r) - 1 for r"),
    (evaluate.response_logprobs, o.check_response_logprobs, " / temperature", ""),
    (evaluate.response_logprobs, o.check_response_logprobs, "log_softmax(-1)", "log_softmax(1)"),
    (evaluate.response_logprobs, o.check_response_logprobs, "chosen * mask", "chosen"),
    (evaluate.response_logprobs, o.check_response_logprobs, "entropy = -(", "entropy = ("),
    # PPO
    (ppo.masked_mean, o.check_masked_mean, "/ mask.sum()", "/ mask.numel()"),
    (ppo.masked_mean, o.check_masked_mean, "(x * mask).sum()", "x.sum()"),
    (ppo.masked_whiten, o.check_masked_whiten, "masked_mean(x, mask)", "x.mean()"),
    (ppo.masked_whiten, o.check_masked_whiten, ".rsqrt() * mask", ".rsqrt()"),
    (ppo.masked_whiten, o.check_masked_whiten, ".rsqrt()", ".reciprocal()"),
    (ppo.kl_estimates, o.check_kl_estimates, "logprobs - ref_logprobs", "ref_logprobs - logprobs"),
    (ppo.kl_estimates, o.check_kl_estimates, "expm1(-d) + d", "expm1(d) - d"),
    (ppo.kl_estimates, o.check_kl_estimates, "d**2 / 2", "d**2"),
    (ppo.token_rewards, o.check_token_rewards, "= -kl_coef", "= kl_coef"),
    (ppo.token_rewards, o.check_token_rewards, '["k1"] * mask', '["k1"]'),
    (
        ppo.token_rewards,
        o.check_token_rewards,
        "mask.sum(-1, keepdim=True) - 1",
        "mask.sum(-1, keepdim=True) - 2",
    ),
    (
        ppo.token_rewards,
        o.check_token_rewards,
        "last = mask.sum(-1, keepdim=True) - 1",
        "last = mask.sum(-1, keepdim=True) * 0 + mask.size(1) - 1",
    ),
    (ppo.gae, o.check_gae, "+ gamma * following_value", "+ following_value"),
    (ppo.gae, o.check_gae, "gamma * lam * following_advantage", "lam * following_advantage"),
    (ppo.gae, o.check_gae, "following_advantage) * mask[:, t]", "following_advantage)"),
    (ppo.gae, o.check_gae, "values = values * mask", "pass"),
    (ppo.gae, o.check_gae, "reversed(range(rewards.size(1)))", "range(rewards.size(1))"),
    (ppo.gae, o.check_gae, "(advantages + values) * mask", "advantages"),
    (ppo.policy_loss, o.check_policy_loss, "torch.maximum(plain", "torch.minimum(plain"),
    (ppo.policy_loss, o.check_policy_loss, "plain = -advantages", "plain = advantages"),
    (
        ppo.policy_loss,
        o.check_policy_loss,
        "(new_logprobs - logprobs)",
        "(logprobs - new_logprobs)",
    ),
    (ppo.policy_loss, o.check_policy_loss, "(clipped > plain)", "(clipped < plain)"),
    (ppo.value_loss, o.check_value_loss, "torch.maximum", "torch.minimum"),
    (ppo.value_loss, o.check_value_loss, "clipped = values +", "clipped = returns +"),
    (ppo.value_loss, o.check_value_loss, "0.5 * masked_mean(worse, mask)", "0.5 * worse.mean()"),
    (ppo.explained_variance, o.check_explained_variance, "(1 - ", "("),
    (
        ppo.explained_variance,
        o.check_explained_variance,
        "(returns - values) ** 2, mask",
        "(returns - values) ** 2, mask | True",
    ),
]


def mutate(function, right, wrong, names=None):
    """The function, made anew from its source with one piece exchanged."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1, f"{right!r} is not once in {function.__qualname__}"
    names = dict(function.__globals__) if names is None else names
    exec(source.replace(right, wrong), names)
    return names[function.__name__]


def expect_failure(check, *arguments):
    """The check must fail by what it asserts, not by a slip in the mutant."""
    with pytest.raises(AssertionError):
        check(*arguments)


@pytest.mark.parametrize(
    ("function", "check", "right", "wrong"),
    [m for m in MUTANTS if m[1]],
    ids=[f"{m[0].__name__}: {m[3]}" for m in MUTANTS if m[1]],
)
def test_the_oracle_catches(function, check, right, wrong):
    check(function)
    expect_failure(check, mutate(function, right, wrong))


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m[0] is chat.chatml], ids=lambda m: m[3])
def test_the_mask_oracle_catches_a_wrong_template(monkeypatch, mutant):
    monkeypatch.setitem(chat.TEMPLATES, "chatml", mutate(chat.chatml, *mutant[2:]))
    expect_failure(oracles.check_mask, chat.render)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("token_rewards", "= -kl_coef", "= kl_coef"),
        ("token_rewards", "-kl_coef * kl", "0 * kl"),
        ("token_rewards", "mask.sum(-1, keepdim=True) - 1", "mask.sum(-1, keepdim=True) * 0"),
        ("policy_loss", "plain = -advantages", "plain = advantages"),
        ("gae", "(delta +", "(-delta +"),
    ],
)
def test_mistakes_lead_away_from_the_optimal_policy(name, right, wrong):
    mutant = mutate(getattr(ppo, name), right, wrong)
    with pytest.raises(AssertionError, match="total variation"):
        oracles.check_formulas_reach_the_optimum(**{name: mutant})


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        # the ratio compares two temperatures
        ("_update", "contexts, responses, t)", "contexts, responses)"),
        # returns made from whitened advantages
        ("_update", "returns[part, :width]", "(advantages + roll.values)[part, :width]"),
        # rows of the minibatch mixed up
        ("_update", "roll.logprobs[part, :width]", "roll.logprobs[: len(part), :width]"),
        ("roll_out", "scores + penalty", "scores - penalty"),
        ("ppo_iteration", "masked_whiten(advantages, roll.mask)", "advantages"),
        ("ppo_iteration", "roll.scores, roll.logprobs", "-roll.scores, roll.logprobs"),
    ],
)
def test_the_first_minibatch_shows_mistakes_in_the_iteration(monkeypatch, name, right, wrong):
    monkeypatch.setattr(ppo, name, getattr(ppo, name))  # undone after the test
    mutate(getattr(ppo, name), right, wrong, vars(ppo))  # replaces the function in the module
    expect_failure(oracles.check_first_minibatch, monkeypatch)
