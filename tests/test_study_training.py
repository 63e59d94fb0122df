"""The study of training: which trainings it runs, and what its rows must hold at any scale."""

import math

import pytest

from course_lib.gpt import GPTConfig
from course_lib.studies import training
from course_lib.studies.ablations import corpus

FULL, SMALL = training.SIZES["full"], training.SIZES["small"]


@pytest.fixture(scope="module")
def results(small_study):
    return small_study("training")["results"]


def test_every_job_ran_with_every_seed_and_once(results):
    rows = results["runs"]
    keys = [(r["arm"], r["batch"], r["steps"], r["rate"], r["seed"]) for r in rows]
    assert len(set(keys)) == len(keys) == len(training.jobs(SMALL)) * len(SMALL["seeds"])
    assert all(0 < r["loss"] < 2 * math.log(SMALL["vocab_size"]) for r in rows)
    assert len({r["loss"] for r in rows}) == len(rows)  # no two trainings are the same


def test_the_full_scale_is_what_the_page_promises():
    jobs = training.jobs(FULL)
    own = {j["rate"] for j in jobs if j["arm"] == training.BOOK and j["batch"] == training.BATCH}
    assert len(own) >= 6 and len(FULL["seeds"]) >= 3 and len(FULL["batches"]) >= 3
    tokens = {b: {j["batch"] * j["steps"] for j in jobs if j["batch"] == b} for b in (4, 64)}
    assert FULL["steps"] * training.BATCH in tokens[4] & tokens[64]  # equal tokens
    assert {j["batch"] for j in jobs if j["steps"] == FULL["steps"]} == set(FULL["batches"])
    assert training.RATE in FULL["batch_rates"] and set(FULL["batch_rates"]) <= set(FULL["rates"])


def test_training_that_blows_up_is_none_and_one_that_works_learns():
    tokenizer, stream, fresh = corpus(SMALL["n_documents"], SMALL["vocab_size"])
    config = GPTConfig(tokenizer.vocab_size, training.LENGTH, **training.SHAPE)
    job = {"arm": training.BOOK, "batch": 8, "steps": 40, "rate": 1e-2}
    learned = training.trained_loss(config, job, 0, stream, fresh)
    assert learned < math.log(tokenizer.vocab_size) - 1
    assert training.trained_loss(config, job, 0, stream, fresh) == learned
    assert training.trained_loss(config, job | {"rate": math.inf}, 0, stream, fresh) is None
