"""The widgets in JupyterLab, with a real kernel: the same modules, operated by a reader.

A server on a free port, a small notebook, *Run All Cells* from the menu; what the reader then
picks in a widget, the kernel prints.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import time
import urllib.request

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from pages import slide

pytestmark = pytest.mark.browser
CELLS = {
    "shift": """\
from course_lib.atlas.prompts import Prompt
from course_lib.runs import open_run
from course_lib.widgets.probability_shift import ProbabilityShift

run = open_run()
texts = ("What is the capital of Norway?", "Write a haiku about rain.")
shift = ProbabilityShift.from_run(run, [Prompt("fact", text, None) for text in texts])
shift""",
    "sampling": """\
from course_lib.widgets.sampling_playground import SamplingPlayground

sampling = SamplingPlayground(run)
sampling""",
    "calculator": """\
from course_lib.widgets.architecture_calculator import ArchitectureCalculator

calculator = ArchitectureCalculator({"Ours": run.model("base").config}, (1e10, 8e9))
calculator""",
    "set": 'calculator.config = calculator.config | {"n_layers": 3}',
    "print": """\
print(shift.prompt_index, shift.answer_by, shift.position)
print(sampling.knobs["top_k"], sampling.text)
print(calculator.config["n_layers"])""",
}
TEXT = "The capital of Spain is <b>"
# Before its kernel is there, a cell does not run. The sign in the notebook says "idle" too early.
KERNEL_READY = """() => {
  const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
  const kernel = session?.isReady && session.session?.kernel;
  return kernel && kernel.connectionStatus === "connected" && kernel.status === "idle";
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    """A notebook, the run that it opens, and settings that keep JupyterLab at home."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [new_code_cell(source, id=name) for name, source in CELLS.items()]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "widgets.ipynb")
    (folder / "runs").mkdir()
    (folder / "runs" / "laptop").symlink_to(run.path)
    settings = folder / "config" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    news = "@jupyterlab/apputils-extension:announcements"
    settings.write_text(f'{{"disabledExtensions": {{"{news}": true}}}}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lab(jupyterlab, folder):
    """Address of the notebook in a JupyterLab of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(16), f"http://127.0.0.1:{port}/"
    places = {name: str(folder / name) for name in ("config", "data", "runtime", "workspaces")}
    environment = os.environ | {
        "COURSE_RUNS_DIR": str(folder / "runs"),
        "JUPYTER_CONFIG_DIR": places["config"],
        "JUPYTER_DATA_DIR": places["data"],
        "JUPYTER_RUNTIME_DIR": places["runtime"],
        "JUPYTERLAB_WORKSPACES_DIR": places["workspaces"],
        "IPYTHONDIR": str(folder / "ipython"),
    }
    environment.pop("COURSE_PRESET", None)
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
    options += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    options += ["--allow-root", "--no-browser", "--LabApp.extension_manager=readonly"]
    options += ["--LabApp.expose_app_in_browser=True"]  # so that the test can ask for the kernel
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*jupyterlab, *options],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(server, f"{own}api/status?token={token}", folder / "server.log")
        yield f"{own}lab/tree/widgets.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(server, url, log, seconds=60):
    """Return when the server answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-3000:]}", pytrace=False)


def cell(page, name):
    return page.locator(".jp-Notebook .jp-Cell").nth(list(CELLS).index(name))


def output(page, name):
    return cell(page, name).locator(".jp-OutputArea-output").first


def run_cell(page, name):
    """Run one cell as a reader does, and wait until the kernel is done with it."""
    from playwright.sync_api import expect

    prompt = cell(page, name).locator(".jp-InputPrompt")
    before = prompt.text_content()
    cell(page, name).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    done = re.compile(rf"^(?!{re.escape(before)}$)\[\d+\]:?$")
    expect(prompt).to_have_text(done, timeout=30_000)


def printed(page):
    """What the last cell prints now."""
    run_cell(page, "print")
    return output(page, "print").text_content().splitlines()


@pytest.fixture
def notebook(browser, lab):
    """The notebook, all of its cells run from the menu, in a window that shows them all."""
    context = browser.new_context(viewport={"width": 1280, "height": 4000})
    page = context.new_page()
    problems, foreign = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: foreign.append(request.url))
    page.goto(lab)
    page.wait_for_function(KERNEL_READY, timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    output(page, "print").wait_for(timeout=60_000)
    yield page
    context.close()
    own = lab.split("lab/tree")[0]
    assert problems == []
    assert [url for url in foreign if not url.startswith((own, "data:", "blob:"))] == []


def test_the_kernel_sees_what_the_reader_picks(notebook):
    page = notebook
    before = printed(page)
    assert before[0].startswith("0 rlhf ") and before[2] == "3", before

    shift = cell(page, "shift").locator(".cw")
    shift.locator("select").select_option(label="Write a haiku about rain.")
    shift.get_by_role("radio", name="SFT", exact=True).check()
    shift.get_by_role("button", name="Next →").click()
    sampling = cell(page, "sampling").locator(".cw")
    sampling.locator(".cw-gate button").click()  # the weights come from the kernel
    sampling.locator(".cw-gate").wait_for(state="hidden", timeout=30_000)
    sampling.locator("textarea").fill(TEXT)
    slide(sampling.locator(".cw-sam-knobs input").nth(1), 7)
    layers = cell(page, "calculator").get_by_label("Layers")
    layers.fill("9")

    first, second, third = printed(page)
    assert first.startswith("1 sft ") and (second, third) == (f"7 {TEXT}", "9")

    run_cell(page, "set")  # and the other way
    page.wait_for_function("input => input.value === '3'", arg=layers.element_handle())
