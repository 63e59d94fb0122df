"""Wrong answers of L11. `<exercise>__<misconception>`: the docstring is in the check's message."""

import copy

import torch
import torch.nn.functional as F

from course_lib.evaluate import response_logprobs
from course_lib.generate import generate
from course_lib.sampling import Sampling


def _render(turns, tokenizer, learned, allowed=(), tail="\n"):
    """`learned` says of (role, part) whether it is learned; parts: header, content, end, break."""
    ids, mask = [], []
    for role, content in turns:
        parts = (
            ("header", f"<|im_start|>{role}\n", "all"),
            ("content", content, allowed),
            ("end", "<|im_end|>", "all"),
            ("break", tail, "all"),
        )
        for name, text, may in parts:
            piece = tokenizer.encode(text, may)
            ids += piece
            mask += [learned(role, name)] * len(piece)
    return ids, mask


def _right(role, part):
    return role == "assistant" and part in ("content", "end")


def render_chat__end_not_learned(turns, tokenizer):
    """it would never stop"""
    return _render(turns, tokenizer, lambda r, p: r == "assistant" and p == "content")


def render_chat__header_learned(turns, tokenizer):
    """the template writes it"""
    return _render(turns, tokenizer, lambda r, p: r == "assistant" and p != "break")


def render_chat__break_learned(turns, tokenizer):
    """the turn is over by then"""
    return _render(turns, tokenizer, lambda r, p: r == "assistant" and p != "header")


def render_chat__everything_learned(turns, tokenizer):
    """<|im_end|> of a user is learned"""
    return _render(turns, tokenizer, lambda r, p: any(role == "assistant" for role, _ in turns))


def render_chat__user_becomes_control(turns, tokenizer):
    """what a user typed became a control token"""
    return _render(turns, tokenizer, _right, allowed="all")


def render_chat__nothing_becomes_control(turns, tokenizer):
    """no control token"""
    ids, mask = [], []
    for role, content in turns:
        piece = tokenizer.encode(f"<|im_start|>{role}\n{content}<|im_end|>\n")
        ids, mask = ids + piece, mask + [role == "assistant"] * len(piece)
    return ids, mask


def render_chat__mask_from_the_bare_contents(turns, tokenizer):
    """make both in one pass"""
    ids, _ = _render(turns, tokenizer, _right)
    mask = [r == "assistant" for r, c in turns for _ in tokenizer.encode(c)]
    return ids, mask


def render_chat__no_line_break(turns, tokenizer):
    """the line break after <|im_end|> is missing"""
    return _render(turns, tokenizer, _right, tail="")


def render_chat__only_the_last_turn(turns, tokenizer):
    """it would never stop"""
    ids, mask = _render(turns, tokenizer, _right)
    keep = len(_render(turns[-1:], tokenizer, _right)[1])
    return ids, [False] * (len(mask) - keep) + mask[len(mask) - keep :]


def _each(logits, ids):
    return F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")


def sft_loss__no_shift(logits, ids, mask):
    """there is no shift"""
    return _each(logits, ids)[mask].mean()


def sft_loss__wrong_way(logits, ids, mask):
    """the wrong way"""
    return _each(logits[:, 1:], ids[:, :-1])[mask[:, 1:]].mean()


def sft_loss__mask_not_shifted(logits, ids, mask):
    """the mask is not shifted"""
    each = _each(logits[:, :-1], ids[:, 1:])
    return each[mask[:, :-1]].mean() if mask[:, :-1].any() else each[mask[:, 1:]].mean()


def sft_loss__mask_ignored(logits, ids, mask):
    """the mask is ignored"""
    return _each(logits[:, :-1], ids[:, 1:]).mean()


def sft_loss__divides_by_all(logits, ids, mask):
    """not 0.693"""
    return (_each(logits[:, :-1], ids[:, 1:]) * mask[:, 1:]).mean()


def sft_loss__mean_of_rows(logits, ids, mask):
    """the mean is taken by row first"""
    each, asked = _each(logits[:, :-1], ids[:, 1:]), mask[:, 1:]
    return ((each * asked).sum(1) / asked.sum(1)).mean()


def sft_loss__upside_down(logits, ids, mask):
    """True is learned"""
    return _each(logits[:, :-1], ids[:, 1:])[~mask[:, 1:]].mean()


def pairwise_loss__swapped(chosen, rejected, margin=0.0):
    """are swapped"""
    return -F.logsigmoid(rejected - chosen - margin).mean()


def pairwise_loss__sign(chosen, rejected, margin=0.0):
    """the sign is reversed"""
    return F.logsigmoid(chosen - rejected - margin).mean()


def pairwise_loss__log_of_sigmoid(chosen, rejected, margin=0.0):
    """use logsigmoid"""
    return -torch.sigmoid(chosen - rejected - margin).log().mean()


def pairwise_loss__sum(chosen, rejected, margin=0.0):
    """take the mean over the pairs"""
    return -F.logsigmoid(chosen - rejected - margin).sum()


def pairwise_loss__margin_added(chosen, rejected, margin=0.0):
    """the margin has the wrong sign"""
    return -F.logsigmoid(chosen - rejected + margin).mean()


def pairwise_loss__no_margin(chosen, rejected, margin=0.0):
    """the margin is ignored"""
    return -F.logsigmoid(chosen - rejected).mean()


def pairwise_loss__clamped(chosen, rejected, margin=0.0):
    """misjudged by 90"""
    return -torch.sigmoid(chosen - rejected - margin).clamp(min=1e-8).log().mean()


def pairwise_loss__by_pair(chosen, rejected, margin=0.0):
    """the result has shape"""
    return -F.logsigmoid(chosen - rejected - margin)


def _price(logprobs, ref_logprobs, mask, kl_coef):
    return -kl_coef * (logprobs - ref_logprobs) * mask


def _last(mask):
    return mask.sum(-1, keepdim=True) - 1


def last_token_reward__last_column(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score lands in the padding"""
    rewards = _price(logprobs, ref_logprobs, mask, kl_coef)
    rewards[:, -1] += scores
    return rewards


def last_token_reward__every_token(scores, logprobs, ref_logprobs, mask, kl_coef):
    """every token gets the score"""
    return _price(logprobs, ref_logprobs, mask, kl_coef) + scores[:, None] * mask


def last_token_reward__one_too_early(scores, logprobs, ref_logprobs, mask, kl_coef):
    """one too early"""
    last = (_last(mask) - 1).clamp(min=0)
    return _price(logprobs, ref_logprobs, mask, kl_coef).scatter_add(1, last, scores[:, None])


def last_token_reward__one_too_late(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score lands in the padding"""
    last = (_last(mask) + 1).clamp(max=mask.size(1) - 1)
    return _price(logprobs, ref_logprobs, mask, kl_coef).scatter_add(1, last, scores[:, None])


def last_token_reward__kl_pays(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the price has the wrong sign"""
    return _price(ref_logprobs, logprobs, mask, kl_coef).scatter_add(
        1, _last(mask), scores[:, None]
    )


def last_token_reward__price_replaced(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score replaces the price"""
    return _price(logprobs, ref_logprobs, mask, kl_coef).scatter(1, _last(mask), scores[:, None])


def last_token_reward__price_in_the_padding(scores, logprobs, ref_logprobs, mask, kl_coef):
    """a reward in the padding"""
    price = -kl_coef * (logprobs - ref_logprobs)
    return price.scatter_add(1, _last(mask), scores[:, None])


def last_token_reward__no_price(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the KL price is missing"""
    return torch.zeros_like(logprobs).scatter_add(1, _last(mask), scores[:, None])


def _gae(rewards, values, mask, gamma, lam, delta_gamma=None, clean=True, stop=True, sign=1):
    values = values * mask if clean else values
    out = torch.zeros_like(rewards)
    after_v = after_a = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.size(1))):
        g = gamma if delta_gamma is None else delta_gamma
        after_a = rewards[:, t] + g * after_v - values[:, t] + gamma * lam * after_a
        if stop:
            after_a = after_a * mask[:, t]
        after_v, out[:, t] = values[:, t], after_a
    return out * mask, (out + sign * values) * mask


def gae__delta_alone(rewards, values, mask, gamma, lam):
    """that is delta alone"""
    return _gae(rewards, values, mask, gamma, 0.0)


def gae__no_lam(rewards, values, mask, gamma, lam):
    """lam is missing"""
    return _gae(rewards, values, mask, gamma, 1.0)


def gae__no_gamma_in_delta(rewards, values, mask, gamma, lam):
    """gamma stands in delta"""
    return _gae(rewards, values, mask, gamma, lam, delta_gamma=1.0)


def gae__padding_values_leak(rewards, values, mask, gamma, lam):
    """what stands in the padding leaks"""
    return _gae(rewards, values, mask, gamma, lam, clean=False)


def gae__padding_advantages_leak(rewards, values, mask, gamma, lam):
    """what stands in the padding leaks"""
    return _gae(rewards, values, mask, gamma, lam, stop=False)


def gae__returns_minus_values(rewards, values, mask, gamma, lam):
    """minus was used"""
    return _gae(rewards, values, mask, gamma, lam, sign=-1)


def gae__forwards(rewards, values, mask, gamma, lam):
    """middle token"""
    values = values * mask
    out = torch.zeros_like(rewards)
    before = torch.zeros_like(rewards[:, 0])
    n = rewards.size(1)
    for t in range(n):
        following = values[:, t + 1] if t + 1 < n else 0.0
        before = (rewards[:, t] + gamma * following - values[:, t]) + (
            gamma * lam * before if t < n - 1 else 0.0
        )
        out[:, t] = before
    return out * mask, (out + values) * mask


def gae__bootstraps_the_last_value(rewards, values, mask, gamma, lam):
    """as V behind it is 0"""
    out, returns = _gae(rewards, values, mask, gamma, lam)
    return out + values * mask, returns


def gae__whitened(rewards, values, mask, gamma, lam):
    """last token"""
    a, returns = _gae(rewards, values, mask, gamma, lam)
    return (a - a.mean()) / (a.std() + 1e-8) * mask, returns


def _sides(new_logprobs, logprobs, advantages, clip_range):
    ratio = (new_logprobs - logprobs).exp()
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)


def clipped_policy_loss__better_of_both(new_logprobs, logprobs, advantages, mask, clip_range):
    """the worse one"""
    return torch.minimum(*_sides(new_logprobs, logprobs, advantages, clip_range))[mask].mean()


def clipped_policy_loss__always_clipped(new_logprobs, logprobs, advantages, mask, clip_range):
    """the worse one"""
    return _sides(new_logprobs, logprobs, advantages, clip_range)[1][mask].mean()


def clipped_policy_loss__never_clipped(new_logprobs, logprobs, advantages, mask, clip_range):
    """the worse one"""
    return _sides(new_logprobs, logprobs, advantages, clip_range)[0][mask].mean()


def clipped_policy_loss__sign(new_logprobs, logprobs, advantages, mask, clip_range):
    """The sign is reversed"""
    return -torch.maximum(*_sides(new_logprobs, logprobs, advantages, clip_range))[mask].mean()


def clipped_policy_loss__old_over_new(new_logprobs, logprobs, advantages, mask, clip_range):
    """the loss is"""
    return torch.maximum(*_sides(logprobs, new_logprobs, advantages, clip_range))[mask].mean()


def clipped_policy_loss__no_mask(new_logprobs, logprobs, advantages, mask, clip_range):
    """the padding takes part"""
    return torch.maximum(*_sides(new_logprobs, logprobs, advantages, clip_range)).mean()


def clipped_policy_loss__divides_by_all(new_logprobs, logprobs, advantages, mask, clip_range):
    """divide by the tokens in the mask"""
    return (torch.maximum(*_sides(new_logprobs, logprobs, advantages, clip_range)) * mask).mean()


def clipped_policy_loss__detached(new_logprobs, logprobs, advantages, mask, clip_range):
    """no gradient passes"""
    return torch.maximum(*_sides(new_logprobs.detach(), logprobs, advantages, clip_range))[
        mask
    ].mean()


def clipped_policy_loss__maximum_of_means(new_logprobs, logprobs, advantages, mask, clip_range):
    """take it at every token"""
    plain, clipped = _sides(new_logprobs, logprobs, advantages, clip_range)
    return torch.maximum(plain[mask].mean(), clipped[mask].mean())


def _k(d):
    return {"k1": d, "k2": d**2 / 2, "k3": torch.expm1(-d) + d}


def kl_estimators__reversed(logprobs, ref_logprobs):
    """the sign of d is reversed"""
    return _k(ref_logprobs - logprobs)


def kl_estimators__k3_sign(logprobs, ref_logprobs):
    """the sign in k3 is reversed"""
    d = logprobs - ref_logprobs
    return _k(d) | {"k3": d.exp() - 1 - d}


def kl_estimators__k2_not_halved(logprobs, ref_logprobs):
    """half of the square"""
    d = logprobs - ref_logprobs
    return _k(d) | {"k2": d**2}


def kl_estimators__k3_imprecise(logprobs, ref_logprobs):
    """use expm1"""
    d = logprobs - ref_logprobs
    return _k(d) | {"k3": (-d).exp() - 1 + d}


def kl_estimators__averaged(logprobs, ref_logprobs):
    """the result has shape"""
    return {name: k.mean() for name, k in _k(logprobs - ref_logprobs).items()}


def _dpo(c, r, rc, rr, beta):
    return -F.logsigmoid(beta * ((c - rc) - (r - rr)))


def dpo_loss__swapped(chosen, rejected, ref_chosen, ref_rejected, beta):
    """are swapped"""
    return _dpo(rejected, chosen, ref_rejected, ref_chosen, beta).mean()


def dpo_loss__no_reference(chosen, rejected, ref_chosen, ref_rejected, beta):
    """the reference is ignored"""
    return _dpo(chosen, rejected, 0 * ref_chosen, 0 * ref_rejected, beta).mean()


def dpo_loss__reference_added(chosen, rejected, ref_chosen, ref_rejected, beta):
    """the reference is added"""
    return _dpo(chosen, rejected, -ref_chosen, -ref_rejected, beta).mean()


def dpo_loss__no_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    """beta is missing"""
    return _dpo(chosen, rejected, ref_chosen, ref_rejected, 1.0).mean()


def dpo_loss__divided_by_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    """you divide by beta"""
    return _dpo(chosen, rejected, ref_chosen, ref_rejected, 1 / beta).mean()


def dpo_loss__sum(chosen, rejected, ref_chosen, ref_rejected, beta):
    """take the mean over the pairs"""
    return _dpo(chosen, rejected, ref_chosen, ref_rejected, beta).sum()


def dpo_loss__log_of_sigmoid(chosen, rejected, ref_chosen, ref_rejected, beta):
    """use logsigmoid"""
    return -torch.sigmoid(beta * (chosen - ref_chosen - rejected + ref_rejected)).log().mean()


def _reinforce(model, prompts, rubric, stop_id, sign=1.0, steps=6, rate=3e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        batch = prompts[:32]
        replies = [c.ids for c in generate(model, batch, 12, {stop_id}, Sampling())]
        scores = torch.tensor([float(rubric(reply)) for reply in replies])
        advantages = sign * (scores - scores.mean()) / (scores.std() + 1e-6)
        loss = -(advantages[:, None] * response_logprobs(model, batch, replies)[0]).sum() / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def retrain__nothing_done(policy, prompts, rubric, stop_id):
    """not clearly more than chance"""
    return copy.deepcopy(policy)


def retrain__in_place(policy, prompts, rubric, stop_id):
    """train a copy"""
    return _reinforce(policy, prompts, rubric, stop_id, steps=1)


def retrain__wrong_sign(policy, prompts, rubric, stop_id):
    """It moved the wrong way"""
    return _reinforce(copy.deepcopy(policy), prompts, rubric, stop_id, -1.0, 8, 1e-2)


def retrain__backward_through_the_score(policy, prompts, rubric, stop_id):
    """it stops with RuntimeError"""
    model = copy.deepcopy(policy)
    replies = [c.ids for c in generate(model, prompts, 12, {stop_id}, Sampling())]
    objective = torch.tensor([float(rubric(reply)) for reply in replies]).mean()
    (-objective).backward()
    return model


def retrain__always_the_same_reply(policy, prompts, rubric, stop_id):
    """nats a reply away"""
    model = copy.deepcopy(policy)
    for parameter in model.parameters():
        parameter.data.zero_()
    best = max(([stop_id], [2] * 12, [1] * 12), key=rubric)
    model.norm.weight.data.fill_(1.0)
    for parameter in model.blocks.parameters():
        parameter.data.zero_()
    model.embedding.weight.data.zero_()
    model.embedding.weight.data[:, 0] = 1.0
    model.embedding.weight.data[best[0], 0] = 40.0
    return model
