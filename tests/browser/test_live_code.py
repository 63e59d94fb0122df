"""Live code with a real kernel: a Jupyter server here stands in for mybinder.org.

The page asks its real addresses; the browser answers them from here. thebe-core comes from npm,
and the stand-in for Binder names a local server, as Binder would name one of its own.
"""

from __future__ import annotations

import html
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT, missing
from test_jupyterlab import wait_for

sys.path.insert(0, str(ROOT / "book" / "_ext"))
from live_code import live_button, page_cells

pytestmark = pytest.mark.browser
MODULE = (ROOT / "book" / "_static" / "live_code.mjs").read_text(encoding="utf-8")
THEBE = re.search(r'THEBE = "(https://[^"]+)"', MODULE)[1]
VERSION = re.search(r"thebe-core@([\d.]+)", THEBE)[1]
PACKAGE = THEBE.split("dist/")[0]
LESSONS = sorted(path.stem for path in (ROOT / "book").glob("L*.md"))
PICTURE = """\
%config InlineBackend.figure_formats = ["svg"]
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()"""
CELLS = [  # source, shown, runs
    ("count = 1\nprint('hidden')", False, True),
    ("count += 1", True, True),
    ("count += 10", False, True),
    ("print('second', count)", True, True),
    ("this is never run", True, False),
    ("print('third', count)", True, True),
    ("print('<b id=typed>bold</b>')", True, True),
    (PICTURE, True, True),
]
PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="{theme}"><head><meta charset="utf-8"><title>Lesson</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"></head><body><main><article>
<div class="dropdown-launch-buttons"><a href="https://colab.research.google.com/x">Colab</a>
<button onclick="{javascript}">Live code</button></div><h1>Lesson</h1>{cells}
</article></main></body></html>
"""
CELL = """<div class="cell"><div class="cell_input"><pre>{source}</pre></div>
<div class="cell_output"><pre>printed in the book</pre></div></div>"""


@pytest.fixture(scope="module")
def thebe(tmp_path_factory):
    """The folder of the npm package that the module loads."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("npm")
    if npm is None:
        pytest.skip("npm is not installed: the browser gets thebe-core from it")
    command = [npm, "pack", "--silent", f"thebe-core@{VERSION}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        missing(f"npm could not fetch thebe-core {VERSION}: {done.stderr.strip()[-300:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


@pytest.fixture(scope="module")
def kernels(run, tmp_path_factory):
    """Address and token of a Jupyter server with what binder/start sets."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(16), f"http://127.0.0.1:{port}/"
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {name: str(folder / name) for name in names}
    environment |= {"COURSE_RUNS_DIR": str(run.path.parent), "COURSE_PRESET": run.path.name}
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
    options += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    options += ["--ServerApp.allow_origin=*", "--allow-root", "--no-browser"]
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, "-m", "jupyter_server", *options]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait_for(server, f"{own}api/status?token={token}", folder / "server.log")
        yield {"url": own, "token": token}
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small lesson in both themes, with the module and its cells as the book has them."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "_static" / "live").mkdir(parents=True)
    shutil.copy(ROOT / "book" / "_static" / "live_code.mjs", folder / "_static")
    cells = [dict(zip(("source", "shown", "runs"), cell, strict=True)) for cell in CELLS]
    data = {"repository": "ann/course", "branch": "main", "cells": cells}
    (folder / "_static" / "live" / "lesson.json").write_text(json.dumps(data), encoding="utf-8")
    shown = [CELL.format(source=html.escape(cell["source"])) for cell in cells if cell["shown"]]
    button = live_button("lesson", "./_static/live_code.mjs")["javascript"]
    for theme in ("light", "dark"):
        text = PAGE.format(theme=theme, javascript=button, cells="".join(shown))
        (folder / f"{theme}.html").write_text(text, encoding="utf-8")
    return folder


class Outside:
    """The other hosts, as the browser sees them; each can be made unreachable."""

    def __init__(self, visit, thebe, kernels):
        self.visit, self.thebe, self.kernels = visit, thebe, kernels
        self.cdn = self.binder = True
        visit.context.route(lambda url: not url.startswith(visit.origin), self.answer)

    def answer(self, route):
        url, headers = route.request.url, {"Access-Control-Allow-Origin": "*"}
        if url.startswith(self.kernels["url"]):
            route.continue_()
        elif url.startswith(PACKAGE) and self.cdn:
            route.fulfill(path=self.thebe / url.removeprefix(PACKAGE), headers=headers)
        elif url.startswith("https://mybinder.org/build/gh/") and self.binder:
            phases = ({"phase": "building", "message": "wait"}, {"phase": "ready", **self.kernels})
            body = "".join(f"data: {json.dumps({'message': '', **p})}\n\n" for p in phases)
            route.fulfill(content_type="text/event-stream", headers=headers, body=body)
        else:
            route.abort()


@pytest.fixture
def lesson(visit, site_url, thebe, kernels):
    """A function: open the small lesson, and the hosts around it."""

    def make(name="light", **options):
        seen = visit(site_url, **options)
        seen.outside = Outside(seen, thebe, kernels)
        seen.open(f"{name}.html")
        return seen

    return make


def status(page):
    return page.locator(".live-bar [role=status]")


def go_live(page):
    from playwright.sync_api import expect

    page.get_by_role("button", name="Live code").click()
    expect(status(page)).to_be_visible()
    expect(status(page)).to_contain_text("Ready.", timeout=120_000)


def run_cell(page, number):
    """Press the button of a cell; return once the page is ready again."""
    from playwright.sync_api import expect

    page.get_by_role("button", name=f"Run cell {number}", exact=True).click()
    expect(status(page)).to_contain_text(re.compile(r"Ready\.|stopped"), timeout=90_000)


def output(page, number):
    """The output below a cell of the small lesson."""
    cell = page.locator("div.cell", has=page.get_by_role("button", name=f"Run cell {number}"))
    return cell.locator(".cell_output")


def test_nothing_is_loaded_before_the_click(lesson):
    seen = lesson()
    assert len(seen.requests) == 1 and seen.foreign == [] and seen.problems == []


def test_a_cell_runs_after_those_before_it_and_as_edited(lesson):
    seen = lesson()
    page = seen.page
    go_live(page)
    assert "smoke models" in status(page).inner_text()
    run_cell(page, 3)
    assert output(page, 1).inner_text().strip() == ""  # its printed output is gone as well
    assert output(page, 2).inner_text().strip() == "second 12"
    assert output(page, 3).inner_text().strip() == "third 12"
    assert output(page, 4).inner_text().strip() == "printed in the book"  # it did not run
    assert "hidden" not in page.locator("main").inner_text()

    editor = page.get_by_label("Code of cell 2")
    editor.fill("count = 'edited'\nprint(count)")
    editor.press("Shift+Enter")
    page.wait_for_function("document.body.innerText.includes('edited')")
    run_cell(page, 3)  # the others are not run again
    assert output(page, 3).inner_text().strip() == "third edited"
    assert seen.problems == []


def test_an_error_stops_the_cells_after_it(lesson):
    page = lesson().page
    go_live(page)
    page.get_by_label("Code of cell 2").fill("1 / 0")
    run_cell(page, 3)
    assert "Cell 2 stopped (ZeroDivisionError: division by zero)" in status(page).inner_text()
    assert "ZeroDivisionError" in output(page, 2).inner_text()
    assert output(page, 3).inner_text().strip() == "printed in the book"
    page.get_by_label("Code of cell 2").fill("count = 5")
    run_cell(page, 3)
    assert output(page, 3).inner_text().strip() == "third 5"


def test_a_kernel_that_ends(lesson):
    """A new one takes its place and has run nothing: the cells before run again."""
    page = lesson().page
    go_live(page)
    run_cell(page, 2)
    page.get_by_label("Code of cell 2").fill("import os\nos._exit(1)")
    run_cell(page, 2)
    assert "Cell 2 stopped (its kernel ended" in status(page).inner_text()
    page.get_by_label("Code of cell 2").fill("print('second', count)")
    run_cell(page, 3)
    assert output(page, 3).inner_text().strip() == "third 12"


def test_run_all_restart_and_what_a_cell_prints_is_text(lesson):
    from playwright.sync_api import expect

    page = lesson().page
    go_live(page)
    page.get_by_role("button", name="Run all").click()
    expect(output(page, 4)).to_contain_text("<b id=typed>bold</b>", timeout=60_000)
    assert page.locator("#typed").count() == 0
    picture = output(page, 5).get_by_role("img", name="Picture drawn by cell 5")
    expect(picture).to_be_visible(timeout=60_000)
    expect(status(page)).to_contain_text("Ready.")

    page.get_by_label("Code of cell 1").fill("import time\ntime.sleep(600)")
    page.get_by_role("button", name="Run cell 1", exact=True).click()
    page.get_by_role("button", name="Restart").click()  # also out of a cell that never ends
    expect(status(page)).to_contain_text("Restarted", timeout=60_000)
    assert output(page, 3).inner_text().strip() == ""
    page.get_by_label("Code of cell 1").fill("count = 100")
    run_cell(page, 3)
    assert output(page, 3).inner_text().strip() == "third 110"


@pytest.mark.parametrize("host", ["cdn", "binder"])
def test_a_host_that_cannot_be_reached(lesson, host):
    """The page says what, why and what to do; it stays as it was, and can try again."""
    from playwright.sync_api import expect

    seen = lesson()
    setattr(seen.outside, host, False)
    page = seen.page
    page.get_by_role("button", name="Live code").click()
    expect(status(page)).to_contain_text("Live code could not start")
    name = "cdn.jsdelivr.net" if host == "cdn" else "mybinder.org"
    assert name in status(page).inner_text()
    link = status(page).get_by_role("link", name="open it in Colab")
    assert link.get_attribute("href") == "https://colab.research.google.com/x"
    assert page.locator("textarea").count() == 0

    setattr(seen.outside, host, True)
    page.get_by_role("button", name="Try again").click()
    expect(status(page)).to_contain_text("Ready.", timeout=60_000)


def test_from_disk_the_button_says_why_it_cannot(visit, site):
    page = visit(site.as_uri() + "/").open("light.html")
    page.get_by_role("button", name="Live code").click()
    assert "open the book online" in page.get_by_role("alert").inner_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_everyone_can_use_it(lesson, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    page = lesson(scheme, scheme=scheme, width=width).page
    go_live(page)
    run_cell(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "scrolls sideways"
    violations = Axe().run(page).response["violations"]
    assert not [f"{v['id']}: {n['html'][:200]}" for v in violations for n in v["nodes"]]


# -- the lessons of the book ------------------------------------------------------------------


@pytest.mark.parametrize("name", LESSONS)
def test_the_cells_of_a_lesson(name):
    cells = page_cells(name)
    assert "find_models()" in cells[0]["source"] and not cells[0]["shown"]
    assert "myst_nb" not in "".join(cell["source"] for cell in cells)
    assert any(cell["shown"] for cell in cells)


@pytest.mark.parametrize("name", LESSONS)
def test_the_built_page_shows_these_cells(visit, book_url, name):
    seen = visit(book_url)
    page = seen.open(f"book/{name}.html")
    assert seen.foreign == []
    assert not [url for url in seen.requests if "_static/live" in url], "loaded before the click"
    places = page.locator("div.cell div.cell_input div.highlight > pre")
    written = [re.sub(r"\s+", " ", text).strip() for text in places.all_text_contents()]
    data = page.evaluate(f"fetch('../_static/live/{name}.json').then((r) => r.json())")
    shown = [re.sub(r"\s+", " ", c["source"]).strip() for c in data["cells"] if c["shown"]]
    assert shown == written


def test_a_lesson_of_the_book_runs(visit, book_url, thebe, kernels):
    seen = visit(book_url)
    seen.outside = Outside(seen, thebe, kernels)
    page = seen.open("book/L01_Tokenization_From_Scratch.html")
    page.get_by_role("button", name="Run this lesson").click()
    go_live(page)
    run_cell(page, 3)
    assert "Ready." in status(page).inner_text()
    assert page.locator(".live-output").count() == 3
    assert page.locator(".live-output pre").first.inner_text().strip()


def test_binder_uses_the_small_models():
    command = [ROOT / "binder" / "start", "printenv", "COURSE_PRESET"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "smoke"
