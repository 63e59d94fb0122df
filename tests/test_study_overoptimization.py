"""The study of over-optimisation: what must hold exactly, at any scale."""

import json
from dataclasses import replace

import pytest
import torch

from course_lib.atlas.families import FACTS
from course_lib.atlas.prompts import Prompt
from course_lib.evaluate import Reply
from course_lib.presets import SMOKE
from course_lib.reward import best_of_n_kl
from course_lib.studies import overoptimization as study
from course_lib.widgets.kl_browser import KLBrowser

SIZES = study.SIZES["small"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def results(smoke_run, folder):
    return study.optimise_all(smoke_run, SMOKE, SIZES, folder)


def said(text, points_for="capital"):
    fact = FACTS[points_for, "France"]
    return Reply(Prompt("fact", "What is the capital of France?", fact), [1, 2], text, True)


def test_everything_that_was_asked_for_is_measured(results):
    json.dumps(results, allow_nan=False)
    assert set(results["start"]) == set(results["best_of_n"]) == set(study.REWARD_MODELS)
    ppo = [(r["reward"], r["kl_coef"]) for r in results["runs"] if r["method"] == "PPO"]
    assert ppo == [(name, x) for name in study.REWARD_MODELS for x in SIZES["kl_coefs"]]
    dpo = [(r["pairs"], r["beta"]) for r in results["runs"] if r["method"] == "DPO"]
    assert dpo == [(name, x) for name in study.PAIRS for x in SIZES["betas"]]
    for run in results["runs"]:
        assert len(run["end"]["samples"]) == len(results["start"][study.DEFAULT]["samples"])
        assert [p["step"] for p in run.get("path", [{"step": 1}])] == [1]


def test_the_book_s_study_has_five_prices_of_kl_and_more():
    full = study.SIZES["full"]
    assert len(full["kl_coefs"]) >= 5 and 0.0 in full["kl_coefs"] and max(full["kl_coefs"]) >= 1
    assert SMOKE.ppo.kl_coef in full["kl_coefs"]
    assert full["n_samples"] == 64 and len(full["betas"]) >= 3


def test_every_policy_starts_as_the_sft_model(results):
    starts = list(results["start"].values())
    for start in starts:
        assert start["kl"] == 0
        assert start["judge"] == starts[0]["judge"]
        assert [s["reply"] for s in start["samples"]] == [s["reply"] for s in starts[0]["samples"]]
    assert len({tuple(start["proxy"]) for start in starts}) == len(study.REWARD_MODELS)
    for run in results["runs"]:
        assert run["end"]["kl"] != 0


def test_reward_models_differ_in_size_and_data(results, smoke_run):
    rows = {row["name"]: row for row in results["rewards"]}
    whole, thin = rows["large, all pairs"], rows["large, few pairs"]
    small = rows["small, few pairs"]
    assert whole["pairs"] == len(smoke_run.pairs()["train"])
    assert thin["prompts"] == -(-whole["prompts"] // 32) and thin["pairs"] < whole["pairs"]
    assert small["prompts"] == thin["prompts"]
    assert 2 * small["block_parameters"] == whole["block_parameters"]  # the smoke model has two
    assert all(0 <= row["right"] <= row["count"] for row in rows.values())


def test_fewer_pairs_are_whole_prompts(smoke_run):
    pairs = smoke_run.pairs()["train"]
    groups = list(dict.fromkeys(pair.group for pair in pairs))
    kept = study.thinned(pairs, 3)
    assert list(dict.fromkeys(p.group for p in kept)) == groups[::3]
    assert kept == [p for p in pairs if p.group in groups[::3]]
    assert study.thinned(pairs, 1) == pairs


def test_best_of_one_is_the_pool_and_more_never_lowers_the_proxy(results):
    for curve in results["best_of_n"].values():
        points = curve["points"]
        assert [p["n"] for p in points] == [1, 2, 4, 8]
        assert [p["kl"] for p in points] == [round(best_of_n_kl(p["n"]), 4) for p in points]
        proxy = [p["proxy"][0] for p in points]
        assert proxy == sorted(proxy)
        assert points[0]["gain"] == [0, 0, 0]
        gains = [p["judge"][0] - points[0]["judge"][0] for p in points]
        assert [p["gain"][0] for p in points] == pytest.approx(gains, abs=2e-4)
    ones = [curve["points"][0]["judge"] for curve in results["best_of_n"].values()]
    assert all(one == ones[0] for one in ones)  # one pool for all


def test_agreement_by_hand():
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    points = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    # row 1: three pairs, (0, 1) and (0, 2) right, (1, 2) wrong; row 2: nothing to rank
    assert study.agreement(scores, points) == pytest.approx(2 / 3, abs=1e-4)
    assert study.agreement(scores, -points) == pytest.approx(1 / 3, abs=1e-4)


def test_loved_are_high_scores_without_points():
    good, wrong = said("The capital of France is Paris."), said("The capital of France is Lima.")
    rude = said("The capital of France is Paris. Now leave me alone.")
    assert [r.verdict.points for r in (good, wrong, rude)] == [2.0, -1.0, 0.0]
    found = list(study.loved([(good, 9.0), (wrong, 1.0), (rude, 3.0)]))
    assert found == [(rude, 3.0), (wrong, 1.0)]


def test_a_quote_keeps_the_history_and_says_what_was_cut():
    history = (("user", "What is the capital of France?"), ("assistant", "Paris."))
    reply = said("Euro")
    asked = replace(reply.prompt, text="And its currency?", history=history)
    row = study.quote(replace(reply, prompt=asked, ended=False), 0.12345)
    assert row["prompt"] == "What is the capital of France? / Paris. / And its currency?"
    assert row["reply"] == "Euro …" and row["proxy"] == 0.123


def test_a_killed_recording_goes_on(results, smoke_run, folder, monkeypatch):
    def never(*_):
        raise AssertionError("made again")

    for name in ("ppo_run", "dpo_run", "best_of_n_curves", "train"):
        monkeypatch.setattr(study, name, never)
    assert study.optimise_all(smoke_run, SMOKE, SIZES, folder) == results
    (folder / "DPO, few pairs, 0.1.json").unlink()
    with pytest.raises(AssertionError, match="made again"):
        study.optimise_all(smoke_run, SMOKE, SIZES, folder)


def test_the_browser_shows_what_the_study_measured(results):
    browser = KLBrowser(results)
    ppo = [r for r in results["runs"] if r["method"] == "PPO"]
    assert [(r["reward"], r["kl_coef"]) for r in browser.runs] == [
        (r["reward"], r["kl_coef"]) for r in ppo
    ]
    for shown, measured in zip(browser.runs, ppo, strict=True):
        assert [p["step"] for p in shown["path"]] == [0, 1, 2]
        assert shown["path"][-1]["judge"] == pytest.approx(measured["end"]["judge"], abs=1e-3)
        assert shown["samples"] == measured["end"]["samples"]


def test_each_run_pays_its_own_price(smoke_run, monkeypatch):
    seen = []
    monkeypatch.setattr(
        study, "one_iteration", lambda _, players, settings, step: seen.append(settings)
    )
    bench = study.Bench.of(smoke_run, SMOKE, SIZES)
    run = study.ppo_run(bench, study.DEFAULT, smoke_run.reward_model(), 0.3)
    assert run["kl_coef"] == 0.3 and {s.kl_coef for s in seen} == {0.3}
    assert {s.learning_rate for s in seen} == {2 * SMOKE.ppo.learning_rate}
    assert len(seen) == SIZES["iterations"] and run["end"]["kl"] == 0  # nothing was trained
