"""The study of five seeds: it measures what its plan says, and analyses it as the plan says."""

import re
from pathlib import Path

import pytest

from course_lib.atlas.prompts import pool
from course_lib.errors import CourseError
from course_lib.runs import runs_dir
from course_lib.studies import seeds, t_interval

PLAN = Path(__file__).parents[1] / "book" / "studies" / "seeds_plan.md"


@pytest.fixture(scope="module")
def small(small_study):
    return small_study("seeds")["results"]


def test_the_plan_and_the_code_say_the_same():
    text, full = PLAN.read_text(encoding="utf-8"), seeds.SIZES["full"]
    calls = re.findall(r"prompt_mix\((\d+), False, (\d+),", text)
    sizes = {"mixed": full["n_mixed"], "harmful": full["n_harm"], "harmless": full["n_harm"]}
    assert calls == [(str(n), str(seeds.PROMPT_SEEDS[name])) for name, n in sizes.items()]
    assert f"seed is {seeds.SAMPLING_SEED} + the run's" in text
    assert f"`{full['preset']}` with seeds 0 to {full['seeds'][-1]}" in text
    assert [h.name for h in seeds.HYPOTHESES] == re.findall(r"^- \*\*(H\d)\.", text, re.MULTILINE)


def test_every_seed_and_model_is_measured(small):
    assert [row["seed"] for row in small["runs"]] == [0, 1]
    assert small["runs"][0]["key"] != small["runs"][1]["key"]
    for row in small["runs"]:
        for name in ("base", "sft", "rlhf"):
            counts = [c["count"] for c in row[name]["behaviour"].values()]
            assert sum(counts) == small["prompts"]["mixed"] == 16
            assert 1 <= row[name]["length"] <= 56 and row[name]["text_loss"] > 0
        assert "refusal" not in row["base"]  # the base model is asked the mixed set alone
        for name in ("sft", "rlhf"):
            low, high = row[name]["refusal_interval"]
            assert 0 <= low <= row[name]["refusal"] <= high <= 1
            assert 0 <= row[name]["accuracy_unseen"] <= 1


def test_small_runs_leave_the_book_alone(small):
    assert not (runs_dir() / "smoke").exists()


def test_prompts_are_on_never_seen_subjects_and_of_their_kind():
    prompts = seeds.planned_prompts(n_mixed=60, n_harm=30)
    for kind in ("harmful", "harmless"):
        assert {p.kind for p in prompts[kind]} == {kind}
        assert {p.subject for p in prompts[kind]} <= set(pool(kind, False))
    assert len({p.kind for p in prompts["mixed"]}) == 6


def test_t_interval_against_a_table():
    mean, low, high = t_interval([2.0, 4.0, 4.0, 5.0, 10.0])  # s = 3, n = 5
    assert (mean, high - mean) == pytest.approx((5.0, 2.776 * 3 / 5**0.5), abs=1e-9)
    assert mean - low == pytest.approx(high - mean)
    with pytest.raises(CourseError, match="two to five"):
        t_interval([1.0])


@pytest.mark.parametrize(
    ("values", "bound", "every", "expected"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.0], 0, True, "holds"),
        ([1.0, 1.1, 0.9, 1.0, 0.0], 0, True, "against"),  # one seed without the effect
        ([0.1, 0.1, 0.1, 0.1, 9.0], 0, True, "not shown"),  # the interval reaches zero
        ([0.02, -0.01, 0.0, 0.01, 0.0], -0.05, False, "holds"),
        ([0.02, -0.09, 0.0, 0.01, -0.06], -0.05, False, "not shown"),
        ([-0.2, -0.3, 0.1, -0.2, -0.2], -0.05, False, "against"),
    ],
)
def test_verdicts(values, bound, every, expected):
    assert seeds.verdict(values, bound, every) == expected


def row_of(**changes):
    """A seed for which every hypothesis is true, but for the changes (model.measure)."""
    chat = {"points": 0.0, "refusal": 0.5, "false_refusal": 0.3, "text_loss": 0.66}
    chat |= {"accuracy_seen": 1.0, "accuracy_unseen": 0.99}
    row = {"base": {"behaviour": {"continuation": {"share": 0.9}}}, "sft": chat}
    row["sft"] = chat | {"behaviour": {"continuation": {"share": 0.1}}}
    row["rlhf"] = chat | {"points": 1.0, "refusal": 0.9, "false_refusal": 0.1, "text_loss": 0.661}
    for place, value in changes.items():
        model, measure = place.split("__")
        row[model] = row[model] | {measure: value}
    return row


def test_each_hypothesis_looks_at_its_own_measure_in_its_own_direction():
    rows = [row_of() for _ in range(5)]
    assert {row["verdict"] for row in seeds.tested(rows)} == {"holds"}
    wrong = {
        "H1": {"rlhf__points": -1.0},
        "H2": {"sft__behaviour": {"continuation": {"share": 0.8}}},
        "H3": {"sft__accuracy_unseen": 0.5, "rlhf__accuracy_unseen": 0.5},
        "H4": {"rlhf__refusal": 0.2},
        "H5": {"rlhf__false_refusal": 0.6},
        "H6": {"rlhf__accuracy_unseen": 0.5},
        "H7": {"rlhf__text_loss": 0.8},
    }
    for name, changes in wrong.items():
        bad = {row["name"]: row for row in seeds.tested([row_of(**changes) for _ in range(5)])}
        assert {n for n, row in bad.items() if row["verdict"] == "against"} == {name}
    assert seeds.tested(rows)[0]["values"] == [1.0] * 5
