"""The drawn diagrams: well-formed, described, and nothing in them that a page would not expect."""

import re
from importlib import resources
from xml.etree import ElementTree

import pytest

from course_lib import plots

DRAWINGS = sorted(
    file.name.removesuffix(".svg")
    for file in (resources.files("course_lib.plots") / "diagrams").iterdir()
    if file.name.endswith(".svg")
)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_diagram_says_what_it_shows(name):
    html = plots.diagram(name, "A < B")
    assert "A &lt; B</figcaption>" in html
    drawing = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    assert drawing.get("role") == "img" and drawing.find(f"{SVG}title").text
    assert len(drawing.find(f"{SVG}desc").text) > 80
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)


@pytest.mark.parametrize("name", DRAWINGS)
def test_everything_drawn_lies_inside_and_has_a_style(name):
    html = plots.diagram(name, "")
    drawing = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    _, _, width, height = map(float, drawing.get("viewBox").split())
    for rect in drawing.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
        assert x >= 0 and x + w <= width and y >= 0 and y + h <= height
    used = {c for e in drawing.iter() for c in (e.get("class") or "").split()}
    assert all(f".diagram .{name} " in html for name in used)
    ids = {e.get("id") for e in drawing.iter(f"{SVG}marker")}
    pointed = set(re.findall(r"url\(#([\w-]+)\)", html))
    assert pointed == ids and all(i.startswith(f"{name}-") for i in ids)


def test_the_mask_is_the_causal_mask():
    """The filled cells are the lower triangle of `causal_mask`, and each row asks for the next."""
    from course_lib.attention import causal_mask

    html = plots.diagram("mask", "")
    drawing = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    cells = [rect.get("class") == "seen" for rect in drawing.iter(f"{SVG}rect")]
    assert cells == causal_mask(5).flatten().tolist()
