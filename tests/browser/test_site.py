"""The built book as a web site: links, addresses, cards, site map, 404 page, PDF."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
from xml.etree import ElementTree

import matplotlib.image
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import missing
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.browser
HOST = "http://book.invalid/"  # stands for the place of the site in this file


@functools.cache
def read(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def site() -> str:
    """The address of the site, from the one place that names the repository."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    owner, name = config["repository"]["url"].removeprefix("https://github.com/").split("/")
    return f"https://{owner}.github.io/{name}/"


@pytest.fixture(scope="module")
def pages(book_dir) -> list[str]:
    """Every page of the table of contents, in its order, as ``book/L01_...``."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    names = [toc["root"]]
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            names += [entry["file"] for entry in (chapter, *chapter.get("sections", ()))]
    return names


def links(page: Path, folder: Path):
    """The local targets of a page's links and files: (address as written, path, fragment)."""
    base = HOST + page.relative_to(folder).as_posix()
    for tag in read(page).find_all(["a", "link", "img", "script", "form"]):
        for name in ("href", "src", "action"):
            if (address := tag.get(name)) and (url := urljoin(base, address)).startswith(HOST):
                parts = urlsplit(url)
                yield address, unquote(parts.path).lstrip("/"), unquote(parts.fragment)


def test_every_link_inside_the_book_leads_somewhere(book_dir):
    broken = []
    for page in sorted({*book_dir.glob("book/*.html"), *book_dir.glob("*.html")}):
        if page.name == "404.html":
            continue  # its links begin at the site's root: see below
        for address, path, fragment in links(page, book_dir):
            target = book_dir / path
            if not target.is_file():
                broken.append(f"{page.name}: {address}")
            elif fragment and target.suffix == ".html":
                ids = {tag.get("id") for tag in read(target).find_all(id=True)}
                if fragment not in ids:
                    broken.append(f"{page.name}: {address} (no such place)")
    # A link to the PDF is in the page, hidden, also where there is no PDF.
    assert [b for b in broken if ".pdf" not in b] == []


def test_every_page_has_its_address_and_its_card(book_dir, site, pages):
    cards = set()
    for name in pages:
        soup = read(book_dir / f"{name}.html")
        meta = {m.get("property") or m.get("name"): m.get("content") for m in soup.find_all("meta")}
        assert soup.select_one('link[rel="canonical"]')["href"] == f"{site}{name}.html"
        assert meta["og:url"] == f"{site}{name}.html"
        assert meta["og:image"].startswith(site) and meta["description"], name
        picture = matplotlib.image.imread(book_dir / meta["og:image"].removeprefix(site))
        assert picture.shape[:2] == (int(meta["og:image:height"]), int(meta["og:image:width"]))
        cards.add(meta["og:image"])
    assert len(cards) == len(pages), "two pages share a card"


def test_the_address_of_the_site_has_the_card_of_the_first_page(book_dir, pages):
    def card(page):
        return read(page).select_one('meta[property="og:image"]')["content"]

    assert card(book_dir / "index.html") == card(book_dir / f"{pages[0]}.html")


def test_the_site_map_lists_every_page(book_dir, site, pages):
    tree = ElementTree.parse(book_dir / "sitemap.xml")
    listed = [loc.text for loc in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")]
    assert sorted(listed) == sorted(f"{site}{name}.html" for name in pages)


def test_the_404_page_works_at_any_depth(book_dir, site, visit):
    """Served as GitHub Pages does: this page for an address that does not exist."""
    prefix = urlsplit(site).path
    for address, path, _ in links(book_dir / "404.html", book_dir):
        if not address.startswith("#"):
            assert path.startswith(prefix.lstrip("/")), address
            assert (book_dir / path.removeprefix(prefix.lstrip("/"))).is_file(), address

    def serve(route):
        path = urlsplit(route.request.url).path.removeprefix(prefix)
        there = (book_dir / path).is_file()
        route.fulfill(path=book_dir / (path if there else "404.html"))

    seen = visit(f"http://book.test{prefix}")
    seen.context.route("**/*", serve)
    seen.open("a/page/that/was/moved.html")
    assert seen.page.locator("article h1").inner_text().strip("# \n") == "There is no such page"
    assert seen.page.locator(".bd-sidebar-primary").evaluate("e => e.offsetWidth") > 100
    seen.page.locator("article a", has_text="the first page").click()
    assert seen.page.url == f"http://book.test{prefix}book/index.html"
    assert seen.problems == [] and seen.foreign == []


def test_the_404_page_is_in_no_list(book_dir, pages):
    index = (book_dir / "searchindex.js").read_text(encoding="utf-8")
    names = json.loads(re.search(r'"?docnames"?:\s*(\[[^\]]*\])', index)[1])
    assert sorted(names) == sorted(pages)


# -- the PDF --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pdf(book_dir) -> PdfReader:
    path = book_dir / "llm-from-scratch.pdf"
    if not path.is_file():
        missing("no PDF of the book: run `make pdf` (it takes Chromium)")
    return PdfReader(path)


def titles_of(book_dir, pages) -> list[str]:
    heads = [read(book_dir / f"{name}.html").select_one("article h1") for name in pages]
    return [" ".join(head.find(string=True).split()) for head in heads]


def test_the_pdf_has_every_page_of_the_book_in_order(pdf, book_dir, pages):
    chapters = [item for item in pdf.outline if not isinstance(item, list)]
    titles = [" ".join(item.title.split()) for item in chapters]
    assert titles == ["Contents", *titles_of(book_dir, pages), "Hints and solutions"]
    starts = [pdf.get_destination_page_number(item) for item in chapters]
    assert starts == sorted(set(starts)), "chapters out of order, or two on one page"
    assert len(pdf.pages) > 100
    assert any(isinstance(item, list) for item in pdf.outline), "no sections in the outline"
    for start, title in zip(starts[1:], titles[1:], strict=True):
        text = " ".join(pdf.pages[start].extract_text().split())
        assert title in text, f"page {start + 1} should begin {title!r}"


def test_the_contents_name_the_right_pages(pdf, book_dir, pages):
    chapters = [item for item in pdf.outline if not isinstance(item, list)]
    first, last = (pdf.get_destination_page_number(item) for item in chapters[:2])
    text = "\n".join(pdf.pages[i].extract_text() for i in range(first, last))
    rows = " ".join(text.split())
    for item in chapters[1:]:
        title, number = " ".join(item.title.split()), pdf.get_destination_page_number(item) + 1
        assert re.search(rf"{re.escape(title)} ?{number}\b", rows), f"{title}: {number}"


def test_the_links_of_the_pdf_work(pdf):
    outside, inside = set(), 0
    for page in pdf.pages:
        for note in page.get("/Annots") or ():
            action = note.get_object().get("/A") or {}
            outside |= {action["/URI"]} if "/URI" in action else set()
            inside += "/Dest" in note.get_object() or action.get("/S") == "/GoTo"
    assert inside > 500
    assert not [url for url in outside if "book.invalid" in url or not url.startswith("http")]


def test_the_pdf_is_tagged_for_screen_readers(pdf):
    assert pdf.root_object["/MarkInfo"]["/Marked"]
    assert pdf.root_object["/Lang"].startswith("en")
    assert pdf.metadata.title == "LLM From Scratch"
