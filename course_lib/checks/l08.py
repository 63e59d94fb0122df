"""Checks of L08: parameters, training operations and cache, predicted from a configuration."""

import torch
from torch.overrides import TorchFunctionMode

from course_lib.checks import Check, describe
from course_lib.checks.tools import near
from course_lib.gpt import GPT, GPTConfig

# vocab_size, context_length, d_model, n_layers, n_heads, n_kv_heads, d_ff
SIZES = ((50, 16, 24, 3, 6, 2, 40), (90, 8, 16, 2, 4, 4, 64), (30, 32, 40, 1, 5, 1, 16))


def _a_number(got) -> None:
    assert isinstance(got, int | float) and not isinstance(got, bool), (
        f"it returns {describe(got)}: return a number"
    )


def _parts(c: GPTConfig) -> dict[str, int]:
    """The pieces that an answer may have left out or counted twice."""
    return {
        "embedding": c.vocab_size * c.d_model,
        "kv": 2 * c.d_model * c.n_kv_heads * c.d_head,
        "q": c.d_model * c.n_heads * c.d_head,
        "out": c.d_model * c.d_model,
        "mlp": 3 * c.d_model * c.d_ff,
        "gains": 2 * c.d_model,
    }


@Check
def check_parameter_count(fn):
    """Against the real model; what is missing or too much is recognised by its size."""
    for sizes in SIZES:
        c = GPTConfig(*sizes)
        got = fn(c)
        _a_number(got)
        parts, L = _parts(c), c.n_layers
        full_kv = 2 * c.d_model * c.d_model
        want = sum(p.numel() for p in GPT(c).parameters())
        for error, why in (
            (parts["embedding"], "the embedding is counted twice: it is tied to the output"),
            (-parts["embedding"], "the embedding is missing: vocab_size * d_model"),
            (-c.d_model, "the last gain, behind the blocks, is missing"),
            (-c.d_model * (2 * L + 1), "the gains of the norms are missing: d_model each"),
            (c.d_model * (2 * L + 1), "RMS norm has a gain and no bias"),
            (-L * c.d_model * c.d_ff, "SwiGLU has three matrices: gate, value and down"),
            (-L * parts["out"], "the output projection of attention is missing"),
            (L * (full_kv - parts["kv"]), "k and v have n_kv_heads heads, not n_heads"),
            (-L * parts["q"], "the query matrix is missing"),
            (-L * parts["kv"], "the matrices of keys and values are missing"),
            (-L * parts["kv"] // 2, "keys and values have a matrix each: one is missing"),
            (c.context_length * c.d_model, "rotary positions have no parameters"),
        ):
            assert error == 0 or got != want + error, why
        block = parts["kv"] + parts["q"] + parts["out"] + parts["mlp"] + parts["gains"]
        assert L == 1 or got != want - (L - 1) * block, "one block is counted: multiply by n_layers"
        assert got == want, f"{got} instead of {want} for {c.d_model=}, {c.n_layers=}, {c.d_ff=}"


class _Products(TorchFunctionMode):
    """Counts the multiplications and additions of every matrix product that runs inside it."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in ("linear", "matmul", "__matmul__"):
            self.operations += 2 * out.numel() * args[0].size(-1)
        return out


def _counted_flops(c: GPTConfig, batch: int) -> int:
    """Three times what a forward pass of the real model multiplies and adds."""
    with _Products() as products:
        GPT(c)(torch.zeros(batch, c.context_length, dtype=torch.long))
    return 3 * products.operations


@Check
def check_training_flops(fn):
    """Against the products that a forward pass of the real model runs."""
    for batch, sizes in enumerate(SIZES, 1):
        c = GPTConfig(*sizes, fused=False)
        T = c.context_length
        got = fn(c, batch * T, T)
        _a_number(got)
        parts, tokens = _parts(c), batch * T
        matrices = c.n_layers * sum(parts[name] for name in ("q", "kv", "out", "mlp"))
        scores = 2 * c.n_layers * T * c.d_model  # per token: q @ k.T and weights @ v
        logits = c.vocab_size * c.d_model
        want = 6 * tokens * (matrices + scores + logits)
        for wrong, why in (
            (want / 2, "a product costs a multiplication *and* an addition: 2 a b c"),
            (
                want / 3,
                "that is the forward pass alone: the backward pass costs twice as much again",
            ),
            (want * 2 / 3, "the backward pass costs twice the forward: the factor is 3, not 2"),
            (6 * tokens * (matrices + scores), "the logits are missing: d_model * vocab_size"),
            (6 * tokens * (matrices + scores + 2 * logits), "the embedding is looked up, for free"),
            (6 * tokens * (matrices + logits), "the attention scores are missing"),
            (
                6 * tokens * (matrices + scores / 2 + logits),
                "scores and mixing are two products: one is missing",
            ),
            (
                6 * tokens * (matrices + scores / c.n_heads + logits),
                "scores: all heads together are d_model wide",
            ),
            (
                6 * tokens * (matrices + scores * tokens / T + logits),
                "a query sees the keys of its own sequence: length, not tokens",
            ),
            (want / tokens, "that is for one token: multiply by tokens"),
            (want * T, "the length is multiplied twice: tokens counts all of them"),
        ):
            assert near(wrong, want, 1e-9) or not near(got, wrong, 1e-9), why
        counted = _counted_flops(c, batch)
        assert near(got, counted, 1e-9), (
            f"the real model does {counted} operations on {tokens} tokens, your formula says {got}"
        )
    assert near(fn(c, 7 * T, T), 7 * fn(c, T, T), 1e-9), "the cost grows in proportion to tokens"


@Check
def check_kv_cache_bytes(fn):
    """Against the bytes of the real caches."""
    for batch, sizes in zip((5, 3, 7), SIZES, strict=True):
        c = GPTConfig(*sizes)
        caches = GPT(c).new_caches(batch)
        want = sum(t.numel() * t.element_size() for cache in caches for t in (cache.k, cache.v))
        got = fn(c, c.context_length, batch, 4)
        _a_number(got)
        group = c.n_heads / c.n_kv_heads
        for factor, why in (
            (0.5, "keys *and* values are kept: twice as much"),
            (group, "only n_kv_heads heads are kept: that is what grouped queries are for"),
            (1 / c.n_layers, "every layer keeps its own: multiply by n_layers"),
            (1 / batch, "every sequence of the batch keeps its own"),
            (0.25, "that is the number of values: multiply by bytes_per_value"),
            (8, "bytes, not bits"),
            (0.5 * group, "keys and values are kept, of n_kv_heads heads"),
            (1 / c.n_kv_heads, "all n_kv_heads heads are kept, not one"),
            (1 / c.d_head, "a key has d_head numbers: multiply by d_head"),
            (1 / c.context_length, "every position keeps its own: multiply by length"),
            (c.context_length, "each position once: the length is multiplied twice"),
        ):
            assert factor == 1 or not near(got, factor * want, 1e-9), why
        assert got == want, f"the real caches take {want} bytes, your formula says {got}"
    assert fn(c, 10, 1) == fn(c, 10, 1, 2), "by default a value takes 2 bytes"
    assert fn(c, 10) == fn(c, 10, 1, 2), "by default there is one sequence"
    assert fn(c, 10, 3, 2) == 3 * fn(c, 10), "the size grows in proportion to the batch"
