"""Fixtures: a throwaway tokenizer, tiny models, and one smoke run shared by the whole session."""

import functools
import os

import pytest
import torch
from hypothesis import settings

from course_lib.atlas.documents import documents
from course_lib.chat import SPECIAL_TOKENS
from course_lib.gpt import GPT, GPTConfig
from course_lib.presets import SMOKE
from course_lib.recipes import train_all
from course_lib.studies import run_study
from course_lib.tokenizer import BPETokenizer

# The same examples in every run, and no failure because the machine was busy.
settings.register_profile("course", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("course")

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
pytest.register_assert_rewrite("oracles")
TINY = {"context_length": 64, "d_model": 16, "n_layers": 2, "n_heads": 2}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums are done in one order, so that two equal runs are equal bit by bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A tokenizer trained on a few documents of Atlas."""
    return BPETokenizer.train(documents(60, 1), 320, SPECIAL_TOKENS)


@pytest.fixture
def make_model():
    """A function that makes a tiny GPT; keywords change its config or its seed."""

    def make(vocab_size=40, seed=0, **changes):
        torch.manual_seed(seed)
        return GPT(GPTConfig(vocab_size, **(TINY | changes))).eval()

    return make


@pytest.fixture
def tiny_model(make_model):
    """A tiny GPT over 40 tokens, with weights large enough to have opinions."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """The whole pipeline at the smoke preset, trained once; tests must not change it."""
    torch.set_num_threads(1)
    return train_all(SMOKE, tmp_path_factory.mktemp("runs") / "smoke", device="cpu")


@pytest.fixture(scope="session")
def small_study():
    """A function that runs a study at its small scale: once, whoever asks; do not change it."""
    return functools.cache(lambda name: run_study(name, "small"))
