"""The pipeline on a GPU that is not there: PyTorch's `meta` device knows shapes, and no numbers.

Every operation on tensors of two devices is refused, as a real GPU does.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from course_lib import ppo, reward, sft
from course_lib import train as training
from course_lib.data import windows
from course_lib.evaluate import evaluate_chat, fact_completion, sequence_kl, text_loss
from course_lib.gpt import GPT, GPTConfig
from course_lib.presets import GPU, LAPTOP
from course_lib.reward import Pair, RewardModel
from course_lib.sizing import parameter_count
from course_lib.train import TrainSettings, cross_entropy, train

ATEN = torch.ops.aten
# What may mix devices: copies, and an index on the CPU.
COPIES = {ATEN._to_copy.default, ATEN.to.dtype_layout, ATEN.copy_.default}
INDEXED = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default}
CPU = torch.device("cpu")
CONFIG = GPTConfig(40, 64, 16, 2, 2)
STREAM = torch.arange(400) % 37


class OneDevice(TorchDispatchMode):
    """Refuses tensors of two devices; whoever asks a meta tensor for its numbers gets ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is ATEN._local_scalar_dense.default and args[0].is_meta:
            return 1
        if func in COPIES and kwargs.get("device") == CPU and args[0].is_meta:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        tensors = tree_leaves(args[0] if func in INDEXED else (args, kwargs))
        devices = {t.device for t in tensors if isinstance(t, torch.Tensor) and t.dim()}
        if len(devices) > 1 and func not in COPIES:
            raise AssertionError(f"{func} on {devices}")
        return func(*args, **kwargs)


@pytest.fixture
def gpu(monkeypatch):
    """The device. It has no autocast, as a T4 has none for bf16, and no fused optimiser."""
    adam = torch.optim.AdamW
    plain = lambda groups, fused, **rest: adam(groups, **rest)  # noqa: E731
    monkeypatch.setattr(torch.optim, "AdamW", plain)
    monkeypatch.setattr(training, "precision", lambda device: contextlib.nullcontext())
    with OneDevice():
        yield torch.device("meta")


def learns(model, loss_at, folder):
    train(model, loss_at, TrainSettings(2), folder, "fake")
    assert all(parameter.is_meta for parameter in model.parameters())


def test_two_devices_are_refused(gpu):
    table, row = torch.ones(3, 2, device=gpu), torch.zeros(1, dtype=torch.long)
    with pytest.raises(AssertionError, match="embedding"):
        torch.nn.functional.embedding(row, table)
    with pytest.raises(AssertionError, match="mm"):
        table @ torch.ones(2, 2)


def test_base(gpu, tmp_path):
    def loss_at(model, step):
        idx, targets = windows(STREAM, 4, 16, seed=0, step=step)
        return cross_entropy(model(idx.to(gpu)), targets.to(gpu))

    learns(GPT(CONFIG).to(gpu), loss_at, tmp_path)


def test_sft(gpu, tmp_path):
    examples = sft.ChatExamples([[1, 2, 3], [4, 5]], [[2, 3, 4], [5, 6]], 0)

    def loss_at(model, step):
        chat = sft.sft_loss(model, *sft.chat_batch(examples, 4, 8, 0, step))
        return chat + sft.replay_loss(model, STREAM, 2, 1, step)

    learns(GPT(CONFIG).to(gpu), loss_at, tmp_path)


def test_reward(gpu, tmp_path):
    pairs = [Pair([1, 2], [3, 4], [5], True, "fact", 0.1, group) for group in range(3)]
    prompts = reward.by_prompt(pairs)
    model = RewardModel.from_policy(GPT(CONFIG)).to(gpu)
    learns(model, lambda model, step: reward.reward_loss(model, prompts, 2, 0, step), tmp_path)
    assert not reward.pair_margins(model, pairs).is_meta


def test_ppo(gpu):
    models = [GPT(CONFIG).to(gpu) for _ in range(2)]
    scorers = [RewardModel.from_policy(GPT(CONFIG)).to(gpu) for _ in range(2)]
    settings = ppo.PPOSettings(1, batch_size=4, minibatch_size=2, max_new_tokens=5)
    players = ppo.Players(*models, *scorers, ppo.make_optimizers(models[0], scorers[1], settings))
    contexts = [[1, 2, 3], [4, 5], [6], [7, 8]]

    def ptx_loss(policy):
        return sft.replay_loss(policy, STREAM, 2, 0, 0)

    row = ppo.ppo_iteration(
        players, contexts, set(), settings, torch.Generator().manual_seed(0), 1.0, ptx_loss
    )
    assert row["ended"] == 0 and row["length"] == 1  # every number is 1: so is the mean length


def test_measuring(gpu, tiny_tokenizer):
    model = GPT(GPTConfig(tiny_tokenizer.vocab_size, 256, 16, 2, 2)).to(gpu).eval()
    assert text_loss(model, STREAM) == 1
    assert fact_completion(model, tiny_tokenizer).keys() == {"capital", "continent", "currency"}
    results, judged = evaluate_chat(model, tiny_tokenizer, 4, 0)
    assert (
        sequence_kl(model, model, tiny_tokenizer, judged) == 1 and results["judge_mean"] is not None
    )


def test_the_preset_is_larger():
    sizes = {p.name: parameter_count(GPTConfig(p.vocab_size, **p.model)) for p in (GPU, LAPTOP)}
    assert 4.5 < sizes["gpu"] / sizes["laptop"] < 5.5
