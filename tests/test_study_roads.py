"""The study of other roads: every road is walked, from the right start, and measured alike."""

from dataclasses import replace

import pytest
import torch

from course_lib import reward
from course_lib.studies import roads

ROADS = {"sft", "ppo", "longer", "round two", "dpo", "grpo"}


@pytest.fixture(scope="module")
def world(smoke_run, tmp_path_factory):
    return roads.make_world(smoke_run, roads.SIZES["small"], tmp_path_factory.mktemp("roads"))


@pytest.fixture(scope="module")
def results(world):
    return roads.roads_of(world)


def test_every_road_is_walked_and_measured_alike(results):
    assert set(results["roads"]) == ROADS
    for name, row in results["roads"].items():
        low, high = row["judge_interval"]
        assert low <= row["judge_mean"] <= high
        assert 0 <= row["accuracy_unseen"] <= 1 and row["text_loss"] > 0
        assert ("second_reward" in row) == (name == "round two")


def test_the_start_is_where_it_should_be(results):
    sft = results["roads"]["sft"]
    assert sft["kl"] == pytest.approx(0, abs=1e-5) and sft["samples"] == 0
    kl = {name: rows["kl"][0] for name, rows in results["curves"].items()}
    assert kl["ppo"] == kl["grpo"] == 0  # both begin at the SFT model
    assert kl["longer"] == pytest.approx(kl["round two"], abs=0.5) and kl["longer"] != 0


def test_what_each_road_samples(results):
    samples = {name: row["samples"] for name, row in results["roads"].items()}
    assert samples["ppo"] == 4 * 8 and samples["dpo"] == 0
    assert samples["longer"] == samples["round two"] == samples["grpo"] == 2 * 8


def test_the_run_is_left_alone_and_each_road_moves_a_copy(world):
    before = [p.clone() for p in world.reference.parameters()]
    scorer = [p.clone() for p in world.scorer.parameters()]
    for road in (roads.by_grpo, roads.by_dpo, lambda w: roads.more_ppo(w, w.scorer, 500)):
        policy, _, _ = road(world)
        start = world.run.model("rlhf" if road not in (roads.by_grpo, roads.by_dpo) else "sft")
        pairs = zip(policy.parameters(), start.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(map(torch.equal, before, world.reference.parameters()))
    assert all(map(torch.equal, scorer, world.scorer.parameters()))


def test_fresh_pairs_are_the_new_policys_own_and_flipped_only_in_training(world):
    pairs = roads.fresh_pairs(world)
    assert all(p.label_right for p in pairs["heldout"])
    assert {tuple(p.context) for p in pairs["train"]} != {
        tuple(p.context) for p in world.run.pairs()["train"]
    }


def test_dpo_raises_the_chosen_over_the_rejected(world):
    folder = world.folder / "longer"
    longer = replace(world, sizes=world.sizes | {"dpo_steps": 30}, folder=folder)
    _, samples, notes = roads.by_dpo(longer)
    lead = {when: notes[when]["chosen"] - notes[when]["rejected"] for when in ("before", "after")}
    assert samples == 0 and lead["after"] > lead["before"]
    assert notes["accuracy"]["count"] == len(world.run.pairs()["heldout"])


def test_best_of_one_is_a_plain_sample_and_more_choice_never_lowers_the_score(world):
    found = roads.best_of(world)
    rows = {row["n"]: row for row in found["rows"]}
    assert rows[1]["kl"] == 0 and rows[2]["kl"] > 0
    assert rows[2]["reward"][0] >= rows[1]["reward"][0]
    n = 2 * world.preset.n_eval
    prompts = roads.prompt_mix(n, False, world.seed + 2, roads.JUDGE_MIX)
    said = roads.sample_many(world, prompts, 2)
    points = [reply.verdict.points for row in said for reply in row]
    assert rows[1]["judge"][0] == pytest.approx(sum(points) / len(points), abs=1e-5)


def test_scores_stand_beside_their_replies(world):
    prompts = roads.prompt_mix(3, False, 1, roads.JUDGE_MIX)
    said = roads.sample_many(world, prompts, 2)
    scores = roads.score_many(world, said)
    alone = reward.score_replies(world.scorer, world.tokenizer, [said[1][1]])
    assert scores.shape == (3, 2) and scores[1, 1].item() == pytest.approx(alone.item(), abs=1e-5)
    assert said[1][0].prompt is said[1][1].prompt is prompts[1]
