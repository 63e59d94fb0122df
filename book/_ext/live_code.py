"""Live code: a lesson's cells run in the page, on a server of mybinder.org, when a reader asks.

A page on its own loads nothing for this: its launch menu gets a button, and a click on it imports
``_static/live_code.mjs``. What that module runs is written here as ``_static/live/<page>.json``:
the repository, and every code cell of the page in its order. Cells whose code the page does not
show are there as well, because the later ones use what they import and define.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.util import logging

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
NO_CODE = {"remove-cell", "remove-input"}  # tags: the page does not show the cell's code
BOOK_TOOLS = re.compile(r"^from myst_nb import glue\n", re.MULTILINE)  # a server has no myst_nb
# A widget writes itself as the plain HTML of the book: in the page there is no widget manager.
AS_IN_THE_BOOK = 'import os\nos.environ["COURSE_BOOK_BUILD"] = "1"\n'
FAILED = (
    "<p role='alert' class='admonition'>Live code could not start: its script did not load. From "
    "a copy on disk it cannot: open the book online, or serve it with make serve.</p>"
)


def page_cells(page: str, config=None, root: Path = ROOT) -> list[dict]:
    """Every code cell of a page: its source, whether the page shows it, whether it runs.

    The first is the set-up of the page's notebook, which finds the models and defines `glue`.
    `config` is the parser's; without one, Markdown is read with its own settings.
    """
    notebook = json.loads((root / "notebooks" / f"{page}.ipynb").read_text(encoding="utf-8"))
    setup = next(c for c in notebook["cells"] if "setup" in c["metadata"].get("tags", []))
    cells = [{"source": AS_IN_THE_BOOK + "".join(setup["source"]), "shown": False, "runs": True}]
    text = (root / "book" / f"{page}.md").read_text(encoding="utf-8")
    for cell in read_myst_markdown_notebook(text, config).cells:
        if cell.cell_type == "code":
            tags = set(cell.metadata.get("tags", []))
            shown, runs = not tags & NO_CODE, "skip-execution" not in tags
            cells.append({"source": BOOK_TOOLS.sub("", cell.source), "shown": shown, "runs": runs})
    return cells


def live_button(page: str, module: str) -> dict:
    """The theme's button that imports the module and starts it; it says so if it cannot."""
    start = f"import('{module}').then((live) => live.start('{page}'))"
    told = f"document.querySelector('article h1').insertAdjacentHTML('afterend', `{FAILED}`)"
    script = html.escape(f"{start}.catch(() => {told})")
    return {"type": "javascript", "text": "Live code", "icon": "fas fa-play", "javascript": script}


def add_live_code(app, pagename, templatename, context, doctree) -> None:
    """Write the cells of a lesson, and put the button into its launch menu."""
    page = Path(pagename).name
    menus = [b for b in context.get("header_buttons", []) if b.get("label") == "launch-buttons"]
    if not menus:
        return
    cells = page_cells(page, app.env.myst_config)
    shown = sum(cell["shown"] for cell in cells)
    found = len(re.findall(r'<div class="cell_input\b', context["body"]))
    if shown != found:
        logger.warning("%s: live code expects %d cells, the page shows %d", page, shown, found)
    theme = app.config.html_theme_options
    repository = theme["repository_url"].rstrip("/").removeprefix("https://github.com/")
    data = {"repository": repository, "branch": theme["repository_branch"], "cells": cells}
    target = Path(app.outdir) / "_static" / "live" / f"{page}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(data), encoding="utf-8")
    module = context["pathto"]("_static/live_code.mjs", 1)
    menus[0]["buttons"].insert(0, live_button(page, module))


def setup(app):
    # The course's own buttons come at 600.
    app.connect("html-page-context", add_live_code, priority=610)
    return {"version": "0.1.0", "parallel_read_safe": True, "parallel_write_safe": True}
