"""The book's own Sphinx extension: fresh outputs, local assets, light pages.

1. **Fresh outputs.** Sphinx re-reads a page, and jupyter-cache re-runs it, only when the page's
   own text changed. Here both also depend on the library, the trained run and the recorded
   studies (:func:`fingerprint`).
2. **Local assets.** MathJax is copied from the installed package ``django-static-mathjax``;
   each widget's ES module is published as a classic script, which also loads from disk, and the
   models of the run beside them. A page loads only what it uses; no page loads weights by itself.
3. **Light pages.** The theme's icon script (0.5 MB) is left out (``_templates``); its icon font
   is cut down to the icons that the book shows.
4. **Launch buttons** of a lesson lead to its notebook: Colab, Binder, download.
5. **What a web site needs**: absolute addresses from the repository's, a site map, a 404 page.
6. **A table of page weights** at the end of the build.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import importlib.util
import json
import logging as stdlib_logging
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.util import logging

from course_lib.errors import CourseError
from course_lib.runs import Run, open_run
from course_lib.widgets.base import WIDGET_DIR as WIDGETS
from course_lib.widgets.base import module_source, style_sheet
from course_lib.widgets.live import book_files

logger = logging.getLogger(__name__)
stdlib_logging.getLogger("fontTools").setLevel(stdlib_logging.WARNING)
# The social cards ask for a bold cut of a font that has none; the plain one looks right.
stdlib_logging.getLogger("matplotlib.font_manager").setLevel(stdlib_logging.ERROR)

ROOT = Path(__file__).resolve().parents[2]
# What a page can show depends on these files besides its own text.
INPUTS = ("course_lib/**/*", "runs/laptop/**/manifest.json", "book/studies/*.json")
WEIGHT_LIMIT_KB = 500
PLACES = re.compile(r'(?: d| x| y)="[^"]*"')  # the attributes of SVG that hold coordinates
# MathJax in parts, as _config.yml lists them: 100 kB lighter than its one-file bundle, which
# brings a menu along.
MATHJAX_SCRIPTS = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "output/chtml.js",
    "output/chtml/fonts/tex.js",
    "a11y/assistive-mml.js",
)

WIDGET_STATE = re.compile(
    r'<script type="application/vnd\.jupyter\.widget-(?:state|view)\+json">.*?</script>', re.DOTALL
)
SEARCH_FROM_DISK = (
    'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'
)
REDIRECT = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={page}">
{card}
</head>
<body><main><h1>{title}</h1><p><a href="{page}">Open the book</a></p></main></body></html>
"""
CARD = re.compile(
    r'<link rel="canonical"[^>]*>|<meta (?:property="og:|name="(?:description|twitter:))[^>]*>'
)
NOT_FOUND = """<section><h1>There is no such page</h1>
<p>A language model would now write something that sounds like the page you wanted. This book does
not invent anything: at this address there is nothing.</p>
<p>The link may have a slip in it, or the page has moved. You can begin at
<a href="{start}">the first page</a>, or look for a word in <a href="{search}">the search</a>.</p>
</section>"""


# --- fresh outputs --------------------------------------------------------------------


def fingerprint() -> str:
    """Hash of every file outside the pages that can change what a page shows."""
    digest = hashlib.sha256()
    for pattern in INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def key_execution(app, config) -> None:
    """Give each fingerprint its own execution cache; a new path makes Sphinx re-read, too."""
    caches = Path(app.outdir).parent / ".jupyter_cache"
    cache = caches / fingerprint()
    for old in caches.glob("*"):
        if old != cache:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    config.nb_execution_cache_path = str(cache)


# --- the web site ---------------------------------------------------------------------


def set_site_url(app, config) -> None:
    """Derive the site's address from the repository's: _config.yml names it once."""
    url = (config.html_theme_options or {}).get("repository_url", "")
    match = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+?)/?", url)
    if match:
        config.ogp_site_url = f"https://{match[1]}.github.io/{match[2]}/"
        config.html_baseurl = config.ogp_site_url  # the canonical address in every page
    config.ogp_site_name = config.html_title


def not_found_page(app):
    """The page that a server shows for an address that does not exist (GitHub Pages: 404.html)."""
    uri = app.builder.get_target_uri
    body = NOT_FOUND.format(start=uri(app.config.root_doc), search=uri("search"))
    yield "404", {"title": "There is no such page", "body": body}, "page.html"


def root_links(page: Path, site_url: str) -> None:
    """Make a page's relative links absolute: it is shown at any depth of the site."""
    base = urlsplit(site_url).path or "/"
    relative = r'(href|src|action|data-content_root)="(?:\./)?(?!/|#|[a-z]+:)([^"]*)"'
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(relative, rf'\1="{base}\2"', text), encoding="utf-8")


def write_site_map(out: Path, docnames, site_url: str) -> None:
    """List every page of the book for search engines (sitemaps.org). Sphinx's extension for it
    lists the pages that this build wrote, not those that were up to date."""
    rows = "".join(f"<url><loc>{site_url}{name}.html</loc></url>\n" for name in sorted(docnames))
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    text = f'{head}<urlset xmlns="{space}">\n{rows}</urlset>\n'
    (out / "sitemap.xml").write_text(text, encoding="utf-8")


def write_start_page(out: Path, root: str, title: str) -> None:
    """The site's own address leads to the first page, and is shared with that page's card."""
    if root == "index":
        return
    page = f"{root}.html"
    card = "\n".join(CARD.findall((out / page).read_text(encoding="utf-8")))
    text = REDIRECT.format(title=html.escape(title), page=page, card=card)
    (out / "index.html").write_text(text, encoding="utf-8")


# --- launch buttons -------------------------------------------------------------------


def launch_buttons(repository: str, branch: str, notebook: str) -> dict:
    """The theme's button group that opens a notebook of a GitHub repository, given by its path."""
    name = repository.rstrip("/").removeprefix("https://github.com/")
    places = (
        ("Colab", "fas fa-cloud", "colab.research.google.com/github/{}/blob/{}/{}"),
        ("Binder", "fas fa-server", "mybinder.org/v2/gh/{}/{}?urlpath=lab/tree/{}"),
        ("Download", "fas fa-download", "github.com/{}/raw/{}/{}"),
    )
    return {
        "type": "group",
        "tooltip": "Run this lesson",
        "icon": "fas fa-rocket",
        "label": "launch-buttons",
        "buttons": [
            {
                "type": "link",
                "text": text,
                "icon": icon,
                "url": "https://" + address.format(name, branch, notebook),
            }
            for text, icon, address in places
        ],
    }


def add_launch_buttons(app, pagename, templatename, context, doctree) -> None:
    """Put the launch buttons on every page that has a notebook."""
    notebook = f"notebooks/{Path(pagename).name}.ipynb"
    theme = app.config.html_theme_options
    if pagename.startswith("book/L") and (ROOT / notebook).is_file():
        group = launch_buttons(theme["repository_url"], theme["repository_branch"], notebook)
        context["header_buttons"].insert(0, group)


# --- local assets ---------------------------------------------------------------------


def publish_assets(app) -> None:
    """Write MathJax and the widgets' scripts under ``_static`` of the output."""
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    shutil.rmtree(static / "vendor", ignore_errors=True)  # cut fonts of an earlier build
    copy_mathjax(static / "mathjax")
    publish_widgets(static / "widgets")
    try:
        publish_models(static / "models", open_run())
    except CourseError as error:
        logger.warning("no live models in the book: %s", error)


def publish_widgets(target: Path) -> None:
    """Write the loader, the style sheet, and each widget's module as a classic script."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(WIDGETS / "static" / "loader.js", target / "loader.js")
    (target / "widgets.css").write_text(style_sheet(), encoding="utf-8")
    for module in sorted(WIDGETS.glob("*.mjs")):
        name, source = json.dumps(module.stem), json.dumps(module_source(module.stem))
        script = f"(window.COURSE_WIDGETS ??= {{}})[{name}] = {source};\n"
        (target / f"{module.stem}.js").write_text(script, encoding="utf-8")


def publish_models(target: Path, run: Run) -> None:
    """Write the weights that run in the page, and the script that brings the rest."""
    target.mkdir(parents=True, exist_ok=True)
    served = 0
    for name, data in book_files(run):
        (target / name).write_bytes(data)
        served += len(data) if name.endswith(".bin") else 0
    print(f"Weights of the live models, loaded when a reader asks: {served / 1e6:.2f} MB")


def copy_mathjax(target: Path) -> None:
    """Copy the parts of MathJax that a page can ask for: TeX input, CHTML output, fonts."""
    spec = importlib.util.find_spec("mathjax")  # the import name of django-static-mathjax
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("MathJax is missing: pip install django-static-mathjax")
    source = Path(spec.submodule_search_locations[0]) / "static" / "mathjax" / "es5"
    for part in (*MATHJAX_SCRIPTS, "output/chtml/fonts/woff-v2", "input/tex/extensions"):
        destination = target / part
        if destination.exists():
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / part).is_dir() else shutil.copy
        copy(source / part, destination)


def keep_scripts(context, has_maths: bool) -> None:
    """Drop repeated inline scripts, and MathJax with its settings where there are no formulas."""
    seen, scripts = set(), []
    for script in context.get("script_files", []):
        inline = (getattr(script, "attributes", None) or {}).get("body") or ""
        name = f"{getattr(script, 'filename', script) or ''}"
        is_mathjax = "mathjax/" in name or "window.MathJax" in inline
        if (inline and inline in seen) or (is_mathjax and not has_maths):
            continue
        seen.add(inline)
        scripts.append(script)
    context["script_files"][:] = scripts


def trim_page(app, pagename, templatename, context, doctree) -> None:
    """Load the widget scripts a page needs, and drop what it does not."""
    body = context.get("body") or ""
    # Every widget carries its own state; ipywidgets' copy has random ids and no reader.
    body = WIDGET_STATE.sub("", body)
    # docutils puts a role on bibliography entries that ARIA has since withdrawn.
    body = context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')
    keep_scripts(context, has_maths='class="math' in body)
    if pagename == "search":  # a page on disk cannot fetch another for its summary
        app.add_js_file(None, body=SEARCH_FROM_DISK)
    names = sorted(set(re.findall(r'class="course-widget" data-widget="([\w-]+)"', body)))
    if names:
        if '"live":true' in body:  # in a widget's state: its models run in the page
            app.add_js_file("models/live.js", loading_method="defer", priority=500)
        app.add_css_file("widgets/widgets.css")
        for name in names:
            if not (WIDGETS / f"{name}.mjs").is_file():
                logger.warning("%s: no ES module for widget %r", pagename, name)
            app.add_js_file(f"widgets/{name}.js", loading_method="defer", priority=600)
        app.add_js_file("widgets/loader.js", loading_method="defer", priority=700)


# --- light pages ----------------------------------------------------------------------


def subset_icons(static: Path, pages: list[Path]) -> None:
    """Cut the theme's icon fonts down to the icons that the pages and the styles use."""
    css = "\n".join(p.read_text(encoding="utf-8") for p in static.rglob("*.css"))
    shown = {name for page in pages for name in re.findall(r"\bfa-([a-z0-9-]+)", page.read_text())}
    codes: set[int] = set()
    for rule, code in re.findall(r'([^{}]*):before\{content:"\\([0-9a-f]+)"\}', css):
        if shown & set(re.findall(r"\.fa-([a-z0-9-]+)", rule + ":before")):
            codes.add(int(code, 16))
    # Icons that a style sheet names itself (admonitions, external links).
    codes |= {int(c, 16) for c in re.findall(r'--pst-[a-z-]+:\s*"\\([0-9a-f]+)"', css)}
    codes |= {ord(c) for c in re.findall(r'--pst-[a-z-]+:\s*"(.)"', css)}
    for path in (static / "vendor" / "fontawesome" / "webfonts").glob("*"):
        if path.suffix != ".woff2":
            path.unlink()
            continue
        font = TTFont(path, recalcTimestamp=False)  # equal builds, equal bytes
        tool = subset.Subsetter(subset.Options(glyph_names=False, notdef_outline=True))
        tool.populate(unicodes=codes)
        tool.subset(font)
        font.flavor = "woff2"
        font.save(path)


def name_toggles(pages: list[Path]) -> None:
    """Say what the arrow beside a lesson with sub-pages opens: the theme gives it no name."""
    bare = '<summary><span class="toctree-toggle"'
    named = bare.replace("<summary>", '<summary aria-label="Pages of this lesson">')
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if bare in text:
            page.write_text(text.replace(bare, named), encoding="utf-8")


def trim_figures(folder: Path) -> None:
    """SVG figures without what nobody sees: notes on their making, line breaks in the source, and
    the digits of coordinates beyond a tenth of a pixel. A seventh lighter, same look."""
    for path in folder.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = PLACES.sub(lambda m: re.sub(r"(\.\d)\d+", r"\1", m[0]), text)
        path.write_text(re.sub(r"\n\s*", " ", text), encoding="utf-8")


def finish(app, exception) -> None:
    """Last steps on the built files: names, icons, figures, leftovers, site files, weights."""
    if exception is not None or app.builder.name != "html":
        return
    out = Path(app.outdir)
    pages = []
    for page in sorted(p for p in out.rglob("*.html") if "_static" not in p.parts):
        name = page.relative_to(out).with_suffix("").as_posix()
        if name in app.env.found_docs or name in {"index", "search", "genindex", "404"}:
            pages.append(page)
        else:
            page.unlink()  # a page that an earlier build made and the book no longer has
    name_toggles(pages)
    subset_icons(out / "_static", pages)
    trim_figures(out / "_images")
    for leftover in {*out.glob("_static/scripts/fontawesome.js*"), *out.rglob("*.map")}:
        leftover.unlink()
    write_start_page(out, app.config.root_doc, app.config.html_title)
    write_site_map(out, app.env.found_docs, app.config.html_baseurl)
    print_weights(out, [page for page in pages if page.name != "404.html"])
    root_links(out / "404.html", app.config.html_baseurl)


def compressed(path: Path) -> int:
    """Size in bytes as served: text compressed, images and fonts as they are."""
    data = path.read_bytes()
    packed = path.suffix in {".png", ".jpg", ".jpeg", ".gif", ".webp", ".woff", ".woff2"}
    return len(data) if packed else len(gzip.compress(data))


def page_parts(page: Path) -> set[Path]:
    """The page itself and the local files that its first load asks for (icon font included)."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r'<(?:script|img)\b[^>]*?\bsrc="([^"]+)"', text)
    links += re.findall(r'<link\b[^>]*?\bhref="([^"]+)"[^>]*?\brel="(?:stylesheet|icon)"', text)
    links += re.findall(r'<link\b[^>]*?\brel="(?:stylesheet|icon)"[^>]*?\bhref="([^"]+)"', text)
    local = {link.split("?")[0] for link in links if "//" not in link and "data:" not in link}
    parts = {(page.parent / link).resolve() for link in local}
    for part in list(parts):
        if part.name == "pydata-sphinx-theme.css":
            parts.add(part.parents[1] / "vendor/fontawesome/webfonts/fa-solid-900.woff2")
        if part.name == "startup.js":
            parts |= {part.parent / script for script in MATHJAX_SCRIPTS}
    return {page} | {part for part in parts if part.is_file()}


def print_weights(out: Path, pages: list[Path]) -> None:
    """Print what each page costs on its first load, heaviest first."""
    groups = {"html": ".html", "script": ".js", "style": ".css"}
    rows = []
    for page in pages:
        sizes = dict.fromkeys([*groups, "other"], 0)
        for part in page_parts(page):
            group = next((g for g, suffix in groups.items() if part.suffix == suffix), "other")
            sizes[group] += compressed(part)
        rows.append((sum(sizes.values()), sizes, page.relative_to(out).as_posix()))
    print("\nPage weights, first load, kB after gzip (maths fonts, 1 to 41 kB each, come on top)")
    print(f"{'total':>8} {'html':>6} {'script':>7} {'style':>6} {'images':>7}  page")
    for total, sizes, name in sorted(rows, reverse=True):
        mark = f"  > {WEIGHT_LIMIT_KB} kB" if total > WEIGHT_LIMIT_KB * 1000 else ""
        cells = [total, *sizes.values()]
        kb = [f"{value / 1000:.0f}" for value in cells]
        print(f"{kb[0]:>8} {kb[1]:>6} {kb[2]:>7} {kb[3]:>6} {kb[4]:>7}  {name}{mark}")


def setup(app):
    os.environ["COURSE_BOOK_BUILD"] = "1"  # reaches the kernels: widgets write themselves as HTML
    app.connect("config-inited", key_execution)
    app.connect("config-inited", set_site_url)
    app.connect("builder-inited", publish_assets)
    app.connect("html-collect-pages", not_found_page)
    # The theme fills the header's buttons at 501.
    app.connect("html-page-context", add_launch_buttons, priority=600)
    app.connect("html-page-context", trim_page, priority=900)
    app.connect("build-finished", finish, priority=900)
    return {"version": "0.1.0", "parallel_read_safe": True, "parallel_write_safe": True}
