"""The whole pipeline, stage by stage: tokenizer, base, SFT, reward model, PPO.

`train_all` runs what is missing. Every stage trains, measures itself on held-out prompts,
and leaves weights, metrics and results in the run directory.
"""

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from course_lib import __version__, ppo, reward, sft
from course_lib.atlas.conversations import conversations
from course_lib.atlas.documents import documents
from course_lib.atlas.prompts import prompt_mix
from course_lib.chat import IM_END, SPECIAL_TOKENS
from course_lib.data import END_OF_TEXT, step_generator, token_stream, windows
from course_lib.errors import CourseError
from course_lib.evaluate import (
    CHART_MIX,
    TRAIN_MIX,
    Reply,
    behaviour_shares,
    chat_ids,
    evaluate_chat,
    fact_completion,
    replies,
    sequence_kl,
    share_of,
    text_loss,
)
from course_lib.files import (
    MetricLog,
    read_json,
    write_json,
)
from course_lib.generate import Sampling
from course_lib.gpt import GPT, GPTConfig
from course_lib.presets import Preset
from course_lib.reward import RewardModel
from course_lib.runs import STAGE_CODE, STAGES, Run, code_hash, save_model, stage_key
from course_lib.tokenizer import BPETokenizer
from course_lib.train import (
    cross_entropy,
    pick_device,
    resume,
    save_state,
    train,
)

# -- the pipeline ------------------------------------------------------------------------------


def train_all(preset: Preset, out: str | Path, seed: int = 0, device: str = "auto") -> Run:
    """Run every stage that is not there yet, and return the run.

    A killed run goes on from its last checkpoint; stages whose key is unchanged are kept.

    Raises:
        CourseError: the folder cannot be written, the device is not there, or a loss that is not
            finite stopped a stage.
    """
    run = Run(Path(out), pick_device(device))
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"cannot write a run to {run.path}: {error.strerror}") from None
    key = ""
    for name in STAGES:
        key = stage_key(name, preset, seed, key)
        _run_stage(run, name, key, preset, seed)
    made = run.path / "manifest.json"
    if not made.exists() or read_json(made)["keys"]["rlhf"] != key:
        write_json(made, manifest(run, preset, seed))
    return run


def _run_stage(run: Run, name: str, key: str, preset: Preset, seed: int) -> None:
    """Run one stage unless its record carries this key."""
    folder = run.path / name
    record, pending = folder / "stage.json", folder / "pending.json"
    if record.exists() and read_json(record)["key"] == key:
        print(f"{name}: already there ({key})")
        return
    resumed = not record.exists() and pending.exists() and read_json(pending)["key"] == key
    if not resumed:
        if folder.exists():
            shutil.rmtree(folder)  # nothing of another training may be resumed
        write_json(pending, {"key": key})
    began = time.perf_counter()
    torch.manual_seed(seed)
    results = _STAGE_FUNCTIONS[name](run, preset, seed)
    seconds = time.perf_counter() - began
    # After a resume the seconds are those since then: the record says so.
    stage = {"key": key, "seconds": round(seconds, 2), "resumed": resumed, "results": results}
    write_json(record, stage)
    pending.unlink()
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def manifest(run: Run, preset: Preset, seed: int) -> dict:
    """Where the run comes from: settings, seed, hashes, versions, machine, time."""
    seconds = {name: run.stage(name)["seconds"] for name in STAGES}
    return {
        "preset": preset.name,
        "seed": seed,
        "settings": asdict(preset),
        "keys": {name: run.stage(name)["key"] for name in STAGES},
        "code": {name: code_hash(STAGE_CODE[name]) for name in STAGES},
        "tokens_seen": run.results("base")["tokens_seen"],
        "resumed": [name for name in STAGES if run.stage(name)["resumed"]],
        "seconds": {"total": round(sum(seconds.values()), 2), **seconds},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "course_lib": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "device": str(run.device),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
    }


# -- the stages ---------------------------------------------------------------------------------


def _streams(run: Run, preset: Preset, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out token streams of the corpus."""
    tokenizer = run.tokenizer()
    training = token_stream(documents(preset.n_documents, seed), tokenizer)
    heldout = token_stream(documents(400, seed + 1_000_000), tokenizer)
    return training, heldout


def _tokenizer_stage(run: Run, preset: Preset, seed: int) -> dict:
    texts = documents(preset.n_documents, seed)
    talks = conversations(min(2000, preset.n_conversations), seed)
    said = [content for talk in talks for _, content in talk]
    tokenizer = BPETokenizer.train(texts[:8000] + said, preset.vocab_size, SPECIAL_TOKENS)
    tokenizer.save(run.path / "tokenizer" / "tokenizer.json")
    n_bytes = sum(len(text.encode()) for text in texts)
    n_tokens = len(token_stream(texts, tokenizer))
    return {
        "vocab_size": tokenizer.vocab_size,
        "corpus_bytes": n_bytes,
        "corpus_tokens": n_tokens,
        "bytes_per_token": n_bytes / n_tokens,
    }


# When the base model is measured and its weights are kept, in 28ths of its training: often at the
# start, where most happens.
SNAPSHOTS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28)


def _base_stage(run: Run, preset: Preset, seed: int) -> dict:
    tokenizer = run.tokenizer()
    training, heldout = _streams(run, preset, seed)
    model = GPT(GPTConfig(tokenizer.vocab_size, **preset.model)).to(run.device)
    every = max(1, preset.base.steps // SNAPSHOTS[-1])
    save_model(model, model.config, run.snapshot(0))

    def loss_at(model: GPT, step: int) -> torch.Tensor:
        length = model.config.context_length
        idx, targets = windows(training, preset.base_batch, length, seed, step)
        return cross_entropy(model(idx.to(run.device)), targets.to(run.device))

    def evaluate(model: GPT, step: int) -> dict:
        if (step + 1) / every not in SNAPSHOTS:
            return {}
        save_model(model, model.config, run.snapshot(step + 1))
        facts = fact_completion(model, tokenizer)
        return {"heldout_loss": text_loss(model, heldout), "facts": facts}

    train(model, loss_at, preset.base, run.path / "base", "base", evaluate, every)
    save_model(model, model.config, run.path / "base" / "model.safetensors")
    questions = prompt_mix(preset.n_eval, False, seed, {"fact": 1})
    asked = replies(model, tokenizer, questions, Sampling(), seed, as_document=True)
    facts = fact_completion(model, tokenizer)
    n_windows = preset.base.steps * preset.base.accumulate * preset.base_batch
    return {
        "parameters": model.n_parameters,
        "tokens_seen": n_windows * model.config.context_length,
        "heldout_loss": text_loss(model, heldout),
        "fact_completion": sum(facts.values()) / len(facts),
        "fact_completion_by_family": facts,
        "continuation_share": share_of(asked, "continuation"),
        "behaviour": behaviour_shares(_chart_replies(model, tokenizer, preset, seed, True)),
    }


def _chart_replies(model, tokenizer, preset: Preset, seed: int, base: bool = False) -> list[Reply]:
    """Samples at temperature 1 for the behaviour chart: the same held-out prompts for all."""
    prompts = prompt_mix(preset.n_eval, False, seed + 1, CHART_MIX)
    return replies(model, tokenizer, prompts, Sampling(), seed, as_document=base)


def _sft_stage(run: Run, preset: Preset, seed: int) -> dict:
    tokenizer = run.tokenizer()
    training, heldout = _streams(run, preset, seed)
    model = run.model("base")
    talks = conversations(preset.n_conversations, seed)
    length = model.config.context_length
    examples = sft.encode_conversations(talks, tokenizer, length)

    def loss_at(model: GPT, step: int) -> torch.Tensor:
        chat = sft.sft_loss(model, *sft.chat_batch(examples, preset.sft_batch, length, seed, step))
        return chat + sft.replay_loss(model, training, preset.replay_windows, seed + 1, step)

    train(model, loss_at, preset.sft, run.path / "sft", "sft")
    save_model(model, model.config, run.path / "sft" / "model.safetensors")
    results, _ = evaluate_chat(model, tokenizer, preset.n_eval, seed)
    return results | {
        "conversations": len(examples.inputs),
        "dropped": examples.dropped,
        "heldout_loss": text_loss(model, heldout),
        "behaviour": behaviour_shares(_chart_replies(model, tokenizer, preset, seed)),
    }


def _sample_pairs(run: Run, preset: Preset, seed: int) -> dict[str, list[reward.Pair]]:
    """Preference pairs from the SFT model's own samples; saved, so that pages can show them."""
    path = run.path / "reward" / "pairs.json"
    if path.exists():
        return run.pairs()
    tokenizer, model = run.tokenizer(), run.model("sft")
    sizes = {"train": preset.n_compared, "heldout": max(16, preset.n_compared // 6)}
    parts = {}
    for offset, (part, n) in enumerate(sizes.items()):
        prompts = prompt_mix(n, True, seed + 10 + offset, TRAIN_MIX)
        samples = [
            replies(model, tokenizer, prompts, Sampling(), seed + 100 + 10 * offset + i)
            for i in range(preset.n_replies if part == "train" else 2)
        ]
        flips = preset.flip_share if part == "train" else 0.0
        parts[part] = reward.label_pairs(samples, tokenizer, flips, seed + offset)
    write_json(path, {part: [asdict(pair) for pair in pairs] for part, pairs in parts.items()})
    return parts


def _reward_stage(run: Run, preset: Preset, seed: int) -> dict:
    pairs = _sample_pairs(run, preset, seed)
    torch.manual_seed(seed)
    model = RewardModel.from_policy(run.model("sft")).to(run.device)

    prompts = reward.by_prompt(pairs["train"])

    def loss_at(model: RewardModel, step: int) -> torch.Tensor:
        return reward.reward_loss(model, prompts, preset.reward_batch, seed, step)

    def evaluate(model: RewardModel, step: int) -> dict:
        margins = reward.pair_margins(model, pairs["heldout"])
        return {"pair_accuracy": (margins > 0).float().mean().item()}

    train(model, loss_at, preset.reward, run.path / "reward", "reward", evaluate)
    tokenizer, sft_model = run.tokenizer(), run.model("sft")
    asked = prompt_mix(preset.n_eval, True, seed + 20, TRAIN_MIX)
    samples = replies(sft_model, tokenizer, asked, Sampling(), seed)
    reward.normalise(model, reward.score_replies(model, tokenizer, samples))
    save_model(model, model.body.config, run.path / "reward" / "model.safetensors")
    margins = reward.pair_margins(model, pairs["heldout"])
    return {
        "pair_accuracy": (margins > 0).float().mean().item(),
        "pairs": {part: len(rows) for part, rows in pairs.items()},
        "labels_right": sum(p.label_right for p in pairs["train"]) / len(pairs["train"]),
        "calibration": reward.calibration(margins * model.gain.cpu().reciprocal()),
    }


def _rlhf_stage(run: Run, preset: Preset, seed: int) -> dict:
    tokenizer = run.tokenizer()
    training, heldout = _streams(run, preset, seed)
    policy, reference, scorer = run.model("sft"), run.model("sft"), run.reward_model()
    value = run.reward_model()
    players = ppo.Players(
        policy, reference, scorer, value, ppo.make_optimizers(policy, value, preset.ppo)
    )
    _ppo_loop(run, players, preset, seed, training)
    save_model(policy, policy.config, run.path / "rlhf" / "model.safetensors")
    results, judged = evaluate_chat(policy, tokenizer, preset.n_eval, seed)
    scores = reward.score_replies(scorer, tokenizer, judged)
    return results | {
        "kl": sequence_kl(policy, reference, tokenizer, judged),
        "reward_mean": scores.mean().item(),
        "heldout_loss": text_loss(policy, heldout),
        "behaviour": behaviour_shares(_chart_replies(policy, tokenizer, preset, seed)),
    }


def _ppo_loop(run: Run, players: ppo.Players, preset: Preset, seed: int, stream) -> None:
    """PPO iterations with metrics, checkpoints and resume."""
    settings, tokenizer = preset.ppo, run.tokenizer()
    folder = run.path / "rlhf"
    checkpoint = folder / "checkpoint.safetensors"
    both = torch.nn.ModuleDict({"policy": players.policy, "value": players.value})
    start = resume(both, players.optimizers, checkpoint) if checkpoint.exists() else 0
    log = MetricLog(folder / "metrics.jsonl", start)
    stop = {tokenizer.special_ids[IM_END], tokenizer.special_ids[END_OF_TEXT]}
    bar = tqdm(range(start, settings.iterations), "rlhf", initial=start, total=settings.iterations)
    for step in bar:
        began = time.perf_counter()
        generator = step_generator(seed + 7, step)
        prompts = prompt_mix(settings.batch_size, True, 1000 * (seed + 1) + step, TRAIN_MIX)
        contexts = [chat_ids(prompt, tokenizer) for prompt in prompts]
        counter = iter(range(1000 * step, 1000 * step + 1000))

        def ptx_loss(policy: GPT, counter=counter) -> torch.Tensor:
            return sft.replay_loss(policy, stream, preset.ptx_windows, seed + 3, next(counter))

        row = ppo.ppo_iteration(
            players,
            contexts,
            stop,
            settings,
            generator,
            1 - step / settings.iterations,
            ptx_loss,
        )
        log.write(step=step, **row, seconds=round(time.perf_counter() - began, 3))
        bar.set_postfix(score=f"{row['score']:.2f}", kl=f"{row['kl']:.2f}", refresh=False)
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.iterations:
            save_state(both, players.optimizers, checkpoint, step + 1)


_STAGE_FUNCTIONS: dict[str, Callable[[Run, Preset, int], dict]] = {
    "tokenizer": _tokenizer_stage,
    "base": _base_stage,
    "sft": _sft_stage,
    "reward": _reward_stage,
    "rlhf": _rlhf_stage,
}


def report(run: Run) -> dict:
    """Every measured figure of a finished run, with its manifest.

    Raises:
        CourseError: the run is not complete.
    """
    made = read_json(run.path / "manifest.json")
    return {
        "seconds": made["seconds"],
        **{name: run.results(name) for name in STAGES},
        "manifest": made,
    }
