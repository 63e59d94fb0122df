"""The time machine: everything it shows is what the snapshots of a run say."""

import copy
import json
import re

import pytest
import torch

from course_lib.data import END_OF_TEXT
from course_lib.errors import CourseError
from course_lib.evaluate import fact_completion
from course_lib.generate import generate
from course_lib.gpt import GPT, GPTConfig
from course_lib.runs import Run, load_model
from course_lib.sampling import Sampling
from course_lib.widgets import time_machine as module
from course_lib.widgets.base import BOOK_BUILD_VARIABLE
from course_lib.widgets.time_machine import TimeMachine, embedding_map, projection, word_tokens

PROMPTS = {"The capital of France is": " Paris", "<b>What</b> is": ""}
SHAPES = ("steps", "heldout", "facts", "curve", "prompts", "words", "places", "kept")


@pytest.fixture(scope="module")
def widget(smoke_run):
    return TimeMachine.from_run(smoke_run, PROMPTS)


@pytest.fixture(scope="module")
def state(widget):
    return {name: getattr(widget, name) for name in SHAPES}


def test_loss_and_facts_are_the_runs_own(widget, smoke_run):
    assert widget.steps == smoke_run.snapshots() and widget.steps[0] == 0
    rows = {row["step"] + 1: row for row in smoke_run.metrics("base")}
    for i, step in enumerate(widget.steps[1:], start=1):
        assert widget.heldout[i] == round(rows[step]["heldout_loss"], 3)
        for name, share in rows[step]["facts"].items():
            assert widget.facts[name][i] == round(share, 3)
    first = load_model(smoke_run.snapshot(0))
    assert widget.heldout[0] > widget.heldout[-1]
    facts = fact_completion(first, smoke_run.tokenizer())
    assert {name: shares[0] for name, shares in widget.facts.items()} == facts
    last = smoke_run.results("base")["heldout_loss"]  # the same text, at the same place
    assert widget.heldout[-1] == round(last, 3)


def test_snapshot_zero_is_measured_on_the_text_of_the_others(smoke_run, monkeypatch):
    """With the last snapshot in the place of the first, both must come out equal."""
    last = load_model(smoke_run.snapshot(smoke_run.snapshots()[-1]))
    history = module.history(smoke_run, last)
    assert history["heldout"][0] == history["heldout"][-1]


def test_the_curve_is_the_mean_of_neighbouring_steps(widget, smoke_run, monkeypatch):
    losses = [row["loss"] for row in smoke_run.metrics("base")]
    assert [step for step, _ in widget.curve] == list(range(1, len(losses) + 1))
    assert [loss for _, loss in widget.curve] == pytest.approx(losses, abs=5e-4)
    monkeypatch.setattr(module, "CURVE_POINTS", len(losses) // 4)
    thinned = module.history(smoke_run, load_model(smoke_run.snapshot(0)))["curve"]
    assert thinned[0] == [4, pytest.approx(sum(losses[:4]) / 4, abs=5e-4)]


def test_texts_bars_and_chances_are_the_models(widget, smoke_run):
    tokenizer = smoke_run.tokenizer()
    border = tokenizer.special_ids[END_OF_TEXT]
    for i in (0, len(widget.steps) - 1):
        model = load_model(smoke_run.snapshot(widget.steps[i]))
        for prompt in widget.prompts:
            ids = [border, *tokenizer.encode(prompt["text"])]
            shown = prompt["moments"][i]
            greedy = generate(model, [ids], module.N_TOKENS, {border})[0].ids
            assert shown["greedy"] == tokenizer.decode([t for t in greedy if t != border])
            die = torch.Generator().manual_seed(0)
            drawn = generate(model, [ids], module.N_TOKENS, {border}, Sampling(), die)[0].ids
            assert shown["sampled"] == tokenizer.decode([t for t in drawn if t != border])
            with torch.no_grad():
                probs = model(torch.tensor([ids]))[0, -1].softmax(-1)
            assert [p for _, p in shown["bars"]] == pytest.approx(
                probs.topk(5).values.tolist(), abs=1e-4
            )
    answer = tokenizer.encode(" Paris")
    with torch.no_grad():
        ids = [border, *tokenizer.encode("The capital of France is"), *answer]
        logprobs = model(torch.tensor([ids]))[0].log_softmax(-1)
    places = range(len(ids) - len(answer) - 1, len(ids) - 1)
    total = sum(logprobs[t, ids[t + 1]].item() for t in places)
    chance = widget.prompts[0]["moments"][-1]["chance"]
    assert chance == pytest.approx(torch.tensor(total).exp().item(), abs=1e-4)
    assert {m["chance"] for m in widget.prompts[1]["moments"]} == {0.0}


def test_projection_keeps_most_of_the_spread():
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(50, 6, generator=generator) * torch.tensor([9.0, 5.0, 1, 1, 1, 1]) + 3
    centre, axes, kept = projection(cloud)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(centre, cloud.mean(0))
    flat = (cloud - centre) @ axes
    assert kept == pytest.approx((flat.square().sum() / (cloud - centre).square().sum()).item())
    assert kept > 0.9 and flat[:, 0].var() > flat[:, 1].var()
    for axis in axes.T:  # the sign does not depend on the machine
        assert axis[axis.abs().argmax()] > 0


def test_the_map_uses_one_plane_for_all_snapshots():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(GPT(GPTConfig(20, 8, d_model=8, n_layers=1, n_heads=2)))
    ids = [3, 7, 11, 19]
    places, _ = embedding_map(models, ids)
    centre, axes, _ = projection(models[1].embedding.weight[ids].detach())
    for model, place in zip(models, places, strict=True):
        want = (model.embedding.weight[ids].detach() - centre) @ axes
        torch.testing.assert_close(torch.tensor(place), want, atol=6e-4, rtol=0)


def test_words_are_single_tokens_and_each_once(smoke_run):
    tokenizer = smoke_run.tokenizer()
    chosen = word_tokens(tokenizer)
    assert chosen and len({i for _, _, i in chosen}) == len(chosen)
    for word, group, i in chosen:
        assert tokenizer.decode([i]) == f" {word}" and word in module.WORDS[group]
    groups = [group for _, group, _ in chosen]
    assert max(map(groups.count, groups)) <= module.PER_GROUP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [0]}, "no snapshots"),
        ({"prompts": []}, "no snapshots, prompts"),
        ({"heldout": [1.0]}, "heldout has 1"),
        ({"facts": {"capital": [0.5]}}, "facts of capital has 1"),
        ({"places": [[[0, 0]]]}, "places has 1"),
        ({"at": 99}, "at is 99"),
        ({"prompt": -1}, "prompt is -1"),
        ({"group": "planets"}, "group is 'planets'"),
    ],
)
def test_bad_state_is_refused(state, change, message):
    with pytest.raises(CourseError, match=message):
        TimeMachine(**(state | change))


def test_a_map_without_all_words_is_refused(state):
    broken = copy.deepcopy(state)
    del broken["places"][1][0]
    with pytest.raises(CourseError, match="snapshot 1 of the map"):
        TimeMachine(**broken)
    with pytest.raises(CourseError, match="at is -1"):
        TimeMachine(**state).at = -1


def test_a_run_without_snapshots_is_refused(tmp_path):
    with pytest.raises(CourseError, match="has kept no snapshots"):
        TimeMachine.from_run(Run(tmp_path))


def test_fallback_is_a_table_of_every_snapshot(widget):
    text = widget.fallback_html()
    for step, loss in zip(widget.steps, widget.heldout, strict=True):
        assert f'<th scope="row">{step}</th><td class="cw-number">{loss:.2f}</td>' in text
    hostile = TimeMachine(**{name: getattr(widget, name) for name in SHAPES}, prompt=1)
    assert "<b>" not in hostile.fallback_html() and "&lt;b&gt;What" in hostile.fallback_html()


def test_book_bundle_is_small_and_the_same_twice(widget, monkeypatch):
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    page = widget._repr_mimebundle_()["text/html"]
    found = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert found["steps"] == widget.steps and found["at"] == len(widget.steps) // 2
    again = TimeMachine(**{name: getattr(widget, name) for name in SHAPES})
    assert again._repr_mimebundle_()["text/html"] == page
