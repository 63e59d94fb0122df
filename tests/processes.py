"""What two processes do in `test_distributed.py`; started by torchrun, with a folder and a task.

Tiny trainings in fp32, so that only the order of the sums differs from one process.
"""

import contextlib
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from course_lib import parallel, train
from course_lib.data import IGNORE_INDEX
from course_lib.distributed import chat_share, reward_share, windows_share
from course_lib.files import save_tensors
from course_lib.gpt import GPT, GPTConfig
from course_lib.parallel import train_together
from course_lib.reward import Pair, RewardModel
from course_lib.sft import ChatExamples
from course_lib.train import TrainSettings

STREAM = torch.arange(4000) * 7919 % 397 % 37
SETTINGS = TrainSettings(steps=12, learning_rate=1e-2, warmup=3, checkpoint_every=4, muon=False)
PLANS = {
    "ddp": ("ddp", SETTINGS),
    "fsdp": ("fsdp", SETTINGS),
    "ddp-parts": ("ddp", replace(SETTINGS, accumulate=3)),
    "fsdp-parts": ("fsdp", replace(SETTINGS, accumulate=3)),
    "ddp-muon": ("ddp", replace(SETTINGS, muon=True)),
    "fsdp-muon": ("fsdp", replace(SETTINGS, muon=True)),
}


def make_model():
    torch.manual_seed(0)
    return GPT(GPTConfig(40, 32, d_model=16, n_layers=2, n_heads=2))


def make_reward_model():
    return RewardModel.from_policy(make_model())


def examples():
    """Replies of 1 to 20 tokens: in every batch the processes get different numbers of them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 21, (30,), generator=generator).tolist()
    rows = [torch.randint(40, (n + 4,), generator=generator).tolist() for n in lengths]
    targets = [[IGNORE_INDEX] * 3 + row[4:] + [1] for row in rows]
    return ChatExamples(rows, targets, 0)


def prompts():
    """One to three pairs a prompt."""
    generator = torch.Generator().manual_seed(2)

    def ids():
        return torch.randint(40, (5,), generator=generator).tolist()

    return [
        [Pair(ids(), ids(), ids(), True, "fact", group=g) for _ in range(1 + g % 3)]
        for g in range(12)
    ]


def lm_loss(model, step, share, talks=examples()):  # noqa: B008
    """Chat and replay, as in the SFT stage."""
    chat = chat_share(model, talks, 7, 0, step, share)
    return chat + windows_share(model, STREAM, 6, 1, step, share)


def reward_loss(model, step, share, groups=prompts()):  # noqa: B008
    return reward_share(model, groups, 7, 0, step, share)


def trained(name, folder, world, loss=lm_loss, make=make_model):
    """Train by a plan, in `folder / name`; process 0 keeps the weights there."""
    kind, settings = PLANS[name]
    world = replace(world, kind=kind)
    path = folder / f"{name}{'-reward' if make is make_reward_model else ''}"
    model = train_together(make(), loss, settings, path, path.name, world)
    if model is not None:
        save_tensors(path / "end.safetensors", model.state_dict(), {})


def dies(model, step, share):
    """The second process is killed in step 9; the checkpoint is from step 8."""
    if step == 9 and share.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return lm_loss(model, step, share)


def main():
    folder, task = Path(sys.argv[1]), sys.argv[2]
    train.precision = lambda device: contextlib.nullcontext()
    with parallel.together("cpu") as world:
        if task == "killed":
            trained("fsdp", folder / "killed", world, dies)
        if task == "again":
            trained("fsdp", folder / "killed", world)
        if task == "curves":
            for name in PLANS:
                trained(name, folder, world)
            trained("fsdp", folder, world, reward_loss, make_reward_model)
            if world.rank == 0:  # a checkpoint of the other kind
                shutil.copytree(folder / "ddp", folder / "other" / "fsdp")
            torch.distributed.barrier()
            trained("fsdp", folder / "other", world)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
