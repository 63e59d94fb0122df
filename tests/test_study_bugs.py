"""The museum's trained mistakes: each differs from the right version in one way only."""

import oracles
import pytest
import torch

from course_lib import ppo
from course_lib.chat import IM_END, render, supervised_targets
from course_lib.data import IGNORE_INDEX
from course_lib.studies import bugs

TALK = [("user", "Hi"), ("assistant", "Hello there"), ("user", "And?"), ("assistant", "Yes")]


@pytest.fixture(scope="module")
def results(small_study):
    return small_study("bugs")["results"]


def test_targets_of_the_mistakes(tiny_tokenizer):
    rendered = render(TALK, tiny_tokenizer)
    end = tiny_tokenizer.special_ids[IM_END]
    right = bugs.right_targets(rendered, tiny_tokenizer)
    assert right == supervised_targets(rendered.ids, rendered.mask)
    endless = bugs.without_end(rendered, tiny_tokenizer)
    changed = [i for i, (a, b) in enumerate(zip(right, endless, strict=True)) if a != b]
    assert len(changed) == 2 and all(right[i] == end for i in changed)
    assert all(endless[i] == IGNORE_INDEX for i in changed)
    everything = bugs.every_token(rendered, tiny_tokenizer)
    assert everything == rendered.ids[1:] and IGNORE_INDEX not in everything
    copied = bugs.unshifted(rendered, tiny_tokenizer)
    kept = [(i, t) for i, t in zip(rendered.ids, copied, strict=False) if t != IGNORE_INDEX]
    assert kept and all(i == t for i, t in kept)
    assert len({len(row) for row in (right, endless, everything, copied)}) == 1


def test_wrong_formulas_of_ppo():
    torch.manual_seed(0)
    new, old, advantages, values = torch.randn(4, 3, 5) / 3
    mask = torch.ones(3, 5, dtype=torch.bool)
    right = ppo.policy_loss(new, old, advantages, mask, 0.2)
    wrong = bugs.descend(new, old, advantages, mask, 0.2)
    assert wrong[0] == -right[0] and wrong[1] == right[1]
    scores = torch.zeros(3)
    priced = ppo.token_rewards(scores, new, old, mask, 0.1)
    torch.testing.assert_close(bugs.pay_for_distance(scores, new, old, mask, 0.1), -priced)
    a, returns = ppo.gae(priced, values, mask, 1.0, 0.9)
    wrong_a, wrong_returns = bugs.whiten_first(priced, values, mask, 1.0, 0.9)
    torch.testing.assert_close(wrong_a, ppo.masked_whiten(a, mask))
    torch.testing.assert_close(wrong_returns, wrong_a + values)
    assert not torch.allclose(returns, wrong_returns)


def test_the_patch_reaches_ppo_and_goes_away(monkeypatch):
    seen = []
    monkeypatch.setitem(
        bugs.PPO_MISTAKES, "right", ("gae", lambda *a: seen.append(1) or bugs.RIGHT["gae"](*a))
    )
    settings = ppo.PPOSettings(1, 8, 4, max_new_tokens=2)
    players = oracles.tiny_players(settings)
    with bugs.mistaken("right"):
        ppo.ppo_iteration(
            players, [[0]] * 8, {oracles.STOP}, settings, torch.Generator().manual_seed(0), 1.0
        )
    assert seen == [1] and ppo.gae is bugs.RIGHT["gae"]


def test_a_small_run_has_every_mistake(results):
    assert [row["mistake"] for row in results["sft"]] == list(bugs.SFT_MISTAKES)
    assert [row["mistake"] for row in results["ppo"]] == list(bugs.PPO_MISTAKES)
    sft = {row["mistake"]: row for row in results["sft"]}
    first = {name: row["losses"][0] for name, row in sft.items()}
    assert first["right"] == first["no zero_grad"]  # they part after the first step
    assert sft["right"]["losses"][1] == sft["no zero_grad"]["losses"][1]
    assert first["right"] != first["every token learned"] != first["no shift"]
    curves = {row["mistake"]: row["curve"] for row in results["ppo"]}
    assert len({curve["score"][0] for curve in curves.values()}) == 1
    for curve in curves.values():
        assert curve["kl"][0] == pytest.approx(0, abs=1e-3)
