"""The whole book as one PDF: all pages of the built book in one document, printed by Chromium.

    python book/print_pdf.py   (after `make book`; or: make pdf)

1. Every page of the table of contents becomes a chapter of one HTML document. Its ids get the
   page's name in front, and links between pages become links inside the document.
2. What a reader opens with a click is open, but for hints and solutions: they stand at the end of
   the book, so that nobody reads them by accident.
3. Chromium prints the document twice: the first print says on which page each chapter begins,
   the second writes these numbers into the table of contents.

The style is `book/print.css` on top of the book's own. Nothing is printed again while neither a
page nor this program changed.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import os
import posixpath
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Route, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "_build" / "html"
PDF = "llm-from-scratch.pdf"
STYLE = Path(__file__).with_name("print.css")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The browser must not call home. The browser tests start it in the same way.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOST = "http://book.invalid/"  # no server: Chromium's requests are answered from the disk
HIDDEN_LINK = re.compile(r'(<p class="pdf-link") hidden(?:="[^"]*")?>')
# The scripts that a printed page needs, in this order; the theme's own are for a screen.
SCRIPTS = ("window.MathJax", "mathjax/", "models/live.js", "widgets/", "widgets/loader.js")
SETTLED = """async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
}"""


# --- the table of contents ------------------------------------------------------------


def read_toc(path: Path) -> list[tuple[str, list[str]]]:
    """The parts of the book: (caption, pages). The first has no caption: the start page."""
    toc = yaml.safe_load(path.read_text(encoding="utf-8"))

    def pages(entries):
        for entry in entries:
            yield entry["file"]
            yield from pages(entry.get("sections", ()))

    parts = [(part["caption"], list(pages(part["chapters"]))) for part in toc["parts"]]
    return [("", [toc["root"]]), *parts]


def parse(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def element(text: str) -> Tag:
    """The one element that a piece of HTML describes."""
    return parse(text).find(True)


# --- one chapter ----------------------------------------------------------------------


def anchor(page: str, fragment: str = "") -> str:
    """The id, in the one document, of a page or of a place on it."""
    stem = posixpath.basename(page)
    return f"{stem}--{fragment}" if fragment else stem


def move_link(link: Tag, page: str, pages: set[str], site: str) -> None:
    """Make a link work in the document: inside it if it leads to a page of the book."""
    href = urljoin(f"{HOST}{page}.html", link["href"])
    if not href.startswith(HOST):
        return
    parts = urlsplit(href)
    target = unquote(parts.path).strip("/").removesuffix(".html")
    if target in pages:
        link["href"] = f"#{anchor(target, unquote(parts.fragment))}"
    else:
        link["href"] = site + href.removeprefix(HOST)


def rename(article: Tag, page: str) -> None:
    """Put the page's name before every id and before what refers to one."""
    for tag in article.find_all(True):
        if tag.find_parent("svg") or tag.name == "svg":
            continue  # drawings refer to their own parts
        if tag.get("id"):
            tag["id"] = anchor(page, tag["id"])
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            if tag.get(name):
                tag[name] = " ".join(anchor(page, one) for one in str(tag[name]).split())
        if tag.get("data-model"):  # two pages may show widgets of one name
            tag["data-model"] = anchor(page, tag["data-model"])


def open_details(article: Tag) -> None:
    """Show what is folded on a screen, and load every image at once."""
    for details in article.find_all("details"):
        details["open"] = ""
    for image in article.find_all("img"):
        image.attrs.pop("loading", None)


def take_answers(article: Tag, page: str) -> list[Tag]:
    """Cut the hints and the solution out of every exercise; leave a link to the end of the book."""
    solutions = {}
    for solution in article.select("div.solution"):
        link = solution.select_one(".admonition-title a")
        solutions[link["href"].lstrip("#")] = solution.extract()
    answers = []
    for exercise in article.select("div.exercise[id]"):
        hints = [d.extract() for d in exercise.find_all("details") if "Hint" in d.summary.text]
        name, place = exercise["id"], anchor(page, f"answer-{exercise['id']}")
        title = exercise.select_one(".admonition-title").get_text(" ", strip=True)
        exercise.append(element(f'<p><a href="#{place}">Hints and solution</a></p>'))
        answer = element(f'<section id="{place}"><h3>{html.escape(title)}</h3></section>')
        for part in (*hints, solutions.pop(name, None)):
            if part is not None:
                answer.append(part)
        answers.append(answer)
    if solutions:
        raise SystemExit(f"{page}: solutions without an exercise: {', '.join(solutions)}")
    return answers


def read_chapter(page: str, pages: set[str], folder: Path) -> tuple[Tag, list[Tag], list[Tag]]:
    """The chapter of a page, the answers to its exercises, and what its head loads."""
    soup = parse((folder / f"{page}.html").read_text(encoding="utf-8"))
    site = soup.select_one('link[rel="canonical"]')["href"].removesuffix(f"{page}.html")
    article = soup.select_one("article.bd-article")
    for unwanted in article.select(".headerlink, .pdf-link, button"):
        unwanted.decompose()
    answers = take_answers(article, page)
    for part in (article, *answers):
        for link in part.find_all("a", href=True):
            if not link["href"].startswith(f"#{anchor(page)}--answer"):
                move_link(link, page, pages, site)
    title = article.h1.get_text(" ", strip=True)
    chapter = element(f'<section class="chapter" id="{anchor(page)}"></section>')
    chapter["data-title"] = title
    rename(article, page)
    for answer in answers:
        for child in answer.find_all(recursive=False):
            rename(child, page)
    chapter.append(article)
    return chapter, answers, soup.head.select('link[rel="stylesheet"], script')


# --- the document ---------------------------------------------------------------------


def pick_head(tags: list[Tag]) -> str:
    """The style sheets and scripts of all chapters, each once, in an order that works."""
    sheets = dict.fromkeys(str(tag) for tag in tags if tag.name == "link")
    scripts = {}
    for tag in tags:
        text = tag.get("src") or tag.string or ""
        rank = max((i for i, mark in enumerate(SCRIPTS) if mark in text), default=None)
        if tag.name == "script" and rank is not None:
            scripts[str(tag)] = rank
    return "\n".join([*sheets, *sorted(scripts, key=scripts.get)])


def title_page(title: str, version: str, site: str) -> str:
    return f"""<section class="title-page"><img src="../_static/logo.svg" alt="">
<p class="title">{title}</p><p>From raw text to a chat assistant, in eleven lessons</p>
<p class="small">Version {version}. The same pages with everything that moves on them:
<a href="{site}">{urlsplit(site).netloc + urlsplit(site).path}</a><br>
Text and figures: CC BY 4.0. Code: MIT licence.</p></section>"""


def contents(parts: list, titles: dict[str, str], numbers: dict[str, int]) -> str:
    """The table of contents; a title without a number is not in the first print's outline."""
    rows = []
    for caption, pages in parts:
        rows.append(f'<p class="part">{html.escape(caption)}</p>' if caption else "")
        for page in pages:
            title = html.escape(titles[page])
            number = numbers.get(squeeze(titles[page]), "")
            link = f'<a href="#{anchor(page)}">{title}</a>'
            rows.append(f'<p class="entry">{link}<span>{number}</span></p>')
    # An article, as in the chapters: bare, Chromium writes the heading twice into the outline.
    return (
        '<section class="contents" id="contents"><article class="bd-article"><h1>Contents</h1>'
        f"{''.join(rows)}</article></section>"
    )


def running_heads(sections: list[Tag]) -> str:
    """CSS that writes each chapter's title at the top of its pages."""
    rules = []
    for i, section in enumerate(sections):
        title = section["data-title"].replace("\\", "\\\\").replace('"', '\\"')
        rules.append(f'@page c{i} {{ @top-left {{ content: "{title}"; }} }}')
        rules.append(f"#{section['id']} {{ page: c{i}; }}")
    return "\n".join(rules)


class Document:
    """All pages of the built book as one HTML document."""

    def __init__(self, folder: Path, parts: list[tuple[str, list[str]]], version: str) -> None:
        self.parts, self.version = [*parts], version
        pages = [page for _, names in parts for page in names]
        self.titles, self.sections, head = {}, [], []
        end = element(
            '<section class="chapter" id="answers"><article class="bd-article">'
            "<h1>Hints and solutions</h1></article></section>"
        )
        end["data-title"] = "Hints and solutions"
        for page in pages:
            chapter, answers, tags = read_chapter(page, set(pages), folder)
            open_details(chapter)
            self.titles[page] = chapter["data-title"]
            self.sections.append(chapter)
            head += tags
            if answers:
                end.article.append(element(f"<h2>{html.escape(self.titles[page])}</h2>"))
                for answer in answers:
                    open_details(answer)
                    end.article.append(answer)
        self.titles["answers"] = end["data-title"]
        self.sections.append(end)
        self.parts.append(("Answers", ["answers"]))
        self.head = pick_head(head)
        start = parse((folder / f"{pages[0]}.html").read_text(encoding="utf-8"))
        self.site = start.select_one('link[rel="canonical"]')["href"].removesuffix(
            f"{pages[0]}.html"
        )

    @property
    def title(self) -> str:
        """The book's title: that of its first page."""
        return self.titles[self.parts[0][1][0]]

    def headings(self) -> dict[str, str]:
        """Every heading's text, by the same text without spaces."""
        found = [h for s in self.sections for h in s.find_all(re.compile("^h[1-6]$"))]
        texts = [" ".join(heading.get_text().split()) for heading in found]
        return {squeeze(text): text for text in texts}

    def html(self, numbers: dict[str, int]) -> str:
        """The document; `numbers` are the pages of the first print, by title without spaces."""
        style = STYLE.read_text(encoding="utf-8") + running_heads(self.sections)
        body = "\n".join(str(section) for section in self.sections)
        return f"""<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<title>{self.title}</title>{self.head}<style>{style}</style></head><body>
{title_page(self.title, self.version, self.site)}{contents(self.parts, self.titles, numbers)}
<main class="bd-main"><div class="bd-content"><div class="bd-article-container">
{body}</div></div></main></body></html>"""


# --- printing -------------------------------------------------------------------------


def find_browser() -> str | None:
    """The program that COURSE_CHROMIUM names, or an installed Chromium."""
    named = os.environ.get("COURSE_CHROMIUM")
    return named or next((path for name in BROWSERS if (path := shutil.which(name))), None)


def serve(route: Route, folder: Path, document: str) -> None:
    """Answer a request of the page from the built book; nothing reaches the network."""
    path = unquote(urlsplit(route.request.url).path).lstrip("/")
    if not route.request.url.startswith(HOST):
        route.abort()
    elif path == "book/print.html":
        route.fulfill(body=document, content_type="text/html; charset=utf-8")
    elif (folder / path).is_file():
        route.fulfill(path=folder / path)
    else:
        route.fulfill(status=404)


def print_document(browser, document: str, folder: Path) -> bytes:
    """The PDF of the document, as Chromium prints it: tagged, with the headings as its outline."""
    page = browser.new_page(color_scheme="light", viewport={"width": 700, "height": 1000})
    page.set_default_timeout(300_000)
    page.route("**/*", lambda route: serve(route, folder, document))
    page.emulate_media(media="print")  # before the widgets measure themselves
    page.goto(f"{HOST}book/print.html", wait_until="load")
    page.wait_for_function(
        "[...document.querySelectorAll('.course-widget')].every(w => w.dataset.state)"
    )
    page.evaluate(SETTLED)
    data = page.pdf(prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
    page.close()
    return data


def outline_pages(reader: PdfReader) -> dict[str, int]:
    """The page number, from 1, of every heading of the first level."""
    top = [item for item in reader.outline if not isinstance(item, list)]
    return {squeeze(item.title): reader.get_destination_page_number(item) + 1 for item in top}


def squeeze(title: str) -> str:
    """A title without its spaces: Chromium's outline has none where a heading's line broke."""
    return "".join(title.split())


def mend_outline(item, titles: dict[str, str]) -> None:
    """Give the items of the outline, from this one on, the headings' text with its spaces."""
    while item is not None:
        item = item.get_object()
        if title := titles.get(squeeze(item["/Title"])):
            item[NameObject("/Title")] = TextStringObject(title)
        mend_outline(item.get("/First"), titles)
        item = item.get("/Next")


def finish(data: bytes, document: Document, stamp: str, target: Path) -> int:
    """Write the PDF with its title, and with the stamp of what it was made from."""
    title, writer = document.title, PdfWriter(clone_from=io.BytesIO(data))
    mend_outline(writer.root_object["/Outlines"].get("/First"), document.headings())
    writer.add_metadata({"/Title": title, "/Author": f"The {title} authors", "/Source": stamp})
    part = target.with_suffix(".part")
    writer.write(part)
    part.replace(target)
    return len(writer.pages)


def show_link(folder: Path, pages: list[str]) -> None:
    """The link to the PDF is hidden until there is one."""
    for page in pages:
        path = folder / f"{page}.html"
        text = path.read_text(encoding="utf-8")
        if HIDDEN_LINK.search(text):
            path.write_text(HIDDEN_LINK.sub(r"\1>", text), encoding="utf-8")


def stamp_of(folder: Path, pages: list[str]) -> str:
    """Hash of what the PDF depends on."""
    digest = hashlib.sha256()
    files = [Path(__file__), STYLE, *(folder / f"{page}.html" for page in pages)]
    for path in (
        *files,
        *sorted(folder.glob("_static/**/*.css")),
        *sorted(folder.glob("_images/*.*")),
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def print_book(folder: Path, browser_path: str) -> str:
    """Print the book unless its PDF is up to date; what happened, in a sentence."""
    parts = read_toc(ROOT / "_toc.yml")
    pages = [page for _, names in parts for page in names]
    show_link(folder, pages)
    target, stamp = folder / PDF, stamp_of(folder, pages)
    if target.is_file() and (PdfReader(target).metadata or {}).get("/Source") == stamp:
        return f"{target}: up to date"
    version = re.search(r'__version__ = "(.+)"', (ROOT / "course_lib/__init__.py").read_text())[1]
    document = Document(folder, parts, version)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        first = print_document(browser, document.html({}), folder)
        numbers = outline_pages(PdfReader(io.BytesIO(first)))
        data = print_document(browser, document.html(numbers), folder)
        browser.close()
    count = finish(data, document, stamp, target)
    return f"{target}: {count} pages, {target.stat().st_size / 1e6:.1f} MB"


def main() -> int:
    argparse.ArgumentParser(description="Print the built book as one PDF.").parse_args()
    browser = find_browser()
    if browser is None:
        print(
            "No Chromium found: install it (apt-get install chromium) or set COURSE_CHROMIUM",
            file=sys.stderr,
        )
        return 2
    if not (BOOK / "index.html").is_file():
        print("No book to print yet: run make book first.", file=sys.stderr)
        return 2
    print(print_book(BOOK, browser))
    return 0


if __name__ == "__main__":
    sys.exit(main())
