"""What goes out: one version everywhere, release notes, the cards' picture, the PDF's HTML."""

import importlib.util
import io
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib.colors import to_rgba
from pypdf import PdfReader, PdfWriter

import course_lib

ROOT = Path(__file__).parents[1]
NAMES_A_VERSION = ("course_lib/__init__.py", "pyproject.toml", "CITATION.cff", "CHANGELOG.md")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notes = load(ROOT / ".ci" / "release_notes.py")
print_pdf = load(ROOT / "book" / "print_pdf.py")


# -- releases -------------------------------------------------------------------------------------


def test_every_file_names_the_same_version():
    assert notes.versions() == dict.fromkeys(NAMES_A_VERSION, course_lib.__version__)


@pytest.fixture
def project(tmp_path):
    """A copy of the files that name the version, with a date in the changelog."""
    for name in NAMES_A_VERSION:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    changelog.write_text(re.sub(r"(?m)^(## \[.+\] - ).+", r"\g<1>2026-12-01", text, count=1))
    return tmp_path


def test_a_tag_with_its_version_everywhere_is_ready(project):
    assert notes.problems(f"v{course_lib.__version__}", project) == []


@pytest.mark.parametrize("name", NAMES_A_VERSION)
def test_a_file_with_another_version_stops_the_release(project, name):
    path = project / name
    path.write_text(path.read_text().replace(course_lib.__version__, "9.9.9", 1))
    (problem,) = notes.problems(f"v{course_lib.__version__}", project)
    assert name in problem and "9.9.9" in problem


def test_a_version_without_a_date_is_not_released(project):
    changelog = project / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("2026-12-01", "Unreleased"))
    (problem,) = notes.problems(f"v{course_lib.__version__}", project)
    assert "no date" in problem


def test_the_notes_are_the_newest_entry_and_no_more(project):
    changelog = project / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## [2.0] - 2026-12-02\n\nNew.\n\n## [1.0] - 2026-01-01\n")
    assert notes.entry(project)["notes"].strip() == "New."


# -- the picture of the social cards --------------------------------------------------------------


def test_the_picture_of_the_cards_is_the_logo():
    """Every square of logo.svg, drawn in logo.png."""
    static = ROOT / "book" / "_static"
    pixels = matplotlib.image.imread(static / "logo.png")
    scale = len(pixels) / 64  # the SVG's side is 64
    squares = BeautifulSoup((static / "logo.svg").read_text(), "html.parser").find_all("rect")
    assert len(squares) == 17
    for square in squares[1:]:
        x, y = (int(scale * (float(square[a]) + float(square["width"]) / 2)) for a in "xy")
        assert np.allclose(pixels[y, x], to_rgba(square["fill"]), atol=0.02), square


# -- the document that becomes the PDF ------------------------------------------------------------

PAGE = """<html><head><link rel="canonical" href="https://ann.github.io/course/book/{name}.html">
<link rel="stylesheet" href="../_static/a.css"><script src="../_static/theme.js"></script>
<script src="../_static/widgets/loader.js"></script>
<script src="../_static/widgets/{name}.js"></script></head>
<body><nav>menu</nav><article class="bd-article"><h1>{title}<a class="headerlink">#</a></h1>
{body}</article></body></html>"""
ONE = """<h2 id="part">Part</h2><a id="own" href="#part">here</a>
<a id="other" href="L02_Two.html#part">there</a><a id="away" href="https://x.org/">x</a>
<a id="file" href="../search.html">search</a><img src="../_images/a.svg" loading="lazy">
<svg><g id="drawn"></g></svg><details><summary>Code</summary>x</details>
<div class="admonition exercise" id="ex"><p class="admonition-title">Exercise 1 (Sum)</p>
<details><summary>Hint 1</summary>Use a loop.</details></div>
<div class="admonition solution" id="sol"><p class="admonition-title"><a href="#ex">Solution</a></p>
<a href="L02_Two.html">The answer is 4.</a></div>"""


@pytest.fixture
def document(tmp_path):
    (tmp_path / "book").mkdir()
    for name, title, body in (("L01_One", "One", ONE), ("L02_Two", "Two", '<h2 id="part">P</h2>')):
        text = PAGE.format(name=name, title=title, body=body)
        (tmp_path / "book" / f"{name}.html").write_text(text)
    parts = [("", ["book/L01_One"]), ("A part", ["book/L02_Two"])]
    text = print_pdf.Document(tmp_path, parts, "0.1.0").html({"One": 3, "Two": 5})
    return BeautifulSoup(text, "html.parser")


def test_chapters_stand_in_order_with_their_page_numbers(document):
    titles = [h1.get_text() for h1 in document.select("section.chapter h1")]
    assert titles == ["One", "Two", "Hints and solutions"]
    rows = [row.get_text(" ", strip=True) for row in document.select(".contents .entry")]
    assert rows == ["One 3", "Two 5", "Hints and solutions"]
    assert "menu" not in document.get_text()


def test_links_lead_into_the_document_or_to_the_site(document):
    href = {a["id"].split("--")[1]: a["href"] for a in document.select("article a[id]")}
    assert href == {
        "own": "#L01_One--part",
        "other": "#L02_Two--part",
        "away": "https://x.org/",
        "file": "https://ann.github.io/course/search.html",
    }
    ids = [tag["id"] for tag in document.select("[id]")]
    assert len(ids) == len(set(ids)), "an id twice"
    inner = [a["href"][1:] for a in document.select('a[href^="#"]')]
    assert set(inner) <= set(ids)
    assert document.svg.g["id"] == "drawn"


def test_answers_stand_at_the_end_only(document):
    first, _, last = document.select("section.chapter")
    assert "Use a loop" not in first.get_text() and "The answer is 4" not in first.get_text()
    assert "Use a loop" in last.get_text() and "The answer is 4" in last.get_text()
    assert last.h2.get_text() == "One" and last.h3.get_text() == "Exercise 1 (Sum)"
    place = first.select_one(".exercise > p > a")["href"]
    assert document.select_one(place) in last.find_all("section")
    assert last.select_one(".solution a[href='#L02_Two']")


def test_what_is_folded_is_open_and_the_head_is_small(document):
    assert all(details.has_attr("open") for details in document.select("details"))
    assert not document.select("img[loading]")
    scripts = [script["src"].rsplit("/", 1)[1] for script in document.select("script")]
    assert scripts == ["L01_One.js", "L02_Two.js", "loader.js"]
    assert len(document.select('link[rel="stylesheet"]')) == 1


def test_the_link_to_the_pdf_is_hidden_until_it_is_shown(tmp_path):
    source = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    assert print_pdf.HIDDEN_LINK.search(source) and print_pdf.PDF in source
    (tmp_path / "index.html").write_text(source, encoding="utf-8")
    print_pdf.show_link(tmp_path, ["index"])
    assert '<p class="pdf-link">' in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_heading_whose_line_broke_keeps_its_space_in_the_outline():
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    chapter = writer.add_outline_item(title="From rawtext", page_number=0)
    writer.add_outline_item(title="Ownwords", page_number=0, parent=chapter)
    writer.add_outline_item(title="Kept", page_number=0)
    titles = {"Fromrawtext": "From raw text", "Ownwords": "Own words"}
    print_pdf.mend_outline(writer.root_object["/Outlines"].get("/First"), titles)
    file = io.BytesIO()
    writer.write(file)
    first, (inner,), last = PdfReader(file).outline
    assert [x.title for x in (first, inner, last)] == ["From raw text", "Own words", "Kept"]
