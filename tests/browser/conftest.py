"""Fixtures of the browser tests: the built book, a local server, Chromium.

Without a browser or a built book the tests are skipped and say why; in CI (CI=true) they fail.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from course_lib.errors import CourseError
from course_lib.runs import open_run
from course_lib.widgets.base import BOOK_BUILD_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book"))  # print_pdf.py finds and starts the same browser


def missing(reason: str) -> None:
    """Skip, but fail where the tests must run."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="session")
def book_dir() -> Path:
    """The folder of the built book."""
    if not (BOOK / "index.html").is_file():
        missing("no built book at _build/html: run `make book` first")
    return BOOK


@pytest.fixture(scope="session")
def book_url(book_dir: Path, serve_folder) -> str:
    """Address of a local server of the built book, with a slash at the end."""
    return serve_folder(book_dir)


@pytest.fixture(scope="session")
def serve_folder():
    """A function: the address of a local server of a folder, with a slash at the end."""
    servers = []

    def serve(folder: Path) -> str:
        handler = partial(QuietHandler, directory=str(folder))
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


WIDGET_PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="{theme}"><head><meta charset="utf-8"><title>Widget</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><link rel="stylesheet" href="_static/widgets/widgets.css">
<style>body {{ margin: 1rem; background: {background}; }} h1, h2 {{ color: #888; }}</style>
{scripts}<script defer src="_static/widgets/loader.js"></script></head>
<body><main><h1 style="font-size: 2rem">Widget</h1><h2>Live</h2>{body}</main></body></html>
"""


@pytest.fixture(scope="session")
def write_widgets():
    """A function: write pages with widgets into a folder, as the book's extension does.

    ``write_widgets(folder, {"light": [make, ...]}, run)``: each ``make()`` gives a widget; a page
    whose name starts with "dark" is dark. Without a run the pages have no live models.
    """
    spec = importlib.util.spec_from_file_location("course_book", ROOT / "book/_ext/course_book.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)

    def write(folder: Path, pages: dict, run=None) -> Path:
        extension.publish_widgets(folder / "_static" / "widgets")
        sources = []
        if run is not None:
            extension.publish_models(folder / "_static" / "models", run)
            sources = ["models/live"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(BOOK_BUILD_VARIABLE, "1")
            for name, makers in pages.items():
                widgets = [make() for make in makers]
                body = "".join(w._repr_mimebundle_()["text/html"] for w in widgets)
                names = dict.fromkeys(f"widgets/{w.widget_name}" for w in widgets)
                scripts = "".join(
                    f'<script defer src="_static/{source}.js"></script>\n'
                    for source in [*sources, *names]
                )
                dark = name.startswith("dark")
                theme, background = ("dark", "#12161d") if dark else ("light", "#fff")
                values = {"theme": theme, "background": background, "scripts": scripts}
                text = WIDGET_PAGE.format(body=body, **values)
                (folder / f"{name}.html").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="module")
def site_url(site, serve_folder):
    """The address of the pages that the module's fixture `site` wrote."""
    return serve_folder(site)


@pytest.fixture(params=["http", "file"])
def origin(request, site, site_url):
    """The same pages, served and from disk."""
    return site_url if request.param == "http" else site.as_uri() + "/"


@pytest.fixture
def open_page(visit, site_url):
    """A function that opens a page; afterwards nothing may have complained or called home."""
    opened = []

    def make(name, origin=site_url, **options):
        opened.append(visit(origin, **options))
        return opened[-1].open(f"{name}.html")

    yield make
    for seen in opened:
        assert seen.foreign == []
        assert seen.problems == []


@pytest.fixture(scope="module")
def run(smoke_run):
    """The run whose models the pages carry."""
    return smoke_run


@pytest.fixture(scope="session")
def laptop():
    """The trained run that the book shows."""
    try:
        return open_run()
    except CourseError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def browser():
    """An installed Chromium (or the one that COURSE_CHROMIUM names), headless."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install -r requirements.txt")
    from print_pdf import FLAGS, find_browser

    path = find_browser()
    if path is None:
        missing("no Chromium found: install it (apt-get install chromium) or set COURSE_CHROMIUM")
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield instance
        instance.close()


@pytest.fixture(scope="session")
def jupyterlab() -> list[str]:
    """The command that starts JupyterLab."""
    if importlib.util.find_spec("jupyterlab") is None:
        missing("JupyterLab is not installed: pip install -r requirements.txt")
    return [sys.executable, "-m", "jupyterlab"]


class Visit:
    """One page in a fresh browser context, with everything it complained about or asked for."""

    def __init__(self, browser, origin: str, scheme: str = "light", width: int = 1280, **options):
        self.origin = origin
        self.context = browser.new_context(
            color_scheme=scheme,
            viewport={"width": width, "height": 900},
            reduced_motion="reduce",
            **options,
        )
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.responses: list = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda e: self.problems.append(f"exception: {e}"))
        self.page.on("requestfailed", lambda r: self.problems.append(f"not loaded: {r.url}"))
        self.page.on("response", self._response)
        self.page.on("request", lambda r: self.requests.append(r.url))

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console {message.type}: {message.text}")

    def _response(self, response) -> None:
        self.responses.append(response)
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")

    def open(self, name: str):
        """Open a page of the book; return once its scripts and widgets have settled."""
        self.page.goto(self.origin + name)
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_function(
            "[...document.querySelectorAll('.course-widget')].every(w => w.dataset.state)"
        )
        if self.page.evaluate("!!window.MathJax?.startup?.promise"):
            self.page.evaluate("window.MathJax.startup.promise.then(() => null)")
        return self.page

    @property
    def foreign(self) -> list[str]:
        """Requests that left the book."""
        own = (self.origin, "data:", "blob:")
        return [url for url in self.requests if not url.startswith(own)]


@pytest.fixture
def visit(browser):
    """Factory of visits: ``visit(origin, scheme="dark", width=390)``; closes them at the end."""
    opened: list[Visit] = []

    def make(origin: str, **options) -> Visit:
        opened.append(Visit(browser, origin, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.context.close()
