"""The shape of the code and of the pages: who imports whom, lengths, docstrings, alt texts."""

import ast
import re
import sys
from pathlib import Path

import pytest

import course_lib

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "course_lib"
# A file may import only what stands before it in the list of the package's docstring.
ORDER = tuple(re.search(r"list:\n\n((?:    .+\n)+)", course_lib.__doc__)[1].split())
ATLAS_ORDER = ("syllables", "facts", "families", "documents", "prompts", "conversations", "judge")
CORE = ORDER[: ORDER.index("plots")]
CORE_NEEDS = {"course_lib", "torch", "safetensors", "regex", "tqdm"}
FILES = sorted(LIBRARY.rglob("*.py"))
PAGES = sorted((ROOT / "book").rglob("*.md"))


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(path):
    """Every module that a file imports, anywhere in it, by its full name."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield ".".join([*package[: len(package) - node.level + 1], node.module or ""])
        elif isinstance(node, ast.ImportFrom):
            if node.module in ("course_lib", "course_lib.atlas"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# -- the library ----------------------------------------------------------------------------------


def test_every_module_has_its_place():
    parts = {p.relative_to(LIBRARY).parts[0].removesuffix(".py") for p in FILES}
    assert parts - {"__init__"} <= set(ORDER)
    assert {p.stem for p in (LIBRARY / "atlas").glob("*.py")} - {"__init__"} == set(ATLAS_ORDER)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_files_above_it(path):
    parts = path.relative_to(LIBRARY).parts
    own = parts[0].removesuffix(".py")
    if own == "__init__":
        assert not [m for m in imports(path) if m.startswith("course_lib")]
        return
    for module in imports(path):
        if module in ("course_lib", "course_lib.__version__") or not module.startswith(
            "course_lib."
        ):
            continue
        inner = module.split(".")[1:]
        if inner[0] != own:
            assert ORDER.index(inner[0]) < ORDER.index(own), module
        elif own == "atlas" and path.stem != "__init__":
            assert ATLAS_ORDER.index(inner[1]) < ATLAS_ORDER.index(path.stem), module


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_little(name):
    place = LIBRARY / name
    for path in place.glob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        needed = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
        assert needed <= CORE_NEEDS, name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module"
    kinds = ast.FunctionDef | ast.ClassDef
    things = [node for node in tree.body if isinstance(node, kinds)]
    things += [m for c in things if isinstance(c, ast.ClassDef) for m in c.body]
    missing = [
        f"{node.name} (line {node.lineno})"
        for node in things
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and not (node.name == "forward" and node.lineno)  # a module's class says what it does
        and not ast.get_docstring(node)
    ]
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_is_longer_than_45_lines_of_code(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in functions(path):
        body = set(range(node.lineno, node.end_lineno + 1))
        if ast.get_docstring(node):
            body -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        code = [
            i for i in body if lines[i - 1].strip() and not lines[i - 1].strip().startswith("#")
        ]
        assert len(code) <= 45, f"{node.name} has {len(code)} lines"


# -- the pages ------------------------------------------------------------------------------------

CELL = re.compile(r"^(`{3,})\{code-cell\}[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
HIDDEN = ("remove-input", "hide-input", "remove-cell", "hide-cell")


def cells(path):
    """Options and code of every code cell of a page."""
    for _, content in CELL.findall(path.read_text(encoding="utf-8")):
        lines = content.splitlines()
        options = []
        if lines and lines[0].strip() == "---":
            end = lines.index("---", 1)
            options, lines = lines[1:end], lines[end + 1 :]
        while lines and lines[0].startswith(":"):
            options.append(lines.pop(0))
        yield " ".join(options), "\n".join(lines).strip()


def parse_cell(code):
    plain = "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in code.split("\n")
    )
    return ast.parse(plain)


FENCE = re.compile(r"^(`{3,}|:{3,})([^\n]*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"\{(?:figure|image)\}")
SHOWN_AS_IS = re.compile(r"\w|$|\{(?:code-cell|code-block|literalinclude|math)\}")


def images_without_alt(text):
    """Images of a Markdown page that say nothing to those who cannot see them."""
    bad = []
    for _, kind, content in FENCE.findall(text):
        if FIGURE.match(kind) and not re.search(r"^:alt:\s*\S", content, re.MULTILINE):
            bad.append(kind)
    text = FENCE.sub(lambda m: "" if SHOWN_AS_IS.match(m[2]) else m[0], text)  # code is no page
    bad += re.findall(r"!\[\s*\]\([^)]*\)", text)
    return bad + [tag for tag in re.findall(r"<img\b[^>]*>", text) if not re.search(r"\balt=", tag)]


def test_the_page_checks_see_what_they_look_for():
    bad = "![](a.png)\n\n```{figure} b.png\n:name: b\nWords\n```\n\n<img src='c.png'>\n"
    assert len(images_without_alt(bad)) == 3
    good = "![words](a.png)\n\n```{figure} b.png\n:alt: words\nWords\n```\n<img alt='x' src='c'>"
    assert images_without_alt(good) == []
    assert len(float_lists(parse_cell("x = [0.1, -0.2, 0.3, 4.0]\n%time x"))) == 1
    assert not float_lists(parse_cell("x = [0.1, 0.2, 0.3]; y = [1, 2, 3, 4]"))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_image_has_an_alt_text(path):
    assert images_without_alt(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_visible_cells_are_short(path):
    for options, code in cells(path):
        if not any(tag in options for tag in HIDDEN):
            assert len(code.splitlines()) <= 15, code


def float_lists(node):
    """Lists of four or more numbers with a decimal point: results typed by hand.

    The check of an exercise needs inputs of its own; it is a function `check_...`.
    """
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
        return []
    found = [text for child in ast.iter_child_nodes(node) for text in float_lists(child)]
    if isinstance(node, ast.List | ast.Tuple):
        values = [n.operand if isinstance(n, ast.UnaryOp) else n for n in node.elts]
        if sum(isinstance(getattr(v, "value", None), float) for v in values) >= 4:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_cell_holds_numbers_typed_by_hand(path):
    for _, code in cells(path):
        assert float_lists(parse_cell(code)) == []


def test_the_pages_were_found():
    assert PAGES and len(FILES) > 25
