"""The time machine in a real browser: every control works, and shows what the state holds."""

from __future__ import annotations

import pytest
from pages import slide, texts

from course_lib.widgets.probability_shift import percent
from course_lib.widgets.time_machine import TimeMachine

PROMPTS = {"The capital of France is": " Paris", "What is the": ""}
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def widget(run):
    return TimeMachine.from_run(run, PROMPTS)


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_widgets, widget):
    state = {name: getattr(widget, name) for name in widget.book_state()}

    def make():
        return TimeMachine(**state)

    pages = {"light": [make], "dark": [make], "twice": [lambda: widget, lambda: widget]}
    return write_widgets(tmp_path_factory.mktemp("site"), pages)


@pytest.fixture
def root(open_page):
    return open_page("light").locator(".cw-time")


def at(root):
    return int(root.get_by_label("Moment of training").input_value())


def test_every_snapshot_shows_its_own_numbers_and_texts(root, widget):
    for i, step in enumerate(widget.steps):
        slide(root.get_by_label("Moment of training"), i)
        said = root.locator("p").first.text_content()
        assert (f"After {step} steps" if step else "Before training") in said
        assert f"held-out {widget.heldout[i]:.2f}" in said
        for name, shares in widget.facts.items():
            assert f"{name} {percent(shares[i])}" in said
        moment = widget.prompts[0]["moments"][i]
        greedy, sampled = texts(root.locator(".cw-words"))
        assert greedy == moment["greedy"] and sampled == moment["sampled"]
        values = texts(root.locator(".cw-time-bars .cw-value"))
        assert values == [percent(p) for _, p in moment["bars"]]
        assert (
            f"get {percent(moment['chance'])}" in root.locator(".cw-time-bars + p").text_content()
        )


def test_prompt_changes_what_is_written(root, widget):
    root.get_by_label("Beginning of a document").select_option("1")
    moment = widget.prompts[1]["moments"][at(root)]
    assert texts(root.locator(".cw-words"))[0] == moment["greedy"]
    assert root.locator(".cw-time-bars + p").text_content() == ""  # nothing is the right answer


def test_charts_have_a_point_for_every_snapshot_and_a_cursor(root, widget):
    n = len(widget.steps)
    loss, facts, _ = root.locator(".cw-time-chart svg").all()
    assert loss.locator("circle").count() == n
    assert facts.locator("circle").count() == n * len(widget.facts)

    def spot():
        return float(loss.locator(".cw-time-cursor").get_attribute("x1"))

    slide(root.get_by_label("Moment of training"), 0)
    first = spot()
    slide(root.get_by_label("Moment of training"), n - 1)
    assert spot() > first
    marked = loss.locator(".cw-time-now")
    assert float(marked.get_attribute("cx")) == pytest.approx(spot(), abs=0.1)


def test_the_map_draws_every_word_and_names_one_group(root, widget):
    slide(root.get_by_label("Moment of training"), len(widget.steps) - 1)
    assert root.locator(".cw-time-mark").count() == len(widget.words)
    for group in dict.fromkeys(group for _, group in widget.words):
        root.get_by_label("Name the").select_option(group)
        named = texts(root.locator(".cw-time-word"))
        assert sorted(named) == sorted(word for word, own in widget.words if own == group)
    # the order from left to right is that of the measured places
    xs = [float(m.get_attribute("x")) for m in root.locator(".cw-time-mark").all()]
    places = [x for x, _ in widget.places[-1]]
    rank = sorted(range(len(xs)), key=lambda i: places[i])
    assert [xs[i] for i in rank] == sorted(xs)


def test_tables_hold_what_the_charts_draw(root, widget):
    for summary in root.locator("summary").all():
        summary.click()
    history, places = root.locator(".cw-time-table table").all()
    rows = [texts(row.locator("th, td")) for row in history.locator("tbody tr").all()]
    assert [row[0] for row in rows] == [f"{step:,}" for step in widget.steps]
    assert [row[2] for row in rows] == [f"{loss:.2f}" for loss in widget.heldout]
    for k, shares in enumerate(widget.facts.values()):
        assert [row[3 + k] for row in rows] == list(map(percent, shares))
    spots = [texts(row.locator("th, td")) for row in places.locator("tbody tr").all()]
    assert [[word, group] for word, group, _, _ in spots] == widget.words
    x, y = (float(text.replace("−", "-")) for text in spots[0][2:])
    assert [x, y] == pytest.approx(widget.places[at(root)][0], abs=0.006)


def test_keyboard(root, widget):
    slider = root.get_by_label("Moment of training")
    slider.focus()
    before = at(root)
    slider.press("ArrowRight")
    assert at(root) == before + 1
    assert slider.get_attribute("aria-valuetext") == f"after {widget.steps[before + 1]} steps"
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "before training"


def test_without_motion_a_press_is_one_step(root, widget):
    button = root.get_by_role("button", name="Next moment")
    before = at(root)
    button.click()
    assert at(root) == before + 1
    root.page.wait_for_timeout(1200)
    assert at(root) == before + 1  # nothing moves by itself
    slide(root.get_by_label("Moment of training"), len(widget.steps) - 1)
    button.click()
    assert at(root) == 0


def test_play_runs_to_the_end_and_can_be_paused(visit, site_url, widget):
    one = visit(site_url)
    one.page.emulate_media(reduced_motion="no-preference")
    root = one.open("light.html").locator(".cw-time")
    last = len(widget.steps) - 1
    slide(root.get_by_label("Moment of training"), last - 2)
    root.get_by_role("button", name="Play").click()
    root.page.wait_for_timeout(1200)
    assert at(root) == last - 1
    root.get_by_role("button", name="Pause").click()
    root.page.wait_for_timeout(1200)
    assert at(root) == last - 1
    root.get_by_role("button", name="Play").click()
    root.get_by_role("button", name="Play").wait_for()  # it stops by itself
    assert at(root) == last
    assert one.problems == []


def test_one_object_shown_twice_stays_linked(open_page):
    page = open_page("twice")
    first, second = page.locator(".cw-time").all()
    slide(first.get_by_label("Moment of training"), 0)
    assert at(second) == 0


@pytest.mark.parametrize("name", ["light", "dark"])
def test_accessible_and_narrow(visit, site_url, name):
    from axe_playwright_python.sync_playwright import Axe

    one = visit(site_url, scheme=name, width=390)
    page = one.open(f"{name}.html")
    for summary in page.locator(".cw-time summary").all():
        summary.click()
    found = Axe().run(page, context=".cw-time").response["violations"]
    assert found == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
