"""The study of other ways to fine-tune: each variant changes what it says, and nothing else."""

import math

import pytest
import torch

from course_lib.data import IGNORE_INDEX
from course_lib.sft import encode_conversations
from course_lib.studies import finetuning

TALKS = [[("user", "Hi?"), ("assistant", "Yes.")], [("user", "A"), ("assistant", "B")]]


def test_without_the_mask_every_token_is_a_target(smoke_run):
    tokenizer = smoke_run.tokenizer()
    masked = encode_conversations(TALKS, tokenizer, 128)
    every = finetuning.every_token(TALKS, tokenizer, 128)
    assert every.inputs == masked.inputs
    for ids, targets, some in zip(every.inputs, every.targets, masked.targets, strict=True):
        assert targets[:-1] == ids[1:]  # shifted once, nothing ignored
        assert IGNORE_INDEX in some
        assert all(a == b for a, b in zip(targets, some, strict=True) if b != IGNORE_INDEX)


@pytest.mark.parametrize("variant", ["every token learned", "no replay", "rate times 10"])
def test_a_variant_differs_from_the_default(smoke_run, variant):
    sizes, tokenizer = finetuning.SIZES["small"], smoke_run.tokenizer()
    stream = torch.arange(400) % tokenizer.vocab_size
    ends = []
    for changes in ({}, {}, finetuning.VARIANTS[variant]):
        model = smoke_run.model("base")
        choice = finetuning.DEFAULT | changes
        finetuning.fine_tune(model, tokenizer, TALKS * 4, stream, choice, sizes, 0)
        ends.append(model.embedding.weight.detach())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_the_record_has_every_variant_and_seed(small_study):
    sizes = finetuning.SIZES["small"]
    record = small_study("finetuning")["results"]
    found = [(row["variant"], row["seed"]) for row in record["runs"]]
    assert found == [(name, s) for name in finetuning.VARIANTS for s in sizes["seeds"]]
    for row in record["runs"]:
        assert all(0 <= row[k] <= 1 for k in ("direct", "ends", "unseen"))
        assert math.isfinite(row["chat_loss"] + row["text_loss"])
    few = next(row for row in record["runs"] if row["variant"] == "few conversations")
    assert few["passes"] == round(sizes["steps"] * sizes["batch"] / 100, 2)
