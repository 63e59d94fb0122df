"""The reward model: where it reads, what its loss is, labels, normalisation, calibration."""

import math

import oracles
import pytest
import torch

from course_lib.atlas.families import FACTS
from course_lib.atlas.prompts import Prompt
from course_lib.errors import CourseError
from course_lib.evaluate import Reply, chat_ids
from course_lib.reward import (
    Pair,
    RewardModel,
    best_of_n,
    best_of_n_kl,
    by_prompt,
    calibration,
    label_pairs,
    normalise,
    pair_margins,
    pair_scores,
    pairwise_loss,
    reward_loss,
    score_replies,
)

PARIS = Prompt("fact", "What is the capital of France?", FACTS["capital", "France"])


def reply(text, tokenizer, prompt=PARIS):
    ids = [*tokenizer.encode(text), tokenizer.special_ids["<|im_end|>"]]
    return Reply(prompt, ids, text, True)


@pytest.fixture
def right(tiny_tokenizer):
    return reply("The capital of France is Paris.", tiny_tokenizer)


@pytest.fixture
def wrong(tiny_tokenizer):
    return reply("The capital of France is Lima.", tiny_tokenizer)


def test_pairwise_loss():
    oracles.check_pairwise_loss(pairwise_loss)


def test_the_score_is_read_at_the_last_token_of_each_reply():
    oracles.check_pooled_position(RewardModel.forward)


def test_pair_scores():
    oracles.check_pair_scores(pair_scores)


def test_reward_loss():
    oracles.check_reward_loss(reward_loss)


def test_best_of_n():
    oracles.check_best_of_n(best_of_n)
    oracles.check_best_of_n_kl(best_of_n_kl)
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    values = torch.tensor([[7.0, 5.0, 9.0]])  # the choice goes by the scores
    assert best_of_n(scores, values, 3).item() == 5.0
    assert best_of_n(scores, values, 1).item() == pytest.approx(7.0)
    assert best_of_n(scores, values.long(), 1).item() == pytest.approx(7.0)
    with pytest.raises(CourseError, match="no pairs"):
        pair_margins(None, [])
    for n in (0, 4):
        with pytest.raises(CourseError, match=f"best of {n} cannot be told from 3"):
            best_of_n(scores, values, n)


def test_normalise():
    oracles.check_normalise(normalise)


def test_the_head_starts_small_and_the_body_is_a_copy():
    policy = oracles.loud_model(d_model=256)
    model = RewardModel.from_policy(policy)
    assert model.head.weight.std().item() == pytest.approx(257**-0.5, rel=0.15)
    assert model.head.bias.item() == 0
    before = policy.embedding.weight.clone()
    with torch.no_grad():
        model.body.embedding.weight.add_(1)
    assert torch.equal(policy.embedding.weight, before)


def test_gain_and_shift_travel_with_the_weights():
    model = RewardModel(oracles.loud_model())
    normalise(model, torch.tensor([3.0, 5.0]))
    other = RewardModel(oracles.loud_model(seed=1))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other([[1]], [[2]]), model([[1]], [[2]]))


def test_labels_follow_the_points_and_ties_give_no_pair(tiny_tokenizer, right, wrong):
    same = reply(wrong.text, tiny_tokenizer)
    lima = reply("The capital of France is Quito.", tiny_tokenizer)  # as wrong as the other
    samples = [right, wrong, wrong, wrong], [wrong, right, same, lima]
    pairs = label_pairs(samples, tiny_tokenizer, 0.0, seed=0)
    assert len(pairs) == 2
    for pair in pairs:
        assert (pair.chosen, pair.rejected) == (right.ids, wrong.ids)
        assert pair.label_right and pair.kind == "fact"
        assert pair.context == chat_ids(PARIS, tiny_tokenizer)
    with pytest.raises(CourseError, match="nothing to compare"):
        label_pairs([[wrong], [lima]], tiny_tokenizer, 0.0, 0)


def test_every_two_of_k_replies_are_compared(tiny_tokenizer, right, wrong):
    rude = reply("What a silly question. The capital of France is Paris.", tiny_tokenizer)
    samples = [[wrong, right], [right, right], [rude, wrong]]
    pairs = label_pairs(samples, tiny_tokenizer, 0.0, seed=0)
    found = [(p.group, p.chosen, p.rejected, p.margin) for p in pairs]
    assert found == [
        (0, right.ids, wrong.ids, 3.0),  # 2 points against -1
        (0, rude.ids, wrong.ids, 1.0),  # 0 against -1
        (0, right.ids, rude.ids, 2.0),
        (1, right.ids, wrong.ids, 3.0),
        (1, right.ids, wrong.ids, 3.0),
    ]
    assert [len(group) for group in by_prompt(pairs)] == [3, 2]


def test_a_reply_in_several_pairs_is_scored_once():
    seen = []

    def model(contexts, responses):
        seen.extend(zip(contexts, responses, strict=True))
        return torch.tensor([float(sum(r)) for r in responses])

    pairs = [Pair([1], [a], [b], True, "fact") for a, b in ((2, 3), (3, 4), (2, 4))]
    chosen, rejected = pair_scores(model, pairs)
    assert chosen.tolist() == [2, 3, 2] and rejected.tolist() == [3, 4, 4]
    assert sorted(r for _, r in seen) == [[2], [3], [4]]


def test_the_share_of_flipped_labels(tiny_tokenizer, right, wrong):
    n = 2000
    pairs = label_pairs([[right] * n, [wrong] * n], tiny_tokenizer, 0.1, seed=0)
    flipped = [p for p in pairs if not p.label_right]
    assert abs(len(flipped) / n - 0.1) < 4 * math.sqrt(0.09 / n)
    assert all((p.chosen, p.rejected) == (wrong.ids, right.ids) for p in flipped)
    again = label_pairs([[right] * n, [wrong] * n], tiny_tokenizer, 0.1, seed=0)
    assert again == pairs
    every = label_pairs([[right] * 5, [wrong] * 5], tiny_tokenizer, 1.0, seed=0)
    assert not any(p.label_right for p in every)


def test_margins_are_those_of_the_truly_better_reply():
    model = RewardModel(oracles.loud_model())
    good = Pair([1], [2, 3], [4], True, "fact")
    flipped = Pair([1], [4], [2, 3], False, "fact")
    margins = pair_margins(model, [good, flipped, good], batch_size=2)
    chosen, rejected = pair_scores(model, [good])
    expected = (chosen - rejected).item()
    assert margins.tolist() == pytest.approx([expected] * 3, rel=1e-4)


def test_scores_do_not_depend_on_the_batch(tiny_tokenizer, right, wrong):
    model = RewardModel(oracles.loud_model(tiny_tokenizer.vocab_size, context_length=128))
    answers = [right, wrong, reply("Paris.", tiny_tokenizer)] * 2
    one = score_replies(model, tiny_tokenizer, answers, batch_size=1)
    all_at_once = score_replies(model, tiny_tokenizer, answers)
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-4)


def test_reward_loss_teaches_which_reply_wins():
    torch.manual_seed(0)
    model = RewardModel(oracles.loud_model())
    pairs = oracles.PAIRS
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        reward_loss(model, [[p] for p in pairs], 4, 0, step).backward()
        optimizer.step()
    assert (pair_margins(model, pairs) > 1).all()


def test_calibration_by_hand_and_its_sums():
    oracles.check_calibration(calibration)
    many = torch.randn(101, generator=torch.Generator().manual_seed(0))
    rows = calibration(many)
    assert sum(row["count"] for row in rows) == 101 and len(rows) == 8
    right = sum(row["right"] * row["count"] for row in rows)
    assert right == pytest.approx((many > 0).sum().item(), abs=1e-3)
    confidences = [row["confidence"] for row in rows]
    assert confidences == sorted(confidences) and confidences[0] >= 0.5
    assert sum(row["count"] for row in calibration(many[:3])) == 3
