"""Checks of L07: feed-forward layer, block, loss, where the parameters sit."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.checks import Check, describe
from course_lib.checks.tools import close, is_tensor, near, randint, randn
from course_lib.gpt import GPT, GPTConfig


@Check
def check_mlp(fn):
    """By hand, then with all the usual slips computed beside the right result."""
    one, up = torch.ones(1, 1, 1), torch.tensor([[1.0], [2.0]])
    got = fn(one, up, torch.tensor([[1.0]]))
    is_tensor(got, (1, 1, 1))
    silu1 = 1 / (1 + math.exp(-1))
    assert not near(got, 2 / (1 + math.exp(-2))), (
        "gate and value are swapped: SiLU bends the first half, the gate"
    )
    assert not near(got, 2.0), "nothing is bent: silu(gate) * value"
    assert near(got, 2 * silu1), f"silu(1) * 2 = 1.4621, not {got.item():.4f}"
    for seed, (B, T, C, d_ff) in enumerate(((2, 3, 4, 6), (1, 5, 3, 3), (4, 1, 6, 2))):
        x = randn(seed, B, T, C, dtype=torch.float64)
        up = randn(seed + 3, 2 * d_ff, C, dtype=torch.float64)
        down = randn(seed + 6, C, d_ff, dtype=torch.float64)
        got = fn(x, up, down)
        is_tensor(got, (B, T, C), x.dtype)
        gate, value = (x @ up.T).chunk(2, dim=-1)
        for wrong, why in (
            (F.silu(gate) @ down.T, "the value is missing: multiply the gate by it"),
            (F.gelu(gate) * value @ down.T, "that is GEGLU: bend by SiLU, x * sigmoid(x)"),
            (gate.sigmoid() * value @ down.T, "that is a plain GLU: SiLU is x * sigmoid(x)"),
            (gate.relu() * value @ down.T, "that is ReGLU: bend by SiLU"),
            ((F.silu(gate) + value) @ down.T, "multiply the two halves, do not add them"),
            (F.silu(gate * value) @ down.T, "only the gate is bent, not the product"),
            (x + F.silu(gate) * value @ down.T, "the block adds to the stream, not the MLP"),
        ):
            assert not close(got, wrong), why
        taken = x @ up.T
        taken = F.silu(taken[..., 0::2]) * taken[..., 1::2] @ down.T
        assert d_ff == 1 or not close(got, taken), "gate and value take turns: cut in two halves"
        assert close(got, F.silu(gate) * value @ down.T), (
            "compare with silu(gate) * value @ w_down.T"
        )


def _reference_block(x, weights, n_heads, post=False, causal=True, residual=True):
    """The right block, and its usual variants, from PyTorch's own parts."""
    B, T, C = x.shape
    w = {name.removesuffix(".weight"): value for name, value in weights.items()}

    def norm(y, name):
        return F.rms_norm(y, (C,), w[name], 1e-5)

    def attention(y):
        q, k, v = (
            part.view(B, T, n_heads, -1).transpose(1, 2)
            for part in (y @ w["attention.qkv"].T).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return mixed.transpose(1, 2).reshape(B, T, C) @ w["attention.out"].T

    def mlp(y):
        gate, value = (y @ w["mlp.up"].T).chunk(2, dim=-1)
        return F.silu(gate) * value @ w["mlp.down"].T

    if post:
        x = norm(x + attention(x), "norm1")
        return norm(x + mlp(x), "norm2")
    x = residual * x + attention(norm(x, "norm1"))
    return residual * x + mlp(norm(x, "norm2"))


@Check
def check_block(fn):
    """Against the block of course_lib, and against its usual variants."""
    for seed, (B, T, C, n_heads) in enumerate(((2, 5, 16, 4), (1, 3, 12, 2), (3, 4, 8, 1))):
        torch.manual_seed(seed)
        config = GPTConfig(5, d_model=C, n_layers=1, n_heads=n_heads, positions="none")
        layer = GPT(config).blocks[0].double().eval()
        for i, p in enumerate(layer.parameters()):
            p.data = randn(i, *p.shape, dtype=torch.float64) / 3 + (1 if p.dim() == 1 else 0)
        weights = {name: value.detach() for name, value in layer.state_dict().items()}
        x = randn(seed + 20, B, T, C, dtype=torch.float64)
        got = fn(x, weights, n_heads)
        is_tensor(got, (B, T, C), x.dtype)
        _explain_block(got, x, weights, n_heads)
        with torch.no_grad():
            assert close(got, layer(x), 1e-8), "it differs from the block of course_lib"


def _explain_block(got, x, weights, n_heads):
    C = x.size(-1)
    qkv = weights["attention.qkv.weight"]
    q, k, v = qkv.chunk(3)
    gate, value = weights["mlp.up.weight"].chunk(2)
    ones = torch.ones(C, dtype=x.dtype)

    def variant(**changes):
        changed = weights | {f"{n.replace('_', '.')}.weight": w for n, w in changes.items()}
        return _reference_block(x, changed, n_heads)

    for wrong, why in (
        (_reference_block(x, weights, n_heads, causal=False), "the future is visible: causal mask"),
        (
            _reference_block(x, weights, n_heads, post=True),
            "that is post-norm: normalise what goes into each part",
        ),
        (_reference_block(x, weights, n_heads, residual=False), "both additions are missing"),
        (variant(attention_qkv=torch.cat((k, q, v))), "q and k are swapped: the rows are q, k, v"),
        (variant(attention_qkv=torch.cat((v, k, q))), "q and v are swapped: the rows are q, k, v"),
        (variant(mlp_up=torch.cat((value, gate))), "gate and value are swapped"),
        (variant(norm1=ones, norm2=ones), "the gains of the norms are ignored"),
        (variant(attention_out=torch.eye(C, dtype=x.dtype)), "the output projection is missing"),
        (
            variant(norm1=weights["norm2.weight"], norm2=weights["norm1.weight"]),
            "norm1 belongs to the attention, norm2 to the MLP",
        ),
    ):
        assert not close(got, wrong), why
    if n_heads > 1:
        one = _reference_block(x, weights, 1)
        assert not close(got, one), "it attends with one big head: split into n_heads"
    split = qkv.view(n_heads, 3, -1, C).transpose(0, 1).reshape(3 * C, C)
    assert n_heads == 1 or not close(got, variant(attention_qkv=split)), (
        "the rows are cut head by head: first all of q, then all of k, then all of v"
    )


@Check
def check_next_token_loss(fn):
    """Models by table, so that every shift gives another number."""
    got = fn(lambda idx: torch.zeros(*idx.shape, 8), torch.tensor([[1, 5, 2]]))
    is_tensor(got, ())
    assert near(got, math.log(8)), f"equal logits over 8 ids give ln 8 = 2.079, not {got:.4g}"
    for seed, (B, T, V) in enumerate(((2, 6, 5), (1, 3, 7), (4, 2, 4))):
        table, idx = 2 * randn(seed, V, V), randint(seed + 3, V, B, T + 1)
        lengths = []

        def model(ids, table=table, lengths=lengths):
            lengths.append(ids.size(1))
            return table[ids]  # (B, T, V)

        got = fn(model, idx)
        is_tensor(got, (), table.dtype)
        each = F.cross_entropy(table[idx].transpose(1, 2), idx, reduction="none")
        right = F.cross_entropy(table[idx[:, :-1]].flatten(0, 1), idx[:, 1:].flatten())
        for wrong, why in (
            (each.mean(), "there is no shift: the model is asked for the token it has just read"),
            (each[:, :-1].mean(), "there is no shift: the targets are idx[:, 1:]"),
            (each[:, 1:].mean(), "inputs and targets are both shifted: inputs are idx[:, :-1]"),
            (
                F.cross_entropy(table[idx[:, 1:]].flatten(0, 1), idx[:, :-1].flatten()),
                "the shift goes the wrong way: the model would predict the past",
            ),
            (right * B * T, "that is the sum: take the mean over all positions"),
            (
                F.cross_entropy(table[idx[:, -2]], idx[:, -1]),
                "only the last position counts: train on every position at once",
            ),
        ):
            assert close(wrong, right, 1e-4) or not close(got, wrong), why
        rolled = F.cross_entropy(table[idx].flatten(0, 1), idx.roll(-1, 1).flatten())
        assert close(rolled, right, 1e-4) or not close(got, rolled), (
            "the last position is asked for the first token of its row: leave it out"
        )
        assert close(got, right), f"{got:.4f} instead of {right:.4f}"
        assert len(lengths) == 1, (
            f"the model ran {len(lengths)} times: one run gives the logits of all positions"
        )
    table = randn(5, 4, 4).requires_grad_()
    assert fn(lambda ids: table[ids], torch.tensor([[0, 1, 2]])).requires_grad, "no gradient passes"


class _Tied(nn.Module):
    """Two parts that share a matrix, a parameter of its own, a buffer, a frozen norm."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.embedding = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4, bias=False))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.zeros(100))


@Check
def check_count_parameters(fn):
    """By hand on small models, then on a GPT."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    got = fn(model)
    assert isinstance(got, dict), f"it returns {describe(got)}: return a dict from name to count"
    assert got.get("0") != 2, "you count tensors: count the values in them, numel()"
    assert got.get("0") != 6, "the bias is missing: 2 * 3 + 3"
    assert set(got) == {"0", "1"}, f"the direct children are '0' and '1', not {sorted(got)}"
    assert all(isinstance(n, int) for n in got.values()), "the counts must be whole numbers"
    assert got == {"0": 9, "1": 0}, f"the counts must be 9 and 0, not {got}"
    tied = _Tied()
    got = fn(tied)
    assert "table" not in got, "a buffer is counted: it is not trained"
    assert "body.0" not in got and "head.bias" not in got, "names of direct children only: 'body'"
    assert got.get("head") != 35, (
        "the matrix that embedding and head share is counted twice: remember what you have seen"
    )
    assert got.get("scale") == 3, "a parameter that belongs to the model itself is missing: 'scale'"
    assert not (got.get("head") == 35 - 28 and got.get("embedding") != 28), (
        "count where it is first"
    )
    want = {"scale": 3, "embedding": 28, "body": 4 * 5 + 5 + 5 * 4, "head": 7}
    assert dict(got) == want, f"{dict(got)} instead of {want}"
    for n_kv_heads, tie in ((4, True), (2, False)):
        gpt = GPT(GPTConfig(50, 16, 32, 3, 4, n_kv_heads, d_ff=24, tie_embeddings=tie))
        got = fn(gpt)
        total = sum(p.numel() for p in gpt.parameters())
        assert sum(got.values()) == total, (
            f"the counts of a GPT add up to {sum(got.values())}, its parameters are {total}"
        )
        assert got["embedding"] == 50 * 32, "the embedding has vocab_size * d_model values"
