"""Fine-tuning someone else's weights: public data, adapters, and the losses of this course.

Nothing here is a new method. Rows of public data sets become the conversations and pairs that
`sft`, `reward` and `dpo` take; `lora` decides what learns; `train` runs the loop, in bf16 where the
hardware has it, with gradient accumulation and exact resume.

All models of a project stand on one set of frozen weights: a reference, a reward model and a value
model cost a few adapters each (`twin`).

Sources: Hu et al. 2022 (adapters); Tunstall et al. 2023 (SFT, then DPO, on public data).
"""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from course_lib import dpo, lora, ppo, sft
from course_lib.chat import IM_END, Turn, check_turns, render
from course_lib.data import IGNORE_INDEX
from course_lib.errors import CourseError
from course_lib.files import read_json, write_json
from course_lib.gpt import GPT
from course_lib.reward import Pair, RewardModel, by_prompt, pair_margins, reward_loss
from course_lib.tokenizer import BPETokenizer
from course_lib.train import TrainSettings, precision, train

SIDES = ("chosen", "rejected")  # columns of a preference set
ADAPTED = ("qkv", "out", "up", "down")  # every linear map in the blocks


@dataclass(frozen=True)
class LoRASettings:
    """How a stage trains its adapters.

    Attributes:
        train: the loop; `muon=False`, since Muon turns whole matrices, not halves of a product.
        batch_size: conversations or pairs in a micro-batch; `train.accumulate` of them make a step.
        rank: of the adapters, see `lora.LoRALinear`.
        whole: parts of the GPT that learn besides the adapters, such as `("embedding",)` where the
            template's tokens are new to the model. They get weights of their own.
        evaluate_every: steps between measurements on held-out data (DPO has its own, 50).
    """

    train: TrainSettings
    batch_size: int = 8
    rank: int = 8
    whole: tuple[str, ...] = ()
    evaluate_every: int = 50


# -- public data --------------------------------------------------------------------------------


def read_talks(rows: Iterable[dict]) -> tuple[list[list[Turn]], int]:
    """Conversations from rows whose column `messages` holds `{"role", "content"}` messages.

    Returns:
        The conversations, and how many rows were dropped because their turns are out of order.

    Raises:
        CourseError: no such column, no messages in it, or nothing is left.
    """
    talks, dropped = [], 0
    for number, row in enumerate(rows):
        talk = _turns(row, "messages", number, "user")
        if _in_order(talk):
            talks.append(talk)
        else:
            dropped += 1
    if not talks:
        raise CourseError(f"none of the {dropped} rows holds a conversation that we can render")
    return talks, dropped


def read_pairs(
    rows: Iterable[dict], tokenizer: BPETokenizer, context_length: int
) -> tuple[list[Pair], int]:
    """Preference pairs from rows with `chosen` and `rejected`, each row a prompt of its own.

    Both are texts or lists of messages. Where a list holds more than the reply, what stands before
    the reply is the prompt; otherwise the column `prompt` is.

    Returns:
        The pairs, and how many rows were dropped: longer than the context, replies that are equal
        or answer different prompts, turns out of order.

    Raises:
        CourseError: a column is missing or of another kind, or nothing is left.
    """
    pairs, dropped = [], 0
    for number, row in enumerate(rows):
        chosen, rejected = (_turns(row, side, number, "assistant") for side in SIDES)
        before = chosen[:-1] or _turns(row, "prompt", number, "user")
        comparable = rejected[:-1] in (chosen[:-1], before)
        pair = None
        roles = {turns[-1][0] for turns in (chosen, rejected)}
        if comparable and roles == {"assistant"} and _in_order([*before, chosen[-1]]):
            pair = _pair(before, chosen[-1][1], rejected[-1][1], tokenizer, len(pairs))
        longest = max(pair.chosen, pair.rejected, key=len) if pair else []
        if pair is None or len(pair.context + longest) > context_length:
            dropped += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise CourseError(
            f"none of the {dropped} rows holds two different replies to one prompt within "
            f"{context_length} tokens: use a longer context"
        )
    return pairs, dropped


def _turns(row: dict, column: str, number: int, role: str) -> list[Turn]:
    """The messages of a column; a plain text is one turn of this role."""
    if column not in row:
        raise CourseError(
            f"row {number} has no column {column!r}; its columns are {', '.join(sorted(row))}"
        )
    value = row[column]
    if isinstance(value, str):
        return [(role, value)]
    try:
        turns = [(message["role"], message["content"]) for message in value]
    except (TypeError, KeyError):
        turns = []
    if not turns or not all(isinstance(content, str) for _, content in turns):
        raise CourseError(
            f"row {number}: the column {column!r} holds neither a text nor a list of messages with "
            f"'role' and 'content'"
        )
    return turns


def _in_order(talk: list[Turn]) -> bool:
    try:
        check_turns(talk)
    except CourseError:
        return False
    return True


def _pair(before: list[Turn], chosen: str, rejected: str, tokenizer, group: int) -> Pair | None:
    """Two replies as ids, each with its end of turn; None where they are equal."""
    if IM_END not in tokenizer.special_ids:
        raise CourseError(f"the tokenizer has no {IM_END}: replies could not end in its template")
    end = tokenizer.special_ids[IM_END]
    replies = [[*tokenizer.encode(text), end] for text in (chosen, rejected)]
    if replies[0] == replies[1]:
        return None
    return Pair(render(before, tokenizer, reply=True).ids, *replies, True, "public", group=group)


# -- one set of frozen weights --------------------------------------------------------------------


def twin(model: nn.Module) -> nn.Module:
    """A second model that shares every frozen parameter of this one and copies what learns.

    It costs no memory where all is frozen. Never merge adapters in place into shared weights: the
    other model would change with them; `merged` works on a copy.
    """
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})


def merged(model: nn.Module) -> nn.Module:
    """A plain model with the adapters' change in weights of its own, in evaluation mode."""
    plain = copy.deepcopy(model)
    lora.merge(plain)
    lora.remove_lora(plain)
    return plain.eval()


def _adapt(model: nn.Module, settings: LoRASettings, seed: int) -> None:
    """Freeze the model, but for new adapters and the parts that learn whole."""
    if settings.train.muon:
        raise CourseError("adapters are trained by AdamW alone: pass TrainSettings(muon=False)")
    torch.manual_seed(seed)
    lora.add_lora(model, ADAPTED, settings.rank)
    body = model.body if isinstance(model, RewardModel) else model
    for name in settings.whole:
        for part in body.get_submodule(name).modules():
            for weight, value in list(part.named_parameters(recurse=False)):
                setattr(part, weight, nn.Parameter(value.detach().clone()))  # twins keep theirs


def _claim(directory: Path, stage: str, settings: LoRASettings, seed: int, **more) -> None:
    """Note which training a folder holds: its checkpoint must not go on as another.

    Raises:
        CourseError: the folder holds a checkpoint of another training.
    """
    note, begun = directory / "settings.json", (directory / "checkpoint.safetensors").exists()
    mine = json.loads(json.dumps({"stage": stage, "seed": seed, **more, **asdict(settings)}))
    if begun and note.exists() and (found := read_json(note)) != mine:
        other = [name for name, value in mine.items() if found.get(name) != value]
        raise CourseError(
            f"{directory} holds another training (its {', '.join(other)} differ): take another "
            f"folder, or remove this one"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(note, mine)


# -- the stages -----------------------------------------------------------------------------------


def train_sft(
    model: GPT,
    examples: sft.ChatExamples,
    heldout: sft.ChatExamples,
    settings: LoRASettings,
    directory: Path,
    seed: int = 0,
) -> None:
    """Supervised fine-tuning in place: the model gets adapters, and only they learn.

    A killed stage goes on from `directory` when it is called again with a fresh model.

    Raises:
        CourseError: Muon is on, the model has adapters already, the folder holds another training,
            or the loss is not finite.
    """
    _claim(directory, "sft", settings, seed)
    _adapt(model, settings, seed)
    length = model.config.context_length

    def loss_at(model: GPT, step: int) -> tuple:
        idx, targets, *rest = sft.chat_batch(examples, settings.batch_size, length, seed, step)
        loss = sft.sft_loss(model, idx, targets, *rest)
        return loss, int((targets != IGNORE_INDEX).sum())  # accumulated means weigh by this

    def evaluate(model: GPT, step: int) -> dict:
        return {"heldout_loss": chat_loss(model, heldout)}

    train(model, loss_at, settings.train, directory, "sft", evaluate, settings.evaluate_every)


@torch.no_grad()
def chat_loss(model: GPT, examples: sft.ChatExamples, rows_at_once: int = 4) -> float:
    """Mean loss over all supervised tokens, in nats a token, in the precision of training."""
    rows = sft.pack([len(ids) for ids in examples.inputs], model.config.context_length)
    total = count = 0
    for start in range(0, len(rows), rows_at_once):
        idx, targets, *rest = sft.packed_batch(examples, rows[start : start + rows_at_once])
        n = int((targets != IGNORE_INDEX).sum())
        with precision(model.embedding.weight.device):
            total += n * sft.sft_loss(model, idx, targets, *rest).item()
        count += n
    return total / count


def train_reward(
    model: GPT,
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: LoRASettings,
    directory: Path,
    seed: int = 0,
) -> RewardModel:
    """A reward model on the frozen weights of `model`: its own adapters, and a head.

    Raises:
        CourseError: as in `train_sft`.
    """
    _claim(directory, "reward", settings, seed)
    torch.manual_seed(seed)
    scorer = RewardModel(twin(model.requires_grad_(False)))
    scorer.to(model.embedding.weight.device)
    _adapt(scorer, settings, seed)
    scorer.head.requires_grad_(True)
    prompts = by_prompt(pairs)

    def loss_at(scorer: RewardModel, step: int) -> torch.Tensor:
        return reward_loss(scorer, prompts, settings.batch_size, seed, step)

    def evaluate(scorer: RewardModel, step: int) -> dict:
        return {"pair_accuracy": (pair_margins(scorer, heldout) > 0).float().mean().item()}

    every = settings.evaluate_every
    train(scorer, loss_at, settings.train, directory, "reward", evaluate, every)
    return scorer


def train_dpo(
    model: GPT,
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: LoRASettings,
    directory: Path,
    seed: int = 0,
    beta: float = 0.1,
) -> GPT:
    """DPO in place; returns the reference: the model as it came, on the same frozen weights.

    Args:
        beta: see `dpo.DPOSettings`.

    Raises:
        CourseError: as in `train_sft`.
    """
    _claim(directory, "dpo", settings, seed, beta=beta)
    reference = twin(model.requires_grad_(False))
    _adapt(model, settings, seed)
    how = dpo.DPOSettings(settings.train, beta, settings.batch_size)
    dpo.train_dpo(model, reference, pairs, heldout, how, directory, seed)
    return reference


def ppo_players(
    model: GPT, scorer: RewardModel, settings: ppo.PPOSettings, rank: int = 8
) -> ppo.Players:
    """The four models of RLHF for `ppo.ppo_iteration`, on one set of frozen weights.

    The policy is `model` with new adapters, the reference its twin without; the value model starts
    as a copy of the scorer's adapters and head, which learn on in it, and the scorer is frozen.

    Raises:
        CourseError: the model has adapters already.
    """
    reference = twin(model.requires_grad_(False))
    lora.add_lora(model, ADAPTED, rank)
    for name, parameter in scorer.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("head."))
    value = twin(scorer)
    scorer.requires_grad_(False)
    optimizers = ppo.make_optimizers(model, value, settings)
    return ppo.Players(model, reference, scorer, value, optimizers)
