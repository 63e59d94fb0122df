"""Classic mistakes of SFT and PPO that take a short training to show, each beside its fix.

SFT: the base model is fine-tuned on the same conversations with one thing wrong. RLHF: the
library's own PPO runs with one of its formulas replaced by a wrong one; all else is the same.
Everything is measured on held-out prompts and with the right formulas.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_lib import ppo
from course_lib.atlas.conversations import conversations
from course_lib.atlas.prompts import prompt_mix
from course_lib.chat import IM_END, render, supervised_targets
from course_lib.data import END_OF_TEXT, IGNORE_INDEX, pad_right, step_generator
from course_lib.evaluate import JUDGE_MIX, TRAIN_MIX, chat_ids, replies
from course_lib.generate import Sampling
from course_lib.presets import SMOKE
from course_lib.recipes import train_all
from course_lib.runs import STAGE_CODE, Run, open_run
from course_lib.sft import sft_loss

TITLE = "Classic mistakes of SFT and PPO, trained"
CODE = tuple(name for stage in STAGE_CODE.values() for name in stage)
SIZES = {
    "full": {"sft_steps": 200, "iterations": 20, "batch": 32, "seeds": (0, 1), "n_eval": 100},
    "small": {"sft_steps": 2, "iterations": 1, "batch": 4, "seeds": (0,), "n_eval": 4},
}
SFT_BATCH, SFT_RATE, PPO_RATE = 16, 1e-3, 2e-4


def run(scale: str) -> dict:
    """Train every mistake and its fix with every seed; see the module's docstring."""
    sizes = SIZES[scale]
    n_seeds = len(sizes["seeds"])
    with tempfile.TemporaryDirectory() as folder:
        models = open_run() if scale == "full" else train_all(SMOKE, Path(folder), device="cpu")
        steps = len(SFT_MISTAKES) * sizes["sft_steps"] + len(PPO_MISTAKES) * sizes["iterations"]
        bar = tqdm(total=n_seeds * steps, desc="bugs")
        rows = {"sft": [], "ppo": []}
        for seed in sizes["seeds"]:
            rows["sft"] += [fine_tune(name, models, seed, sizes, bar) for name in SFT_MISTAKES]
            rows["ppo"] += [learn(name, models, seed, sizes, bar) for name in PPO_MISTAKES]
        key = models.stage("reward")["key"]
    settings = {"sft_batch": SFT_BATCH, "sft_rate": SFT_RATE, "ppo_rate": PPO_RATE, "models": key}
    return {**rows, **settings, **sizes}


# -- SFT ----------------------------------------------------------------------------------------


def right_targets(rendered, tokenizer) -> list[int]:
    """The assistant's tokens and its end of turn, one step ahead."""
    return supervised_targets(rendered.ids, rendered.mask)


def without_end(rendered, tokenizer) -> list[int]:
    """Wrong: the end of the turn is not learned."""
    targets = right_targets(rendered, tokenizer)
    return [IGNORE_INDEX if t == tokenizer.special_ids[IM_END] else t for t in targets]


def every_token(rendered, tokenizer) -> list[int]:
    """Wrong: headers and the user's words are learned, too."""
    return rendered.ids[1:]


def unshifted(rendered, tokenizer) -> list[int]:
    """Wrong: each position is asked for the token that stands there."""
    pairs = zip(rendered.ids, rendered.mask, strict=True)
    return [i if learned else IGNORE_INDEX for i, learned in pairs][:-1]


# name -> the targets of a conversation, and whether gradients are forgotten after each step
SFT_MISTAKES: dict[str, tuple[Callable, bool]] = {
    "right": (right_targets, True),
    "end of turn not learned": (without_end, True),
    "every token learned": (every_token, True),
    "no shift": (unshifted, True),
    "no zero_grad": (right_targets, False),
}


def chat_rows(seed: int, tokenizer, n: int, targets_of: Callable) -> tuple[Tensor, Tensor]:
    """`n` conversations as inputs and targets `(n, T)`, padded and known by their lengths."""
    shown = [render(talk, tokenizer) for talk in conversations(n, seed)]
    idx = pad_right([r.ids[:-1] for r in shown], 0)
    targets = pad_right([targets_of(r, tokenizer) for r in shown], IGNORE_INDEX)
    return idx, targets


def fine_tune(name: str, models: Run, seed: int, sizes: dict, bar: tqdm) -> dict:
    """Fine-tune the base model with one mistake, and measure what comes of it."""
    targets_of, forget = SFT_MISTAKES[name]
    tokenizer, model = models.tokenizer(), models.model("base")
    length = model.config.context_length
    adam = torch.optim.AdamW(model.parameters(), lr=SFT_RATE, weight_decay=0.0)
    losses = []
    for step in range(sizes["sft_steps"]):
        idx, targets = chat_rows(1000 * seed + step, tokenizer, SFT_BATCH, targets_of)
        loss = sft_loss(model, idx[:, :length], targets[:, :length])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if forget:
            adam.zero_grad()
        losses.append(round(loss.item(), 4))
        bar.update()
    idx, targets = chat_rows(9_000_001, tokenizer, 100, right_targets)
    with torch.no_grad():
        fresh = sft_loss(model, idx[:, :length], targets[:, :length]).item()
    row = {"mistake": name, "seed": seed, "losses": losses, "fresh_loss": round(fresh, 4)}
    return row | measure(model, tokenizer, seed, sizes["n_eval"])


def measure(model, tokenizer, seed: int, n_eval: int) -> dict:
    """Held-out prompts: the judge's points, share that ends, length, and the first replies."""
    prompts = prompt_mix(n_eval, False, 61, JUDGE_MIX)
    answers = replies(model, tokenizer, prompts, Sampling(), seed)
    return {
        "points": round(sum(a.verdict.points for a in answers) / n_eval, 4),
        "ended": sum(a.ended for a in answers) / n_eval,
        "length": sum(len(a.ids) for a in answers) / n_eval,
        "samples": [[a.prompt.text, a.text] for a in answers[:4]],
    }


# -- PPO ----------------------------------------------------------------------------------------


def descend(new_logprobs, logprobs, advantages, mask, clip_range):
    """Wrong: the objective itself goes into `backward`, and the optimiser makes it smaller."""
    loss, clip_share = RIGHT["policy_loss"](new_logprobs, logprobs, advantages, mask, clip_range)
    return -loss, clip_share


def pay_for_distance(scores, logprobs, ref_logprobs, mask, kl_coef):
    """Wrong: the log-probabilities are exchanged, so that distance is paid, not priced."""
    return RIGHT["token_rewards"](scores, ref_logprobs, logprobs, mask, kl_coef)


def whiten_first(rewards, values, mask, gamma, lam):
    """Wrong: returns are made from whitened advantages."""
    advantages, _ = RIGHT["gae"](rewards, values, mask, gamma, lam)
    advantages = ppo.masked_whiten(advantages, mask)
    return advantages, (advantages + values) * mask


RIGHT = {name: getattr(ppo, name) for name in ("policy_loss", "token_rewards", "gae")}
# name -> which formula of `ppo` is replaced, and by what
PPO_MISTAKES: dict[str, tuple[str, Callable]] = {
    "right": ("gae", RIGHT["gae"]),
    "descending": ("policy_loss", descend),
    "KL sign reversed": ("token_rewards", pay_for_distance),
    "returns after whitening": ("gae", whiten_first),
}
KEPT = ("score", "kl", "entropy", "length", "ended")


def mistaken(name: str):
    """A context in which the library's PPO makes this mistake."""
    return patch.object(ppo, *PPO_MISTAKES[name])


def learn(name: str, models: Run, seed: int, sizes: dict, bar: tqdm) -> dict:
    """PPO from the SFT model with one formula replaced; its curves and held-out measurements."""
    policy, value = models.model("sft"), models.reward_model()
    settings = ppo.PPOSettings(1, sizes["batch"], sizes["batch"] // 2, learning_rate=PPO_RATE)
    adam = ppo.make_optimizers(policy, value, settings)
    players = ppo.Players(policy, models.model("sft"), models.reward_model(), value, adam)
    tokenizer, curve = models.tokenizer(), {kept: [] for kept in KEPT}
    stop = {tokenizer.special_ids[token] for token in (IM_END, END_OF_TEXT)}

    def contexts(n: int, draw: int) -> list[list[int]]:
        return [chat_ids(p, tokenizer) for p in prompt_mix(n, True, draw, TRAIN_MIX)]

    for step in range(sizes["iterations"]):
        batch, dice = (
            contexts(sizes["batch"], 1000 * (seed + 80) + step),
            step_generator(seed, step),
        )
        with mistaken(name):
            metrics = ppo.ppo_iteration(players, batch, stop, settings, dice, 1.0)
        for kept in KEPT:
            curve[kept].append(round(metrics[kept], 4))
        bar.update()
    roll = ppo.roll_out(
        players, contexts(sizes["n_eval"], 62), stop, settings, step_generator(0, 0)
    )
    row = {"mistake": name, "seed": seed, "curve": curve, "explained": explained(roll, settings)}
    return row | measure(policy, tokenizer, seed, sizes["n_eval"])


def explained(roll: ppo.Rollout, settings: ppo.PPOSettings) -> float:
    """Explained variance of the value model against the right returns of fresh replies."""
    rewards = ppo.token_rewards(
        roll.scores, roll.logprobs, roll.ref_logprobs, roll.mask, settings.kl_coef
    )
    _, returns = ppo.gae(rewards, roll.values, roll.mask, settings.gamma, settings.lam)
    return round(ppo.explained_variance(roll.values, returns, roll.mask), 4)
