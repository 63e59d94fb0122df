"""The architecture calculator's state and fallback; its formulas are tested in a browser."""

import json
import re

import pytest

from course_lib.errors import CourseError
from course_lib.gpt import GPTConfig
from course_lib.sizing import memory, parameter_count, training_flops
from course_lib.widgets.architecture_calculator import GPUS, OWN_MACHINE, ArchitectureCalculator
from course_lib.widgets.base import BOOK_BUILD_VARIABLE

CONFIGS = {"own": GPTConfig(3072), "other": GPTConfig(512, tie_embeddings=False)}


def test_fallback_shows_the_librarys_numbers():
    text = ArchitectureCalculator(CONFIGS, (1e10, 8e9), tokens=1e9).fallback_html()
    found = dict(re.findall(r'<th scope="row">([^<]+)</th><td class="cw-number">([^<]+)<', text))
    flops = training_flops(CONFIGS["own"], 1e9, 128)
    assert found["all parameters"] == f"{parameter_count(CONFIGS['own']):,}"
    assert found["operations to train"] == f"{flops:.2e}"
    assert found["hours"] == f"{flops / 1e10 / 3600:.3g}"
    assert found["bytes to train"] == f"{sum(memory(CONFIGS['own'], 8, 128, 2).values()):,}"


def test_utilisation_is_for_stated_speeds_only():
    def hours(**state):
        widget = ArchitectureCalculator(CONFIGS, (1e10, 8e9), **state)
        return re.search(r"hours</th><td[^>]*>([^<]+)", widget.fallback_html())[1]

    assert hours(utilization=0.4) == hours(utilization=0.8)
    assert hours(machine=1, utilization=0.4) != hours(machine=1, utilization=0.8)


def test_book_bundle(monkeypatch):
    monkeypatch.setenv(BOOK_BUILD_VARIABLE, "1")
    page = ArchitectureCalculator(CONFIGS, (1e10, 8e9))._repr_mimebundle_()["text/html"]
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert [m["name"] for m in state["machines"]] == [OWN_MACHINE, *GPUS]
    assert [p["name"] for p in state["presets"]] == list(CONFIGS)
    assert GPTConfig(**state["config"]) == CONFIGS["own"]


def test_bad_arguments_are_refused():
    with pytest.raises(CourseError, match="configs is empty"):
        ArchitectureCalculator({}, (1e10, 8e9))
    with pytest.raises(CourseError, match="speed and memory must be positive"):
        ArchitectureCalculator(CONFIGS, (0.0, 8e9))
