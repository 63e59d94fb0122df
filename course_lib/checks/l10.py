"""Checks of L10: temperature, the filters, the penalty, beam search, the cache."""

import itertools

import torch

from course_lib.checks import Check, describe
from course_lib.checks.tools import close, is_tensor, near, randint, randn
from course_lib.gpt import GPT, GPTConfig


@Check
def check_apply_temperature(fn):
    """Division, greedy at 0, rows of a batch, minus infinity stays."""
    logits = torch.tensor([1.0, 2.0])
    got = fn(logits, 0.5)
    is_tensor(got, (2,))
    assert not close(got, logits * 0.5), "you multiply: dividing by 0.5 makes differences larger"
    assert not near(got.sum(), 1.0), "return logits: the softmax comes after all filters"
    assert close(got, logits * 2), f"[1, 2] at temperature 0.5 is [2, 4], not {got.tolist()}"
    logits = randn(0, 2, 3, 6)
    for temperature in (1.0, 0.3, 2.5):
        got = fn(logits, temperature)
        is_tensor(got, logits.shape, logits.dtype)
        assert close(got, logits / temperature), f"wrong at temperature {temperature}"
    got = fn(logits, 0)
    assert not got.isnan().any() and not (got == torch.inf).any(), (
        "NaN or infinity at temperature 0: it is a case of its own, greedy"
    )
    is_tensor(got, logits.shape, logits.dtype)
    best = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    assert close(got.softmax(-1), best), (
        "at temperature 0 each row must have one token left, its own largest: 0 there and minus "
        "infinity elsewhere"
    )
    assert (got.amax(-1) == 0).all(), "at temperature 0 the logit that is left must be 0"
    got = fn(torch.tensor([[3.0, 1.0, 3.0]]), 0.0)
    assert close(got.softmax(-1), torch.tensor([[1.0, 0.0, 0.0]])), (
        "two logits are equally large, and both are left: take the first, argmax"
    )
    assert (fn(torch.tensor([-torch.inf, 1.0]), 2.0)[0] == -torch.inf).all(), "-inf must stay -inf"


def _is_filtered(got, logits, kept, why):
    """What is kept is unchanged, the rest is minus infinity."""
    is_tensor(got, logits.shape, logits.dtype)
    assert not ((got == 0) & ~kept & (logits != 0)).any(), (
        "dropped logits are 0: exp(0) is 1. They must be minus infinity"
    )
    assert torch.equal(got > -torch.inf, kept), why
    assert torch.equal(got[kept], logits[kept]), "the logits that are kept must not change"


@Check
def check_top_k_filter(fn):
    """Ranks by counting, for every k, in batches; k beyond the vocabulary."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    got = fn(logits, 1)
    is_tensor(got, (1, 3))
    assert not torch.equal(got > -torch.inf, logits < 1.5), (
        "the smallest are kept: keep the largest"
    )
    for seed, shape in ((0, (1, 6)), (1, (4, 9)), (2, (2, 3, 5)), (3, (7,))):
        logits = randn(seed, *shape)
        for k in (1, 2, shape[-1] - 1, shape[-1]):
            greater = (logits[..., None, :] > logits[..., None]).sum(-1)
            got = fn(logits, k)
            is_tensor(got, shape)
            n_kept = (got > -torch.inf).sum(-1)
            assert not (n_kept == k - 1).all(), "one too few is kept: the k-th largest stays, >="
            assert not (n_kept == k + 1).all() or k == shape[-1], "one too many is kept"
            _is_filtered(
                got,
                logits,
                greater < k,
                f"each row must keep its own {k} largest: take the threshold row by row",
            )
    got = fn(logits, 50)
    assert torch.equal(got, logits), "with k above the vocabulary everything is kept"


@Check
def check_top_p_filter(fn):
    """The border token, every row by itself, the order of the vocabulary, extremes of p."""
    probs = torch.tensor([0.25, 0.45, 0.3])
    got = fn(probs.log(), 0.5)
    is_tensor(got, (3,))
    kept = (got > -torch.inf).tolist()
    assert kept != [False, True, False], (
        "the token that crosses p is dropped: 0.45 is below 0.5, so the next one must stay"
    )
    assert kept != [True, False, True] and kept != [True, False, False], (
        "the unlikely tokens are kept: sort in descending order"
    )
    assert kept != [True, True, False], (
        "the right number is kept, in sorted order: bring the decision back to the places of the "
        "tokens, with scatter or by gather with the inverse order"
    )
    assert kept != [True, True, True], "nothing is dropped: the sum reaches 0.5 with two tokens"
    assert any(kept), "nothing is left: add up from the likeliest token until the sum reaches p"
    _is_filtered(got, probs.log(), torch.tensor([False, True, True]), "0.45 and 0.3 must stay")
    assert (fn(probs.log(), 0.01) > -torch.inf).sum() == 1, (
        "for a tiny p nothing is left, or too much: the most likely token always stays, alone"
    )
    for seed, shape in ((0, (5, 12)), (1, (2, 3, 7)), (2, (1, 20))):
        logits = 2 * randn(seed, *shape, dtype=torch.float64) + 3
        for p in (0.1, 0.5, 0.9, 0.99):
            got = fn(logits, p)
            probs = logits.softmax(-1)
            likelier = probs[..., None, :] > probs[..., None]
            before = (probs[..., None, :] * likelier).sum(-1)  # mass of the likelier tokens
            _is_filtered(
                got,
                logits,
                before < p,
                f"wrong for p={p} in a batch: each row keeps its own smallest set, and p is "
                f"compared with probabilities, not with logits",
            )
    assert (fn(torch.zeros(4), 0.5) > -torch.inf).sum() == 2, (
        "two of four equal tokens reach p = 0.5 exactly, and no third is needed"
    )
    assert torch.equal(fn(logits, 1.0), logits), "p = 1 keeps everything"


@Check
def check_repetition_penalty(fn):
    """Signs, once a token, every row by itself, the rest untouched."""
    got = fn(torch.tensor([[4.0, -4.0, 1.0]]), torch.tensor([[0, 1]]), 2.0)
    is_tensor(got, (1, 3))
    assert not near(got[0, 1], -2.0), (
        "a negative logit is divided: that makes the token *more* likely. Multiply it"
    )
    assert not near(got[0, 0], 8.0), "a positive logit is multiplied: divide it"
    assert not near(got[0, 0], 4.0), "the token 0 is in the text, and its logit has not changed"
    assert not near(got[0, 0], 2.0) or near(got[0, 2], 1.0), (
        "a token that is not in the text is punished, too"
    )
    assert not near(got[0, 0], 2.0) or near(got[0, 1], -8.0), "a negative logit is multiplied"
    assert close(got, torch.tensor([[2.0, -8.0, 1.0]])), f"[4, -4, 1] becomes [2, -8, 1], not {got}"
    got = fn(torch.tensor([[4.0, -4.0, 1.0]]), torch.tensor([[0, 1, 0, 1, 0]]), 2.0)
    assert close(got, torch.tensor([[2.0, -8.0, 1.0]])), (
        "a token that occurs three times is punished three times: once is meant"
    )
    for seed, (B, T, V) in enumerate(((3, 4, 9), (1, 6, 5), (2, 1, 4))):
        logits, idx = randn(seed, B, V), randint(seed + 3, V, B, T)
        want = logits.clone()
        for b in range(B):
            for i in set(idx[b].tolist()):
                want[b, i] = logits[b, i] / 1.7 if logits[b, i] > 0 else logits[b, i] * 1.7
        got = fn(logits, idx, 1.7)
        is_tensor(got, (B, V), logits.dtype)
        everyone = want.clone()
        for b in range(B):
            for i in set(idx.flatten().tolist()):
                everyone[b, i] = logits[b, i] / 1.7 if logits[b, i] > 0 else logits[b, i] * 1.7
        assert torch.equal(everyone, want) or not close(got, everyone), (
            "the tokens of one row are punished in another: each row has its own text"
        )
        assert close(got, want), "wrong in a batch: gather the logits of idx, change, scatter back"
    assert torch.equal(fn(logits, idx, 1.0), logits), "a penalty of 1 changes nothing"


def _table_model(seed: int, V: int, sharpness: float = 1.5):
    """A model by table: the logits depend on the last two tokens. Works for any batch."""
    table = sharpness * randn(seed, V, V, V, dtype=torch.float64)

    def model(idx):
        before = torch.cat((idx[:, :1], idx[:, :-1]), dim=1)
        return table[before, idx]

    return model


def _logprob(model, prompt, ids) -> float:
    logprobs = model(torch.tensor([[*prompt, *ids]]))[0].log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))


def _beams(model, prompt, n_beams, n_tokens):
    """The oracle: score every extension of every beam anew, from the definition."""
    beams = [()]
    for _ in range(n_tokens):
        V = model(torch.tensor([prompt])).size(-1)
        grown = [(*b, i) for b in beams for i in range(V)]
        beams = sorted(grown, key=lambda ids: -_logprob(model, prompt, ids))[:n_beams]
    return list(beams[0])


@Check
def check_beam_search(fn):
    """One beam is greedy, very many are exhaustive, between them the definition decides."""
    model, prompt = _table_model(0, 3), [1, 2]
    got = fn(model, prompt, 1, 4)
    assert isinstance(got, tuple | list) and len(got) == 2, (
        f"it returns {describe(got)}: return the new ids and their log-probability"
    )
    ids, score = list(got[0]), got[1]
    assert len(ids) != 6 or ids[:2] != prompt, "the prompt is returned as well: new ids only"
    assert len(ids) == 4, f"{len(ids)} ids instead of 4"
    assert isinstance(score, float), f"the score is {describe(score)}: return a float"
    greedy = _beams(model, prompt, 1, 4)
    worst = [min(range(3), key=lambda i: _logprob(model, prompt, [i]))]
    assert ids[:1] != worst or greedy[:1] == worst, "the unlikeliest is kept: sort from the best"
    assert ids == greedy, f"with one beam the search is greedy: {greedy}, not {ids}"
    for seed, V, n_tokens in ((9, 3, 3), (8, 4, 2), (14, 2, 5), (11, 3, 3)):
        model = _table_model(seed, V)
        every = list(itertools.product(range(V), repeat=n_tokens))
        best = max(every, key=lambda ids: _logprob(model, [0, 1], ids))
        ids, score = fn(model, [0, 1], V**n_tokens, n_tokens)
        total = _logprob(model, [0, 1], best)
        greedy = _beams(model, [0, 1], 1, n_tokens)
        assert list(ids) != greedy or greedy == list(best), (
            "with very many beams the result is still the greedy one: keep the best of *all* "
            "extensions of all beams, by their whole score"
        )
        assert list(ids) == list(best), (
            f"with {V**n_tokens} beams nothing is cut off, so the best of all must be found: add "
            "up "
            f"the log-probabilities of a whole candidate"
        )
        assert score <= 0, (
            "the score is positive: add log-probabilities, not probabilities or logits"
        )
        assert near(score, total, 1e-4), (
            f"the score must be the sum of the new tokens' log-probabilities, {total:.4f}, "
            f"not {score:.4f}"
        )
    for seed in range(5, 25):
        model = _table_model(seed, 4)
        for n_beams in (2, 3):
            want = _beams(model, [2, 0], n_beams, 4)
            assert list(fn(model, [2, 0], n_beams, 4)[0]) == want, (
                f"with {n_beams} beams another result is right: of all extensions of all beams "
                f"keep the best {n_beams}, several children of one beam included"
            )


class _Counted(GPT):
    """A GPT that remembers how many tokens it was given, and with which caches."""

    def __init__(self, config):
        super().__init__(config)
        self.given: list[int] = []
        self.cached: list[bool] = []

    def forward(self, idx, positions=None, mask=None, caches=None):
        self.given.append(idx.numel())
        self.cached.append(caches is not None)
        return super().forward(idx, positions, mask, caches)


def _loud_model(seed: int, **changes) -> _Counted:
    """A tiny GPT with weights large enough that every position matters."""
    torch.manual_seed(seed)
    sizes = {"context_length": 32, "d_model": 16, "n_layers": 2, "n_heads": 2} | changes
    model = _Counted(GPTConfig(30, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(15 if parameter.dim() > 1 else 1)
    return model


def _greedy(model, prompt, n_tokens) -> list[int]:
    """Without a cache: the whole text again for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@Check
def check_generate_cached(fn):
    """Token by token equal to the run without a cache; each token is read once."""
    for seed, (prompt, n_tokens, changes) in enumerate(
        (
            ([3, 7, 1], 12, {}),
            ([5], 8, {"positions": "learned"}),
            ([1, 2, 3, 4, 5, 6], 6, {"n_heads": 4, "n_kv_heads": 2}),
        )
    ):
        model = _loud_model(seed, **changes)
        want = _greedy(model, prompt, n_tokens)
        model.given, model.cached = [], []
        got = fn(model, prompt, n_tokens)
        assert isinstance(got, list), f"it returns {describe(got)}: return a list of ids"
        assert got[: len(prompt)] != prompt or len(got) == n_tokens, (
            "the prompt is returned as well: new ids only"
        )
        assert len(got) == n_tokens, f"{len(got)} ids instead of {n_tokens}"
        assert all(isinstance(i, int) for i in got), (
            "the ids must be plain numbers: use int() or item()"
        )
        assert all(model.cached), "the model is called without the caches: pass caches=caches"
        assert sum(model.given) < len(prompt) + 2 * n_tokens, (
            f"the model read {sum(model.given)} tokens for {len(prompt)} + {n_tokens}: after the "
            f"prompt, give it the newest token alone"
        )
        assert sum(model.given) == len(prompt) + n_tokens - 1 or got == want, (
            f"the model read {sum(model.given)} tokens: the whole prompt first, then each new "
            "token "
            f"once"
        )
        assert got == want, (
            f"other tokens than without the cache, from number "
            f"{next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)} on: give "
            f"each token once, keep the same caches, and leave the positions to the model"
        )
