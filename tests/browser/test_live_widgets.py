"""The widgets with live models, operated in a real browser, held against Python."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest
import torch
from pages import HOSTILE, in_page, slide, texts

from course_lib.atlas.prompts import Prompt
from course_lib.chat import TEMPLATES, render, supervised_targets
from course_lib.data import IGNORE_INDEX
from course_lib.evaluate import REPLY_TOKENS, document_ids, replies
from course_lib.generate import generate
from course_lib.runs import MODELS
from course_lib.tokenizer import BPETokenizer
from course_lib.widgets.mask_debugger import TALK, MaskDebugger
from course_lib.widgets.probability_shift import (
    ProbabilityShift,
    percent,
    prompt_record,
    show,
    visible,
)
from course_lib.widgets.sampling_playground import KNOBS, SamplingPlayground, distribution
from course_lib.widgets.three_way_chat import FIRST, SUGGESTIONS, ThreeWayChat, first_exchange
from course_lib.widgets.tokenizer_playground import TEXT, TokenizerPlayground
from course_lib.widgets.weights import dequantised

pytestmark = pytest.mark.browser
TYPED = Prompt("typed", "What is the capital of Norway?", None)


@pytest.fixture(scope="module")
def page_run(run):
    """As a Run, with the weights that the page runs."""
    models = {name: in_page(run.model(name).cpu()) for name in MODELS}
    scorer = run.reward_model().cpu()
    in_page(scorer.body)
    with torch.no_grad():
        scorer.head.weight.copy_(dequantised(scorer.head.weight))
    return SimpleNamespace(
        model=models.__getitem__,
        tokenizer=run.tokenizer,
        reward_model=lambda: scorer,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_widgets, run):
    makers = {
        "tokens": lambda: TokenizerPlayground(run),
        "sampling": lambda: SamplingPlayground(run),
        "chat": lambda: ThreeWayChat(run),
        "mask": lambda: MaskDebugger(run),
        "shift": lambda: ProbabilityShift.from_run(run, [Prompt("fact", FIRST, None)]),
    }
    pages = {name: [make] for name, make in makers.items()}
    pages |= {name: list(makers.values()) for name in ("all", "dark")}
    pages["twice"] = [makers["tokens"]] * 2
    return write_widgets(tmp_path_factory.mktemp("widgets"), pages, run)


def load(page, root=""):
    """Press the button that loads weights, and wait until the controls are there."""
    page.locator(f"{root} .cw-gate button").click()
    page.locator(f"{root} .cw-gate").wait_for(state="hidden")


# -- tokenizer playground -----------------------------------------------------------------------


def expect_tokens(page, tokenizer, text, n):
    """The chips, the table and the sums are Python's, with n merges."""
    part = BPETokenizer(tokenizer.merges[:n])
    ids = part.encode(text)
    page.wait_for_function(
        "n => document.querySelector('.cw-tok-sums').textContent.includes(` ${n} tokens`)",
        arg=f"{len(ids):,}",
    )
    rows = page.locator(".cw-tok-table tbody tr")
    assert texts(rows.locator("td:nth-child(3)")) == [str(i) for i in ids[:400]]
    assert texts(rows.locator("td:nth-child(4)")) == [
        part.vocab[i].hex(" ").upper() for i in ids[:400]
    ]
    for chip, i in zip(texts(page.locator(".cw-tok-chip")), ids, strict=False):
        try:
            assert chip.replace("⇥", "\t") == visible(part.vocab[i].decode())
        except UnicodeDecodeError:
            assert chip == f"⟨{part.vocab[i].hex(' ').upper()}⟩"
    assert f" {len(text.encode()):,} bytes" in page.locator(".cw-tok-sums").text_content()


def test_tokenizer_playground(open_page, run, origin):
    page, tokenizer = open_page("tokens", origin), run.tokenizer()
    most = len(tokenizer.merges)
    expect_tokens(page, tokenizer, TEXT, most)
    box, slider = page.locator("textarea"), page.locator("input[type=range]")
    for text in (HOSTILE, "", "a", "👩‍👩‍👧 e\u0301\t\n", "the capital " * 900):
        box.fill(text)
        expect_tokens(page, tokenizer, text, most)
    box.fill(TEXT)
    for n in (0, 1, 40, most):
        slide(slider, n)
        expect_tokens(page, tokenizer, TEXT, n)
    page.locator("input[type=number]").fill("7")
    expect_tokens(page, tokenizer, TEXT, 7)
    page.locator("input[type=number]").fill("99999999")
    expect_tokens(page, tokenizer, TEXT, most)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect_tokens(page, tokenizer, TEXT, most - 1)
    assert page.title() == "Widget"


def test_tree_of_merges(open_page, run):
    """The leaves of the tree spell the token, and each node names the merge that made it."""
    page, tokenizer = open_page("tokens"), run.tokenizer()
    ids = tokenizer.encode(TEXT)
    longest = max(range(len(ids)), key=lambda t: len(tokenizer.vocab[ids[t]]))
    page.locator(".cw-tok-chip").nth(longest).click()
    page.wait_for_function(
        "t => document.querySelectorAll('.cw-tok-chip')[t].ariaChecked === 'true'", arg=longest
    )
    tree = page.locator(".cw-tok-tree")
    leaves = [int(n) for n in re.findall(r"byte (\d+)", tree.text_content())]
    assert bytes(leaves) == tokenizer.vocab[ids[longest]]
    rank = int(re.search(r"merge ([\d,]+)", tree.text_content())[1].replace(",", "")) - 1
    assert b"".join(tokenizer.merges[rank]) == tokenizer.vocab[ids[longest]]
    for key, place in (("Home", 0), ("ArrowRight", 1), ("End", len(ids) - 1)):
        page.keyboard.press(key)
        page.wait_for_function(
            "t => document.activeElement.dataset.place === `${t}`", arg=place, timeout=5000
        )


def test_rapid_slider(open_page, run):
    page = open_page("tokens")
    page.locator("textarea").fill("The capital of Portugal is Lisbon. " * 280)
    most = len(run.tokenizer().merges)
    start = time.monotonic()
    page.locator("input[type=range]").evaluate(
        "(s, most) => { for (let i = 0; i < 300; i++) { s.value = (i * 37) % most;"
        " s.dispatchEvent(new Event('input', {bubbles: true})); } }",
        most,
    )
    expect_tokens(
        page, run.tokenizer(), "The capital of Portugal is Lisbon. " * 280, 299 * 37 % most
    )
    assert time.monotonic() - start < 10


def test_two_views_stay_linked(open_page):
    page = open_page("twice")
    page.locator("textarea").first.fill("linked")
    page.wait_for_function("document.querySelectorAll('textarea')[1].value === 'linked'")


# -- mask debugger ------------------------------------------------------------------------------


def expect_mask(page, tokenizer, turns, template):
    out = render(turns, tokenizer, template)
    label = f"{len(out.ids)} tokens, of which {sum(out.mask)} are learned."
    page.wait_for_function(
        "t => document.querySelector('.cw-mask [role=status]').textContent.startsWith(t)",
        arg=label,
    )
    rows = page.locator(".cw-mask-table tbody tr")
    assert texts(rows.locator("td:nth-child(3)")) == [str(i) for i in out.ids[:600]]
    assert texts(rows.locator("td:nth-child(6)")) == [str(int(m)) for m in out.mask[:600]]
    targets = [*supervised_targets(out.ids, out.mask), IGNORE_INDEX]
    special = tokenizer.special_ids.values()

    def word(i):
        return show(tokenizer.decode([i])) if i in special else visible(tokenizer.decode([i]))

    expected = ["ignored" if t == IGNORE_INDEX else word(t) for t in targets[:600]]
    assert texts(rows.locator("td:nth-child(7)")) == expected
    learned = page.locator(".cw-mask-chip.cw-mask-learned").count()
    assert learned == sum(out.mask[:600])


def test_mask_debugger(open_page, run, origin):
    page, tokenizer = open_page("mask", origin), run.tokenizer()
    expect_mask(page, tokenizer, TALK, "chatml")
    long = [("user", "x " * 5000), ("assistant", "No.")]
    for talk in ([("system", "Be kind."), ("user", HOSTILE), ("assistant", HOSTILE)], long, TALK):
        page.locator("textarea").fill("\n".join(f"{who}: {words}" for who, words in talk))
        for template in TEMPLATES:
            page.locator("select").select_option(template)
            expect_mask(page, tokenizer, talk, template)
    page.locator("textarea").fill('[{"role": "user", "content": "a\\nb"}]')
    page.locator("select").select_option("chatml")
    expect_mask(page, tokenizer, [("user", "a\nb")], "chatml")
    chips = page.locator(".cw-mask-chip")
    chips.first.click()
    page.keyboard.press("End")
    sentence = page.locator(".cw-mask-sentence")
    assert sentence.text_content().startswith(f"Token {chips.count()} of {chips.count()}")
    assert page.title() == "Widget"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The conversation is empty"),
        ("Hello", "Nobody says"),
        ("user: a\nuser: b", "are both by the user"),
        ("assistant: a", "The assistant speaks first"),
        ("user: a\nsystem: b", "The system turn must come first"),
        ("[1, 2", "no JSON list"),
        ('[{"role": "bot", "content": "a"}]', "Unknown role “bot”"),
    ],
)
def test_mask_debugger_says_what_is_wrong(open_page, text, message):
    page = open_page("mask")
    page.locator("textarea").fill(text)
    assert message in page.locator(".cw-mask [role=status]").text_content()
    assert page.locator(".cw-mask-chip").count() == 0
    page.locator("textarea").fill("user: a")
    assert page.locator(".cw-mask-chip").count() > 3


# -- sampling playground ------------------------------------------------------------------------


def shares(cells):
    """Percentages as numbers; "cut" is None."""
    return [None if t == "cut" else float(t.lstrip("<").split("\u00a0")[0]) for t in cells]


def expect_distribution(page, expected):
    rows = page.locator(".cw-sam-chart tbody tr")
    assert texts(rows.locator("th")) == [visible(t) for t, _, _ in expected["rows"]]
    for column in (1, 2):
        got = shares(texts(rows.locator(f"td:nth-child({column + 1}) .cw-value")))
        for share, row in zip(got, expected["rows"], strict=True):
            p = row[column]
            assert (share is None) == (p is None)
            assert share is None or share == pytest.approx(100 * p, abs=max(0.6, 5 * p))
    sentence = page.locator(".cw-sam > p[aria-live]").text_content()
    assert f"{expected['kept']:,} of {expected['size']:,} tokens" in sentence


def set_knobs(page, knobs):
    for slider, name in zip(page.locator(".cw-sam-knobs input").all(), KNOBS, strict=True):
        slide(slider, knobs[name])


def test_sampling_playground(open_page, run, page_run, origin):
    page = open_page("sampling", origin)
    expect_distribution(page, distribution(run, "base", "What is the capital of", KNOBS))
    load(page)
    expect_distribution(page, distribution(page_run, "base", "What is the capital of", KNOBS))
    for change in (
        {"temperature": 0.0},
        {"temperature": 1.7, "top_p": 1.0, "top_k": 7},
        {"top_p": 1.0, "min_p": 0.3},
        {"repetition_penalty": 1.8, "top_p": 0.5},
    ):
        set_knobs(page, KNOBS | change)
        expected = distribution(page_run, "base", "What is the capital of", KNOBS | change)
        expect_distribution(page, expected)
    set_knobs(page, KNOBS)
    page.locator("textarea").fill(HOSTILE)
    page.wait_for_function("document.querySelector('.cw-sam > p').textContent === ''")
    page.wait_for_function("document.querySelector('.cw-sam bdi').textContent.includes('title')")
    expect_distribution(page, distribution(page_run, "base", HOSTILE, KNOBS))
    page.locator("select").select_option("sft")
    page.wait_for_timeout(300)
    expect_distribution(page, distribution(page_run, "sft", HOSTILE, KNOBS))
    assert page.title() == "Widget"


def test_written_text(open_page, page_run):
    """Greedy text is PyTorch's; a token shows its own distribution; seeds repeat and differ."""
    page = open_page("sampling")
    load(page)
    set_knobs(page, KNOBS | {"temperature": 0.0})
    page.get_by_role("button", name="Write 40").click()
    status = page.locator(".cw-sam-status")
    status.get_by_text("Choose a token").wait_for()
    tokenizer, model = page_run.tokenizer(), page_run.model("base")
    ids = document_ids(Prompt("typed", "What is the capital of", None), tokenizer)
    stop = set(tokenizer.special_ids.values()) - {tokenizer.special_ids["<|im_start|>"]}
    [expected] = generate(model, [ids], 40, stop)
    chips = page.locator(".cw-sam-chip")
    assert texts(chips) == [visible(show(tokenizer.decode([i]))) for i in expected.ids]
    chips.nth(3).click()
    so_far = "What is the capital of" + tokenizer.decode(expected.ids[:3])
    expect_distribution(page, distribution(page_run, "base", so_far, KNOBS | {"temperature": 0.0}))
    page.keyboard.press("ArrowRight")
    assert chips.nth(4).get_attribute("aria-checked") == "true"
    set_knobs(page, KNOBS | {"temperature": 2.0, "top_p": 1.0})
    written = []
    for button in ("Write 40", "Write 40", "Another seed"):
        page.get_by_role("button", name=button).click()
        status.get_by_text("Choose a token").wait_for()
        written.append(texts(chips))
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize("text", ["word " * 2000, "🦊" * 5000], ids=["words", "emoji"])
def test_text_that_is_too_long(open_page, text):
    """10,000 characters: the reader is told, the last picture stays, and it goes on working."""
    page = open_page("sampling")
    load(page)
    page.locator("textarea").fill(text)
    page.locator(".cw-sam-status").get_by_text("reads at most").wait_for()
    assert page.locator(".cw-sam-chart tbody tr").count() == 12
    page.locator("textarea").fill("")
    page.locator(".cw-sam-status").get_by_text("reads at most").wait_for(state="detached")


# -- three-way chat -----------------------------------------------------------------------------


def send(page, text, n):
    """Send a message and wait for the n-th exchange."""
    page.locator(".cw-chat textarea").fill(text)
    page.get_by_role("button", name="Send").click()
    page.wait_for_function(
        "n => !document.querySelector('.cw-chat-form [type=submit]').disabled &&"
        " document.querySelectorAll('.cw-chat-log')[0].children.length === 2 * n",
        arg=n,
    )


def said(page, name):
    """What a model said, and the notes under it, reply by reply."""
    column = page.locator(".cw-chat-column").nth(MODELS.index(name))
    words = texts(column.locator(".cw-assistant .cw-words"))
    return ["" if text == "⟨nothing⟩" else text for text in words]


def test_chat(open_page, run, page_run, origin):
    page = open_page("chat", origin)
    first = first_exchange(run, FIRST)
    for name in MODELS:
        assert said(page, name) == [first["replies"][name]["text"]]
    load(page)
    page.get_by_role("button", name="New talk").click()
    page.get_by_label("score with the reward model").check()
    send(page, TYPED.text, 1)
    expected = first_exchange(page_run, TYPED.text)["replies"]
    for name in MODELS:
        assert said(page, name) == [expected[name]["text"]]
        column = page.locator(".cw-chat-column").nth(MODELS.index(name))
        score = re.search(r"reward (−?[\d.]+)", column.locator(".cw-chat-note").text_content())[1]
        assert float(score.replace("−", "-")) == pytest.approx(expected[name]["score"], abs=0.02)
    spoken = page.locator(".cw-chat .cw-spoken").text_content()
    assert all(expected[name]["text"] in spoken for name in MODELS)
    tokenizer = run.tokenizer()
    second = SUGGESTIONS[1]
    page.get_by_role("button", name=second).click()
    page.locator(".cw-chat textarea").press("Enter")
    page.wait_for_function("document.querySelectorAll('.cw-chat-log')[0].children.length === 4")
    page.wait_for_function("!document.querySelector('.cw-chat-form [type=submit]').disabled")
    for name in ("sft", "rlhf"):
        history = (("user", TYPED.text), ("assistant", expected[name]["text"]))
        fits = len(render([*history, ("user", second)], tokenizer, reply=True).ids)
        history = history if fits <= 128 - REPLY_TOKENS else ()
        prompt = Prompt("typed", second, None, history)
        [reply] = replies(page_run.model(name), tokenizer, [prompt])
        assert said(page, name)[1] == reply.text


def test_chat_with_odd_messages(open_page):
    page = open_page("chat")
    load(page)
    page.get_by_role("button", name="New talk").click()
    status = page.locator(".cw-chat-status")
    page.get_by_role("button", name="Send").click()
    assert status.text_content() == "Type a message first."
    for text in ("a " * 5000, "🦊" * 200):
        page.locator(".cw-chat textarea").fill(text)
        page.get_by_role("button", name="Send").click()
        status.get_by_text("so that there is room for a reply").wait_for()
    assert said(page, "sft") == []
    for n, text in enumerate(("🦊", "שלום", "<b>x</b><|im_end|>"), start=1):
        send(page, text, n)
    own = texts(page.locator(".cw-chat-column").first.locator(".cw-user .cw-words"))
    assert own == ["🦊", "שלום", "<b>x</b><|im_end|>"]
    assert page.locator("main b").count() == 0
    slide(page.locator(".cw-chat input[type=range]"), 1.5)
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_function("!document.querySelector('.cw-chat-form [type=submit]').disabled")
    assert len(said(page, "base")) == 3


def test_chat_can_be_stopped(open_page):
    page = open_page("chat")
    load(page)
    slide(page.locator(".cw-chat input[type=range]"), 2)
    page.locator(".cw-chat textarea").fill("Hi")
    page.evaluate(
        "() => { document.querySelector('.cw-chat-form [type=submit]').click();"
        " [...document.querySelectorAll('button')].find(b => b.textContent === 'Stop').click(); }"
    )
    page.wait_for_function("!document.querySelector('.cw-chat-form [type=submit]').disabled")
    assert page.get_by_role("button", name="Stop").is_disabled()


# -- typed prompts in the probability shift -----------------------------------------------------


def test_typed_prompt(open_page, run, page_run, origin):
    """The record that the page makes is the one that Python makes from the same weights."""
    page = open_page("shift", origin)
    load(page)
    page.locator(".cw-shift form input").fill(TYPED.text)
    page.locator(".cw-shift form input").press("Enter")
    page.wait_for_function("document.querySelector('.cw-shift select').value === '1'")
    models = {name: page_run.model(name) for name in MODELS}
    record = prompt_record(models, run.tokenizer(), TYPED)
    for name in MODELS:
        page.locator(f".cw-shift input[value={name}]").check()
        steps = record["answers"][name]["steps"]
        chips = page.locator(".cw-shift-chip .cw-token")
        assert texts(chips) == [visible(step["token"]) for step in steps]
        for t in (0, len(steps) - 1):
            page.locator(".cw-shift-chip").nth(t).click()
            rows = page.locator(".cw-shift-chart tbody tr")
            got = shares(texts(rows.locator(".cw-value")))
            tokens = texts(rows.locator("th .cw-token"))
            assert tokens[0] == visible(steps[t]["bars"][0][0])
            for text, *probs in steps[t]["bars"]:
                if visible(text) in tokens:
                    at = 3 * tokens.index(visible(text))
                    assert got[at : at + 3] == pytest.approx([100 * p for p in probs], abs=0.7)
            sentence = page.locator(".cw-shift-sentence").text_content()
            assert f"SFT has moved {percent(steps[t]['moved'][0])}" in sentence
    for text in ("", "x " * 5000):
        page.locator(".cw-shift form input").fill(text)
        page.get_by_role("button", name="Measure").click()
    page.locator(".cw-shift [role=status]", has_text="reads at most").wait_for()
    page.locator(".cw-shift form input").fill(HOSTILE)
    page.get_by_role("button", name="Measure").click()
    page.wait_for_function("document.querySelector('.cw-shift select').value === '2'")
    assert page.locator(".cw-shift .cw-user .cw-words").text_content() == HOSTILE
    assert page.title() == "Widget"


# -- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_looks(visit, site_url, theme, width):
    """No sideways scrolling and no axe violation: before the weights, after, tables open."""
    from axe_playwright_python.sync_playwright import Axe

    seen = visit(site_url, scheme=theme, width=width)
    page = seen.open("dark.html" if theme == "dark" else "all.html")
    for live in (False, True):
        if live:
            for root in (".cw-sam", ".cw-chat", ".cw-shift"):
                load(page, root)
            page.get_by_role("button", name="Write 40").click()
            page.locator(".cw-sam-status").get_by_text("Choose a token").wait_for()
            page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.foreign == []
        assert seen.problems == []
        violations = Axe().run(page).response["violations"]
        assert [f"{v['id']}: {n['html'][:200]}" for v in violations for n in v["nodes"]] == []


def test_without_scripts_the_page_reads(visit, site_url):
    page = visit(site_url, java_script_enabled=False).page
    page.goto(site_url + "all.html")
    fallbacks = page.locator(".course-widget-fallback")
    assert fallbacks.count() == 5
    assert all(f.locator("td, p").count() > 3 for f in fallbacks.all())


def test_widgets_share_the_weights(open_page, run):
    """What one widget has loaded is there for the next: one file, one worker."""
    page = open_page("all")
    load(page, ".cw-chat")
    load(page, ".cw-sam")
    load(page, ".cw-shift")
    names = page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    files = [name.rsplit("/", 1)[1] for name in names if name.endswith(".bin")]
    assert sorted(files) == ["base.bin", "rlhf.bin", "sft.bin"]


@pytest.mark.parametrize("damage", ["short", "gone"])
@pytest.mark.parametrize("from_disk", [False, True])
def test_weights_that_do_not_load(
    visit, write_widgets, tmp_path, run, serve_folder, damage, from_disk
):
    """The widget says so and keeps what it shows; the next press may work."""
    makers = [lambda: SamplingPlayground(run), lambda: ThreeWayChat(run)]
    folder = write_widgets(tmp_path, {"page": makers}, run)
    path = folder / "_static" / "models" / ("base.js" if from_disk else "base.bin")
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-2000])
    page = visit(folder.as_uri() + "/" if from_disk else serve_folder(folder)).open("page.html")
    for root in (".cw-sam", ".cw-chat"):
        page.locator(f"{root} .cw-gate button").click()
        page.locator(f"{root} .cw-gate-status.cw-warn").wait_for()
        assert "weights of" in page.locator(f"{root} .cw-gate-status").text_content()
    assert page.locator(".cw-sam-chart tbody tr").count() == 12
    assert said(page, "rlhf")
    path.write_bytes(whole)
    load(page, ".cw-sam")
    load(page, ".cw-chat")


def test_a_page_without_models_says_so(visit, write_widgets, tmp_path, run, serve_folder):
    makers = [lambda: SamplingPlayground(run), lambda: TokenizerPlayground(run)]
    folder = write_widgets(tmp_path, {"page": makers})
    page = visit(serve_folder(folder)).open("page.html")
    assert "missing from this page" in page.locator(".cw-sam [role=status]").first.text_content()
    assert page.locator(".cw-sam-chart tbody tr").count() == 12
    assert page.locator(".course-widget-error").count() == 1
    assert page.locator(".course-widget-fallback table").count() == 1


@pytest.mark.parametrize("from_disk", [False, True])
def test_in_the_book(visit, book_dir, book_url, from_disk):
    """On every page with live models: no weights at first, then each gate opens."""
    pages = [p for p in sorted(book_dir.rglob("*.html")) if "models/live.js" in p.read_text()]
    if not pages:
        pytest.skip("the built book has no page with live models")
    seen = visit(book_dir.as_uri() + "/" if from_disk else book_url)
    for path in pages:
        seen.requests.clear()
        page = seen.open(path.relative_to(book_dir).as_posix())
        assert [u for u in seen.requests if "/models/" in u and "live.js" not in u] == []
        for gate in page.locator(".cw-gate").all():
            gate.locator("button").click()
            gate.wait_for(state="hidden")
    assert seen.foreign == []
    assert seen.problems == []
