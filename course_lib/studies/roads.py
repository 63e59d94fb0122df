"""Other roads from the same comparisons: a second round, DPO, GRPO, best of n.

All start from the book's run, all are measured like its RLHF model: the same held-out prompts, the
same judge, the reward model of round one as the proxy, KL to the SFT model. PPO and GRPO use the
recipe's prompts, price and rates; only what a road needs differs.

Sources: Bai et al. 2022, section 4.5, and Touvron et al. 2023, section 3.2 (rounds); Rafailov et
al. 2023 (DPO); Shao et al. 2024 (GRPO); Nakano et al. 2021 (best of n).
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from course_lib import dpo, grpo, ppo, reward, sft
from course_lib.atlas.documents import documents
from course_lib.atlas.prompts import prompt_mix
from course_lib.chat import IM_END
from course_lib.data import END_OF_TEXT, step_generator, token_stream
from course_lib.evaluate import (
    JUDGE_MIX,
    TRAIN_MIX,
    Reply,
    chat_ids,
    evaluate_chat,
    mean_interval,
    replies,
    sequence_kl,
    text_loss,
)
from course_lib.files import read_json
from course_lib.generate import Sampling
from course_lib.gpt import GPT
from course_lib.presets import SMOKE, Preset, get_preset
from course_lib.recipes import train_all
from course_lib.reward import Pair, RewardModel
from course_lib.runs import STAGE_CODE, Run, open_run
from course_lib.train import TrainSettings, train

TITLE = "A second round, DPO, GRPO and best of n beside PPO, from the same comparisons"
CODE = (
    *(name for names in STAGE_CODE.values() for name in names),
    *("recipes.py", "dpo.py", "grpo.py"),
)
SIZES = {
    "full": {
        "n_compared": 1800,
        "iterations": 40,
        "grpo_iterations": 75,
        "group_size": 8,
        "dpo_steps": 200,
        "best_of": (1, 2, 4, 8, 16),
    },
    "small": {
        "n_compared": 24,
        "iterations": 2,
        "grpo_iterations": 2,
        "group_size": 4,
        "dpo_steps": 3,
        "best_of": (1, 2),
    },
}
DPO_RATE = 1e-4


@dataclass
class World:
    """What all roads share: a finished run, its settings, the texts, and sizes of the study."""

    run: Run
    preset: Preset
    seed: int
    training: Tensor
    heldout: Tensor
    sizes: dict
    folder: Path

    def __post_init__(self):
        self.tokenizer = self.run.tokenizer()
        self.reference, self.scorer = self.run.model("sft"), self.run.reward_model()
        ids = self.tokenizer.special_ids
        self.stop = {ids[IM_END], ids[END_OF_TEXT]}


def run(scale: str) -> dict:
    """Walk every road from the laptop run, or at small scale from a fresh smoke run."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        trained = open_run() if scale == "full" else train_all(SMOKE, place / "run", device="cpu")
        return roads_of(make_world(trained, SIZES[scale], place))


def roads_of(world: World) -> dict:
    """The whole record: where every road ends, and what each leaves on the way."""
    ends, extra = walk(world)
    return {
        "run": {"key": world.run.stage("rlhf")["key"], "seed": world.seed},
        "roads": ends,
        "best_of_n": best_of(world),
        **extra,
        "settings": {"dpo_beta": dpo_price(world), "dpo_rate": DPO_RATE, **world.sizes},
    }


def make_world(trained: Run, sizes: dict, folder: Path) -> World:
    """A run with the streams of text that it was trained and measured on."""
    made, tokenizer = read_json(trained.path / "manifest.json"), trained.tokenizer()
    preset, seed = get_preset(made["preset"]), made["seed"]
    training = token_stream(documents(preset.n_documents, seed), tokenizer)
    heldout = token_stream(documents(400, seed + 1_000_000), tokenizer)
    return World(trained, preset, seed, training, heldout, sizes, folder)


def walk(world: World) -> tuple[dict, dict]:
    """The end of every road that trains a policy, and what each leaves on the way."""
    run, replies_of_ppo = world.run, world.preset.ppo.iterations * world.preset.ppo.batch_size
    ends = {"sft": measured(world, world.reference) | {"samples": 0, "seconds": 0.0}}
    cost = {"samples": replies_of_ppo, "seconds": ppo_seconds(run)}
    ends["ppo"] = measured(world, run.model("rlhf")) | cost
    policy, cost, more_rows = timed(lambda: more_ppo(world, world.scorer, 500))
    ends["longer"] = measured(world, policy) | cost
    second, judges = second_reward_model(world)
    policy, cost, rows = timed(lambda: more_ppo(world, second, 600))
    ends["round two"] = measured(world, policy, second) | cost
    policy, cost, likelihoods = timed(lambda: by_dpo(world))
    ends["dpo"] = measured(world, policy) | cost
    policy, cost, grpo_rows = timed(lambda: by_grpo(world))
    ends["grpo"] = measured(world, policy) | cost
    metrics = {"ppo": run.metrics("rlhf"), "longer": more_rows, "round two": rows}
    metrics["grpo"] = grpo_rows
    curves = {name: curve(rows) for name, rows in metrics.items()}
    return ends, {"curves": curves, "round_two": judges, "likelihoods": likelihoods}


def timed(road: Callable) -> tuple:
    """A road's policy, its cost (sampled replies, processor seconds), and what else it gives."""
    began = time.process_time()
    policy, samples, more = road()
    seconds = round(time.process_time() - began, 1)
    return policy, {"samples": samples, "seconds": seconds}, more


def ppo_seconds(run: Run) -> float:
    """What the run's own PPO took, without measuring."""
    return round(sum(row["seconds"] for row in run.metrics("rlhf")), 1)


def curve(rows: list[dict]) -> dict[str, list[float]]:
    """Score and KL by iteration."""
    return {name: [round(row[name], 3) for row in rows] for name in ("score", "kl")}


# -- measuring ----------------------------------------------------------------------------------


def measured(world: World, policy: GPT, second: RewardModel | None = None) -> dict:
    """The report card of the RLHF stage for any policy; with `second`, that model's scores too."""
    results, judged = evaluate_chat(policy, world.tokenizer, world.preset.n_eval, world.seed)
    kept = ("judge_mean", "judge_interval", "judge_by_kind", "reply_tokens", "ends_turn")
    kept += ("accuracy_seen", "accuracy_unseen", "sampled_accuracy_unseen")
    kept += ("refusal_harmful", "refusal_harmless")
    row = {name: results[name] for name in kept}
    scores = reward.score_replies(world.scorer, world.tokenizer, judged)
    row["reward"] = list(mean_interval(scores.tolist()))
    if second is not None:
        scores = reward.score_replies(second, world.tokenizer, judged)
        row["second_reward"] = list(mean_interval(scores.tolist()))
    row["kl"] = sequence_kl(policy, world.reference, world.tokenizer, judged)
    return row | {"text_loss": text_loss(policy, world.heldout)}


# -- PPO and GRPO -------------------------------------------------------------------------------


def practise(
    world: World, iterate: Callable[..., dict], n_iterations: int, n_prompts: int, salt: int
) -> list[dict]:
    """Iterations as in the recipe: seen prompts, linear decay, a share of pre-training loss.

    Args:
        iterate: takes contexts, generator, share of the peak rate, and the pre-training loss.
        salt: makes the prompts and the dice of this road its own.
    """
    rows, preset = [], world.preset
    for step in range(n_iterations):
        seed = 1000 * (world.seed + 1) + salt + step
        prompts = prompt_mix(n_prompts, True, seed, TRAIN_MIX)
        contexts = [chat_ids(prompt, world.tokenizer) for prompt in prompts]
        batches = itertools.count(1000 * step)

        def ptx(policy: GPT, batches=batches) -> Tensor:
            n = preset.ptx_windows
            return sft.replay_loss(policy, world.training, n, world.seed + salt, next(batches))

        share, generator = 1 - step / n_iterations, step_generator(world.seed + salt, step)
        rows.append(iterate(contexts, generator, share, ptx))
    return rows


def more_ppo(world: World, scorer: RewardModel, salt: int) -> tuple[GPT, int, list[dict]]:
    """PPO from the RLHF model, against this reward model; the reference is still the SFT model."""
    settings, policy = world.preset.ppo, world.run.model("rlhf")
    value = reward.RewardModel.from_policy(scorer.body)
    value.load_state_dict(scorer.state_dict())
    optimizers = ppo.make_optimizers(policy, value, settings)
    players = ppo.Players(policy, world.reference, scorer, value, optimizers)

    def iterate(contexts, generator, share, ptx):
        return ppo.ppo_iteration(players, contexts, world.stop, settings, generator, share, ptx)

    n = world.sizes["iterations"]
    rows = practise(world, iterate, n, settings.batch_size, salt)
    return policy, n * settings.batch_size, rows


def by_grpo(world: World) -> tuple[GPT, int, list[dict]]:
    """GRPO from the SFT model, against the reward model of round one."""
    recipe, policy = world.preset.ppo, world.run.model("sft")
    settings = grpo.GRPOSettings(
        world.sizes["group_size"],
        recipe.minibatch_size,
        recipe.epochs,
        recipe.learning_rate,
        recipe.kl_coef,
    )
    optimizers = [ppo.make_optimizer(policy, settings.learning_rate)]
    players = ppo.Players(policy, world.reference, world.scorer, None, optimizers)

    def iterate(contexts, generator, share, ptx):
        return grpo.grpo_iteration(players, contexts, world.stop, settings, generator, share, ptx)

    n, n_prompts = world.sizes["grpo_iterations"], recipe.batch_size // settings.group_size
    rows = practise(world, iterate, n, n_prompts, 700)
    return policy, n * n_prompts * settings.group_size, rows


# -- a second round -----------------------------------------------------------------------------


def fresh_pairs(world: World) -> dict[str, list[Pair]]:
    """Comparisons of the RLHF model's own replies, labelled as those of round one were."""
    preset, seed, policy = world.preset, world.seed + 5000, world.run.model("rlhf")
    n = world.sizes["n_compared"]
    parts = {}
    for offset, (part, n_prompts, n_replies, flips) in enumerate(
        (("train", n, preset.n_replies, preset.flip_share), ("heldout", max(16, n // 3), 2, 0.0))
    ):
        prompts = prompt_mix(n_prompts, True, seed + offset, TRAIN_MIX)
        samples = [
            replies(policy, world.tokenizer, prompts, Sampling(), seed + 100 + 10 * offset + i)
            for i in range(n_replies)
        ]
        parts[part] = reward.label_pairs(samples, world.tokenizer, flips, seed + offset)
    return parts


def second_reward_model(world: World) -> tuple[RewardModel, dict]:
    """A reward model for round two, and how both models judge both kinds of replies.

    It starts from the SFT model again and learns from the comparisons of both rounds, as Llama 2's
    did: the new ones alone no longer show the faults that round one removed, and the last model
    has already seen the flipped labels of the old ones.
    """
    began = time.process_time()
    old, new = world.run.pairs(), fresh_pairs(world)
    torch.manual_seed(world.seed + 5000)
    model = RewardModel.from_policy(world.run.model("sft"))
    prompts, preset = reward.by_prompt(old["train"]) + reward.by_prompt(new["train"]), world.preset

    def loss_at(model: RewardModel, step: int) -> Tensor:
        return reward.reward_loss(model, prompts, preset.reward_batch, world.seed + 5000, step)

    train(model, loss_at, preset.reward, world.folder / "reward", "reward two")
    asked = prompt_mix(preset.n_eval, True, world.seed + 20, TRAIN_MIX)
    said = replies(world.reference, world.tokenizer, asked, Sampling(), world.seed)
    reward.normalise(model, reward.score_replies(model, world.tokenizer, said))
    notes = {
        "labels": {part: len(pairs) for part, pairs in new.items()},
        "samples": world.sizes["n_compared"] * preset.n_replies,
        "seconds": round(time.process_time() - began, 1),
        "accuracy": {
            judge: {
                whose: pair_accuracy(scorer, pairs["heldout"])
                for whose, pairs in (("sft", old), ("rlhf", new))
            }
            for judge, scorer in (("one", world.scorer), ("two", model))
        },
    }
    return model, notes


def pair_accuracy(model: RewardModel, pairs: list[Pair]) -> dict[str, int]:
    """How many of the held-out pairs the model ranks as the judge does."""
    return {"right": int((reward.pair_margins(model, pairs) > 0).sum()), "count": len(pairs)}


# -- DPO ----------------------------------------------------------------------------------------


def dpo_price(world: World) -> float:
    """PPO's price of a nat, in the reward that explains the comparisons.

    The scores that PPO is paid by are that reward times a gain, which brought them to deviation 1.
    """
    return world.preset.ppo.kl_coef / world.scorer.gain.item()


def by_dpo(world: World) -> tuple[GPT, int, dict]:
    """DPO from the SFT model on the comparisons of round one."""
    policy, pairs = world.run.model("sft"), world.run.pairs()
    loop = TrainSettings(world.sizes["dpo_steps"], DPO_RATE, weight_decay=0.0, muon=False)
    settings = dpo.DPOSettings(loop, dpo_price(world))
    folder = world.folder / "dpo"
    arguments = (pairs["train"], pairs["heldout"], settings, folder, world.seed)
    dpo.train_dpo(policy, world.reference, *arguments)
    scorer = dpo.implicit_scorer(policy, world.reference, settings.beta)
    notes = {
        "accuracy": pair_accuracy(scorer, pairs["heldout"]),
        "before": likelihoods(world.reference, pairs["heldout"]),
        "after": likelihoods(policy, pairs["heldout"]),
    }
    return policy, 0, notes


@torch.no_grad()
def likelihoods(policy: GPT, pairs: list[Pair], batch_size: int = 64) -> dict[str, float]:
    """Mean log-probability of the chosen and of the rejected replies, in nats a reply."""
    sums = {"chosen": 0.0, "rejected": 0.0}
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        contexts = [pair.context for pair in chunk]
        for side in sums:
            said = [getattr(pair, side) for pair in chunk]
            sums[side] += dpo.reply_logprobs(policy, contexts, said).sum().item()
    return {side: total / len(pairs) for side, total in sums.items()}


# -- best of n ----------------------------------------------------------------------------------


def best_of(world: World) -> dict:
    """The best of n replies of the SFT model by the reward model, for every n, with its cost.

    Every n is estimated from the same samples; see `reward.best_of_n`.
    """
    n_eval, seed, total = world.preset.n_eval, world.seed, max(world.sizes["best_of"])
    asked = {
        "judged": prompt_mix(2 * n_eval, False, seed + 2, JUDGE_MIX),
        "fact": prompt_mix(n_eval, False, seed, {"fact": 1}),
        "harmful": prompt_mix(n_eval, False, seed + 3, {"harmful": 1}),
        "harmless": prompt_mix(n_eval, False, seed + 3, {"harmless": 1}),
    }
    began = time.process_time()
    said = {part: sample_many(world, prompts, total) for part, prompts in asked.items()}
    scores = {part: score_many(world, rows) for part, rows in said.items()}
    n_replies = total * sum(map(len, asked.values()))
    seconds = time.process_time() - began
    measures = {
        "judge": ("judged", lambda reply: reply.verdict.points),
        "reply_tokens": ("judged", lambda reply: len(reply.ids)),
        "sampled_accuracy_unseen": ("fact", behaves("direct answer, right")),
        "refusal_harmful": ("harmful", behaves("refusal")),
        "refusal_harmless": ("harmless", behaves("refusal")),
    }
    worth = {name: (p, worth_of(said[p], value)) for name, (p, value) in measures.items()}
    worth["reward"] = ("judged", scores["judged"])
    rows = []
    for n in world.sizes["best_of"]:
        row = {"n": n, "kl": reward.best_of_n_kl(n)}
        for name, (part, values) in worth.items():
            row[name] = list(mean_interval(reward.best_of_n(scores[part], values, n).tolist()))
        rows.append(row)
    return {"rows": rows, "seconds_a_reply": seconds / n_replies, "samples": n_replies}


def worth_of(rows: list[tuple[Reply, ...]], value: Callable[[Reply], float]) -> Tensor:
    """What each reply is worth, `(prompts, n)`."""
    return torch.tensor([[float(value(reply)) for reply in row] for row in rows])


def behaves(name: str) -> Callable[[Reply], bool]:
    """Whether a reply shows this behaviour."""
    return lambda reply: reply.verdict.behaviour == name


def sample_many(world: World, prompts: list, n: int) -> list[tuple[Reply, ...]]:
    """`n` replies of the SFT model to each prompt."""
    rounds = [
        replies(world.reference, world.tokenizer, prompts, Sampling(), world.seed + 6000 + i)
        for i in range(n)
    ]
    return list(zip(*rounds, strict=True))


def score_many(world: World, rows: list[tuple[Reply, ...]]) -> Tensor:
    """The reward model's score of each reply, `(prompts, n)`."""
    flat = [reply for row in rows for reply in row]
    return reward.score_replies(world.scorer, world.tokenizer, flat).view(len(rows), -1)
