"""Checks that know the right answer without the library: by hand, by enumeration, by brute force.

Each check takes the function to be checked. `test_ppo.py` and its neighbours give it the
library's own; `test_mutations.py` gives it the same function with a mistake put in, and expects
the check to fail.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from course_lib import dpo, grpo, lora, ppo, sft
from course_lib.chat import SPECIAL_TOKENS
from course_lib.checks.l11 import advantages_by_definition
from course_lib.data import IGNORE_INDEX
from course_lib.gpt import GPT, GPTConfig
from course_lib.reward import Pair, RewardModel
from course_lib.tokenizer import BPETokenizer
from course_lib.train import TrainSettings

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


# -- supervised fine-tuning -----------------------------------------------------------------------

# Byte 0 is the padding id, and here a real token and target too.
EXAMPLES = sft.ChatExamples([[1, 2, 3], [4, 0], [5]], [[-100, 3, 9], [0, 9], [9]], 0)


def check_chat_batch(chat_batch):
    """As many conversations as asked for, each of them an example, whole, and seen by itself."""
    idx, targets, positions, mask = chat_batch(EXAMPLES, 16, 3, 0, 0)
    assert idx.shape == targets.shape == positions.shape and idx.size(1) == 3
    found = []
    for b, row in enumerate(positions.tolist()):
        starts = [t for t, p in enumerate(row) if p == 0 and targets[b, t:].ne(-100).any()]
        for start, end in zip(starts, [*starts[1:], 3], strict=True):
            n = next(n for n in range(end, start, -1) if targets[b, n - 1] != -100)
            found.append((idx[b, start:n].tolist(), targets[b, start:n].tolist()))
            assert not mask[b, 0, start:n, :start].any()
    assert len(found) == 16
    examples = list(zip(EXAMPLES.inputs, EXAMPLES.targets, strict=True))
    assert all(talk in examples for talk in found)
    assert len({str(talk) for talk in found}) == 3


def check_block_mask(block_mask):
    mask = block_mask(tensor([[7, 7, 2, -1], [5, 5, 5, 5]]))
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert torch.equal(mask[1, 0], torch.ones(4, 4, dtype=torch.bool).tril())


def check_packed_batch(packed_batch, positions="learned", **changes):
    """Packed rows give the loss, and every gradient, of the conversations one by one."""
    model = loud_model(positions=positions, **changes)

    rows = [[2, 0, 1], [1, 1]]  # a conversation may be drawn twice

    def gradients(loss):
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    packed = sft.sft_loss(model, *packed_batch(EXAMPLES, rows))
    alone, n = 0.0, 0
    for i in itertools.chain(*rows):
        ids, targets = EXAMPLES.inputs[i], EXAMPLES.targets[i]
        logprobs = model(tensor([ids]))[0].log_softmax(-1)
        for t, target in enumerate(targets):
            if target != IGNORE_INDEX:
                alone, n = alone - logprobs[t, target], n + 1
    torch.testing.assert_close(packed, alone / n, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(packed), gradients(alone / n), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


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


PAIRS = [
    Pair([1], [2, 3], [4], True, "fact"),
    Pair([5, 6], [7], [8, 9, 10], True, "haiku"),
]


def check_pair_scores(pair_scores):
    """Chosen first; a reply that stands in two pairs has the same score in both."""
    pairs = [PAIRS[0], Pair([1], [4], [2, 2], True, "fact"), PAIRS[1]]
    chosen, rejected = pair_scores(lambda c, r: tensor([10.0 * len(x) + x[-1] for x in r]), pairs)
    assert chosen.tolist() == [23, 14, 17] and rejected.tolist() == [14, 22, 40]


def check_reward_loss(reward_loss):
    """The pairwise loss with its margin and the centring term, by hand on one pair."""
    model, pair = RewardModel(loud_model()), replace(PAIRS[0], margin=0.5)
    with torch.no_grad():
        model.shift.fill_(1.5)  # far from the centre
        a, b = model([pair.context] * 2, [pair.chosen, pair.rejected]).tolist()
        found = reward_loss(model, [[pair]], 4, 0, 0).item()
    expected = math.log(1 + math.exp(b - a + 0.5)) + 0.01 * (a + b) ** 2
    assert found == pytest.approx(expected, rel=1e-4)


def check_calibration(calibration):
    rows = calibration(tensor([-math.log(4), 5.0, -5.0, math.log(3)]), n_bins=2)
    sure = 1 / (1 + math.exp(-5))
    assert rows[0] == pytest.approx({"confidence": 0.775, "right": 0.5, "count": 2})
    assert rows[1] == pytest.approx({"confidence": sure, "right": 0.5, "count": 2})


def check_best_of_n(best_of_n):
    """Against the mean over every choice of n replies."""
    generator = torch.Generator().manual_seed(0)
    scores, values = torch.randn(2, 3, 5, generator=generator)
    for n in range(1, 6):
        subsets = list(itertools.combinations(range(5), n))
        for row, found in enumerate(best_of_n(scores, values, n)):
            best = [max(subset, key=lambda i, row=row: scores[row, i]) for subset in subsets]
            expected = sum(values[row, i] for i in best) / len(best)
            assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def check_best_of_n_kl(best_of_n_kl):
    """Against the exact divergence over very many outcomes of equal probability."""
    edges = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for n in (1, 2, 3, 16):
        best = edges[1:] ** n - edges[:-1] ** n
        exact = torch.special.xlogy(best, best * 100_000).sum().item()
        assert best_of_n_kl(n) == pytest.approx(exact, abs=1e-3)


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


def check_adapt_kl_coef(adapt_kl_coef):
    for kl, share in [(6.0, 1), (6.6, 1.02), (5.4, 0.98), (60.0, 1.04), (0.0, 0.96)]:
        found = adapt_kl_coef(0.5, kl, target=6.0, n_steps=64, horizon=320)
        assert found == pytest.approx(0.5 * share)


def check_missing_end(penalise_missing_end):
    found = penalise_missing_end(tensor([1.0, 2.0, 3.0]), [True, False, True], -2.5)
    assert found.tolist() == [1.0, -0.5, 3.0]


def check_rollout_metrics(rollout_metrics):
    mask = tensor([[True, True, True], [True, False, False]])
    logprobs = tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]])
    ref_logprobs = tensor([[-2.0, -2.0, -5.0], [-2.0, 0.0, 0.0]])
    entropy = tensor([[1.0, 2.0, 3.0], [2.0, 0.0, 0.0]])
    scores = tensor([5.0, 1.0])
    roll = ppo.Rollout([], [], scores, logprobs, ref_logprobs, entropy, None, mask, [True, False])
    expected = {"score": 3, "kl": 2, "objective": 2.5, "entropy": 2, "length": 2, "ended": 0.5}
    assert rollout_metrics(roll, 0.25) == pytest.approx(expected)


def check_minibatches(minibatches):
    """Each epoch sees every reply once, in an order of its own."""
    settings = ppo.PPOSettings(1, minibatch_size=4, epochs=3)
    parts = list(minibatches(10, settings, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [4, 4, 2] * 3
    epochs = [[*a, *b, *c] for a, b, c in (parts[:3], parts[3:6], parts[6:])]
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert len(set(map(tuple, epochs))) == 3


def check_token_rewards(token_rewards):
    """The price of KL at every token, the score at the last one, nothing in the padding."""
    mask = tensor([[True, True, False], [True, True, True]])
    logprobs = tensor([[-1.0, -2.0, 7.0], [-1.0, -1.0, -3.0]])
    ref_logprobs = tensor([[-2.0, -1.0, -7.0], [-1.0, -2.0, -1.0]])
    rewards = token_rewards(tensor([10.0, 20.0]), logprobs, ref_logprobs, mask, 0.5)
    expected = tensor([[-0.5, 0.5 + 10, 0.0], [0.0, -0.5, 1.0 + 20]])
    torch.testing.assert_close(rewards, expected)


def check_gae(gae, lengths=(3, 1, 5), gamma=0.9, lam=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, len(lengths), max(lengths), generator=generator)
    mask = torch.arange(max(lengths)) < tensor(lengths)[:, None]
    # What stands in the padding is left as it is: it must not leak.
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        expected = advantages_by_definition(
            rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam
        )
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
    rewards = tensor([players.reward.scores[r] - (r[-1] != STOP) for r in REPLIES])
    assert_optimal(players.policy, players.reference, rewards / settings.kl_coef)


def assert_optimal(policy, reference, scaled_rewards):
    """The policy is near pi_ref exp(r / price) / Z, and the reference is not."""
    start = reply_probs(reference)
    optimum = start * scaled_rewards.exp()
    optimum = optimum / optimum.sum()
    assert 0.5 * (start - optimum).abs().sum() > 0.3  # there is something to learn
    distance = 0.5 * (reply_probs(policy) - optimum).abs().sum()
    assert distance < 0.1, f"total variation distance to the optimal policy: {distance:.3f}"


def spy(monkeypatch, *names):
    """The arguments of the first call of these functions of `ppo`, by name."""
    seen = {}

    def watched(name, original):
        def wrapper(*args):
            seen.setdefault(name, [a.detach() if torch.is_tensor(a) else a for a in args])
            return original(*args)

        return wrapper

    for name in names:
        monkeypatch.setattr(ppo, name, watched(name, getattr(ppo, name)))
    return seen


def check_first_minibatch(monkeypatch, temperature=0.7):
    """What the two losses are given in the very first minibatch.

    The ratio is 1 at every token; returns are made before whitening: with lam 1 and no KL yet,
    each is the score of its reply; advantages are whitened.
    """
    seen = spy(monkeypatch, "policy_loss", "value_loss")
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


# -- GRPO -----------------------------------------------------------------------------------------


def check_group_advantages(group_advantages):
    """Mean and sample deviation of each group by hand; a group without differences gives zero."""
    rewards = tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    found = group_advantages(rewards, 3)
    deviation = math.sqrt((4 + 1 + 9) / 2)
    expected = tensor([-2 / deviation, -1 / deviation, 3 / deviation, 0, 0, 0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def grpo_players(settings):
    players = tiny_players(ppo.PPOSettings(1))
    players.value = None
    players.optimizers = [ppo.make_optimizer(players.policy, settings.learning_rate)]
    return players


def check_first_group(monkeypatch, grpo_iteration):
    """What the policy loss is given: a reply's place in its group, alike at all its tokens."""
    seen = spy(monkeypatch, "policy_loss")
    settings = grpo.GRPOSettings(
        4, minibatch_size=32, epochs=1, max_new_tokens=2, kl_coef=0.5, missing_end_penalty=-1.0
    )
    players = grpo_players(settings)
    with torch.no_grad():
        players.reference.embedding.weight.mul_(0.5)  # a KL to pay for
    rolls = []
    monkeypatch.setattr(grpo, "roll_out", lambda *a: rolls.append(ppo.roll_out(*a)) or rolls[-1])
    monkeypatch.setattr(grpo, "minibatches", lambda n, *_: [list(range(n))])  # rows stay in order
    generator = torch.Generator().manual_seed(1)
    metrics = grpo_iteration(players, [[0], [1], [2]], {STOP}, settings, generator, 1.0)
    roll = rolls[0]
    assert roll.contexts == [[0]] * 4 + [[1]] * 4 + [[2]] * 4
    new, old, advantages, mask, _ = seen["policy_loss"]
    assert (new - old).abs().max() < 1e-6 and metrics["first_ratio"] == pytest.approx(1, abs=1e-6)
    kl = (roll.logprobs - roll.ref_logprobs).sum(-1)
    rewards = tensor(
        [
            players.reward.scores[tuple(r)] - (r[-1] != STOP) - 0.5 * k
            for r, k in zip(roll.responses, kl.tolist(), strict=True)
        ]
    )
    for group in range(3):
        part = slice(4 * group, 4 * group + 4)
        expected = (rewards[part] - rewards[part].mean()) / (rewards[part].std() + 1e-4)
        torch.testing.assert_close(
            advantages[part], expected[:, None] * mask[part], rtol=1e-3, atol=1e-3
        )


def check_grpo_reaches_the_optimum(grpo_iteration):
    n = 60
    settings = grpo.GRPOSettings(
        16,
        minibatch_size=256,
        learning_rate=5e-3,
        kl_coef=0.5,
        max_new_tokens=2,
        missing_end_penalty=-1.0,
    )
    players = grpo_players(settings)
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        grpo_iteration(players, [[0]] * 16, {STOP}, settings, generator, 1 - i / n)
    rewards = tensor([players.reward.scores[r] - (r[-1] != STOP) for r in REPLIES])
    assert_optimal(players.policy, players.reference, rewards / settings.kl_coef)


# -- DPO ------------------------------------------------------------------------------------------


def check_implicit_reward(implicit_reward):
    found = implicit_reward(tensor([-3.0, -5.0]), tensor([-4.0, -2.0]), 0.5)
    assert found.tolist() == [0.5, -1.5]


def check_dpo_loss(dpo_loss):
    """Odds of 3 to 1 by hand; what policy and reference share cancels."""
    chosen, rejected = tensor([math.log(9) - 4, 0.0]), tensor([-6.0, 0.0])
    ref_chosen, ref_rejected = tensor([-4.0, 0.0]), tensor([-6.0, 0.0])
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.5)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)
    loss = dpo_loss(tensor([0.0]), tensor([0.0]), tensor([-180.0]), tensor([0.0]), -0.5)
    assert loss.item() == pytest.approx(90)  # finite far on the wrong side
    rejected = tensor([0.0], requires_grad=True)
    dpo_loss(tensor([0.0]), rejected, tensor([0.0]), tensor([0.0]), 0.5).backward()
    assert rejected.grad.item() == pytest.approx(0.25)


def check_reply_logprobs(reply_logprobs):
    model, contexts, responses = loud_model(), [[1, 2], [3]], [[4], [5, 6, 7]]
    with torch.no_grad():
        found = reply_logprobs(model, contexts, responses)
        for i, (context, response) in enumerate(zip(contexts, responses, strict=True)):
            logprobs = model(tensor([context + response]))[0].log_softmax(-1)
            steps = range(len(context) - 1, len(context) + len(response) - 1)
            expected = sum(logprobs[p, t] for p, t in zip(steps, response, strict=True))
            assert found[i].item() == pytest.approx(expected.item(), abs=1e-3)


def check_preference_loss(preference_loss):
    """Against the four log-probabilities of the one pair there is; the reference learns nothing."""
    policy, reference, pair = loud_model(), loud_model(seed=1), PAIRS[1]
    settings = dpo.DPOSettings(TrainSettings(1), beta=0.3, batch_size=4)
    loss = preference_loss(policy, reference, [pair], settings, 0, 0)
    loss.backward()
    assert all(p.grad is None for p in reference.parameters())
    assert policy.embedding.weight.grad.abs().sum() > 0
    c, r, rc, rr = (
        ppo.response_logprobs(model, [pair.context], [reply])[0].sum().item()
        for model in (policy, reference)
        for reply in (pair.chosen, pair.rejected)
    )
    margin = 0.3 * ((c - rc) - (r - rr))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)), rel=1e-3, abs=1e-5)


def check_dpo_reaches_the_optimum(dpo_loss):
    """A table of replies, every pair as often as Bradley and Terry say: the optimum is pi*."""
    beta, n = 0.5, 10
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(n, generator=generator).log_softmax(-1)
    score = torch.randn(n, generator=generator)
    wins = [
        (i, j)
        for i, j in itertools.permutations(range(n), 2)
        for _ in range(round(50 * (score[i] - score[j]).sigmoid().item()))
    ]
    i, j = tensor(wins).T
    logits = ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        policy = logits.log_softmax(-1)
        optimizer.zero_grad()
        dpo_loss(policy[i], policy[j], ref[i], ref[j], beta).backward()
        optimizer.step()
    optimum = (ref + score / beta).softmax(-1)
    assert 0.5 * (ref.exp() - optimum).abs().sum() > 0.3
    distance = 0.5 * (logits.softmax(-1) - optimum).abs().sum()
    assert distance < 0.02, f"total variation distance to the optimal policy: {distance:.3f}"


def bradley_terry_pairs(scores, often):
    """Every ordered pair of replies, as often as Bradley and Terry say that the first wins."""
    pairs = []
    for a, b in itertools.permutations(range(len(REPLIES)), 2):
        pair = Pair([0], list(REPLIES[a]), list(REPLIES[b]), True, "fact")
        pairs += [pair] * round(often * (scores[a] - scores[b]).sigmoid().item())
    return pairs


def check_train_dpo_reaches_the_optimum(train_dpo, directory):
    policy, reference = loud_model(4, n_layers=2), loud_model(4, n_layers=2)
    scores = tensor([ScoreTable().scores[r] for r in REPLIES])
    pairs = bradley_terry_pairs(scores, 30)
    loop = TrainSettings(150, learning_rate=5e-3, weight_decay=0.0, muon=False)
    settings = dpo.DPOSettings(loop, beta=0.5, batch_size=256)
    train_dpo(policy, reference, pairs, pairs[:300], settings, directory, 0)
    assert_optimal(policy, reference, scores / settings.beta)


# -- LoRA -----------------------------------------------------------------------------------------


def lora_layer():
    """A layer of 3 inputs and 2 outputs with trained adapters of rank 1, and what it must give."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 2)
    layer = lora.LoRALinear(linear, rank=1, alpha=4.0)
    with torch.no_grad():
        layer.lora_a.copy_(tensor([[1.0, 0.0, -1.0]]))
        layer.lora_b.copy_(tensor([[2.0], [3.0]]))
    x = tensor([[5.0, 1.0, 2.0]])
    return layer, x, linear(x) + tensor([[4 * 3 * 2.0, 4 * 3 * 3.0]])


def check_lora_forward(forward):
    layer, x, expected = lora_layer()
    torch.testing.assert_close(forward(layer, x), expected)


def check_merge(merge):
    layer, x, expected = lora_layer()
    model = torch.nn.Sequential(layer)
    plain = layer.weight.clone()
    merge(model)
    torch.testing.assert_close(torch.nn.functional.linear(x, layer.weight, layer.bias), expected)
    torch.testing.assert_close(model(x), expected)
    merge(model)  # nothing is added twice
    torch.testing.assert_close(model(x), expected)
    lora.unmerge(model)
    assert torch.equal(layer.weight, plain)
    torch.testing.assert_close(model(x), expected)
