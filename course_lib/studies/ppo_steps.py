"""From REINFORCE to PPO: every part added alone, and what it does to the learning curve.

All variants start from the SFT model, are paid by the same reward model, and sample as many replies
to the same prompts. One function serves them all: REINFORCE is PPO with a value model that always
says 0, a baseline is one that always says the mean of the batch. Learning rates are the same and
constant, there is no pre-training loss; nothing was tuned for any variant.

"noise" says how much of a gradient is chance, for several ways to weigh the same replies. Its
tr(Cov), of one reply, over the squared length of the true gradient is the number of replies whose
mean gradient is half signal, half chance (McCandlish et al. 2018, section 2.2).

Sources: Williams 1992 (REINFORCE, baseline); Schulman et al. 2016 and 2017; Ziegler et al. 2019.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_lib import ppo
from course_lib.atlas.judge import judge
from course_lib.atlas.prompts import Prompt, prompt_mix
from course_lib.chat import IM_END
from course_lib.data import END_OF_TEXT, step_generator
from course_lib.evaluate import (
    JUDGE_MIX,
    REPLY_TOKENS,
    TRAIN_MIX,
    chat_ids,
    replies,
    response_logprobs,
    sequence_kl,
)
from course_lib.generate import Sampling
from course_lib.presets import SMOKE
from course_lib.recipes import train_all
from course_lib.reward import score_replies
from course_lib.runs import STAGE_CODE, Run, open_run

TITLE = "From REINFORCE to PPO, one part at a time"
CODE = tuple(name for stage in STAGE_CODE.values() for name in stage)
LAM, KL_COEF, CLIP_RANGE, EPOCHS, OFFSET = 0.95, 0.1, 0.2, 4, 3.0
UNCLIPPED = 1e6
RATE, VALUE_RATE = 2e-4, 3e-4


@dataclass(frozen=True)
class Variant:
    """One rung of the ladder.

    Attributes:
        baseline: what a reply is compared with: "none", the "mean" of its batch, or the "value"
            model before each token.
        offset: added to every score; it changes no comparison.
    """

    baseline: str
    epochs: int = 1
    n_minibatches: int = 1
    clip_range: float = UNCLIPPED
    kl_coef: float = 0.0
    offset: float = 0.0


VARIANTS = {
    "REINFORCE, scores + 3": Variant("none", offset=OFFSET),
    "REINFORCE": Variant("none"),
    "baseline": Variant("mean"),
    "value model": Variant("value"),
    "epochs": Variant("value", EPOCHS, 2),
    "clip": Variant("value", EPOCHS, 2, CLIP_RANGE),
    "KL price": Variant("value", EPOCHS, 2, CLIP_RANGE, KL_COEF),
}
SIZES = {
    "full": {"iterations": 24, "batch": 32, "seeds": (0, 1, 2), "n_noise": 512, "n_eval": 128},
    "small": {"iterations": 2, "batch": 4, "seeds": (0,), "n_noise": 16, "n_eval": 4},
}
NOISE_BATCH = 8  # replies in one gradient of the noise measurement
KEPT = ("score", "kl", "entropy", "length", "ended", "approx_kl", "clip_share")


def run(scale: str) -> dict:
    """Train every variant with every seed; see the module's docstring."""
    sizes = SIZES[scale]
    with tempfile.TemporaryDirectory() as folder:
        models = open_run() if scale == "full" else train_all(SMOKE, Path(folder), device="cpu")
        jobs = [(name, seed) for seed in sizes["seeds"] for name in VARIANTS]
        bar = tqdm(total=len(jobs) * sizes["iterations"], desc="ppo_steps")
        rows, noise, credit = [], [], []
        unchanged = new_players(models, VARIANTS["REINFORCE"])
        start = [measure(unchanged, models, seed, sizes["n_eval"]) for seed in sizes["seeds"]]
        for name, seed in jobs:
            players = new_players(models, VARIANTS[name])
            curve = learn(VARIANTS[name], players, models, seed, sizes, bar)
            ended_as = measure(players, models, seed, sizes["n_eval"])
            rows.append({"variant": name, "seed": seed, "curve": curve, **ended_as})
            if name == "value model":
                roll = sample_many(players, models, seed, sizes["n_noise"])
                noise.append(gradient_noise(players, roll))
                credit.append(examples(roll, models.tokenizer()))
        key = models.stage("reward")["key"]
    settings = {"rate": RATE, "value_rate": VALUE_RATE, "lam": LAM, "offset": OFFSET}
    settings |= {"kl_coef": KL_COEF, "clip_range": CLIP_RANGE, "epochs": EPOCHS, "models": key}
    measured = {"start": start, "runs": rows, "noise": noise, "credit": credit}
    return measured | settings | sizes


# -- one variant --------------------------------------------------------------------------------


def new_players(models: Run, variant: Variant) -> ppo.Players:
    """The four models at the start; without a value model where the variant has none."""
    policy, reference, scorer = models.model("sft"), models.model("sft"), models.reward_model()
    optimizers, value = [ppo.make_optimizer(policy, RATE)], None
    if variant.baseline == "value":
        value = models.reward_model()
        optimizers.append(ppo.make_optimizer(value, VALUE_RATE))
    return ppo.Players(policy, reference, scorer, value, optimizers)


def weigh(variant: Variant, roll: ppo.Rollout) -> tuple[Tensor, Tensor]:
    """How much better than expected each token was, and the returns: both `(B, R)`.

    With lam = 1 and the same value before every token, GAE is the reward of the whole reply minus
    that value.
    """
    rewards = ppo.token_rewards(
        roll.scores, roll.logprobs, roll.ref_logprobs, roll.mask, variant.kl_coef
    )
    if variant.baseline == "value":
        advantages, returns = ppo.gae(rewards, roll.values, roll.mask, 1.0, LAM)
        return ppo.masked_whiten(advantages, roll.mask), returns
    expected = rewards.sum(-1).mean() if variant.baseline == "mean" else 0.0
    values = torch.zeros_like(rewards) + expected
    return ppo.gae(rewards, values, roll.mask, 1.0, 1.0)


def iterate(
    variant: Variant,
    players: ppo.Players,
    contexts: list[list[int]],
    stop_ids: set[int],
    generator: torch.Generator,
) -> tuple[dict, ppo.Rollout]:
    """Sample, weigh, update; returns metrics and what was sampled."""
    settings = ppo.PPOSettings(
        iterations=1,
        minibatch_size=len(contexts) // variant.n_minibatches,
        epochs=variant.epochs,
        clip_range=variant.clip_range,
        max_new_tokens=REPLY_TOKENS,
    )
    roll = ppo.roll_out(players, contexts, stop_ids, settings, generator)
    metrics = ppo.rollout_metrics(roll, variant.kl_coef)
    roll.scores += variant.offset
    advantages, returns = weigh(variant, roll)
    if players.value is not None:
        metrics["explained"] = ppo.explained_variance(roll.values, returns, roll.mask)
    seen = []
    for part in ppo.minibatches(len(contexts), settings, generator):
        seen.append(ppo.update_policy(players, roll, advantages, part, settings, None))
        if players.value is not None:
            fit_value(players, roll, returns, part)
    return metrics | ppo.mean_metrics(seen), roll


def fit_value(players: ppo.Players, roll: ppo.Rollout, returns: Tensor, part: list[int]) -> None:
    """One step of the value model towards the returns of the replies `part`."""
    contexts, responses = [roll.contexts[i] for i in part], [roll.responses[i] for i in part]
    new = ppo.response_values(players.value, contexts, responses)  # (len(part), R)
    old, goal, mask = (x[part, : new.size(1)] for x in (roll.values, returns, roll.mask))
    ppo.value_loss(new, old, goal, mask, CLIP_RANGE).backward()
    nn.utils.clip_grad_norm_(players.value.parameters(), 1.0)
    players.optimizers[1].step()
    players.optimizers[1].zero_grad()


def learn(variant: Variant, players, models: Run, seed: int, sizes: dict, bar: tqdm) -> dict:
    """The learning curve of one variant: for each metric its value at every iteration.

    "explained" is the value model's explained variance, of what it had not seen yet.
    """
    tokenizer, kept = models.tokenizer(), [*KEPT, "points"]
    if variant.baseline == "value":
        kept.append("explained")
    curve: dict[str, list[float]] = {name: [] for name in kept}
    for step in range(sizes["iterations"]):
        prompts = prompt_mix(sizes["batch"], True, 1000 * (seed + 50) + step, TRAIN_MIX)
        contexts = [chat_ids(prompt, tokenizer) for prompt in prompts]
        dice = step_generator(seed + 70, step)
        metrics, roll = iterate(variant, players, contexts, stop_tokens(models), dice)
        metrics["points"] = mean_points(prompts, roll, tokenizer)
        for name, values in curve.items():
            values.append(round(metrics[name], 4))
        bar.update()
    return curve


def stop_tokens(models: Run) -> set[int]:
    """The ids that end a reply."""
    ids = models.tokenizer().special_ids
    return {ids[IM_END], ids[END_OF_TEXT]}


def mean_points(prompts: list[Prompt], roll: ppo.Rollout, tokenizer) -> float:
    """The judge's mean of the sampled replies, which no variant is trained on."""
    points = [
        judge(prompt, tokenizer.decode(ids[:-1] if ended else ids), ended).points
        for prompt, ids, ended in zip(prompts, roll.responses, roll.ended, strict=True)
    ]
    return sum(points) / len(points)


def measure(players: ppo.Players, models: Run, seed: int, n_eval: int) -> dict:
    """The finished policy on held-out prompts: points, score, KL, and some of its replies."""
    tokenizer = models.tokenizer()
    prompts = prompt_mix(n_eval, False, 60, JUDGE_MIX)
    answers = replies(players.policy, tokenizer, prompts, Sampling(), seed)
    points = [answer.verdict.points for answer in answers]
    return {
        "heldout_points": round(sum(points) / len(points), 4),
        "heldout_score": round(score_replies(players.reward, tokenizer, answers).mean().item(), 4),
        "heldout_kl": round(sequence_kl(players.policy, players.reference, tokenizer, answers), 4),
        "samples": [[answer.prompt.text, answer.text] for answer in answers[:4]],
    }


def examples(roll: ppo.Rollout, tokenizer, n: int = 4) -> list[dict]:
    """Some replies token by token, with what the value model expected before each of them."""
    return [
        {
            "tokens": [tokenizer.decode([i]) for i in ids],
            "values": [round(v, 3) for v in roll.values[row, : len(ids)].tolist()],
            "score": round(roll.scores[row].item(), 3),
            "context": tokenizer.decode(roll.contexts[row]),
        }
        for row, ids in enumerate(roll.responses[:n])
    ]


# -- how much of a gradient is chance -----------------------------------------------------------


def weighings(roll: ppo.Rollout) -> dict[str, Tensor]:
    """The same replies, weighed as the first variants do: `(B, R)` each."""
    names = ("REINFORCE, scores + 3", "REINFORCE", "baseline", "value model")
    shifted = {name: replace(roll, scores=roll.scores + VARIANTS[name].offset) for name in names}
    return {name: weigh(VARIANTS[name], shifted[name])[0] for name in names}


@torch.no_grad()
def sample_many(players: ppo.Players, models: Run, seed: int, n: int) -> ppo.Rollout:
    """`n` replies of the policy as it is, in one rollout."""
    tokenizer = models.tokenizer()
    contexts = [chat_ids(p, tokenizer) for p in prompt_mix(n, True, 90 + seed, TRAIN_MIX)]
    dice = torch.Generator().manual_seed(seed)
    return ppo.roll_out(players, contexts, stop_tokens(models), ppo.PPOSettings(1), dice)


def gradient_noise(players: ppo.Players, roll: ppo.Rollout) -> dict[str, dict]:
    """For each way to weigh: squared length of the gradient ("signal"), and tr(Cov) of that of one
    reply ("noise").

    From gradients of `NOISE_BATCH` replies each. Two of them are independent, so that their mean
    product estimates the squared length of the true gradient without bias.
    """
    weights = weighings(roll)
    parts = torch.arange(len(roll.responses)).split(NOISE_BATCH)
    sums: dict[str, Tensor | float] = dict.fromkeys(weights, 0.0)
    squares = dict.fromkeys(weights, 0.0)
    for part in tqdm(parts, "noise", leave=False):
        for name, gradient in part_gradients(players, roll, weights, part.tolist()).items():
            sums[name] = sums[name] + gradient
            squares[name] += (gradient @ gradient).item()
    k, out = len(parts), {}
    for name in weights:
        together = (sums[name] @ sums[name]).item()
        signal = (together - squares[name]) / (k * (k - 1))
        noise = NOISE_BATCH * (squares[name] - together / k) / (k - 1)
        out[name] = {"signal": float(f"{signal:.4g}"), "noise": float(f"{noise:.4g}")}
    return out


def part_gradients(players, roll: ppo.Rollout, weights: dict[str, Tensor], part: list[int]) -> dict:
    """For each way to weigh, the policy's gradient on the replies `part`, as one long vector.

    A mean over replies, not over tokens: all means of the parts are then comparable.
    """
    contexts, responses = [roll.contexts[i] for i in part], [roll.responses[i] for i in part]
    logprobs, _, _ = response_logprobs(players.policy, contexts, responses)  # (len(part), R)
    parameters = list(players.policy.parameters())
    out = {}
    for name, weight in weights.items():
        loss = -(weight[part, : logprobs.size(1)] * logprobs).sum() / len(part)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        out[name] = torch.cat([g.flatten() for g in gradients])
    return out
