"""The position explorer in a real browser: its JavaScript against course_lib.positions."""

from __future__ import annotations

import pytest
from pages import slide

from course_lib.widgets.position_explorer import PositionExplorer, similarity, wavelength

LEARNED = [1.0, 0.75, -0.5, 0.125]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_widgets):
    def make():
        return PositionExplorer(LEARNED)

    return write_widgets(tmp_path_factory.mktemp("site"), {"light": [make], "dark": [make]})


@pytest.fixture
def root(visit, site_url):
    one = visit(site_url)
    yield one.open("light.html").locator(".cw-pos")
    assert not one.problems and not one.foreign


def shown(root):
    texts = root.locator("tbody td").all_text_contents()
    return [float(text.replace("−", "-")) for text in texts]


@pytest.mark.parametrize("scheme", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("theta", [100, 10_000, 500_000])
def test_the_curve_is_the_librarys(root, scheme, theta):
    root.get_by_role("radio", name=scheme.capitalize()).check()
    root.get_by_label("Base θ").select_option(str(theta))
    assert shown(root) == pytest.approx(similarity(scheme, 128, 64, theta), abs=6e-4)


def test_wavelength_and_dimensions(root):
    for pair in (0, 5, 31):
        slide(root.get_by_label("Pair of dimensions"), pair)
        long = wavelength(pair, 64, 10_000)
        text = root.locator("p strong").first.text_content()
        assert float(text.replace(",", "").split()[0]) == pytest.approx(long, rel=1e-2, abs=0.06)
    root.get_by_role("radio", name="Rotary").check()
    assert "dimensions 31 and 63" in root.locator("p").first.text_content()
    # the drawn wave: two lines with a point for every position
    lines = root.locator(".cw-pos-chart").first.locator("polyline")
    points = lines.evaluate_all("lines => lines.map(line => line.getAttribute('points'))")
    assert [len(p.split()) for p in points] == [128, 128]


def test_distance_learned_and_none(root):
    root.get_by_role("radio", name="Learned").check()
    assert shown(root) == pytest.approx(LEARNED)
    slide(root.get_by_label("Distance of two positions"), 2)
    assert "2 apart: −0.500" in root.locator("p").nth(1).text_content()
    assert root.get_by_label("Pair of dimensions").is_hidden()
    root.get_by_role("radio", name="None").check()
    assert set(shown(root)) == {1.0}


def test_keyboard(root):
    slider = root.get_by_label("Distance of two positions")
    slider.focus()
    before = int(slider.input_value())
    slider.press("ArrowRight")
    assert int(slider.input_value()) == before + 1
    assert slider.get_attribute("aria-valuetext").startswith(f"{before + 1} apart")


@pytest.mark.parametrize("page", ["light", "dark"])
def test_accessible_and_narrow(visit, site_url, page):
    from axe_playwright_python.sync_playwright import Axe

    one = visit(site_url, scheme=page, width=390)
    opened = one.open(f"{page}.html")
    found = Axe().run(opened, context=".cw-pos").response["violations"]
    assert found == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
