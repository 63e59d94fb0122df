"""Supervised fine-tuning done in other ways: what each choice is worth, with several seeds.

All variants start from the base model of the book's run and take as many steps with as many
conversations a step as "default"; one thing is changed at a time. Much shorter than the book's own
fine-tuning, so that differences are not yet levelled.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from course_lib import sft
from course_lib.atlas.conversations import conversations
from course_lib.atlas.documents import documents
from course_lib.atlas.prompts import all_fact_prompts, prompt_mix
from course_lib.chat import render, supervised_targets
from course_lib.data import token_stream
from course_lib.evaluate import DIRECT, accuracy, replies, share_of, text_loss
from course_lib.files import read_json
from course_lib.generate import Sampling
from course_lib.gpt import GPT
from course_lib.presets import SMOKE, get_preset
from course_lib.recipes import train_all
from course_lib.runs import STAGE_CODE, Run, open_run
from course_lib.tokenizer import BPETokenizer
from course_lib.train import TrainSettings, train

TITLE = "Fine-tuning with another mask, rate, amount of data, or without replay"
CODE = (*(name for stage in ("tokenizer", "base", "sft") for name in STAGE_CODE[stage]),)
# What each variant changes of `DEFAULT`. `mask`: whether only the assistant's tokens are learned.
DEFAULT = {"rate": 1e-3, "mask": True, "replay": True, "conversations": None}
VARIANTS = {
    "default": {},
    "every token learned": {"mask": False},
    "no replay": {"replay": False},
    "rate times 10": {"rate": 1e-2},
    "rate divided by 10": {"rate": 1e-4},
    "few conversations": {"conversations": 100},
    "few, no replay": {"conversations": 100, "replay": False},
}
SIZES = {
    "full": {"steps": 100, "batch": 32, "windows": 8, "n_talks": 24_000, "seeds": (0, 1, 2)},
    "small": {"steps": 2, "batch": 4, "windows": 2, "n_talks": 120, "seeds": (0, 1)},
}


def run(scale: str) -> dict:
    """Fine-tune every variant with every seed; see the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        trained = open_run() if scale == "full" else train_all(SMOKE, Path(folder), device="cpu")
        return fine_tune_all(trained, SIZES[scale])


def fine_tune_all(trained: Run, sizes: dict) -> dict:
    """One row a variant and seed, and what the base model measures before."""
    made, tokenizer = read_json(trained.path / "manifest.json"), trained.tokenizer()
    n_documents, seed = get_preset(made["preset"]).n_documents, made["seed"]
    training = token_stream(documents(n_documents, seed), tokenizer)
    heldout = token_stream(documents(400, seed + 1_000_000), tokenizer)
    rows = []
    for name, changes in VARIANTS.items():
        for study_seed in sizes["seeds"]:
            choice, model = DEFAULT | changes, trained.model("base")
            n_talks = choice["conversations"] or sizes["n_talks"]
            talks = conversations(sizes["n_talks"], study_seed)[:n_talks]
            fine_tune(model, tokenizer, talks, training, choice, sizes, study_seed)
            row = {"variant": name, "seed": study_seed, "passes": passes(sizes, n_talks)}
            rows.append(row | measured(model, tokenizer, heldout))
    before = round(text_loss(trained.model("base"), heldout), 4)
    key = trained.stage("base")["key"]
    return {"runs": rows, "base_text_loss": before, "run": {"key": key, "seed": seed}, **sizes}


def passes(sizes: dict, n_talks: int) -> float:
    """How often each conversation is read."""
    return round(sizes["steps"] * sizes["batch"] / n_talks, 2)


def fine_tune(
    model: GPT,
    tokenizer: BPETokenizer,
    talks: list,
    training: Tensor,
    choice: dict,
    sizes: dict,
    seed: int,
) -> None:
    """Train `model` in place, as the recipe's SFT stage does but for what `choice` says."""
    length = model.config.context_length
    examples = sft.encode_conversations(talks, tokenizer, length)
    if not choice["mask"]:
        examples = every_token(talks, tokenizer, length)

    def loss_at(model: GPT, step: int) -> Tensor:
        loss = sft.sft_loss(model, *sft.chat_batch(examples, sizes["batch"], length, seed, step))
        if choice["replay"]:
            loss = loss + sft.replay_loss(model, training, sizes["windows"], seed + 1, step)
        return loss

    steps = sizes["steps"]
    settings = TrainSettings(steps, choice["rate"], final_share=0.0, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        train(model, loss_at, settings, Path(folder), "sft")


def every_token(talks: list, tokenizer: BPETokenizer, length: int) -> sft.ChatExamples:
    """Conversations in which every token is learned: headers, questions and answers alike."""
    rows = [render(talk, tokenizer).ids for talk in talks]
    targets = [supervised_targets(ids, [True] * len(ids))[:length] for ids in rows]
    return sft.ChatExamples([ids[:-1][:length] for ids in rows], targets, 0)


@torch.no_grad()
def measured(model: GPT, tokenizer: BPETokenizer, heldout: Tensor) -> dict:
    """Shares of direct answers and of ends, accuracy on never-seen subjects, and two losses."""
    asked = replies(model, tokenizer, prompt_mix(200, False, 0, {"fact": 1}), Sampling(), 0)
    length = model.config.context_length
    fresh = sft.encode_conversations(conversations(300, 9_000_001), tokenizer, length)
    rows = sft.pack([len(ids) for ids in fresh.inputs], length)
    figures = {
        "direct": share_of(asked, *DIRECT),
        "ends": sum(r.ended for r in asked) / len(asked),
        "unseen": accuracy(replies(model, tokenizer, all_fact_prompts(False))),
        "chat_loss": sft.sft_loss(model, *sft.packed_batch(fresh, rows)).item(),
        "text_loss": text_loss(model, heldout),
    }
    return {name: round(value, 4) for name, value in figures.items()}
