"""Do the oracles bite? Plausible mistakes are put into the library; each must be caught.

A mutant is the source of a function with one piece of text exchanged. When the library changes
and the piece is no longer there, the test says so: choose another mistake then.
"""

import inspect
import textwrap

import oracles
import pytest

from course_lib import chat, dpo, evaluate, grpo, lora, ppo, reward, sft

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
    # supervised fine-tuning
    (sft.chat_batch, o.check_chat_batch, "len(examples.inputs[i])", "1"),
    (sft.chat_batch, o.check_chat_batch, "(batch_size,)", "(context_length,)"),
    (sft.block_mask, o.check_block_mask, "same & causal_mask", "same | causal_mask"),
    (sft.block_mask, o.check_block_mask, "(same & ", "(torch.ones_like(same) & "),
    (sft.packed_batch, o.check_packed_batch, "for p in range(", "for p in range(i, i + "),
    (sft.packed_batch, o.check_packed_batch, "[place for", "[0 for"),
    (sft.packed_batch, o.check_packed_batch, "targets, IGNORE_INDEX", "targets, 0"),
    (sft.packed_batch, o.check_packed_batch, "[place for", "[i for"),
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
    (reward.pair_scores, o.check_pair_scores, "in (chosen, rejected)", "in (rejected, chosen)"),
    (reward.pair_scores, o.check_pair_scores, "tuple(p.rejected)", "tuple(p.chosen)"),
    (reward.reward_loss, o.check_reward_loss, "chosen + rejected) ** 2", "chosen - rejected) ** 2"),
    (reward.reward_loss, o.check_reward_loss, "+ 0.01 *", "- 0.01 *"),
    (reward.reward_loss, o.check_reward_loss, "rejected, margin)", "rejected, -margin)"),
    (reward.calibration, o.check_calibration, "margins.abs().sigmoid()", "margins.sigmoid()"),
    (reward.calibration, o.check_calibration, "margins > 0", "margins.abs() > 0"),
    (reward.calibration, o.check_calibration, "confidence.argsort()", "right.argsort()"),
    (reward.best_of_n, o.check_best_of_n, "math.comb(k, n - 1)", "math.comb(k + 1, n - 1)"),
    (reward.best_of_n, o.check_best_of_n, "scores.argsort(dim=1)", "values.argsort(dim=1)"),
    (reward.best_of_n, o.check_best_of_n, "argsort(dim=1)", "argsort(dim=1, descending=True)"),
    (reward.best_of_n_kl, o.check_best_of_n_kl, "(n - 1) / n", "(n - 1)"),
    (reward.best_of_n_kl, o.check_best_of_n_kl, ") - (", ") + ("),
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
    (ppo.adapt_kl_coef, o.check_adapt_kl_coef, "kl / target - 1", "1 - kl / target"),
    (
        ppo.adapt_kl_coef,
        o.check_adapt_kl_coef,
        "min(max(kl / target - 1, -0.2), 0.2)",
        "kl / target - 1",
    ),
    (ppo.adapt_kl_coef, o.check_adapt_kl_coef, " / horizon", ""),
    (ppo.penalise_missing_end, o.check_missing_end, "= ~torch", "= torch"),
    (ppo.penalise_missing_end, o.check_missing_end, "scores + ", "scores - "),
    (
        ppo.minibatches,
        o.check_minibatches,
        "torch.randperm(n, generator=generator)",
        "torch.arange(n)",
    ),
    (
        ppo.minibatches,
        o.check_minibatches,
        "torch.randperm(n, generator=generator)",
        "torch.randint(n, (n,), generator=generator)",
    ),
    (ppo.rollout_metrics, o.check_rollout_metrics, ".sum(-1).mean().item()", ".mean().item()"),
    (ppo.rollout_metrics, o.check_rollout_metrics, "score - kl_coef", "score + kl_coef"),
    (
        ppo.rollout_metrics,
        o.check_rollout_metrics,
        "masked_mean(roll.entropy, roll.mask)",
        "roll.entropy.mean()",
    ),
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
    # GRPO
    (
        grpo.group_advantages,
        o.check_group_advantages,
        "view(-1, group_size)",
        "view(group_size, -1)",
    ),
    (
        grpo.group_advantages,
        o.check_group_advantages,
        "groups.mean(-1, keepdim=True)",
        "groups.mean()",
    ),
    (grpo.group_advantages, o.check_group_advantages, "groups.std(-1,", "groups.var(-1,"),
    (grpo.group_advantages, o.check_group_advantages, "groups - groups", "groups + groups"),
    # DPO
    (
        dpo.implicit_reward,
        o.check_implicit_reward,
        "logprobs - ref",
        "ref_logprobs - logprobs + 0 * ref",
    ),
    (dpo.implicit_reward, o.check_implicit_reward, "beta * (", "(1 / beta) * ("),
    (dpo.dpo_loss, o.check_dpo_loss, "(chosen, ref_chosen, beta)", "(rejected, ref_chosen, beta)"),
    (
        dpo.dpo_loss,
        o.check_dpo_loss,
        "(rejected, ref_rejected, beta)",
        "(rejected, ref_chosen, beta)",
    ),
    (dpo.dpo_loss, o.check_dpo_reaches_the_optimum, "(chosen, ref_chosen,", "(ref_chosen, chosen,"),
    (
        dpo.dpo_loss,
        o.check_dpo_reaches_the_optimum,
        "rejected, ref_rejected, beta",
        "rejected, 0 * ref_rejected, beta",
    ),
    (dpo.reply_logprobs, o.check_reply_logprobs, ".sum(-1)", ".mean(-1)"),
    (dpo.reply_logprobs, o.check_reply_logprobs, ".sum(-1)", "[:, -1]"),
    (
        dpo.preference_loss,
        o.check_preference_loss,
        "(reply_logprobs, reference)",
        "(reply_logprobs, policy)",
    ),
    (
        dpo.preference_loss,
        o.check_preference_loss,
        "dpo_loss(chosen, rejected",
        "dpo_loss(rejected, chosen",
    ),
    # LoRA
    (lora.LoRALinear.forward, o.check_lora_forward, "self.scale * ", ""),
    (lora.LoRALinear.forward, o.check_lora_forward, "return y + ", "return y - "),
    (lora.merge, o.check_merge, "+= layer.scale", "-= layer.scale"),
    (lora.merge, o.check_merge, "layer.scale * layer.lora_b", "layer.lora_b"),
    (lora.merge, o.check_merge, "if layer.unmerged is None", "if True"),
]
# Every formula of fine-tuning and RL: none may be without its mistakes.
FORMULAS = [
    *(chat.render, chat.supervised_targets, sft.chat_batch, sft.block_mask, sft.packed_batch),
    *(reward.pairwise_loss, reward.RewardModel.forward, reward.normalise, reward.reward_loss),
    *(reward.pair_scores, reward.calibration, reward.best_of_n, reward.best_of_n_kl),
    *(evaluate.response_positions, evaluate.response_logprobs),
    *(ppo.masked_mean, ppo.masked_whiten, ppo.kl_estimates, ppo.adapt_kl_coef),
    *(ppo.penalise_missing_end, ppo.token_rewards, ppo.gae, ppo.policy_loss, ppo.value_loss),
    *(ppo.explained_variance, ppo.minibatches, ppo.rollout_metrics),
    *(grpo.group_advantages, dpo.implicit_reward, dpo.dpo_loss, dpo.reply_logprobs),
    *(dpo.preference_loss, lora.LoRALinear.forward, lora.merge),
]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f"{f.__module__}.{f.__qualname__}")
def test_every_formula_has_two_mistakes(formula):
    assert sum(mutant[0] is formula for mutant in MUTANTS) >= 2


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
        ("update_policy", "responses, settings.temperature)", "responses)"),
        # rows of the minibatch mixed up
        ("update_policy", "roll.logprobs[part, :width]", "roll.logprobs[: len(part), :width]"),
        # returns made from whitened advantages
        ("ppo_iteration", "roll, returns, part", "roll, advantages + roll.values, part"),
        ("ppo_iteration", "masked_whiten(advantages, roll.mask)", "advantages"),
        ("ppo_iteration", "roll.scores, roll.logprobs", "-roll.scores, roll.logprobs"),
        ("roll_out", "ended, settings.missing_end_penalty", "ended, 0.0"),
    ],
)
def test_the_first_minibatch_shows_mistakes_in_the_iteration(monkeypatch, name, right, wrong):
    monkeypatch.setattr(ppo, name, getattr(ppo, name))  # undone after the test
    mutate(getattr(ppo, name), right, wrong, vars(ppo))  # replaces the function in the module
    expect_failure(oracles.check_first_minibatch, monkeypatch)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("for _ in range(settings.group_size)]", "][:1] * 12"),  # one group of all
        (
            "[context for context in contexts for _ in range(settings.group_size)]",
            "contexts * settings.group_size",  # the groups interleaved
        ),
        ("settings.kl_coef\n    ).sum(-1)", "settings.kl_coef\n    )[:, 0]"),
        ("roll.mask, settings.kl_coef\n", "roll.mask, -settings.kl_coef\n"),
        ("[:, None] * roll.mask", "[:, None] * roll.mask / roll.mask.sum(-1, keepdim=True)"),
    ],
)
def test_the_first_group_shows_mistakes_in_the_iteration(monkeypatch, right, wrong):
    monkeypatch.setattr(grpo, "grpo_iteration", grpo.grpo_iteration)  # undone after the test
    mutant = mutate(grpo.grpo_iteration, right, wrong, vars(grpo))
    expect_failure(oracles.check_first_group, monkeypatch, mutant)
