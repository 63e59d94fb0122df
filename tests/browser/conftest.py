"""Fixtures of the browser tests: the built book, a local server, Chromium.

Without a browser or a built book the tests are skipped and say why; in CI (CI=true) they fail.
"""

from __future__ import annotations

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The browser must not call home: a foreign request would then be the browser's own.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


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
def book_url(book_dir: Path):
    """Address of a local server of the built book, with a slash at the end."""
    handler = partial(QuietHandler, directory=str(book_dir))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """An installed Chromium (or the one that COURSE_CHROMIUM names), headless."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install -r requirements.txt")
    path = os.environ.get("COURSE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), "")
    if not path:
        missing("no Chromium found: install it (apt-get install chromium) or set COURSE_CHROMIUM")
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield instance
        instance.close()


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
