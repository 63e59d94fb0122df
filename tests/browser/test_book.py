"""The built book in a real browser: every page, both themes, phone and desktop, http and disk."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[2] / "_build" / "html"
pytestmark = pytest.mark.browser

# The pages of the book; _build/html/index.html only leads to the first of them.
PAGES = [p.relative_to(BOOK).as_posix() for p in sorted((BOOK / "book").rglob("*.html"))]
PAGES = PAGES or ["book/index.html"]  # no book yet: one test that says so
LOOKS = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]
# axe judges colours and layout, and takes up to 20 s a page: each theme and each width is seen once
# on every page, and all four together on those that have every part of the frame.
AXE_LOOKS = [("light", 1280), ("dark", 390)]
AXE_PAGES = ["book/index.html", "book/L01_Tokenization_From_Scratch.html"]
FIRST_LOAD_LIMIT = 500_000  # bytes after gzip, for a page without models

each_page = pytest.mark.parametrize("name", PAGES)
each_look = pytest.mark.parametrize(("scheme", "width"), LOOKS)


def assert_quiet(seen) -> None:
    assert seen.foreign == [], "requests to another host"
    assert seen.problems == [], "the page complained"


def assert_widgets_live(page) -> None:
    states = page.eval_on_selector_all(".course-widget", "ws => ws.map(w => w.dataset.state)")
    assert all(state == "live" for state in states), f"widgets that did not start: {states}"


def first_load(seen, origin) -> int:
    """Bytes that really cross the wire on the first load, compressed as a server would."""
    bodies = [r.body() for r in seen.responses if r.url.startswith(origin)]
    return sum(min(len(body), len(gzip.compress(body))) for body in bodies)


@each_look
@each_page
def test_page(visit, book_url, name, scheme, width):
    """Light, no error, no foreign request, no sideways scrolling, no axe violation; a picture."""
    from axe_playwright_python.sync_playwright import Axe  # needs playwright: see `browser`

    seen = visit(book_url, scheme=scheme, width=width)
    page = seen.open(name)
    shots = BOOK.parent / "screenshots"
    shots.mkdir(exist_ok=True)
    stem = name.removesuffix(".html").removeprefix("book/").replace("/", "_")
    page.screenshot(path=shots / f"{stem}-{scheme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "scrolls sideways"
    assert_widgets_live(page)
    assert_quiet(seen)  # before axe, which fetches style sheets itself
    weight = first_load(seen, book_url)
    assert weight <= FIRST_LOAD_LIMIT, f"{weight / 1000:.0f} kB"
    if (scheme, width) not in AXE_LOOKS and name not in AXE_PAGES:
        return
    violations = Axe().run(page).response["violations"]
    found = [f"{v['id']}: {n['html'][:200]}" for v in violations for n in v["nodes"]]
    assert not found, "\n".join(found)


@each_page
def test_page_from_disk(visit, book_dir, name):
    seen = visit(book_dir.as_uri() + "/")
    page = seen.open(name)
    assert_widgets_live(page)
    # Images and fonts from disk too: a broken one has no width.
    broken = "imgs => imgs.filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.eval_on_selector_all("img", broken) == []
    assert_quiet(seen)


@each_page
def test_page_without_javascript(visit, book_url, name):
    """Readable: the text is there, and every widget shows its fallback."""
    seen = visit(book_url, java_script_enabled=False)
    page = seen.page
    page.goto(book_url + name)
    assert page.locator("article h1").first.is_visible()
    for fallback in page.locator(".course-widget").all():
        assert fallback.locator(".course-widget-fallback").inner_text().strip()
    assert seen.foreign == []


@pytest.mark.parametrize("from_disk", [False, True])
def test_start_page_leads_to_the_book(visit, book_dir, book_url, from_disk):
    origin = book_dir.as_uri() + "/" if from_disk else book_url
    seen = visit(origin)
    seen.page.goto(origin + "index.html")
    seen.page.wait_for_url("**/book/index.html")
    assert seen.page.locator("article h1").first.is_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_theme_button_works(visit, book_url, width):
    """One button goes through the themes, and the choice outlives a reload."""
    seen = visit(book_url, width=width)
    page = seen.open("book/index.html")
    button = page.locator(".theme-switch-button:visible").first
    modes = set()
    for _ in range(3):
        button.click()
        modes.add(page.evaluate("document.documentElement.dataset.mode"))
    assert modes == {"light", "dark", "auto"}
    button.click()
    kept = page.evaluate("document.documentElement.dataset.mode")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.mode") == kept
    assert_quiet(seen)


@pytest.mark.parametrize("from_disk", [False, True])
def test_search_finds_a_page(visit, book_dir, book_url, from_disk):
    origin = book_dir.as_uri() + "/" if from_disk else book_url
    seen = visit(origin)
    page = seen.page
    page.goto(origin + "search.html?q=bibliography")
    page.locator("#search-results li a").first.wait_for()
    assert_quiet(seen)
