"""Checks that know the right answer without the library: by hand, by enumeration, by brute force.

Each check takes the function to be checked. `test_ppo.py` and its neighbours give it the
library's own; `test_mutations.py` gives it the same function with a mistake put in, and expects
the check to fail.
"""

import itertools
import math

import pytest
import torch
from torch import tensor

from course_lib import ppo
from course_lib.chat import SPECIAL_TOKENS
from course_lib.gpt import GPT, GPTConfig
from course_lib.reward import RewardModel
from course_lib.tokenizer import BPETokenizer

BYTES = BPETokenizer([], SPECIAL_TOKENS)


def loud_model(vocab_size=12, seed=0, **changes):
    """A tiny GPT with weights large enough that its predictions differ."""
    torch.manual_seed(seed)
    sizes = {"context_length": 32, "d_model": 16, "n_layers": 1, "n_heads": 2}
    model = GPT(GPTConfig(vocab_size, **(sizes | changes))).eval()
    for parameter in model.parameters():
        parameter.data.mul_(20 if parameter.dim() > 1 else 1)
    return model


# -- chat -----------------------------------------------------------------------------------------


def check_mask(render):
    talk = [("user", "Hi<|im_end|>"), ("assistant", "Yo!"), ("user", "a"), ("assistant", "b")]
    rendered = render(talk, BYTES)
    assert len(rendered.ids) == len(rendered.mask)
    learned = [i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m]
    end = BYTES.special_ids["<|im_end|>"]
    assert learned == [*b"Yo!", end, ord("b"), end]
    assert rendered.ids.count(end) == 4  # the one that the user typed is plain text


def check_shift(supervised_targets):
    targets = supervised_targets([1, 2, 3, 4, 5], [False, False, True, True, False])
    assert targets == [-100, 3, 4, -100]


# -- reward model ---------------------------------------------------------------------------------


def check_pairwise_loss(pairwise_loss):
    # Odds of 3 to 1 that the chosen one wins, and of 1 to 1
    loss = pairwise_loss(tensor([math.log(3.0), 5.0]), tensor([0.0, 5.0]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)
    # A margin makes it harder to be right
    with_margin = pairwise_loss(tensor([2.0]), tensor([0.0]), margin=2.0)
    assert with_margin.item() == pytest.approx(math.log(2), rel=1e-5)
    far = tensor([-90.0], requires_grad=True)
    loss = pairwise_loss(far, tensor([0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(90)
    assert far.grad.item() == pytest.approx(-1)


def check_pooled_position(forward):
    """Scores equal those of each row alone, and the last token counts."""
    model = RewardModel(loud_model())
    contexts, responses = [[1, 2, 3], [4]], [[5, 0], [6, 7, 0, 0, 0]]
    with torch.no_grad():
        scores = forward(model, contexts, responses)
        for i, (c, r) in enumerate(zip(contexts, responses, strict=True)):
            alone = model.head(model.body.hidden(tensor([c + r])))[0, -1, 0]
            torch.testing.assert_close(scores[i], alone, rtol=1e-4, atol=1e-5)
        other = forward(model, contexts, [[5, 9], responses[1]])
    assert (other[0] - scores[0]).abs() > 1e-3
    torch.testing.assert_close(other[1], scores[1])


def check_normalise(normalise):
    model = RewardModel(loud_model())
    model.gain.fill_(3.0), model.shift.fill_(-2.0)  # normalised before: the second time counts too
    contexts, responses = [[1]] * 6, [[2], [3, 4], [5], [6, 7, 8], [9], [10]]
    with torch.no_grad():
        before = model(contexts, responses)
        normalise(model, before)
        after = model(contexts, responses)
    assert after.mean().item() == pytest.approx(0, abs=1e-5)
    assert after.std().item() == pytest.approx(1, rel=1e-4)
    assert torch.equal(after.argsort(), before.argsort())


# -- log-probabilities ----------------------------------------------------------------------------


def check_response_positions(response_positions):
    index, mask = response_positions([[1, 2, 3], [1]], [[4, 5], [6, 7, 8]])
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert index[mask].tolist() == [2, 3, 0, 1, 2]


def check_response_logprobs(response_logprobs):
    """Against one forward pass for every single token."""
    model = loud_model()
    contexts, responses = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9, 0]]
    with torch.no_grad():
        logprobs, entropy, mask = response_logprobs(model, contexts, responses, temperature=0.5)
    assert mask.sum(-1).tolist() == [2, 4]
    assert (logprobs[~mask] == 0).all() and (entropy[~mask] == 0).all()
    for b, (context, response) in enumerate(zip(contexts, responses, strict=True)):
        for t, token in enumerate(response):
            with torch.no_grad():
                logits = model(tensor([context + response[:t]]))[0, -1]
            p = (logits / 0.5).softmax(-1)
            assert logprobs[b, t].item() == pytest.approx(p[token].log().item(), abs=1e-4)
            assert entropy[b, t].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)


# -- PPO's formulas -------------------------------------------------------------------------------


def check_masked_mean(masked_mean):
    x = tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]])
    mask = tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == 3.0


def check_masked_whiten(masked_whiten):
    x = tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]])
    mask = tensor([[True, True, False], [True, False, False]])
    white = masked_whiten(x, mask)
    deviation = math.sqrt((4 + 1 + 9) / 3)
    expected = tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / deviation
    torch.testing.assert_close(white, expected)


def check_kl_estimates(kl_estimates):
    """Expectations over every outcome, against the exact divergence."""
    p, q = tensor([0.5, 0.2, 0.2, 0.1]), tensor([0.1, 0.3, 0.2, 0.4])
    exact = (p * (p / q).log()).sum()
    k = kl_estimates(p.log(), q.log())
    torch.testing.assert_close((p * k["k1"]).sum(), exact)
    torch.testing.assert_close((p * k["k3"]).sum(), exact)
    assert (k["k3"] >= 0).all() and (k["k2"] >= 0).all()
    near = p + tensor([0.01, -0.01, 0.005, -0.005])  # k2 agrees for close distributions only
    exact = (p * (p / near).log()).sum().item()
    assert (p * kl_estimates(p.log(), near.log())["k2"]).sum().item() == pytest.approx(
        exact, rel=0.1
    )


def check_token_rewards(token_rewards):
    """The price of KL at every token, the score at the last one, nothing in the padding."""
    mask = tensor([[True, True, False], [True, True, True]])
    logprobs = tensor([[-1.0, -2.0, 7.0], [-1.0, -1.0, -3.0]])
    ref_logprobs = tensor([[-2.0, -1.0, -7.0], [-1.0, -2.0, -1.0]])
    rewards = token_rewards(tensor([10.0, 20.0]), logprobs, ref_logprobs, mask, 0.5)
    expected = tensor([[-0.5, 0.5 + 10, 0.0], [0.0, -0.5, 1.0 + 20]])
    torch.testing.assert_close(rewards, expected)


def slow_advantage(rewards, values, gamma, lam):
    """The definition: the lambda-weighted mean of all n-step advantages, for one reply."""
    length, out = len(rewards), []
    for t in range(length):
        n_steps = []
        for n in range(1, length - t + 1):
            total = sum(gamma**i * rewards[t + i] for i in range(n))
            after = values[t + n] if t + n < length else 0.0
            n_steps.append(total + gamma**n * after - values[t])
        mixed = sum((1 - lam) * lam**i * a for i, a in enumerate(n_steps[:-1]))
        out.append(mixed + lam ** (len(n_steps) - 1) * n_steps[-1])
    return out


def check_gae(gae, lengths=(3, 1, 5), gamma=0.9, lam=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), max(lengths), generator=generator)
    mask = torch.arange(max(lengths)) < tensor(lengths)[:, None]
    # What stands in the padding is left as it is: it must not leak.
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        expected = slow_advantage(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        torch.testing.assert_close(advantages[row, :n], tensor(expected), rtol=1e-4, atol=1e-5)
        whole = tensor(expected) + values[row, :n]
        torch.testing.assert_close(returns[row, :n], whole, rtol=1e-4, atol=1e-5)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


CLIP_CASES = [  # ratio, advantage, loss, gradient passes
    (1.5, 1.0, -1.2, False),
    (0.5, 1.0, -0.5, True),
    (1.5, -1.0, 1.5, True),
    (0.5, -1.0, 0.8, False),
]


def check_policy_loss(policy_loss):
    """The four cases of sign and side, their gradients, the mask."""
    on = tensor([[True]])
    for ratio, advantage, expected, passes in CLIP_CASES:
        new = tensor([[math.log(ratio) - 2.0]], requires_grad=True)
        loss, share = policy_loss(new, tensor([[-2.0]]), tensor([[advantage]]), on, 0.2)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert share.item() == (0.0 if passes else 1.0)
        assert new.grad.item() == pytest.approx(-advantage * ratio if passes else 0.0, rel=1e-5)
    new = tensor([[math.log(1.1), 5.0], [math.log(0.9), math.log(1.1)]])
    mask = tensor([[True, False], [True, True]])
    loss, _ = policy_loss(new, torch.zeros(2, 2), tensor([[1.0, 9.0], [2.0, -3.0]]), mask, 0.2)
    assert loss.item() == pytest.approx((-1.1 - 1.8 + 3.3) / 3, rel=1e-5)


def check_value_loss(value_loss):
    """The worse of plain and clipped counts, at one half of the square."""
    for new, target, expected in [
        (2.0, 1.5, 0.5 * 0.25),  # plain: 0.5 off, while 1.2 is 0.3 off
        (2.0, 3.0, 0.5 * 1.8**2),  # clipped to 1.2
        (0.5, 1.0, 0.5 * 0.5**2),
        (0.5, 0.0, 0.5 * 0.8**2),  # clipped to 0.8
        (1.1, 3.0, 0.5 * 1.9**2),  # inside the range: no clip
    ]:
        loss = value_loss(tensor([new]), tensor([1.0]), tensor([target]), tensor([True]), 0.2)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    x = tensor([1.0, 50.0])
    loss = value_loss(x, x, torch.zeros(2), tensor([True, False]), 0.2)
    assert loss.item() == pytest.approx(0.5)


def check_explained_variance(explained_variance):
    returns, mask = tensor([1.0, 2.0, 3.0, 99.0]), tensor([True, True, True, False])
    junk = tensor([0.0, 0.0, 0.0, -5.0])
    assert explained_variance(returns + junk, returns, mask) == pytest.approx(1, abs=1e-6)
    assert explained_variance(2 + junk, returns, mask) == pytest.approx(0, abs=1e-6)
    assert explained_variance(4 - returns + junk, returns, mask) == pytest.approx(-3, abs=1e-6)


def check_formulas_reach_the_optimum(token_rewards=None, gae=None, policy_loss=None):
    """A tabular policy over two tokens of four approaches pi* = pi_ref exp(r / kl_coef) / Z."""
    token_rewards, gae = token_rewards or ppo.token_rewards, gae or ppo.gae
    policy_loss = policy_loss or ppo.policy_loss
    kl_coef, n = 0.5, 512
    generator = torch.Generator().manual_seed(0)
    ref1, ref2 = torch.randn(4, generator=generator), torch.randn(4, 4, generator=generator)
    score = torch.randn(4, 4, generator=generator)
    first, second = (x.clone().requires_grad_() for x in (ref1, ref2))
    optimizer = torch.optim.Adam([first, second], lr=0.05)

    def logprobs_of(one, two, a, b):
        return torch.stack((one.log_softmax(-1)[a], two.log_softmax(-1)[a, b]), dim=-1)

    def joint(one, two):
        return (one.log_softmax(-1)[:, None] + two.log_softmax(-1)).exp().detach()

    mask = torch.ones(n, 2, dtype=torch.bool)
    values = torch.zeros(n, 2)
    for step in range(120):
        drawn = torch.multinomial(joint(first, second).flatten(), n, True, generator=generator)
        a, b = drawn // 4, drawn % 4
        old = logprobs_of(first, second, a, b).detach()
        rewards = token_rewards(score[a, b], old, logprobs_of(ref1, ref2, a, b), mask, kl_coef)
        advantages, _ = gae(rewards, values, mask, 1.0, 1.0)
        advantages = advantages - advantages.mean(0)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 120)
        for _ in range(2):
            new = logprobs_of(first, second, a, b)
            loss, _ = policy_loss(new, old, advantages, mask, 0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimum = joint(ref1, ref2) * (score / kl_coef).exp()
    optimum = optimum / optimum.sum()
    distance = 0.5 * (joint(first, second) - optimum).abs().sum()
    assert 0.5 * (joint(ref1, ref2) - optimum).abs().sum() > 0.3  # there is something to learn
    assert distance < 0.1, f"total variation distance to the optimal policy: {distance:.3f}"


# -- a whole iteration ----------------------------------------------------------------------------

STOP = 3
REPLIES = [
    (STOP,),
    *((a, STOP) for a in range(3)),
    *itertools.product(range(3), range(3)),  # cut off at two tokens: never ended
]


class ScoreTable(torch.nn.Module):
    """A reward model that looks the reply up."""

    def __init__(self):
        super().__init__()
        draws = torch.randn(len(REPLIES), generator=torch.Generator().manual_seed(3))
        self.scores = dict(zip(REPLIES, draws.tolist(), strict=True))

    def forward(self, contexts, responses):
        return tensor([self.scores[tuple(r)] for r in responses])


def tiny_players(settings):
    """Four players over four tokens and replies of at most two; every reply can be listed."""
    policy, reference = loud_model(4), loud_model(4)
    value = RewardModel(loud_model(4, seed=1))
    optimizers = ppo.make_optimizers(policy, value, settings)
    return ppo.Players(policy, reference, ScoreTable(), value, optimizers)


def reply_probs(policy):
    """The exact probability of every possible reply to the context [0]."""
    with torch.no_grad():
        logprobs = ppo.response_logprobs(policy, [[0]] * len(REPLIES), [list(r) for r in REPLIES])[
            0
        ]
    probs = logprobs.sum(-1).exp()
    assert probs.sum().item() == pytest.approx(1, abs=1e-4)
    return probs


def check_ppo_reaches_the_optimum(ppo_iteration):
    """The real iteration, with replies of different lengths and a penalty for not ending."""
    n = 60
    settings = ppo.PPOSettings(
        n,
        batch_size=256,
        minibatch_size=256,
        learning_rate=5e-3,
        value_learning_rate=1e-2,
        kl_coef=0.5,
        max_new_tokens=2,
        missing_end_penalty=-1.0,
    )
    players = tiny_players(settings)
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        ppo_iteration(players, [[0]] * 256, {STOP}, settings, generator, 1 - i / n)
    reference = reply_probs(players.reference)
    rewards = tensor([players.reward.scores[r] - (r[-1] != STOP) for r in REPLIES])
    optimum = reference * (rewards / settings.kl_coef).exp()
    optimum = optimum / optimum.sum()
    assert 0.5 * (reference - optimum).abs().sum() > 0.3
    distance = 0.5 * (reply_probs(players.policy) - optimum).abs().sum()
    assert distance < 0.1, f"total variation distance to the optimal policy: {distance:.3f}"


def check_first_minibatch(monkeypatch, temperature=0.7):
    """What the two losses are given in the very first minibatch.

    The ratio is 1 at every token; returns are made before whitening: with lam 1 and no KL yet,
    each is the score of its reply; advantages are whitened.
    """
    seen = {}

    def spy(name):
        original = getattr(ppo, name)

        def wrapper(*args):
            seen.setdefault(name, [a.detach() if torch.is_tensor(a) else a for a in args])
            return original(*args)

        monkeypatch.setattr(ppo, name, wrapper)

    spy("policy_loss"), spy("value_loss")
    settings = ppo.PPOSettings(
        1,
        minibatch_size=32,
        epochs=1,
        lam=1.0,
        temperature=temperature,
        max_new_tokens=2,
        missing_end_penalty=-1.0,
    )
    players = tiny_players(settings)
    generator = torch.Generator().manual_seed(1)
    metrics = ppo.ppo_iteration(players, [[0]] * 32, {STOP}, settings, generator, 1.0)
    new, old, advantages, mask, _ = seen["policy_loss"]
    assert 0 < (~mask).sum() < mask.sum()  # replies of both lengths
    assert (new - old).abs().max() < 1e-6
    assert metrics["first_ratio"] == pytest.approx(1, abs=1e-6)
    assert advantages[mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert (advantages[mask] ** 2).mean().item() == pytest.approx(1, abs=1e-3)
    _, _, returns, mask, _ = seen["value_loss"]
    possible = {s - (r[-1] != STOP) for r, s in players.reward.scores.items()}
    for row, on in zip(returns, mask, strict=True):
        score = row[0].item()
        assert min(abs(score - p) for p in possible) < 1e-4
        torch.testing.assert_close(row[on], torch.full_like(row[on], score))
    return metrics
