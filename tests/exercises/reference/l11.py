"""Reference answers of L11, the solutions of its page."""

import copy

import torch
import torch.nn.functional as F

from course_lib.evaluate import response_logprobs
from course_lib.generate import generate
from course_lib.sampling import Sampling


def render_chat(turns, tokenizer):
    ids, mask = [], []
    for role, content in turns:
        mine = role == "assistant"
        parts = [(f"<|im_start|>{role}\n", "all", False), (content, (), mine)]
        parts += [("<|im_end|>", "all", mine), ("\n", "all", False)]
        for text, allowed, learned in parts:
            piece = tokenizer.encode(text, allowed)
            ids += piece
            mask += [learned] * len(piece)
    return ids, mask


def sft_loss(logits, ids, mask):
    asked = mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][asked], ids[:, 1:][asked])


def pairwise_loss(chosen, rejected, margin=0.0):
    return -F.logsigmoid(chosen - rejected - margin).mean()


def last_token_reward(scores, logprobs, ref_logprobs, mask, kl_coef):
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    last = mask.sum(dim=-1, keepdim=True) - 1  # (B, 1)
    return rewards.scatter_add(1, last, scores[:, None])


def gae(rewards, values, mask, gamma, lam):
    values = values * mask
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def clipped_policy_loss(new_logprobs, logprobs, advantages, mask, clip_range):
    ratio = (new_logprobs - logprobs).exp()
    near_one = ratio.clamp(1 - clip_range, 1 + clip_range)
    worse = torch.maximum(-advantages * ratio, -advantages * near_one)
    return worse[mask].mean()


def kl_estimators(logprobs, ref_logprobs):
    d = logprobs - ref_logprobs
    return {"k1": d, "k2": d**2 / 2, "k3": torch.expm1(-d) + d}


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    lead = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -F.logsigmoid(lead).mean()


def retrain(policy, prompts, rubric, stop_id):
    model = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        batch = [prompts[i] for i in torch.randint(len(prompts), (64,)).tolist()]
        replies = [c.ids for c in generate(model, batch, 12, {stop_id}, Sampling())]
        scores = torch.tensor([float(rubric(reply)) for reply in replies])
        advantages = (scores - scores.mean()) / (scores.std() + 1e-6)
        logprobs, _, _ = response_logprobs(model, batch, replies)  # (B, R)
        loss = -(advantages[:, None] * logprobs).sum() / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
