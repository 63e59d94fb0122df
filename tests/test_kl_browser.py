"""The KL browser: measured runs only, the same page at every build, text that stays text."""

import json

import pytest

from course_lib.errors import CourseError
from course_lib.widgets.base import BOOK_BUILD_VARIABLE
from course_lib.widgets.kl_browser import KLBrowser, ppo_paths, rounded


def measured(kl, proxy, judge):
    around = {name: [x, x - 0.25, x + 0.25] for name, x in (("proxy", proxy), ("judge", judge))}
    return {"kl": kl, **around}


def sample(reply, judge=2.0):
    text = {"prompt": "What is the capital of France?", "reply": reply, "kind": "fact"}
    return text | {"does": "direct answer, right", "proxy": 0.12349, "judge": judge}


def ppo(reward, kl_coef, kl, reply):
    about = {"method": "PPO", "reward": reward, "kl_coef": kl_coef}
    end = measured(kl, 2.0, 1.0) | {"samples": [sample(reply)]}
    return about | {"path": [{"step": 5, **measured(kl / 2, 1.0, 1.5)}], "end": end}


@pytest.fixture
def study():
    start = measured(0.0, 0.0, 0.5) | {"samples": [sample("Paris, says SFT.")]}
    dpo = {"method": "DPO", "reward": "large", "beta": 0.1}
    return {
        "start": {"large": start, "<small>": start},
        "runs": [
            ppo("large", 0.0, 9.123456, "<script>alert(1)</script>"),
            ppo("large", 0.1, 2.0, "Certainly. Paris."),
            ppo("<small>", 0.1, 3.0, "Paris."),
            dpo | {"end": measured(1.0, 1.0, 1.0) | {"samples": []}},
        ],
        "iterations": 10,
        "kl_coef": 0.1,
    }


def test_paths_go_from_the_sft_model_to_the_end(study):
    paths = ppo_paths(study)
    assert [(p["reward"], p["kl_coef"]) for p in paths] == [
        ("large", 0.0),
        ("large", 0.1),
        ("<small>", 0.1),
    ]
    assert [p["step"] for p in paths[0]["path"]] == [0, 5, 10]
    assert [p["kl"] for p in paths[1]["path"]] == [0.0, 1.0, 2.0]
    assert paths[1]["path"][1] == {"step": 5, **measured(1.0, 1.0, 1.5)}


def test_rounding_keeps_the_shape():
    assert rounded({"a": [1.23456, {"b": 2}], "c": "x"}) == {"a": [1.2346, {"b": 2}], "c": "x"}


def test_the_state_is_plain_and_the_same_twice(study, monkeypatch):
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    one, two = (KLBrowser(study).book_html() for _ in range(2))
    assert one == two and "9.1235," in one and "9.123456" not in one
    state = json.loads(one.split('json">')[1].split("</script>")[0])
    assert state["kl_coef"] == 0.0 and state["reward"] == "large" and state["usual"] == 0.1


def test_words_of_a_model_stay_words(study, monkeypatch):
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    page = KLBrowser(study, reward="<small>", kl_coef=0.1).book_html()
    assert "<script>alert" not in page and "<small>" not in page


def test_the_fallback_has_the_end_of_every_run(study):
    table = KLBrowser(study).fallback_html()
    assert table.count("<tr>") == 3  # the head and two prices
    assert "9.12" in table and "2.00" in table and "1.00" in table


@pytest.mark.parametrize(
    "state",
    [{"kl_coef": 0.05}, {"reward": "best"}, {"prompt": 1}, {"reward": "<small>", "kl_coef": 0.0}],
)
def test_only_measured_runs_can_be_chosen(study, state):
    with pytest.raises(CourseError, match="choose from"):
        KLBrowser(study, **state)
