"""The architecture calculator in a real browser: its formulas against course_lib.sizing."""

from __future__ import annotations

import pytest

from course_lib.gpt import GPTConfig
from course_lib.sizing import (
    PUBLISHED,
    forward_flops,
    kv_cache_bytes,
    memory,
    parameters,
    training_flops,
)
from course_lib.widgets.architecture_calculator import ArchitectureCalculator
from course_lib.widgets.base import module_source

OWN = GPTConfig(3072)
CONFIGS = {name: model.config for name, model in PUBLISHED.items()} | {
    "own": OWN,
    "relu, post-norm": GPTConfig(
        *(101, 32, 48, 3, 4, 2),
        activation="relu",
        norm="layernorm",
        norm_position="post",
        positions="none",
    ),
}
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_widgets):
    def make():
        return ArchitectureCalculator(
            {"own": OWN, "GPT-2 small": CONFIGS["GPT-2 small"]}, (1e10, 8e9)
        )

    return write_widgets(tmp_path_factory.mktemp("site"), {"light": [make], "dark": [make]})


@pytest.fixture
def root(visit, site_url):
    one = visit(site_url)
    yield one.open("light.html").locator(".cw-arch")
    assert not one.problems and not one.foreign


def test_formulas_are_the_librarys(visit, site_url):
    page = visit(site_url).open("light.html")
    source = module_source("architecture_calculator")
    got = page.evaluate(
        """async ([source, configs]) => {
          const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
          const f = (await import(url)).default;
          return configs.map((c) => [
            f.parameters(c), f.forwardFlops(c, 24), f.trainingFlops(c, 1000, 24),
            f.memory(c, 3, 24, 4), f.cacheBytes(c, 24, 2), f.complaint(c),
          ]);
        }""",
        [source, [config.to_dict() for config in CONFIGS.values()]],
    )
    for config, (counts, flops, trained, held, cache, problem) in zip(
        CONFIGS.values(), got, strict=True
    ):
        assert counts == parameters(config)
        assert flops == forward_flops(config, 24)
        assert trained == pytest.approx(training_flops(config, 1000, 24), rel=1e-12)
        assert held == memory(config, 3, 24, 4)
        assert cache == kv_cache_bytes(config, 24)
        assert problem == ""


def cells(root, table):
    rows = root.locator("table").nth(table).locator("tbody tr")
    return [row.locator("th, td").all_text_contents() for row in rows.all()]


def test_a_knob_changes_every_table(root):
    root.get_by_label("Layers", exact=True).fill("8")
    config = GPTConfig(**OWN.to_dict() | {"n_layers": 8})
    shown = {name: int(n.replace(",", "")) for name, n, _ in cells(root, 0)}
    assert shown["attention"] == parameters(config)["attention"]
    assert shown["all"] == sum(parameters(config).values())
    cache = [int(row[1].replace(",", "")) for row in cells(root, 2)]
    assert cache[-1] == kv_cache_bytes(config, config.context_length)


def test_time_uses_the_machine_and_the_share_of_it(root):
    """1e9 tokens at 1e10 operations a second, then at 40 and 80 % of a T4."""
    seconds = training_flops(OWN, 10**9, 128) / 1e10
    headline = root.locator("p strong").nth(1)
    assert headline.text_content() == f"{seconds / 86400:.3g} days"
    root.get_by_label("Machine").select_option(label="NVIDIA T4")
    hours = training_flops(OWN, 10**9, 128) / 65e12 / 3600
    assert headline.text_content() == f"{60 * hours / 0.4:.3g} minutes"
    root.get_by_label("Utilisation").fill("80")
    assert headline.text_content() == f"{60 * hours / 0.8:.3g} minutes"


def test_a_preset_brings_its_whole_configuration(root):
    root.get_by_label("Start from").select_option(label="GPT-2 small")
    shown = {name: int(n.replace(",", "")) for name, n, _ in cells(root, 0)}
    assert shown["all"] == sum(parameters(CONFIGS["GPT-2 small"]).values())
    assert root.get_by_label("Heads", exact=True).input_value() == "12"


def test_an_impossible_model_is_explained_instead(root):
    root.get_by_label("Heads", exact=True).fill("7")
    assert "7 heads do not divide the width 160" in root.get_by_role("alert").text_content()
    assert root.locator("table").first.is_hidden()
    root.get_by_label("Heads", exact=True).fill("5")
    assert root.get_by_role("alert").is_hidden() and root.locator("table").first.is_visible()


@pytest.mark.parametrize("page", ["light", "dark"])
def test_accessible_and_narrow(visit, site_url, page):
    from axe_playwright_python.sync_playwright import Axe

    opened = visit(site_url, scheme=page, width=390).open(f"{page}.html")
    assert Axe().run(opened, context=".cw-arch").response["violations"] == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
