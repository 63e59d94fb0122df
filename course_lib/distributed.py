"""The pipeline of `recipes.py` under `torchrun`: its supervised stages in several processes.

    torchrun --standalone --nproc_per_node=2 -m course_lib train

The run is the one that a single process makes, up to rounding, and its directory looks the same.
Pre-training, SFT and the reward model are trained together. Everything else is done by process 0
alone, with the functions of `recipes.py`: the tokenizer, the sampled pairs, all measurements, PPO.

How the two fit: when a stage is trained, process 0 leaves the weights as a checkpoint of the last
step. The recipe resumes from it, finds no step left, and goes on to save and measure.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import recipes, reward, sft
from course_lib.atlas.conversations import conversations
from course_lib.data import IGNORE_INDEX, step_generator, windows
from course_lib.errors import CourseError
from course_lib.evaluate import fact_completion, text_loss
from course_lib.files import read_json, write_json
from course_lib.gpt import GPT, GPTConfig
from course_lib.parallel import LossAt, Share, World, agree, together, train_together
from course_lib.presets import Preset
from course_lib.reward import Pair, RewardModel
from course_lib.runs import STAGES, Run, save_model, stage_key
from course_lib.sft import ChatExamples
from course_lib.train import TrainSettings, save_state

# -- losses of a share ------------------------------------------------------------------------


def windows_share(
    model: GPT, stream: Tensor, batch_size: int, seed: int, step: int, share: Share
) -> Tensor:
    """A share's part of the pre-training loss of `batch_size` random windows of `stream`, `(N,)`.

    The parts of all shares add up to the loss of the whole batch, in nats a token.

    Raises:
        CourseError: there are more shares than windows, or the stream is shorter than a window.
    """
    idx, targets = windows(stream, batch_size, model.config.context_length, seed, step)
    mine = share.take(idx)
    return sft.sft_loss(model, mine, share.take(targets)) * (len(mine) / len(idx))


def chat_share(
    model: GPT, examples: ChatExamples, batch_size: int, seed: int, step: int, share: Share
) -> Tensor:
    """A share's part of the SFT loss of `sft.chat_batch`: some of its conversations, packed anew.

    Replies differ in length, so that a share weighs by its supervised tokens. The parts of all
    shares add up to the loss of the whole batch, in nats a token.

    Raises:
        CourseError: there are more shares than conversations in a batch.
    """
    generator = step_generator(seed, step)
    draw = torch.randint(len(examples.inputs), (batch_size,), generator=generator).tolist()
    mine = share.take(draw)
    rows = sft.pack([len(examples.inputs[i]) for i in mine], model.config.context_length)
    batch = sft.packed_batch(examples, [[mine[place] for place in row] for row in rows])
    asked = sum(t != IGNORE_INDEX for i in draw for t in examples.targets[i])
    return sft.sft_loss(model, *batch) * ((batch[1] != IGNORE_INDEX).sum().item() / asked)


def reward_share(
    model: RewardModel,
    prompts: Sequence[Sequence[Pair]],
    batch_size: int,
    seed: int,
    step: int,
    share: Share,
) -> Tensor:
    """A share's part of `reward.reward_loss`, in nats a pair: the pairs of some of its prompts.

    Raises:
        CourseError: there are more shares than prompts in a batch.
    """
    draw = torch.randperm(len(prompts), generator=step_generator(seed, step))[:batch_size].tolist()
    mine = [prompts[i] for i in share.take(draw)]
    part = sum(map(len, mine)) / sum(len(prompts[i]) for i in draw)
    return reward.reward_loss(model, mine, len(mine), seed, step) * part


# -- the stages -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What the processes train together in one stage: arguments of `train_together`."""

    model: nn.Module
    loss_at: LossAt
    settings: TrainSettings
    evaluate: Callable[[nn.Module, int], dict] | None = None
    every: int = 50


def _base_job(run: Run, preset: Preset, seed: int, world: World) -> Job:
    tokenizer = run.tokenizer()
    training, heldout = recipes._streams(run, preset, seed)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(tokenizer.vocab_size, **preset.model))
    every = max(1, preset.base.steps // recipes.SNAPSHOTS[-1])

    def loss_at(model: GPT, step: int, share: Share) -> Tensor:
        return windows_share(model, training, preset.base_batch, seed, step, share)

    def evaluate(model: GPT, step: int) -> dict:
        if (step + 1) / every not in recipes.SNAPSHOTS:
            return {}
        save_model(model, model.config, run.snapshot(step + 1))
        facts = fact_completion(model, tokenizer)
        return {"heldout_loss": text_loss(model, heldout), "facts": facts}

    return Job(model, loss_at, preset.base, evaluate, every)


def _sft_job(run: Run, preset: Preset, seed: int, world: World) -> Job:
    training, _ = recipes._streams(run, preset, seed)
    model = run.model("base")
    talks = conversations(preset.n_conversations, seed)
    examples = sft.encode_conversations(talks, run.tokenizer(), model.config.context_length)

    def loss_at(model: GPT, step: int, share: Share) -> Tensor:
        chat = chat_share(model, examples, preset.sft_batch, seed, step, share)
        n = preset.replay_windows
        return chat + windows_share(model, training, n, seed + 1, step, share)

    return Job(model, loss_at, preset.sft)


def _reward_job(run: Run, preset: Preset, seed: int, world: World) -> Job:
    if world.rank == 0:
        recipes._sample_pairs(Run(run.path, world.device), preset, seed)
    dist.barrier()
    pairs = run.pairs()
    prompts = reward.by_prompt(pairs["train"])
    torch.manual_seed(seed)
    model = RewardModel.from_policy(run.model("sft"))

    def loss_at(model: RewardModel, step: int, share: Share) -> Tensor:
        return reward_share(model, prompts, preset.reward_batch, seed, step, share)

    def evaluate(model: RewardModel, step: int) -> dict:
        margins = reward.pair_margins(model, pairs["heldout"])
        return {"pair_accuracy": (margins > 0).float().mean().item()}

    return Job(model, loss_at, preset.reward, evaluate)


JOBS = {"base": _base_job, "sft": _sft_job, "reward": _reward_job}

# -- the pipeline -----------------------------------------------------------------------------


def train_all(
    preset: Preset,
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    kind: str = "ddp",
    accumulate: int = 1,
) -> Run | None:
    """Run every stage that is not there yet, in the processes that `torchrun` started.

    A run whose processes died goes on from its last checkpoint, also with another number of them.
    A stage that one process has begun starts anew.

    Args:
        kind: "ddp" or "fsdp", see `parallel.spread`.
        accumulate: in how many parts, one after the other, a process works through its rows.

    Returns:
        The run in process 0, None in the others.

    Raises:
        CourseError: not started by `torchrun`, more parts than rows in a batch, a folder that
            cannot be written, a process that died, or a loss that is not finite.
    """
    with together(device, kind) as world:
        _check_batches(preset, world.size * accumulate)
        run = Run(Path(out), world.device)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CourseError(f"cannot write a run to {run.path}: {error.strerror}") from None
        key = ""
        for name in STAGES[: STAGES.index("rlhf")]:
            key = stage_key(name, preset, seed, key)
            _run_stage(run, name, key, preset, seed, world, accumulate)
    if world.rank:
        return None
    if world.size > 1:
        print("rlhf: process 0 goes on alone (PPO runs in one process)")
    return recipes.train_all(preset, out, seed, str(world.device))


def _check_batches(preset: Preset, parts: int) -> None:
    """Better now than after hours of pre-training: has every batch a row for each part?"""
    if parts < 1:
        raise CourseError("--accumulate is a number of parts: 1 or more")
    for rows in (preset.base_batch, preset.sft_batch, preset.replay_windows, preset.reward_batch):
        Share(0, parts).take(range(rows))


def _run_stage(run, name, key, preset, seed, world, accumulate) -> None:
    """Run one stage unless its record carries this key."""
    first = world.rank == 0
    folder = run.path / name
    record = folder / "stage.json"
    done = record.exists() and read_json(record)["key"] == key
    if agree(done, world):
        return
    if name not in JOBS:
        if first:
            recipes._run_stage(run, name, key, preset, seed)
        dist.barrier()
        return
    resumed = _begin(folder, key) if first else False
    dist.barrier()
    if not (folder / "pending.json").exists():
        raise CourseError(f"{folder} cannot be seen by all processes: use a disk that they share")
    began = time.perf_counter()
    job = JOBS[name](Run(run.path), preset, seed, world)
    settings = replace(job.settings, accumulate=accumulate)
    whole = train_together(
        job.model, job.loss_at, settings, folder, name, world, job.evaluate, job.every
    )
    if first:
        save_state(whole, [], folder / "checkpoint.safetensors", settings.steps)
        seconds = time.perf_counter() - began
        recipes._run_stage(run, name, key, preset, seed)
        _amend(record, resumed, seconds, world)
        shutil.rmtree(folder / "shards", ignore_errors=True)
    dist.barrier()


def _begin(folder: Path, key: str) -> bool:
    """Clear what belongs to other settings; is there something to resume?"""
    pending = folder / "pending.json"
    begun = not (folder / "stage.json").exists() and pending.exists()
    if begun and read_json(pending)["key"] == key:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    write_json(pending, {"key": key})
    return False


def _amend(record: Path, resumed: bool, seconds: float, world: World) -> None:
    """The recipe saw only its own part of the stage: add the training and its processes."""
    stage = read_json(record)
    stage["seconds"] = round(stage["seconds"] + seconds, 2)
    stage |= {"resumed": resumed, "processes": world.size, "parallel": world.kind}
    write_json(record, stage)
