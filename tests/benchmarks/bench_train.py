"""Training speed: our GPT against Hugging Face's GPT-2 of the same shape, side by side.

Both do whole steps on the same batch: forward, loss, backward, clipping, fused AdamW. The models
take turns step by step, so that whatever else the machine does slows all of them alike; each is
judged by its best step. Run alone with `python -m tests.benchmarks.bench_train`.
"""

import contextlib
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib.gpt import GPT, GPTConfig
from course_lib.train import TrainSettings, cross_entropy, make_optimizers, precision
from tests.benchmarks import matmul_peak

THREADS, ROUNDS = 2, 10
VOCAB_SIZE, CONTEXT_LENGTH, BATCH = 3072, 128, 16
SHAPE = {"context_length": CONTEXT_LENGTH, "d_model": 192, "n_layers": 4, "n_heads": 6}
GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True}


def our_model(**choices):
    """Our GPT in the shape of the benchmark."""
    torch.manual_seed(0)
    return GPT(GPTConfig(VOCAB_SIZE, **SHAPE, **choices)).train()


def their_model():
    """Hugging Face's GPT-2 in the same shape, with fused attention and without dropout."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=CONTEXT_LENGTH,
        n_embd=SHAPE["d_model"],
        n_layer=SHAPE["n_layers"],
        n_head=SHAPE["n_heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    return transformers.GPT2LMHeadModel(config).train()


def step_of(model, loss_of, context=contextlib.nullcontext):
    """A function that does one training step and returns its seconds."""
    [optimizer] = make_optimizers(model, TrainSettings(1, muon=False))

    def step():
        began = time.perf_counter()
        with context():
            loss = loss_of(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    return step


def flops_of_a_step(model, loss_of):
    """Floating-point operations of forward and backward, counted by PyTorch on plain attention."""
    with FlopCounterMode(display=False) as counter:
        loss_of(model).backward()
    return counter.get_total_flops()


def bench():
    """Rows `{"work", "ours", "theirs", "ratio", "share"}`, speeds in tokens a second.

    `share` is the model's floating-point operations a second as a share of what fp32 matrix
    products reach here; with bf16 it can pass 1.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    idx, targets = torch.randint(VOCAB_SIZE, (2, BATCH, CONTEXT_LENGTH))

    def our_loss(model):
        return cross_entropy(model(idx), targets)

    def their_loss(model):
        return torch.nn.functional.cross_entropy(model(idx).logits.flatten(0, 1), targets.flatten())

    def mixed():
        return precision(torch.device("cpu"))

    kinds = {
        "GPT-2's shape, fp32": (GPT2, contextlib.nullcontext),
        "GPT-2's shape, as `train` runs it": (GPT2, mixed),
        "the course's model, as `train` runs it": ({}, mixed),
    }
    steps = {
        name: step_of(our_model(**c), our_loss, context) for name, (c, context) in kinds.items()
    }
    steps["theirs"] = step_of(their_model(), their_loss)
    seconds = dict.fromkeys(steps, float("inf"))
    peak = 0.0
    for _ in range(ROUNDS):
        peak = max(peak, matmul_peak())
        for name, step in steps.items():
            seconds[name] = min(seconds[name], step())
    torch.set_num_threads(before)
    tokens = BATCH * CONTEXT_LENGTH
    return [
        {
            "work": f"training, {name}",
            "ours": tokens / seconds[name],
            "theirs": tokens / seconds["theirs"],
            "ratio": seconds["theirs"] / seconds[name],
            "share": flops_of_a_step(our_model(**c, fused=False), our_loss) / seconds[name] / peak,
        }
        for name, (c, _) in kinds.items()
    ]


if __name__ == "__main__":
    for row in bench():
        print(
            f"{row['work']:50s} {row['ours']:8,.0f} tokens/s against {row['theirs']:8,.0f}: "
            f"{row['ratio']:.2f} times, {row['share']:.0%} of the fp32 matmul peak"
        )
