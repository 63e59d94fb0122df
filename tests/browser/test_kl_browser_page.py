"""The KL browser in a page: only measured prices, by keyboard too, every number in a table."""

import re

import pytest

from course_lib.studies import open_study
from course_lib.widgets.kl_browser import KLBrowser

ROOT = ".cw-kl"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def study():
    return open_study("overoptimization")["results"]


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_widgets, study):
    pages = {"light": [lambda: KLBrowser(study)], "dark": [lambda: KLBrowser(study)]}
    return write_widgets(tmp_path_factory.mktemp("site"), pages)


@pytest.fixture
def page(open_page):
    return open_page("light")


def ends(study, reward):
    runs = [r for r in study["runs"] if r["method"] == "PPO" and r["reward"] == reward]
    return {run["kl_coef"]: run["end"] for run in runs}


def points_said(page):
    text = page.locator(f"{ROOT} ul li").last.inner_text().replace("−", "-")
    return float(re.search(r"to (-?[\d.]+) \(", text)[1])


def test_the_slider_goes_from_one_measured_price_to_the_next(page, study):
    first = study["rewards"][0]["name"]
    slider = page.locator(f"{ROOT} input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    for kl_coef, end in ends(study, first).items():
        spoken = slider.get_attribute("aria-valuetext")
        assert spoken.startswith(f"kl_coef {kl_coef:g}")
        assert points_said(page) == pytest.approx(end["judge"][0], abs=0.006)
        reply = page.locator(f"{ROOT} .cw-assistant .cw-words").last.text_content()
        assert reply == end["samples"][0]["reply"]
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == spoken  # the last stays the last


def test_another_reward_model_has_its_own_prices(page, study):
    name = study["rewards"][-1]["name"]
    page.locator(f"{ROOT} select").first.select_option(name)
    measured = ends(study, name)
    assert page.locator(f"{ROOT} input[type=range]").get_attribute("max") == str(len(measured) - 1)
    faint = page.locator(f"{ROOT} svg").first.locator(".cw-kl-faint")
    assert faint.count() == len(measured) - 1


def test_the_samples_follow_the_prompt(page, study):
    start = study["start"][study["rewards"][0]["name"]]["samples"]
    page.locator(f"{ROOT} select").last.select_option("1")
    words = page.locator(f"{ROOT} .cw-words")
    assert words.nth(0).text_content() == start[1]["prompt"]
    assert words.nth(1).text_content() == start[1]["reply"]


def test_every_drawn_point_is_in_the_table(page, study):
    page.locator(f"{ROOT} summary").click()
    rows = page.locator(f"{ROOT} .cw-kl-table tbody tr")
    drawn = page.locator(f"{ROOT} svg").first.locator("circle").count()
    n_runs = len(ends(study, study["rewards"][0]["name"]))
    assert rows.count() == drawn * n_runs


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible_and_narrow(open_page, theme):
    from axe_playwright_python.sync_playwright import Axe  # needs playwright: see `browser`

    page = open_page(theme, width=390, scheme=theme)
    assert Axe().run(page, context=ROOT).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(f"{ROOT} svg[role=img]").count() == 2
