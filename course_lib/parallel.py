"""The training loop over several processes: DDP or FSDP2, with sharded checkpoints.

The promise: N processes compute the same run as one. Every process draws the whole batch (that is
cheap), keeps its own rows, and divides by the number of rows of all; gradients and losses of the
processes then simply add up. Only the order of the sums differs, so curves agree up to rounding.
With dropout each process draws masks of its own: then runs agree on average only.

Nothing here is hand-made: PyTorch's `DistributedDataParallel` and `fully_shard` move gradients and
weights, `torch.distributed.checkpoint` writes the shards.

Sources: Li et al. 2020 (DDP); Rajbhandari et al. 2020 (sharding).
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from course_lib.errors import CourseError
from course_lib.files import MetricLog, load_weights
from course_lib.layers import Block
from course_lib.optim import rate_share
from course_lib.train import TrainSettings, _one_step, make_optimizers


@dataclass(frozen=True)
class World:
    """The processes of one run, seen from one of them.

    Attributes:
        rank: the number of this process, from 0; size: how many there are.
        device: where this process computes.
        kind: "ddp" keeps the whole model in every process, "fsdp" a share of it.
    """

    rank: int
    size: int
    device: torch.device
    kind: str = "ddp"


@dataclass(frozen=True)
class Share:
    """One part of every batch: the rows `index`, `index + of`, `index + 2 of` and so on."""

    index: int
    of: int

    def take(self, rows):
        """The rows of this part, from a list or a tensor.

        Raises:
            CourseError: there are more parts than rows.

        >>> Share(1, 3).take([10, 11, 12, 13, 14])
        [11, 14]
        """
        if len(rows) < self.of:
            raise CourseError(
                f"a batch of {len(rows)} rows cannot be cut into {self.of} parts (processes times "
                f"--accumulate): use fewer processes or a smaller --accumulate"
            )
        return rows[self.index :: self.of]


# The part of the loss of batch number `i` that a share's rows give: the shares' parts add up to it.
LossAt = Callable[[nn.Module, int, Share], Tensor]


class Objective(nn.Module):
    """A model and its loss as one module, so that a whole loss is one forward pass.

    DDP and FSDP hook into the forward pass of the module that they wrap. A loss may call its model
    twice (chat and replay), or only a part of it (the reward model calls its body's `hidden`).
    """

    def __init__(self, model: nn.Module, loss_at: LossAt):
        super().__init__()
        self.model, self.loss_at = model, loss_at

    def forward(self, step: int, share: Share) -> Tensor:
        return self.loss_at(self.model, step, share)


def spread(model: nn.Module, loss_at: LossAt, world: World) -> nn.Module:
    """The objective over all processes: copies of the model that talk (DDP), or shards (FSDP2).

    With shards, each process keeps 1 / size of every tensor. The weights of a block are put
    together when it computes, and forgotten after it.
    """
    objective = Objective(model, loss_at)
    if world.kind == "ddp":
        return DistributedDataParallel(objective.to(world.device))
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.modules():
        if isinstance(block, Block):
            fully_shard(block, mesh=mesh)
    return fully_shard(objective, mesh=mesh)


# -- joining and leaving --------------------------------------------------------------------------

KINDS = ("ddp", "fsdp")
COMMAND = "torchrun --standalone --nproc_per_node=2 -m course_lib train"
LOST = (
    "another process of this run ended or does not answer, so this one stops too. The steps up to "
    "the last checkpoint are kept: the same command goes on from there"
)


@contextmanager
def together(device: str = "auto", kind: str = "ddp") -> Iterator[World]:
    """Join the processes that `torchrun` started, and part again at the end.

    A process that dies takes the others with it: they notice at the next exchange, or `torchrun`
    ends them (SIGTERM). Both become the same message. Process 0 may keep the others waiting for
    half an hour, while it measures alone.

    Raises:
        CourseError: not started by `torchrun`, no device for this process, or another one died.
    """
    world = _world(device, kind)
    before, done = signal.signal(signal.SIGTERM, _stop), False
    try:
        backend, half_an_hour = "gloo", timedelta(minutes=30)
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
            backend = "nccl"
        dist.init_process_group(backend, timeout=half_an_hour)
        yield world
        dist.destroy_process_group()
        done = True
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise CourseError(LOST) from error
    finally:  # after an error nothing may cut its message short: this process ends by itself
        signal.signal(signal.SIGTERM, before if done else signal.SIG_IGN)


def _stop(signum, frame):
    raise CourseError(LOST)


def _is_lost(error: RuntimeError) -> bool:
    """Gloo has no exception of its own: it tells by the file where the connection broke."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _world(device: str, kind: str) -> World:
    """What `torchrun` says about this process in its environment."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise CourseError(
            f"{', '.join(missing)} not set: several processes are started by torchrun, for "
            f"example {COMMAND}"
        )
    if kind not in KINDS:
        raise CourseError(f"unknown kind of parallel training {kind!r}: choose one of {KINDS}")
    rank, size, local = (int(os.environ[name]) for name in names[:3])
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise CourseError(
                f"process {local} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}: start at most as many processes"
            )
        return World(rank, size, torch.device("cuda", local), kind)
    if device not in ("auto", "cpu"):
        raise CourseError(f"device {device!r} cannot be used by several processes here: try cpu")
    return World(rank, size, torch.device("cpu"), kind)


def agree(value: int, world: World) -> int:
    """What process 0 says, in every process."""
    said = torch.tensor(value, device=world.device)
    dist.broadcast(said, 0)
    return said.item()


def mean(value: float, world: World) -> float:
    """The mean of what the processes say, in every process."""
    total = torch.tensor(value, device=world.device)
    dist.all_reduce(total)
    return total.item() / world.size


# -- the loop -------------------------------------------------------------------------------------


def train_together(
    model: nn.Module,
    loss_at: LossAt,
    settings: TrainSettings,
    directory: Path,
    title: str,
    world: World,
    evaluate: Callable[[nn.Module, int], dict] | None = None,
    evaluate_every: int = 50,
) -> nn.Module | None:
    """What `train.train` does, in all processes of `world`; resumes from shards in `directory`.

    Args:
        model: on the CPU, with the same weights in every process. It becomes the trained model or,
            with "fsdp", this process's shards of it.
        settings: `accumulate` cuts each process's rows into so many parts, one after the other.
            The batch stays the same (in `train.train`, it grows).
        directory: on a disk that all processes see.
        evaluate: called in process 0 with the whole model.

    Returns:
        The whole trained model in process 0, None in the others.

    Raises:
        CourseError: loss or gradient is not finite; a batch has fewer rows than there are parts.
    """
    first = world.rank == 0
    whole = deepcopy(model).to(world.device).eval() if first else None
    objective = spread(model, loss_at, world)
    optimizers = make_optimizers(model, settings)
    start = resume_shards(model, optimizers, directory / "shards", world)
    log = MetricLog(directory / "metrics.jsonl", start) if first else None
    objective.zero_grad(set_to_none=True)
    objective.train()
    part = _own_part(world, settings.accumulate)
    steps = range(start, settings.steps)
    bar = tqdm(steps, title, initial=start, total=settings.steps, disable=not first)
    for step in bar:
        began = time.perf_counter()
        torch.manual_seed(step * world.size + world.rank)  # a resumed run draws the same dropout
        share = rate_share(step, settings.steps, settings.warmup, settings.final_share)
        own, norm = _one_step(objective, part, optimizers, settings, step, share, world.device)
        loss = mean(own, world)
        seconds = time.perf_counter() - began
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        row = {"step": step, "loss": loss, "rate": share * settings.learning_rate}
        row |= {"grad_norm": norm, "seconds": round(seconds, 4)}
        last = step + 1 == settings.steps
        if evaluate is not None and ((step + 1) % evaluate_every == 0 or last):
            gather(model, whole)
            row |= evaluate(whole, step) if first else {}
        if first:
            log.write(**row)
        if (step + 1) % settings.checkpoint_every == 0 and not last:
            save_shards(model, optimizers, directory / "shards", step + 1, world)
    gather(model, whole)
    return whole


def _own_part(world: World, parts: int) -> Callable[[nn.Module, int], Tensor]:
    """The loss of one of the `parts` that a step accumulates, for `train._one_step`: own rows.

    It is scaled, since gradients are averaged over the processes and over the parts: we want sums.
    """

    def loss_at(objective: nn.Module, number: int) -> Tensor:
        step, part = divmod(number, parts)
        rows = Share(world.rank + part * world.size, parts * world.size)
        talk = world.kind == "fsdp" or part + 1 == parts  # copies need to talk once a step
        with nullcontext() if talk else objective.no_sync():
            return parts * world.size * objective(step, rows)

    return loss_at


def gather(model: nn.Module, whole: nn.Module | None) -> None:
    """Copy the weights of all processes into `whole`, which only process 0 has.

    Raises:
        CourseError: `whole` is another model.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if whole is not None:
        load_weights(whole, weights, "the trained model")


# -- checkpoints ----------------------------------------------------------------------------------


def save_shards(model: nn.Module, optimizers: list, folder: Path, step: int, world: World) -> None:
    """Write weights and optimiser states, every process its part, into `folder/<step>`.

    The checkpoint gets that name when all parts are there, and only then the older ones go.

    Raises:
        CourseError: a part cannot be written.
    """
    done, growing = folder / str(step), folder / f"{step}.tmp"
    if world.rank == 0:
        shutil.rmtree(growing, ignore_errors=True)
    dist.barrier()
    weights, states = get_state_dict(model, optimizers)
    with _clear_errors(done, "cannot be written", "is the disk full?"):
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=growing)
    if world.rank == 0:
        growing.rename(done)
        for old in folder.iterdir():
            if old != done:
                shutil.rmtree(old)


def resume_shards(model: nn.Module, optimizers: list, folder: Path, world: World) -> int:
    """Restore the newest checkpoint of `save_shards`; returns the step to go on with, or 0.

    The number of processes, and their kind, may have changed. PyTorch's format holds pickled code:
    resume only what you wrote yourself.

    Raises:
        CourseError: the checkpoint is damaged.
    """
    written = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    step = agree(max(written, default=0), world)
    if step == 0:
        return 0
    weights, states = get_state_dict(model, optimizers)
    newest = folder / str(step)
    with _clear_errors(newest, "is damaged", "delete it, then train again"):
        dcp.load({"model": weights, "optimizer": states}, checkpoint_id=newest)
    set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=states)
    return step


@contextmanager
def _clear_errors(path: Path, what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except dcp.api.CheckpointException as error:
        _, (reason, _) = next(iter(error.failures.items()))
        raise CourseError(f"the checkpoint {path} {what} ({reason}): {hint}") from None
