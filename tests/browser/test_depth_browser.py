"""The depth browser of L05 in the built page: every control works, every number has a table."""

import re

import pytest

PAGE = "book/L05_Normalization_and_Residuals.html"
ROOT = ".cw-depth"
pytestmark = pytest.mark.browser


@pytest.fixture
def page(visit, book_dir, book_url):
    if not (book_dir / PAGE).is_file():
        pytest.skip(f"no {PAGE} in the built book")
    visitor = visit(book_url)
    page = visitor.open(PAGE)
    yield page
    assert visitor.problems == [] and visitor.foreign == []


def lines(page):
    return page.locator(f"{ROOT} .cw-depth-chart polyline").count()


def test_depth_by_keyboard_changes_chart_and_sentences(page):
    before = page.locator(f"{ROOT} ul").inner_text()
    page.locator(f"{ROOT} input[type=radio]:checked").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(f"{ROOT} input[type=radio]:checked").get_attribute("value") == "32"
    assert page.locator(f"{ROOT} ul").inner_text() != before
    label = page.locator(f"{ROOT} .cw-depth-chart > svg").get_attribute("aria-label")
    assert "32 blocks" in label


def test_variants_come_and_go(page):
    assert lines(page) == 6
    page.locator(f"{ROOT} input[type=checkbox]").first.uncheck()
    assert lines(page) == 5
    for box in page.locator(f"{ROOT} input[type=checkbox]").all():
        box.uncheck()
    assert "at least one variant" in page.locator(f"{ROOT} .cw-depth-chart").inner_text()


def test_the_table_holds_what_the_chart_draws(page):
    page.locator(f"{ROOT} summary").click()
    rows = page.locator(f"{ROOT} .cw-depth-table tbody tr")
    assert rows.count() == 16
    last = rows.last.locator("td").last.inner_text()
    said = page.locator(f"{ROOT} ul li").last.inner_text()
    assert re.search(rf"last block {re.escape(last)}$", said)


def test_untrained_depths_say_so(page):
    page.locator(f"{ROOT} select").select_option("losses")
    assert lines(page) == 6
    page.locator(f"{ROOT} input[type=radio][value='8']").check()
    assert lines(page) == 0
    assert "not trained" in page.locator(f"{ROOT} .cw-depth-chart").inner_text()
