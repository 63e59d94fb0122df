"""True and learned reward against KL: how far a policy may be pushed towards a reward model.

Four reward models learn from the preference pairs of the trained run: two sizes of body (the whole
SFT model, and its first block alone) and two amounts of pairs (all, and those of every 32nd
prompt), with as many steps of as many prompts each. The SFT model is then optimised against them:

- by best-of-n, with the unbiased estimate from one pool of samples and the KL of the formula;
- by PPO with several prices of KL, measured again and again on its way;
- and, without any of them, by DPO on the same two amounts of pairs with several betas.

Everything is measured on the same held-out prompts, whose subjects are in no conversation and no
pair: the proxy reward by the reward model that was optimised, the true reward by the judge. PPO is
that of the book's run, in fewer iterations at twice the learning rate; its value model starts as
the reward model in use.

Sources: Gao et al. 2023 (the design); Rafailov et al. 2024 (the same for DPO).
"""

import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_lib import ppo, sft
from course_lib.atlas.documents import documents
from course_lib.atlas.families import FACTS
from course_lib.atlas.prompts import Prompt, prompt_mix
from course_lib.chat import IM_END
from course_lib.data import END_OF_TEXT, step_generator, token_stream
from course_lib.dpo import DPOSettings, train_dpo
from course_lib.evaluate import (
    JUDGE_MIX,
    TRAIN_MIX,
    Reply,
    chat_ids,
    mean_interval,
    replies,
    sequence_kl,
)
from course_lib.files import load_tensors, load_weights, read_json, write_json
from course_lib.generate import Sampling
from course_lib.gpt import GPT
from course_lib.presets import SMOKE, Preset, get_preset
from course_lib.recipes import train_all
from course_lib.reward import (
    Pair,
    RewardModel,
    best_of_n,
    best_of_n_kl,
    by_prompt,
    normalise,
    pair_margins,
    reward_loss,
    score_replies,
)
from course_lib.runs import STAGE_CODE, Run, code_hash, open_run, save_model
from course_lib.train import TrainSettings, train

TITLE = "Over-optimisation: true and learned reward against KL"
CODE = (*(name for names in STAGE_CODE.values() for name in names), "dpo.py")
# Of how many prompts the pairs of one are learned.
PAIRS = {"all pairs": 1, "few pairs": 32}
# Size of the body (None: whole), and the pairs.
REWARD_MODELS = {
    "large, all pairs": (None, PAIRS["all pairs"]),
    "large, few pairs": (None, PAIRS["few pairs"]),
    "small, all pairs": (1, PAIRS["all pairs"]),
    "small, few pairs": (1, PAIRS["few pairs"]),
}
DEFAULT = "large, all pairs"  # the reward model of the run itself
SIZES = {
    "full": {
        "n_prompts": 200,
        "pool": 120,
        "n_samples": 64,
        "iterations": 20,
        "every": 5,
        "kl_coefs": (0.0, 0.03, 0.1, 0.3, 1.0),
        "betas": (0.02, 0.1, 0.5),
        "dpo_steps": 60,
    },
    "small": {
        "n_prompts": 12,
        "pool": 4,
        "n_samples": 8,
        "iterations": 2,
        "every": 1,
        "kl_coefs": (0.0, 0.1),
        "betas": (0.1,),
        "dpo_steps": 2,
    },
}
DPO_RATE = 2e-4


def run(scale: str) -> dict:
    """Optimise against every reward model; see the module's docstring.

    At full scale what is done is kept in a folder for temporary files until the end, so that a
    killed recording goes on; its seconds are then those since that.
    """
    if scale == "small":
        with tempfile.TemporaryDirectory() as folder:
            trained = train_all(SMOKE, Path(folder) / "run", device="cpu")
            return optimise_all(trained, SMOKE, SIZES[scale], Path(folder))
    trained = open_run()
    made = read_json(trained.path / "manifest.json")
    code = code_hash(("studies/overoptimization.py", *CODE))
    folder = Path(tempfile.gettempdir()) / f"course-study-{code}-{made['keys']['rlhf']}"
    results = optimise_all(trained, get_preset(made["preset"]), SIZES[scale], folder)
    shutil.rmtree(folder)
    return results


def optimise_all(trained: Run, preset: Preset, sizes: dict, folder: Path) -> dict:
    """The whole study on one trained run; parts that `folder` holds already are not made again."""
    torch.manual_seed(0)
    bench = Bench.of(trained, preset, sizes)
    rewards = {name: reward_model(bench, name, folder) for name in REWARD_MODELS}
    about = kept(folder, "rewards", describe_all, bench, rewards)
    start = kept(folder, "start", sft_reports, bench, rewards)
    pool = kept(folder, "best of n", best_of_n_curves, bench, rewards)
    runs = []
    for name, model in rewards.items():
        for kl_coef in sizes["kl_coefs"]:
            title = f"PPO, {name}, {kl_coef:g}"
            runs.append(kept(folder, title, ppo_run, bench, name, model, kl_coef))
    for pairs in PAIRS:
        for beta in sizes["betas"]:
            title = f"DPO, {pairs}, {beta:g}"
            runs.append(kept(folder, title, dpo_run, bench, rewards[DEFAULT], pairs, beta, folder))
    settings = {"kl_coef": preset.ppo.kl_coef, "batch_size": preset.ppo.batch_size}
    return {"rewards": about, "start": start, "best_of_n": pool, "runs": runs, **settings, **sizes}


def kept(folder: Path, name: str, make: Callable, *given):
    """What `make(*given)` returned: now, or in an earlier call that was killed later on."""
    path = folder / f"{name}.json"
    if not path.exists():
        write_json(path, make(*given))
    return read_json(path)


@dataclass
class Bench:
    """What every measurement shares: the run, the prompts, the documents of the PPO-ptx loss."""

    trained: Run
    preset: Preset
    sizes: dict
    sft: GPT
    stream: Tensor
    prompts: list[Prompt]
    fixed: list[Prompt]
    requests: dict[str, list[Prompt]]

    @classmethod
    def of(cls, trained: Run, preset: Preset, sizes: dict) -> "Bench":
        """The bench for a trained run."""
        n, tokenizer = sizes["n_prompts"], trained.tokenizer()
        stream = token_stream(documents(preset.n_documents, 0), tokenizer)
        question = Prompt("fact", "What is the capital of France?", FACTS["capital", "France"])
        haiku = Prompt("haiku", "Write a haiku about programming.", "programming")
        fixed = [question, haiku]
        for kind in ("fact", "harmful", "harmless", "ambiguous", "followup"):
            fixed += prompt_mix(1, False, 31, {kind: 1})
        kinds = ("harmful", "harmless")
        requests = {kind: prompt_mix(n // 2, False, 33, {kind: 1}) for kind in kinds}
        prompts = prompt_mix(n, False, 32, JUDGE_MIX)
        return cls(trained, preset, sizes, trained.model("sft"), stream, prompts, fixed, requests)


# -- reward models ------------------------------------------------------------------------------


def thinned(pairs: Sequence[Pair], one_in: int) -> list[Pair]:
    """The pairs of one prompt in `one_in`."""
    return [pair for group in by_prompt(pairs)[::one_in] for pair in group]


def reward_model(bench: Bench, name: str, folder: Path) -> RewardModel:
    """One of `REWARD_MODELS`: the run's own, or trained as that was, and kept."""
    if name == DEFAULT:
        return bench.trained.reward_model()
    n_layers, one_in = REWARD_MODELS[name]
    torch.manual_seed(0)
    body, preset = bench.trained.model("sft"), bench.preset
    if n_layers is not None:
        body.blocks = nn.ModuleList(body.blocks[:n_layers])
        body.config = replace(body.config, n_layers=n_layers)
    model, path = RewardModel(body), folder / name / "model.safetensors"
    if path.exists():
        load_weights(model, load_tensors(path)[0], str(path))
        return model.eval()
    prompts = by_prompt(thinned(bench.trained.pairs()["train"], one_in))

    def loss_at(model: RewardModel, step: int) -> Tensor:
        return reward_loss(model, prompts, preset.reward_batch, 0, step)

    train(model, loss_at, preset.reward, folder / name, f"reward model, {name}")
    asked = prompt_mix(preset.n_eval, True, 20, TRAIN_MIX)
    tokenizer = bench.trained.tokenizer()
    samples = replies(bench.sft, tokenizer, asked, Sampling(), 0)
    normalise(model, score_replies(model, tokenizer, samples))
    save_model(model, body.config, path)
    return model


def describe_all(bench: Bench, rewards: dict[str, RewardModel]) -> list[dict]:
    """The reward models: see `describe`."""
    pairs = bench.trained.pairs()
    return [describe(pairs, name, model) for name, model in rewards.items()]


def describe(pairs: dict[str, list[Pair]], name: str, model: RewardModel) -> dict:
    """Size, data, and how often it ranks held-out pairs rightly (`right` of `count`)."""
    learned = thinned(pairs["train"], REWARD_MODELS[name][1])
    right = (pair_margins(model, pairs["heldout"]) > 0).sum().item()
    return {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "block_parameters": sum(p.numel() for p in model.body.blocks.parameters()),
        "prompts": len(by_prompt(learned)),
        "pairs": len(learned),
        "right": right,
        "count": len(pairs["heldout"]),
    }


# -- best of n ----------------------------------------------------------------------------------


def best_of_n_curves(bench: Bench, rewards: dict[str, RewardModel]) -> dict[str, dict]:
    """For each reward model: true and proxy reward of the best of n, and what it likes most.

    One pool of replies serves all n and all reward models. `agreement` is the share of two replies
    to one prompt, differing in points, that the reward model ranks as the judge does.
    """
    sizes, tokenizer = bench.sizes, bench.trained.tokenizer()
    asked = [p for p in bench.prompts[: sizes["pool"]] for _ in range(sizes["n_samples"])]
    answers = replies(bench.sft, tokenizer, asked, Sampling(), 5)
    shape = (-1, sizes["n_samples"])
    points = torch.tensor([r.verdict.points for r in answers]).view(shape)
    curves = {}
    for name, model in tqdm(rewards.items(), "best of n"):
        scores = score_replies(model, tokenizer, answers).view(shape)
        best = scores.argmax(1) + sizes["n_samples"] * torch.arange(len(scores))
        chosen = [(answers[i], scores.flatten()[i].item()) for i in best.tolist()]
        curves[name] = {
            "agreement": agreement(scores, points),
            "loved": [quote(r, s) for r, s in loved(chosen)],
            "points": [best_of(scores, points, 2**i) for i in range(scores.size(1).bit_length())],
        }
    return curves


def best_of(scores: Tensor, points: Tensor, n: int) -> dict:
    """KL, proxy and true reward of the best of n; `gain` is what n adds, prompt by prompt."""
    judge = best_of_n(scores, points, n)
    return {
        "n": n,
        "kl": round(best_of_n_kl(n), 4),
        "proxy": interval(best_of_n(scores, scores, n).tolist()),
        "judge": interval(judge.tolist()),
        "gain": interval((judge - points.mean(1)).tolist()),
    }


def agreement(scores: Tensor, points: Tensor) -> float:
    """Share of pairs in a row, with different points, that the scores rank rightly.

    >>> agreement(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    0.5
    """
    higher = scores[:, :, None] > scores[:, None, :]  # (B, N, N)
    better = points[:, :, None] > points[:, None, :]
    return round((higher & better).sum().item() / max(1, better.sum().item()), 4)


# -- policies -----------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and its 95 % interval."""
    return [round(x, 4) for x in mean_interval(values)]


def quote(reply: Reply, score: float) -> dict:
    """A reply with what both rewards say of it."""
    prompt, verdict = reply.prompt, reply.verdict
    return {
        "kind": prompt.kind,
        "prompt": " / ".join([text for _, text in prompt.history] + [prompt.text]),
        "reply": reply.text if reply.ended else reply.text + " …",
        "does": verdict.behaviour,
        "proxy": round(score, 3),
        "judge": verdict.points,
    }


def loved(scored: Sequence[tuple[Reply, float]], n: int = 3) -> Iterator[tuple[Reply, float]]:
    """The highest scores among the replies that the judge gives no points."""
    bad = [(reply, score) for reply, score in scored if reply.verdict.points <= 0]
    yield from sorted(bad, key=lambda pair: -pair[1])[:n]


def measure(bench: Bench, policy: GPT, model: RewardModel) -> tuple[dict, list, list[float]]:
    """KL to the SFT model, proxy and true reward on the held-out prompts; replies and scores."""
    tokenizer = bench.trained.tokenizer()
    answers = replies(policy, tokenizer, bench.prompts, Sampling(), 4)
    scores = score_replies(model, tokenizer, answers).tolist()
    row = {
        "kl": round(sequence_kl(policy, bench.sft, tokenizer, answers), 4),
        "proxy": interval(scores),
        "judge": interval([r.verdict.points for r in answers]),
    }
    return row, answers, scores


def report(bench: Bench, policy: GPT, model: RewardModel) -> dict:
    """All that is said of a finished policy, with real samples."""
    row, answers, scores = measure(bench, policy, model)
    tokenizer, sampling = bench.trained.tokenizer(), Sampling()
    samples = replies(policy, tokenizer, bench.fixed, sampling, 6)
    asked = {
        kind: replies(policy, tokenizer, prompts, sampling, 7)
        for kind, prompts in bench.requests.items()
    }
    by_kind = {kind: [r for r in answers if r.prompt.kind == kind] for kind in JUDGE_MIX}
    return row | {
        "refusals": {
            kind: [sum(r.verdict.behaviour == "refusal" for r in said), len(said)]
            for kind, said in asked.items()
        },
        "behaviour": dict(Counter(r.verdict.behaviour for r in answers)),
        "manner": dict(Counter(r.verdict.manner for r in answers)),
        "judge_by_kind": {
            k: interval([r.verdict.points for r in v]) for k, v in by_kind.items() if v
        },
        "tokens": round(sum(len(r.ids) for r in answers) / len(answers), 2),
        "ended": sum(r.ended for r in answers),
        "samples": list(map(quote, samples, score_replies(model, tokenizer, samples).tolist())),
        "loved": [quote(r, s) for r, s in loved(list(zip(answers, scores, strict=True)))],
    }


def sft_reports(bench: Bench, rewards: dict[str, RewardModel]) -> dict[str, dict]:
    """The SFT model, from which every policy starts, by each reward model."""
    return {name: report(bench, bench.sft, model) for name, model in rewards.items()}


def ppo_run(bench: Bench, name: str, model: RewardModel, kl_coef: float) -> dict:
    """PPO from the SFT model at one price of KL, measured on its way and at the end."""
    sizes = bench.sizes
    usual = bench.preset.ppo
    settings = replace(
        usual,
        kl_coef=kl_coef,
        iterations=sizes["iterations"],
        learning_rate=2 * usual.learning_rate,
    )
    policy, value = copy.deepcopy(bench.sft), copy.deepcopy(model)
    adam = ppo.make_optimizers(policy, value, settings)
    players = ppo.Players(policy, bench.sft, model, value, adam)
    path = []
    for step in tqdm(range(settings.iterations), f"PPO, {name}, kl_coef {kl_coef:g}"):
        one_iteration(bench, players, settings, step)
        if (step + 1) % sizes["every"] == 0 and step + 1 < settings.iterations:
            path.append({"step": step + 1} | measure(bench, policy, model)[0])
    about = {"method": "PPO", "reward": name, "kl_coef": kl_coef}
    return about | {"path": path, "end": report(bench, policy, model)}


def one_iteration(bench: Bench, players: ppo.Players, settings: ppo.PPOSettings, step: int) -> None:
    """One PPO iteration as in the run of the book: prompts, documents and learning rate."""
    tokenizer = bench.trained.tokenizer()
    stop = {tokenizer.special_ids[IM_END], tokenizer.special_ids[END_OF_TEXT]}
    prompts = prompt_mix(settings.batch_size, True, 1000 + step, TRAIN_MIX)
    contexts = [chat_ids(prompt, tokenizer) for prompt in prompts]
    batches = iter(range(1000 * step, 1000 * step + 1000))

    def ptx_loss(policy: GPT) -> Tensor:
        return sft.replay_loss(policy, bench.stream, bench.preset.ptx_windows, 3, next(batches))

    share = 1 - step / settings.iterations
    ppo.ppo_iteration(players, contexts, stop, settings, step_generator(7, step), share, ptx_loss)


def dpo_run(bench: Bench, model: RewardModel, pairs: str, beta: float, folder: Path) -> dict:
    """DPO on all or few pairs at one beta; its proxy reward is that of the run's reward model."""
    data, policy = bench.trained.pairs(), copy.deepcopy(bench.sft)
    steps = TrainSettings(bench.sizes["dpo_steps"], DPO_RATE, weight_decay=0.0, muon=False)
    learned, few = thinned(data["train"], PAIRS[pairs]), data["heldout"][:64]
    train_dpo(
        policy, bench.sft, learned, few, DPOSettings(steps, beta), folder / f"{pairs}, {beta}", 0
    )
    about = {"method": "DPO", "reward": DEFAULT, "pairs": pairs, "beta": beta}
    return about | {"end": report(bench, policy, model)}
