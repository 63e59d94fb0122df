"""The probability shift widget, operated in a real browser: alone on a page, and on L11."""

from __future__ import annotations

import json
import random

import pytest

from course_lib.widgets.probability_shift import ProbabilityShift, largest_shift, percent, visible

MODELS = ("base", "sft", "rlhf")
L11 = "book/L11_Fine_tuning_and_Chat.html"
pytestmark = pytest.mark.browser

SCRIPT = "</script><script>document.title = 'broken'</script><img src=x onerror=alert(1)>"
WORDS = ["The", " capital", "\n", "  ", "<b>", "</script>", " 🦊", " שלום", "<|im_end|>", "\ufffd"]
PROMPTS = [
    ("fact", "What is the capital of France?", []),
    ("harmless", SCRIPT, []),
    ("followup", "מה שלומך? 🦊 <|im_end|>", [["user", "Hi <i>"], ["assistant", "Hello"]]),
    ("haiku", "a" * 300, []),
]


def made_up_path(rng, length, ended):
    """Test data in the shape of a record; what models say is tested in test_widgets.py."""
    steps = []
    for t in range(length):
        tokens = rng.sample(WORDS, 4)
        if ended and t == length - 1:
            tokens[2] = "⟨end of turn⟩"
        bars = [[x, *(round(rng.random() ** 3, 4) for _ in MODELS)] for x in tokens]
        moved, kl = (
            [round(rng.random(), 4) for _ in "ab"],
            [round(9 * rng.random(), 4) for _ in "ab"],
        )
        steps.append({"token": tokens[2], "bars": bars, "chosen": 2, "moved": moved, "kl": kl})
    return {"ended": ended, "steps": steps}


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(0)
    lengths = {"base": (40, False), "sft": (7, True), "rlhf": (18, True)}
    out = []
    for kind, text, history in PROMPTS:
        answers = {name: made_up_path(rng, *lengths[name]) for name in MODELS}
        out.append({"kind": kind, "text": text, "history": history, "answers": answers})
    return [*out, {**out[0], "answers": {m: made_up_path(rng, 1, True) for m in MODELS}}]


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_widgets, prompts):
    def shift():
        return ProbabilityShift(prompts)

    pages = {"light": [shift], "dark": [shift], "twice": [shift, shift]}
    return write_widgets(tmp_path_factory.mktemp("site"), pages)


class Shift:
    """One view of the widget on a page: operates it, and compares what it shows with the state."""

    def __init__(self, page, prompts, nth=0):
        self.page, self.prompts = page, prompts
        self.root = page.locator(".cw-shift").nth(nth)
        self.select = self.root.locator("select")
        self.slider = self.root.locator("input[type=range]")
        self.chips = self.root.locator(".cw-shift-chip")

    def button(self, name):
        return self.root.get_by_role("button", name=name)

    def press(self, name):
        self.button(name).click(force=True)  # also where it is marked as disabled

    def follow(self, name):
        self.root.locator(f"input[type=radio][value={name}]").check()

    def slide(self, position):
        self.slider.evaluate(
            "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }",
            position,
        )

    @property
    def choice(self):
        index = int(self.select.input_value())
        name = self.root.locator("input[type=radio]:checked").get_attribute("value")
        return index, name, int(self.slider.input_value())

    def expect(self, index, name, position):
        """The view is at this token, and every number and bar is the state's."""
        assert self.choice == (index, name, position)
        steps = self.prompts[index]["answers"][name]["steps"]
        step = steps[position]
        checked = self.root.locator('.cw-shift-chip[aria-checked="true"]')
        assert self.chips.count() == len(steps)
        assert checked.count() == 1
        assert checked.evaluate("c => [...c.parentNode.children].indexOf(c)") == position
        rows = self.root.locator(".cw-shift-chart tbody tr")
        tokens = rows.locator("th .cw-token").all_text_contents()
        assert tokens == [visible(row[0]) for row in step["bars"]]
        values = rows.locator(".cw-value").all_text_contents()
        assert values == [percent(p) for row in step["bars"] for p in row[1:]]
        widths = rows.locator(".cw-bar").evaluate_all(
            "bars => bars.map(b => b.firstChild.getBoundingClientRect().width"
            " / b.getBoundingClientRect().width)"
        )
        assert widths == pytest.approx([p for row in step["bars"] for p in row[1:]], abs=0.02)
        written = self.root.locator(".cw-shift-chosen th .cw-token").all_text_contents()
        assert written == [visible(step["token"])]
        sentence = self.root.locator(".cw-shift-sentence").text_content()
        base, sft, rlhf = (percent(p) for p in step["bars"][step["chosen"]][1:])
        said = f"the base model gives {visible(step['token'])} {base}, SFT {sft}, RLHF {rlhf}."
        assert said in sentence
        assert f"Token {position + 1} of {len(steps)}." in sentence
        assert f"SFT has moved {percent(step['moved'][0])}" in sentence
        assert f"RLHF has moved {percent(step['moved'][1])}" in sentence


def operate(shift):
    """Select, radio buttons, chips, buttons, slider and keys: each does what it says."""
    answers = [p["answers"] for p in shift.prompts]
    index, name, position = shift.choice
    shift.expect(index, name, position)
    last = len(shift.prompts) - 2
    shift.select.select_option(str(last))
    shift.expect(last, name, 0)
    assert shift.button("Previous").get_attribute("aria-disabled") == "true"
    shift.press("Previous")
    shift.expect(last, name, 0)
    shift.press("Next")
    shift.expect(last, name, 1)
    for who in ("base", "sft", "rlhf"):
        shift.follow(who)
        shift.expect(last, who, 0)
    end = len(answers[last]["rlhf"]["steps"]) - 1
    shift.slide(end)
    shift.expect(last, "rlhf", end)
    shift.press("Next")
    shift.expect(last, "rlhf", end)
    shift.press("Largest shift")
    shift.expect(last, "rlhf", largest_shift(answers[last]["rlhf"]["steps"]))
    shift.chips.nth(1).click()
    shift.expect(last, "rlhf", 1)
    for key, expected in (("ArrowRight", 2), ("ArrowLeft", 1), ("End", end), ("Home", 0)):
        shift.page.keyboard.press(key)
        shift.expect(last, "rlhf", expected)
        focused = shift.page.evaluate("document.activeElement.getAttribute('aria-checked')")
        assert focused == "true", "the focus follows the token"
    shift.button("Next").focus()
    shift.page.keyboard.press("ArrowRight")
    shift.expect(last, "rlhf", 1)
    shift.slider.focus()
    shift.page.keyboard.press("ArrowRight")
    shift.expect(last, "rlhf", 2)


def assert_quiet(seen):
    assert seen.foreign == []
    assert seen.problems == []


def test_every_control(visit, origin, prompts):
    seen = visit(origin)
    shift = Shift(seen.open("light.html"), prompts)
    first = prompts[0]["answers"]["rlhf"]["steps"]
    shift.expect(0, "rlhf", largest_shift(first))
    operate(shift)
    assert_quiet(seen)


def test_hostile_text_is_text(visit, site_url, prompts):
    seen = visit(site_url)
    page = seen.open("light.html")
    shift = Shift(page, prompts)
    for index, (_, text, history) in enumerate(PROMPTS):
        shift.select.select_option(str(index))
        words = shift.root.locator(".cw-words").all_text_contents()
        assert words == [*(x for _, x in history), text]
        for who in MODELS:
            shift.follow(who)
            steps = prompts[index]["answers"][who]["steps"]
            shown = shift.chips.locator(".cw-token").all_text_contents()
            assert shown == [visible(step["token"]) for step in steps]
    assert page.title() == "Widget"
    assert page.locator("main img, main b").count() == 0
    assert_quiet(seen)


def test_an_answer_of_one_token(visit, site_url, prompts):
    shift = Shift(visit(site_url).open("light.html"), prompts)
    shift.select.select_option(str(len(prompts) - 1))
    for name in ("Next", "Previous", "Largest shift"):
        shift.press(name)
        shift.expect(len(prompts) - 1, "rlhf", 0)


def test_rapid_slider(visit, site_url, prompts):
    seen = visit(site_url)
    shift = Shift(seen.open("light.html"), prompts)
    shift.follow("base")
    shift.slider.evaluate(
        "s => { for (let i = 0; i < 400; i++) { s.value = (i * 7) % 40;"
        " s.dispatchEvent(new Event('input')); } }"
    )
    shift.expect(0, "base", (399 * 7) % 40)
    assert_quiet(seen)


def test_two_views_stay_linked(visit, site_url, prompts):
    seen = visit(site_url)
    page = seen.open("twice.html")
    one, two = Shift(page, prompts, 0), Shift(page, prompts, 1)
    one.select.select_option("2")
    one.follow("sft")
    one.slide(3)
    two.expect(2, "sft", 3)
    two.press("Next")
    one.expect(2, "sft", 4)
    assert_quiet(seen)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_looks(visit, site_url, prompts, theme, width):
    """No sideways scrolling with any prompt, no axe violation, data table open or not."""
    from axe_playwright_python.sync_playwright import Axe

    seen = visit(site_url, scheme=theme, width=width)
    page = seen.open(f"{theme}.html")
    shift = Shift(page, prompts)
    shift.root.locator("summary").click()
    assert shift.root.locator("details tbody tr").count() == len(
        prompts[0]["answers"]["rlhf"]["steps"]
    )
    for index in range(len(prompts)):
        shift.select.select_option(str(index))
        for who in MODELS:
            shift.follow(who)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert_quiet(seen)
    shift.select.select_option("2")
    violations = Axe().run(page).response["violations"]
    assert [f"{v['id']}: {n['html'][:200]}" for v in violations for n in v["nodes"]] == []


@pytest.mark.parametrize("from_disk", [False, True])
def test_on_l11(visit, book_dir, book_url, from_disk):
    """The real widget, with what the book's own run measured."""
    if not (book_dir / L11).is_file():
        pytest.skip(f"the built book has no {L11}")
    seen = visit(book_dir.as_uri() + "/" if from_disk else book_url)
    page = seen.open(L11)
    host = page.locator('.course-widget[data-widget="probability_shift"]')
    state = json.loads(host.locator('script[type="application/json"]').first.text_content())
    assert len(state["prompts"]) >= 10
    operate(Shift(page, state["prompts"]))
    assert_quiet(seen)
