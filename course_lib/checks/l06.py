"""Checks of L06: the causal mask, padding beside it, and a detector of leaks."""

import torch
import torch.nn.functional as F

from course_lib.checks import Check, describe
from course_lib.checks.tools import close, is_tensor, randint, randn


@Check
def check_causal_mask(fn):
    """Every entry, for square masks and for the last queries of many keys."""
    for n in (3, 1, 6):
        got = fn(n)
        is_tensor(got, (n, n))
        assert got.dtype == torch.bool, (
            f"the mask holds {got.dtype}: it must hold booleans, True where a query may look"
        )
        here = torch.arange(n)
        upper = (here[:, None] <= here) & torch.tensor(n > 1)
        assert not torch.equal(got, upper), (
            "that is the upper triangle: query t (row) sees keys 0 to t (columns)"
        )
        assert not torch.equal(got, here[:, None] < here), "the mask is inverted: True may look"
        assert got.diagonal().all(), "a query sees itself: the diagonal is True"
        assert n < 2 or not got.diagonal(1).any(), (
            "query t sees key t + 1: that is the token it has to predict"
        )
        assert torch.equal(got, here[:, None] >= here), f"the mask of {n} is wrong: {got.int()}"
    for n_queries, n_keys in ((2, 5), (1, 4), (3, 4), (4, 4)):
        got = fn(n_queries, n_keys)
        is_tensor(got, (n_queries, n_keys), torch.bool)
        first = torch.arange(n_queries)[:, None] >= torch.arange(n_keys)
        want = torch.arange(n_keys - n_queries, n_keys)[:, None] >= torch.arange(n_keys)
        assert n_queries == n_keys or not torch.equal(got, first), (
            f"with {n_queries} queries and {n_keys} keys the queries are the last positions: "
            f"move the triangle to the right by {n_keys - n_queries}"
        )
        assert torch.equal(got, want), f"causal_mask({n_queries}, {n_keys}) is wrong: {got.int()}"


@Check
def check_causal_padding_mask(fn):
    """Against a loop over all entries; and attention under it equals attention without padding."""
    for seed, left in ((0, True), (1, False), (2, None)):
        real = randint(seed, 2, 3, 6).bool()
        if left is not None:
            real = torch.arange(6) >= torch.tensor([[0], [2], [4]])
            real = real if left else real.flip(1)
        got = fn(real)
        is_tensor(got, (3, 1, 6, 6))
        assert got.dtype == torch.bool, f"the mask holds {got.dtype}: it must hold booleans"
        _explain(got, real)
        for b in range(3):
            for t in range(6):
                for s in range(6):
                    may = s == t or (s < t and bool(real[b, s]))
                    assert bool(got[b, 0, t, s]) == may, (
                        f"row {b}: query {t} and key {s} must be {may}, with "
                        f"real={real[b].tolist()}"
                    )
    real = torch.tensor([[False, False, True, True, True]])
    x = randn(3, 1, 2, 5, 8)
    padded = F.scaled_dot_product_attention(x, x, x, attn_mask=fn(real))
    alone = F.scaled_dot_product_attention(*[x[:, :, 2:]] * 3, is_causal=True)
    assert close(padded[:, :, 2:], alone), "padding changes what the real tokens see"


def _explain(got, real):
    """The usual ways to combine the two masks wrongly."""
    causal = torch.ones(6, 6).tril().bool()
    keys, queries, self_ = real[:, None, None, :], real[:, None, :, None], torch.eye(6).bool()
    for wrong, why in (
        (
            causal & keys,
            "a query in the padding sees nothing: its softmax is 0/0, NaN. Let every "
            "query see itself",
        ),
        (causal & queries, "you mask the queries in the padding: mask the keys, the last axis"),
        (causal & queries | self_, "you mask the queries in the padding: mask the keys"),
        (causal & queries & keys, "you mask queries as well as keys, so that rows become empty"),
        (causal.expand(3, 1, 6, 6), "the padding is ignored"),
        (keys.expand(3, 1, 6, 6), "the future is visible: the causal mask is missing"),
        (keys | self_, "the future is visible: the causal mask is missing"),
        (causal | keys, "a key must be real and not ahead: combine with &, not with |"),
        (causal & ~keys | self_, "real is True where a token is real: you see the padding alone"),
    ):
        assert not torch.equal(got, wrong.expand(3, 1, 6, 6)), why


@Check
def check_leaks(fn):
    """Models that leak everywhere, once, at one place, a little; and models that do not."""
    table = randn(0, 20, 9)

    def causal(idx):
        return table[idx].cumsum(1) / torch.arange(1, idx.size(1) + 1)[:, None]

    def everything(idx):
        return table[idx] + table[idx].mean(1, keepdim=True)

    def one_place(reader, told):
        def model(idx):
            logits = causal(idx).clone()
            logits[:, reader] += 0.01 * table[idx[:, told]]
            return logits

        return model

    idx = randint(1, 20, 2, 6)
    got = fn(causal, idx, 20)
    assert isinstance(got, bool) or (isinstance(got, torch.Tensor) and got.numel() == 1), (
        f"it returns {describe(got)}: return True or False"
    )
    assert not got or fn(everything, idx, 20), "the answer is reversed: True means that it leaks"
    assert not got, (
        "a causal model is accused: the output at t may depend on token t. Compare positions "
        "before the changed token only"
    )
    assert fn(everything, idx, 20), "a model without any mask passes: it must be found"
    for reader, told, why in (
        (4, 5, "a leak by one step, from the last token to the one before, is missed"),
        (0, 1, "a leak from token 1 to output 0 is missed: change every token, not only the last"),
        (0, 5, "a leak from the last token to output 0 is missed: compare all earlier outputs"),
        (2, 3, "a leak in the middle is missed: try every position"),
        (1, 4, "a leak over three steps is missed: compare all earlier outputs"),
    ):
        assert fn(one_place(reader, told), idx, 20), why
    _check_quiet_leaks(fn, causal, table, idx)


def _check_quiet_leaks(fn, causal, table, idx):
    """Leaks that show only for some rows or tokens, and harmless models that look odd."""

    def second_row(idx):
        logits = causal(idx).clone()
        logits[1, 2] += table[idx[1, 4]]
        return logits

    def by_parity(idx):
        logits = causal(idx).clone()
        logits[:, :-1] += (idx[:, 1:, None] % 2).float()
        return logits

    assert fn(second_row, idx, 20), (
        "a leak in the second row of the batch is missed: compare them all"
    )
    assert fn(by_parity, idx, 20), "only whether a token is odd leaks: try a few replacements"
    assert fn(by_parity, idx % 2, 2), "a leak is missed when there are only two tokens"
    for seed, vocab_size in ((2, 5), (3, 20), (4, 2)):
        few = randint(seed, vocab_size, 3, 4)

        def strict(idx, size=vocab_size):
            assert int(idx.max()) < size and int(idx.min()) >= 0, (
                "a replaced token lies outside the vocabulary: take it modulo vocab_size"
            )
            return causal(idx)

        assert not fn(strict, few, vocab_size), "a causal model is accused: compare earlier outputs"
    assert not fn(causal, torch.tensor([[3]]), 20), "with one token nothing can leak"
