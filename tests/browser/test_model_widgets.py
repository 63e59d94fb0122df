"""The widgets about the inside of the model, operated in a real browser, held against Python."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pages import HOSTILE, in_page, slide, texts

from course_lib.errors import CourseError
from course_lib.sizing import parameters
from course_lib.widgets.attention_explorer import TEXT, AttentionExplorer, heads_of, strongest
from course_lib.widgets.head_gallery import HeadGallery, next_probs, switched
from course_lib.widgets.logit_lens import LogitLens, anatomy, depth_name, lens
from course_lib.widgets.mask_stepper import RULES, MaskStepper, make_mask, steps
from course_lib.widgets.probability_shift import percent, visible
from course_lib.widgets.reading import head_writes, tokens_of, without_heads

pytestmark = pytest.mark.browser
OTHER = "The river of Ghana flows to the sea."
WIDGETS = {
    "att": AttentionExplorer,
    "step": MaskStepper,
    "gal": HeadGallery,
    "lens": LogitLens,
}


@pytest.fixture(scope="module")
def page_run(run):
    """As a Run, with the weights of the base model that the page runs."""
    model = in_page(run.model("base").cpu())
    return SimpleNamespace(
        model={"base": model}.__getitem__, tokenizer=run.tokenizer, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_widgets, run):
    pages = {short: [lambda cls=cls: cls(run)] for short, cls in WIDGETS.items()}
    every = [make for makers in pages.values() for make in makers]
    pages |= {"all": every, "dark": every}
    return write_widgets(tmp_path_factory.mktemp("inside"), pages, run)


def load(page, short):
    """Make a widget live: press its button, unless another widget has loaded the model."""
    button = page.locator(f".cw-{short} .cw-gate button")
    if button.is_visible():
        button.click()
    page.locator(f".cw-{short} .cw-gate").wait_for(state="hidden")
    page.wait_for_function("s => !document.querySelector(`.cw-${s} textarea`).disabled", arg=short)


def shown(tokens):
    return [visible(token) for token in tokens]


def number(text):
    return float(text.lstrip("<").split("\u00a0")[0].replace("−", "-"))


def near(percentages, values):
    """Percentages as the page writes them (small ones with a decimal), against shares."""
    for text, value in zip(percentages, values, strict=True):
        assert number(text) == pytest.approx(100 * value, abs=0.11 if value < 0.09 else 0.6)


def wait_for_text(page, selector, text):
    page.wait_for_function(
        "([s, t]) => document.querySelector(s).textContent.includes(t)", arg=[selector, text]
    )


# -- what Python measures -----------------------------------------------------------------------


@torch.no_grad()
def test_head_writes_add_up(run):
    """A block leaves the stream before it, what its heads write, and what its MLP adds."""
    model = run.model("base").cpu()
    ids, _ = tokens_of(run, TEXT)
    trace, writes = head_writes(model, ids)
    for layer, block in enumerate(model.blocks):
        middle = trace.residuals[layer][0] + writes[layer].sum(0)
        after = middle + block.mlp(block.norm2(middle))
        torch.testing.assert_close(after, trace.residuals[layer + 1][0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_head_that_is_off_writes_nothing(run):
    """The same as its columns of the output matrix set to zero; afterwards the model is whole."""
    model, cut = run.model("base").cpu(), run.model("base").cpu()
    ids, _ = tokens_of(run, TEXT)
    d = model.config.d_head
    last = (model.config.n_layers - 1, model.config.n_heads - 1)
    for layer, head in (last, (0, 0)):
        cut.blocks[layer].attention.out.weight[:, head * d : (head + 1) * d] = 0
    whole = next_probs(model, ids, [])
    off = next_probs(model, ids, [last, (0, 0)])
    torch.testing.assert_close(off, next_probs(cut, ids, []))
    assert (off - whole).abs().max() > 1e-4
    torch.testing.assert_close(next_probs(model, ids, []), whole)
    _, writes = head_writes(model, ids)
    with without_heads(model, [last]):
        _, silent = head_writes(model, ids)
    assert writes[last].abs().max() > 0
    assert silent[last].abs().max() == 0


def test_masks(run):
    square = torch.ones(5, 5, dtype=torch.bool)
    assert torch.equal(make_mask("all", 3, [], 5), square.tril())
    assert torch.equal(make_mask("window", 1, [], 5), torch.eye(5, dtype=torch.bool))
    assert make_mask("window", 2, [], 5).sum(1).tolist() == [1, 2, 2, 2, 2]
    assert make_mask("future", 3, [], 5).all()
    turned = make_mask("all", 3, [[0, 0], [2, 4], [9, 0]], 5) != square.tril()
    assert turned.nonzero().tolist() == [[0, 0], [2, 4]]
    blind = steps(run, TEXT, "all", 3, [[0, 0]])  # a row with nothing to see
    assert all(0 <= share <= 1 for _, *pair in blind[0]["rows"] for share in pair)


def test_anatomy_counts_every_parameter(run):
    model = run.model("base")
    rows, by_component = {p["title"]: p for p in anatomy(model)}, parameters(model.config)
    assert sum(p["parameters"] for p in rows.values()) == model.n_parameters
    assert rows["token embedding"]["parameters"] == by_component["embedding"]
    mlp = rows["MLP, up"]["parameters"] + rows["MLP, down"]["parameters"]
    assert mlp == by_component["mlp"]
    assert sum(p["share"] for p in rows.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: AttentionExplorer(run, head=99), "head=99: choose a number from 0 to"),
        (lambda run: MaskStepper(run, rule="none"), "rule is 'none': use one of"),
        (lambda run: MaskStepper(run, window=0), "window is 0"),
        (lambda run: MaskStepper(run, step=99), "step is 99: choose one from 0 to"),
        (lambda run: HeadGallery(run, off=[[9, 0]]), r"there is no head \[9, 0\]"),
        (lambda run: LogitLens(run, text="x " * 5000), "do not fit the context"),
    ],
)
def test_bad_arguments(run, make, message):
    with pytest.raises(CourseError, match=message):
        make(run)


@pytest.mark.parametrize("text", ["", HOSTILE])
@pytest.mark.parametrize("short", WIDGETS)
def test_odd_text_in_the_page_itself(run, short, text):
    """Neither the state nor the table for readers without scripts ends or makes an element."""
    page = WIDGETS[short](run, text=text).book_html()
    assert "<b>" not in page
    assert page.count("</script>") == 1
    assert ("&lt;b&gt;" in page) == (text != "")


# -- attention explorer -------------------------------------------------------------------------


def expect_look(page, expected, layer, head, at):
    tokens = expected["tokens"]
    wait_for_text(page, ".cw-att-sentence", f"From token {at + 1}, “{visible(tokens[at])}”, head")
    wait_for_text(page, ".cw-att-sentence", f"head {head} of layer {layer} looks")
    assert texts(page.locator(".cw-att-chip")) == shown(tokens)
    looks, takes = (page.locator(".cw-att-chart").nth(i).locator("tbody tr") for i in (0, 1))
    assert texts(looks.locator("th")) == shown(tokens[: at + 1])
    near(texts(looks.locator(".cw-value")), expected["attention"][layer][head][at])
    taken = expected["takes"][layer][head][at]
    assert texts(takes.locator("th"))[:1] == shown([taken[0][0]])
    got = [number(t) for t in texts(takes.locator(".cw-value"))]
    assert got == pytest.approx([value for _, value in taken], abs=0.02)


def test_attention_explorer(open_page, run, page_run, origin):
    page = open_page("att", origin)
    measured = heads_of(run, TEXT)
    layer, head = strongest(measured["attention"])
    last = len(measured["tokens"]) - 1
    expect_look(page, measured, layer, head, last)
    page.get_by_label("Head").select_option("0")
    expect_look(page, measured, layer, 0, last)
    load(page, "att")
    expect_look(page, heads_of(page_run, TEXT), layer, 0, last)
    page.locator(".cw-att textarea").fill(OTHER)
    expected = heads_of(page_run, OTHER)
    last = len(expected["tokens"]) - 1
    expect_look(page, expected, layer, 0, last)
    page.get_by_label("Layer").select_option("0")
    expect_look(page, expected, 0, 0, last)
    chips = page.locator(".cw-att-chip")
    chips.nth(3).click()
    expect_look(page, expected, 0, 0, 3)
    for key, at in (("ArrowRight", 4), ("Home", 0), ("ArrowLeft", 0), ("End", last)):
        page.keyboard.press(key)
        expect_look(page, expected, 0, 0, at)
        assert chips.nth(at).evaluate("chip => chip === document.activeElement")
        assert chips.nth(at).get_attribute("aria-checked") == "true"


def test_pointing_shows_a_token_while_it_lasts(open_page, run):
    page, measured = open_page("att"), heads_of(run, TEXT)
    layer, head = strongest(measured["attention"])
    page.locator(".cw-att-chip").nth(2).hover()
    expect_look(page, measured, layer, head, 2)
    page.mouse.move(0, 0)
    expect_look(page, measured, layer, head, len(measured["tokens"]) - 1)


# -- mask stepper -------------------------------------------------------------------------------


def expect_bets(page, run, text, rule, window, flips, at):
    tokens = tokens_of(run, text)[1]
    expected = steps(run, text, rule, window, flips)[at]
    mask = make_mask(rule, window, flips, len(tokens))
    seen = int(mask[at].sum())
    words = f"At token {at + 1} of {len(tokens)}, “{visible(tokens[at])}”, the model may see {seen}"
    wait_for_text(page, ".cw-step-sentence", words)
    if expected["next"]:
        wait_for_text(page, ".cw-step-sentence", f"“{visible(expected['next'][0])}”")
    rows = page.locator(".cw-step-chart tbody tr")
    assert texts(rows.locator("th"))[0] == visible(expected["rows"][0][0])
    for column in (1, 2):
        got = texts(rows.locator(f"td:nth-child({column + 1}) .cw-value"))
        near(got, [row[column] for row in expected["rows"]])
    pressed = [
        chip.get_attribute("aria-pressed") == "true" for chip in page.locator(".cw-step-chip").all()
    ]
    assert pressed == mask[at].tolist()
    said = texts(page.locator(".cw-step-table tbody td"))[at]
    assert (said == "nothing") == (seen == 0)


def test_mask_stepper(open_page, run, page_run, origin):
    page, widget = open_page("step", origin), MaskStepper(run)
    text, at = widget.text, widget.step
    assert visible(tokens_of(run, text[: text.rindex(" ")])[1][-1]) == visible(
        widget.first["tokens"][at]
    )
    for rule in (*RULES, "all"):
        page.locator(f".cw-step input[value={rule}]").check()
        expect_bets(page, run, text, rule, 3, [], at)
    page.get_by_role("button", name="Back").click()
    expect_bets(page, run, text, "all", 3, [], at - 1)
    page.locator(".cw-step-chip").nth(1).click()
    wait_for_text(page, ".cw-step-status", "Load the model to see its bets under this mask.")
    load(page, "step")
    expect_bets(page, page_run, text, "all", 3, [[at - 1, 1]], at - 1)
    page.get_by_role("button", name="Undo all").click()
    page.get_by_label("switch it for all later").check()
    slide(page.locator(".cw-step input[type=range]"), 2)
    page.locator(".cw-step-chip").nth(0).focus()
    page.keyboard.press("Enter")
    n = len(widget.first["tokens"])
    flips = [[q, 0] for q in range(2, n)]
    for step in (2, 3):
        expect_bets(page, page_run, text, "all", 3, flips, step)
        page.get_by_role("button", name="Next").click()
    page.locator(".cw-step-chip").nth(0).click()  # seen again from token 5 on
    expect_bets(page, page_run, text, "all", 3, flips[:2], 4)
    page.locator(".cw-step input[type=number]").fill("1")
    page.locator(".cw-step input[type=number]").press("Tab")
    expect_bets(page, page_run, text, "window", 1, flips[:2], 4)
    page.locator(".cw-step textarea").fill("Peru")
    last = len(tokens_of(run, "Peru")[1]) - 1
    expect_bets(page, page_run, "Peru", "window", 1, [], min(4, last))
    slide(page.locator(".cw-step input[type=range]"), 0)
    page.locator(".cw-step-chip").nth(0).click()  # nothing to see at all
    page.get_by_label("switch it for all later").uncheck()
    wait_for_text(page, ".cw-step-sentence", "may see 0 tokens")
    assert "NaN" not in page.locator(".cw-step").text_content()


# -- head gallery -------------------------------------------------------------------------------


def expect_gallery(page, run, text, off):
    expected = switched(run, text, off)
    if off:
        names = ", ".join(f"head {y} of layer {x}" for x, y in off)
        wait_for_text(page, ".cw-gal-sentence", f"Without {names}, ")
        wait_for_text(page, ".cw-gal-sentence", percent(expected["moved"])[:2])
    else:
        wait_for_text(page, ".cw-gal-sentence", "All heads are on.")
    rows = page.locator(".cw-gal-chart tbody tr")
    assert texts(rows.locator("th"))[0] == visible(expected["rows"][0][0])
    for column in (1, 2):
        got = texts(rows.locator(f"td:nth-child({column + 1})"))
        near(got, [row[column] for row in expected["rows"]])
    change = [float(t.replace("−", "-")) for t in texts(rows.locator("td:nth-child(4)"))]
    assert change == pytest.approx([100 * (b - a) for _, a, b in expected["rows"]], abs=0.2)
    layer, head = map(int, page.locator(".cw-gal select").input_value().split())
    best = [max(row) for row in expected["attention"][layer][head]]
    cells = texts(page.locator(".cw-gal-table tbody td:nth-child(2)"))
    near([cell.rpartition(" ")[2] for cell in cells], best)
    for x, heads in enumerate(expected["attention"]):
        for y in range(len(heads)):
            button = page.locator(f'.cw-gal-map[data-layer="{x}"][data-head="{y}"]')
            assert button.get_attribute("aria-pressed") == str([x, y] not in off).lower()


def test_head_gallery(open_page, run, page_run, origin):
    page, widget = open_page("gal", origin), HeadGallery(run)
    [worst] = widget.off
    text = widget.text
    expect_gallery(page, run, text, [worst])
    page.locator(".cw-gal-map").first.click()
    wait_for_text(page, ".cw-gal-status", "Load the model to switch its heads.")
    load(page, "gal")
    expect_gallery(page, page_run, text, [worst])
    page.get_by_role("button", name="Switch all on").click()
    expect_gallery(page, page_run, text, [])
    page.get_by_role("button", name="Layer 0, head 0", exact=True).focus()
    wait_for_text(page, ".cw-gal-look", "Head 0 of layer 0 looks from the last token")
    page.keyboard.press("Enter")
    expect_gallery(page, page_run, text, [[0, 0]])
    page.get_by_role("button", name="Layer 1, head 1", exact=True).click()
    expect_gallery(page, page_run, text, [[0, 0], [1, 1]])
    page.locator(".cw-gal summary").click()
    page.locator(".cw-gal select").select_option("1 0")
    page.locator(".cw-gal textarea").fill(OTHER)
    page.wait_for_function(
        "n => document.querySelectorAll('.cw-gal-table tbody tr').length === n",
        arg=len(tokens_of(run, OTHER)[1]),
    )
    expect_gallery(page, page_run, OTHER, [[0, 0], [1, 1]])
    page.get_by_role("button", name="Layer 0, head 0", exact=True).click()
    expect_gallery(page, page_run, OTHER, [[1, 1]])


# -- anatomy and logit lens ---------------------------------------------------------------------


def expect_lens(page, run, text, at):
    expected = lens(run, text)
    tokens, depths = expected["tokens"], expected["bets"][at]
    wait_for_text(page, ".cw-lens-sentence", f"After token {at + 1}, “{visible(tokens[at])}”")
    rows = page.locator(".cw-lens-chart tbody tr")
    assert texts(rows.locator("th")) == [depth_name(depth) for depth in range(len(depths))]
    near(texts(rows.locator(".cw-value")), [final for _, final in depths])
    firsts = texts(rows.locator(".cw-lens-bet:first-child"))
    assert firsts[-1].startswith(visible(depths[-1][0][0][0]))
    near([first.rpartition(" ")[2] for first in firsts], [bets[0][1] for bets, _ in depths])


def test_logit_lens(open_page, run, page_run, origin):
    page, text = open_page("lens", origin), LogitLens(run).text
    last = len(tokens_of(run, text)[1]) - 1
    expect_lens(page, run, text, last)
    slider = page.locator(".cw-lens input[type=range]")
    slide(slider, 1)
    expect_lens(page, run, text, 1)
    load(page, "lens")
    expect_lens(page, page_run, text, 1)
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect_lens(page, page_run, text, 2)
    page.locator(".cw-lens textarea").fill(OTHER)
    last = len(tokens_of(run, OTHER)[1]) - 1
    expect_lens(page, page_run, OTHER, last)
    assert slider.get_attribute("aria-valuetext").startswith(f"token {last + 1} of {last + 1}")


def test_anatomy(open_page, run):
    page, rows = open_page("lens"), anatomy(run.model("base"))
    cells = page.locator(".cw-lens-parts tbody tr")
    assert texts(cells.locator("th")) == [p["title"] for p in rows]
    assert texts(cells.locator("td:nth-child(3)")) == [f"{p['parameters']:,}" for p in rows]
    detail = page.locator(".cw-lens-detail")
    assert rows[0]["does"] in detail.text_content()
    for place, part in enumerate(rows):
        button = page.locator(".cw-lens-part").nth(place)
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert part["does"] in detail.text_content()
        assert part["flow"] in detail.text_content()
    assert page.locator('.cw-lens-part[aria-pressed="true"]').count() == 1


# -- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("short", WIDGETS)
def test_odd_texts(open_page, run, short):
    """Hostile text stays text, long text is refused in words, and the widget goes on working."""
    page = open_page(short)
    load(page, short)
    box, status = page.locator(f".cw-{short} textarea"), page.locator(f".cw-{short}-status")
    for text in ("word " * 2000, "🦊" * 5000):
        box.fill(text)
        status.get_by_text("reads at most").wait_for()
    for text in (HOSTILE, "", "🦊", "שלום", "a"):
        box.fill(text)
        page.wait_for_function(
            "s => document.querySelector(`.cw-${s}-status`).textContent === ''", arg=short
        )
    box.fill(HOSTILE)
    n = len(tokens_of(run, HOSTILE)[1])
    if short == "att":
        wait_for_text(page, ".cw-att-sentence", f"From token {n},")
        assert texts(page.locator(".cw-att-chip")) == shown(tokens_of(run, HOSTILE)[1])
    if short == "step":
        wait_for_text(page, ".cw-step-sentence", f" of {n}, ")
    if short == "lens":
        wait_for_text(page, ".cw-lens-sentence", f"After token {n},")
    assert page.title() == "Widget"
    assert page.locator("main b, main script:not([type])").count() == 0


def test_rapid_typing_ends_with_the_last_text(open_page, page_run):
    page = open_page("lens")
    load(page, "lens")
    page.locator(".cw-lens textarea").evaluate(
        "(box, text) => { for (let n = 1; n <= text.length; n++) { box.value = text.slice(0, n);"
        " box.dispatchEvent(new Event('input', {bubbles: true})); } }",
        OTHER,
    )
    expect_lens(page, page_run, OTHER, len(tokens_of(page_run, OTHER)[1]) - 1)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_looks(visit, site_url, theme, width):
    """No sideways scrolling and no axe violation: before the weights, after, tables open."""
    from axe_playwright_python.sync_playwright import Axe

    seen = visit(site_url, scheme=theme, width=width)
    page = seen.open("dark.html" if theme == "dark" else "all.html")
    for live in (False, True):
        if live:
            for short in WIDGETS:
                load(page, short)
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
    assert fallbacks.count() == len(WIDGETS)
    assert all(f.locator("td").count() > 8 for f in fallbacks.all())


def test_without_models_the_pictures_stay(visit, write_widgets, tmp_path, run, serve_folder):
    makers = [lambda cls=cls: cls(run) for cls in WIDGETS.values()]
    folder = write_widgets(tmp_path, {"page": makers})
    page = visit(serve_folder(folder)).open("page.html")
    for short in WIDGETS:
        wait_for_text(page, f".cw-{short} .cw-warn", "missing from this page")
        assert page.locator(f".cw-{short} table").first.locator("tbody tr").count() > 2
