"""Checks of L09: windows, loss, optimiser, schedule, accumulation."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.adamw import adamw

from course_lib.atlas.documents import documents
from course_lib.checks import Check, describe
from course_lib.checks.tools import close, is_tensor, near, randint, randn
from course_lib.data import read_text
from course_lib.gpt import GPT
from course_lib.tokenizer import BPETokenizer


@Check
def check_batch_windows(fn):
    """Against slices, for several lengths and starts."""
    for seed, (n, length, count) in enumerate(((30, 5, 4), (12, 1, 3), (20, 19, 1), (50, 8, 6))):
        stream = randint(seed, 1000, n)
        starts = randint(seed + 9, n - length, count)
        starts[-1] = n - length - 1  # the last place that has a target for every token
        got = fn(stream, starts, length)
        assert isinstance(got, tuple | list) and len(got) == 2, (
            f"it returns {describe(got)}: return idx and targets"
        )
        for part in got:
            is_tensor(part, (count, length), stream.dtype)
        idx, targets = got
        assert not torch.equal(idx, targets), (
            "targets equal idx: the model would learn to copy. Shift them by one"
        )
        for b, start in enumerate(starts.tolist()):
            assert torch.equal(idx[b], stream[start : start + length]), (
                f"window {b} must begin at starts[{b}] and hold {length} tokens in a row"
            )
            rolled = stream[start : start + length].roll(-1)
            assert (
                length == 1
                or not torch.equal(targets[b], rolled)
                or rolled[-1] == stream[start + length]
            ), "the last target comes from the start of the window: take it from the stream"
            before = stream[start - 1 : start + length - 1]
            assert start == 0 or not torch.equal(targets[b], before), (
                "the targets are the tokens *before*: shift the other way"
            )
            two = stream[start + 2 : start + length + 2]
            assert not torch.equal(targets[b], two), "the targets are two steps ahead: one is right"
            assert torch.equal(targets[b], stream[start + 1 : start + length + 1]), (
                "targets[b, t] must be the token that follows idx[b, t] in the stream"
            )


@Check
def check_cross_entropy(fn):
    """Hand values, the ignored positions, large logits; PyTorch's own as the oracle."""
    got = fn(torch.zeros(1, 2, 4), torch.tensor([[3, 0]]))
    is_tensor(got, ())
    assert not near(got, -math.log(4)), (
        "the sign is reversed: surprise is minus the log-probability"
    )
    assert not near(got, 2 * math.log(4)), "that is the sum over the positions: take the mean"
    assert near(got, math.log(4)), f"four equal logits give ln 4 = 1.386 a token, not {got:.4g}"
    got = fn(torch.zeros(1, 3, 4), torch.tensor([[3, -100, -100]]))
    assert not near(got, math.log(4) / 3), (
        "you divide by all positions: divide by the number of those that are asked"
    )
    assert near(got, math.log(4)), "a target of -100 takes no part: leave the position out"
    for seed, (B, T, V) in enumerate(((2, 3, 5), (4, 1, 7), (1, 6, 3))):
        logits, targets = 2 * randn(seed, B, T, V), randint(seed + 5, V, B, T)
        targets[0, 0] = -100 if T > 1 else targets[0, 0]
        got = fn(logits, targets)
        is_tensor(got, (), logits.dtype)
        kept = targets != -100
        nll = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        over_time = -logits.log_softmax(1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        assert T == 1 or not close(got, over_time[kept].mean()), (
            "the softmax runs over the positions: it runs over the vocabulary, the last axis"
        )
        by_row = (nll.sum(1) / kept.sum(1)).mean()
        whole = nll.sum() / kept.sum()
        assert close(by_row, whole, 1e-3) or not close(got, by_row), (
            "the mean is taken by row first: every token counts the same, whatever its row"
        )
        plain = -logits.softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0][kept].mean()
        assert not close(got, plain), "the logarithm is missing: -log p, not -p"
        assert not close(got, whole / math.log(2)), "that is in bits: use the natural logarithm"
        assert close(got, whole), f"{got:.4f} instead of {whole:.4f}, which PyTorch gives"
    far = torch.tensor([[[1000.0, 0.0], [0.0, 1000.0]]])
    got = fn(far, torch.tensor([[1, 1]]))
    assert not got.isnan() and not got.isinf(), (
        "infinite or NaN for logits of 1000: log(softmax(x)) underflows, use logsumexp"
    )
    assert near(got, 500.0), f"logits 1000 and 0, wrong once: 500 nats a token, not {got:.4g}"
    logits = randn(3, 1, 2, 4).requires_grad_()
    assert fn(logits, torch.tensor([[1, 2]])).requires_grad, "no gradient passes"


@Check
def check_adamw_step(fn):
    """Hand values of the first step, then torch.optim.AdamW over several."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    got = fn(one, 4 * one, zero, zero, 1, 0.1, betas=(0.9, 0.95), eps=0.0, weight_decay=0.0)
    assert isinstance(got, tuple | list) and len(got) == 3, (
        f"it returns {describe(got)}: return the new p, m and v"
    )
    for part in got:
        is_tensor(part, (1,), torch.float64)
    p, m, v = got
    assert near(m, 0.4), f"m after one gradient of 4 is 0.9 * 0 + 0.1 * 4 = 0.4, not {m.item():.4g}"
    assert not near(v, 0.2), "v is the mean of the *squared* gradients"
    assert near(v, 0.8), f"v after one gradient of 4 is 0.05 * 16 = 0.8, not {v.item():.4g}"
    assert not near(p, 1.1), "it moves uphill: subtract the step"
    assert not near(p, 1 - 0.1 * 0.4 / 0.8**0.5), (
        "m and v start at zero and are too small at first: divide by 1 - beta ** step"
    )
    assert not near(p, 1 - 0.1 * 4 / 16), "divide by the *root* of v"
    assert near(p, 0.9), f"the first step has the size lr: 1 - 0.1 = 0.9, not {p.item():.5g}"
    p, _, _ = fn(one, 4 * one, zero, zero, 1, 0.1, eps=1.0, weight_decay=0.0)
    assert not near(p, 1 - 0.1 * 4 / 17**0.5), "eps stands inside the root: add it outside of it"
    assert near(p, 0.92), f"with eps = 1 the step is 0.1 * 4 / (4 + 1), not {1 - p.item():.4g}"
    p, _, _ = fn(one, zero, zero, zero, 1, 0.1, weight_decay=0.5)
    assert not near(p, 0.5), "the decay is lr * weight_decay, not weight_decay alone"
    assert not near(p, 1.05), "the decay has the wrong sign: it pulls towards zero"
    assert not near(p, 0.9, 1e-4), (
        "the decay was added to the gradient: that is L2 in Adam. In AdamW it shrinks p itself"
    )
    assert not near(p, 1.0), (
        "without a gradient the decay still acts: p shrinks by lr * weight_decay"
    )
    assert near(p, 0.95), f"1 - 0.1 * 0.5 = 0.95, not {p.item():.5g}"
    for seed, shape, options in (
        (0, (3, 2), {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}),
        (1, (4,), {"betas": (0.8, 0.99), "eps": 0.3, "weight_decay": 0.0}),
        (2, (1, 2, 2), {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.7}),
    ):
        _several_steps(fn, seed, shape, options)


def _several_steps(fn, seed, shape, options):
    """Follow PyTorch's AdamW: its function, since building the optimiser loads its compiler."""
    p = randn(seed, *shape, dtype=torch.float64)
    m = v = torch.zeros_like(p)
    theirs, mean, square, count = p.clone(), m.clone(), v.clone(), torch.tensor(0.0)
    betas = dict(zip(("beta1", "beta2"), options["betas"], strict=True))
    others = {"eps": options["eps"], "weight_decay": options["weight_decay"]} | betas
    for step in range(1, 6):
        grad = randn(10 * seed + step, *shape, dtype=torch.float64)
        adamw(
            *([theirs], [grad], [mean], [square], [], [count]),
            **others, lr=0.05, amsgrad=False, maximize=False, foreach=False,
        )  # fmt: skip
        p, m, v = fn(p, grad, m, v, step, 0.05, **options)
        is_tensor(p, shape, torch.float64)
        assert close(p, theirs, 1e-9), (
            f"step {step} differs from torch.optim.AdamW with {options}: m and v must be carried "
            f"on, and corrected with this step's power, in this step alone"
        )


@Check
def check_learning_rate(fn):
    """Warm-up, both ends of the cosine, its middle, and that it never rises again."""
    first = fn(0, 1.0, 4, 20)
    assert isinstance(first, float | int), f"it returns {describe(first)}: return a number"
    assert first != 0, "step 0 has the rate 0, one step is wasted: use (step + 1) / warmup"
    assert near(first, 0.25), f"step 0 of 4 has a quarter of the peak, not {first:.4g}"
    assert near(fn(3, 1.0, 4, 20), 1.0), "the last step of the warm-up is at the peak"
    for peak, warmup, steps, final in (
        (1.0, 4, 20, 0.05),
        (3e-3, 10, 101, 0.1),
        (2.0, 1, 6, 0.0),
        (1.0, 3, 5, 0.1),
    ):
        rates = [fn(s, peak, warmup, steps, final) for s in range(steps)]
        for s in range(warmup):
            assert near(rates[s], peak * (s + 1) / warmup), f"step {s} of the warm-up is wrong"
        assert near(rates[warmup], peak), (
            f"step {warmup}, the first of the cosine, is at the peak: count the cosine's progress "
            f"from the end of the warm-up"
        )
        last = rates[-1]
        assert final == 0 or not near(last, 0.0), "the cosine must end at final_share, not at zero"
        assert not final or peak == 1 or not near(last, final), "final_share is a share of the peak"
        assert near(last, peak * final), (
            f"the last step, {steps - 1}, must have {final:g} of the peak, not {last / peak:.4g}: "
            f"the cosine has steps - 1 - warmup steps"
        )
        assert max(rates) <= peak * 1.000001, "the rate exceeds its peak"
        for s in range(warmup, steps):
            share = (s - warmup) / (steps - 1 - warmup)
            straight = peak * (1 - (1 - final) * share)
            want = peak * (final + (1 - final) * (1 + math.cos(math.pi * share)) / 2)
            assert near(want, straight, 1e-3) or not near(rates[s], straight), (
                "the fall is a straight line: it must be half a cosine wave"
            )
            assert near(rates[s], want), (
                f"step {s} of {steps}: {rates[s]:.5g} instead of {want:.5g}"
            )
    assert near(fn(0, 1.0, 0, 5, 0.1), 1.0), "without a warm-up the first step is at the peak"


class _Counting(nn.Module):
    """A small model that knows how large its batches were."""

    def __init__(self, seed: int):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(randn(seed + i, *p.shape))
        self.sizes: list[int] = []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.second(self.first(x).tanh())


def _lopsided(prediction, target):
    """A mean loss that notices when its arguments are swapped."""
    return (prediction - 2 * target).square().mean()


@Check
def check_accumulate_gradients(fn):
    """Equal to one large batch, with old gradients left over, for several numbers of batches."""
    for seed, (n_batches, size) in enumerate(((2, 3), (1, 4), (5, 2))):
        x, y = randn(seed, n_batches * size, 3), randn(seed + 7, n_batches * size, 2)
        model, whole = _Counting(seed), _Counting(seed)
        for p in model.parameters():
            p.grad = torch.full_like(p, 5.0)  # left over from an earlier step
        loss = _lopsided(whole(x), y)
        loss.backward()
        batches = list(zip(x.split(size), y.split(size), strict=True))
        got = fn(model, batches, _lopsided)
        assert len(model.sizes) > 0 and max(model.sizes) == size, (
            "the batches were joined: the point is that only one is in memory at a time"
        )
        assert len(model.sizes) == n_batches, (
            f"the model ran {len(model.sizes)} times for {n_batches} batches: once each"
        )
        _explain_gradients(model, whole, n_batches, batches)
        assert isinstance(got, float), f"it returns {describe(got)}: return a float, with item()"
        assert n_batches == 1 or not near(got, loss.item() * n_batches, 1e-4), (
            "the returned loss is the sum over the batches: return the mean"
        )
        last = _lopsided(whole(batches[-1][0]), batches[-1][1]).item()
        assert n_batches == 1 or not near(got, last, 1e-5), "you return the loss of the last batch"
        assert near(got, loss.item(), 1e-4), f"the mean loss is {loss.item():.4f}, not {got:.4f}"


def _explain_gradients(model, whole, n_batches, batches):
    got = [p.grad for p in model.parameters()]
    assert all(g is not None for g in got), "a gradient is missing: call backward, and keep .grad"
    want = [p.grad for p in whole.parameters()]
    if n_batches > 1:
        last = torch.autograd.grad(
            _lopsided(whole(batches[-1][0]), batches[-1][1]), list(whole.parameters())
        )
        summed = all(close(g, n_batches * w, 1e-4) for g, w in zip(got, want, strict=True))
        assert not summed, "the gradients are summed: divide each loss by the number of batches"
        only = [
            close(g, w, 1e-4) or close(g * n_batches, w, 1e-4)
            for g, w in zip(got, last, strict=True)
        ]
        assert not all(only), (
            "only the last batch counts: clear the gradients once, before the loop"
        )
    left = all(close(g - 5.0, w, 1e-4) for g, w in zip(got, want, strict=True))
    assert not left, "gradients of an earlier step are still in there: clear them first"
    assert not all((g == 0).all() for g in got), "the gradients were cleared at the end"
    assert all(close(g, w, 1e-4) for g, w in zip(got, want, strict=True)), (
        "the gradients differ from those of one large batch: divide each loss by the number of "
        "batches, clear old gradients first"
    )


@Check
def check_train_on_text(fn, path=None):
    """Capstone: bits per byte on the part of a text that the answer never saw."""
    text = "\n\n".join(documents(700, seed=7)) if path is None else read_text(path)
    cut = int(0.9 * len(text))
    assert cut > 20_000, "the text is too short to learn from: take one of 25 kB or more"
    known, kept = text[:cut], text[cut:]
    got = fn(known)
    assert isinstance(got, tuple | list) and len(got) == 2, (
        f"it returns {describe(got)}: return the model and its tokenizer"
    )
    model, tokenizer = got
    assert isinstance(model, GPT), f"the model is {describe(model)}: use the GPT of course_lib"
    assert isinstance(tokenizer, BPETokenizer), f"the tokenizer is {describe(tokenizer)}"
    assert tokenizer.vocab_size <= model.config.vocab_size, "the model has too few ids"
    model.eval()
    ids = torch.tensor([tokenizer.encode(known[:200])[: model.config.context_length]])
    with torch.no_grad():
        changed = ids.clone()
        changed[:, -1] = (ids[:, -1] + 1) % tokenizer.vocab_size
        assert close(model(ids)[:, :-1], model(changed)[:, :-1], 1e-3), (
            "the model sees the token that it has to predict: its causal mask is gone"
        )
    bits, table = _bits_per_byte(model, tokenizer, kept), _pair_table_bits(known, kept)
    assert math.isfinite(bits), "the loss is not finite: lower the learning rate, clip the gradient"
    assert bits < 7.5, (
        f"{bits:.2f} bits per byte: the model has learned nothing. Does the loss fall while you "
        f"train, and are the targets shifted by one?"
    )
    assert bits <= 0.85 * table, (
        f"{bits:.2f} bits per byte on the text that was kept back; a table of byte pairs needs "
        f"{table:.2f}, and 0.85 of it, {0.85 * table:.2f}, is asked for. Train longer, or a larger "
        f"model; if the loss on your own part is much lower, it learns by heart: use more text"
    )


check_train_on_text.seconds = 1800.0


def _bits_per_byte(model: GPT, tokenizer: BPETokenizer, text: str) -> float:
    """Mean surprise, in windows of the whole context; the first token of each is not asked."""
    stream = torch.tensor(tokenizer.encode(text))
    device, length = model.embedding.weight.device, model.config.context_length
    nats, n_bytes = 0.0, 0
    for window in stream.split(length + 1):
        if len(window) < 2:
            continue
        idx = window[None].to(device)
        with torch.no_grad():
            logits = model(idx[:, :-1])[0].float()
        nats += F.cross_entropy(logits, idx[0, 1:], reduction="sum").item()
        n_bytes += len(tokenizer.decode_bytes(window[1:].tolist()))
    return nats / math.log(2) / n_bytes


def _pair_table_bits(known: str, kept: str) -> float:
    """Bits per byte of the table P(byte | byte before), counted on `known`, one added to each."""
    a, b = (torch.tensor(list(text.encode())) for text in (known, kept))
    counts = torch.ones(256, 256).index_put((a[:-1], a[1:]), torch.tensor(1.0), accumulate=True)
    return -(counts / counts.sum(1, keepdim=True)).log2()[b[:-1], b[1:]].mean().item()
