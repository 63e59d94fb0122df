"""Run notebooks from top to bottom, as *Run all* does, and say which cell of which one fails.

    python notebooks/run.py                     every notebook, with this Python's packages
    python notebooks/run.py --python PATH L05   one lesson, with the packages of another Python

`make notebooks-run` gives the Python of an environment that holds what Colab would have: the
course, what a notebook's first cell installs, a kernel, and nothing of the book's own tools. The
first notebook trains the run of `$COURSE_PRESET`, by default a smoke run; the others find it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parent
SECONDS = 600  # for one cell
# Every paragraph with measured values has got all of them.
AT_THE_END = 'assert not waiting_paragraphs, f"never measured: {waiting_paragraphs}"'


def run_notebook(path: Path, place: Path, before: str = "", kernel: str = "python3") -> str:
    """Run a notebook in the folder `place`; returns what failed, or nothing.

    Args:
        before: code that runs ahead of the notebook's first cell.
        kernel: name of the kernel, as Jupyter knows it.
    """
    notebook = nbformat.read(path, 4)
    notebook.cells = [new_code_cell(before), *notebook.cells, new_code_cell(AT_THE_END)]
    reached = []
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name=kernel,
        resources={"metadata": {"path": str(place)}},
        on_cell_start=lambda cell, cell_index: reached.append(cell),
    )
    try:
        client.execute()
    except CellExecutionError:
        pass  # the cell holds the error, as does one whose output could not be shown
    except (CellTimeoutError, DeadKernelError) as error:
        return report(reached[-1], type(error).__name__, str(error))
    for cell in reached:
        for output in cell.get("outputs", []):
            wanted = "raises-exception" in cell.metadata.get("tags", [])
            if output.output_type == "error" and not wanted:
                return report(cell, output.ename, output.evalue)
    return ""


def report(cell, kind: str, text: str) -> str:
    """A failed cell: its id, the error, how it begins."""
    begins = "\n".join(f"    {line}" for line in cell.source.splitlines()[:12])
    return f"cell {cell['id']}: {kind}: {text.strip()[:600]}\n{begins}"


def add_kernel(python: str, folder: Path) -> str:
    """Tell Jupyter of a kernel that is the given Python; returns its name."""
    place = folder / "kernels" / "course"
    place.mkdir(parents=True)
    start = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": start, "display_name": "The course", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    os.environ["JUPYTER_PATH"] = str(folder)
    return place.name


def chosen(names: list[str], folder: Path) -> list[Path]:
    """The notebooks whose names begin like one of these; without any, all."""
    paths = sorted(folder.glob("L[0-9]*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            sys.exit(f"error: no notebook {name} in {folder}")
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def main(arguments: list[str], folder: Path = FOLDER) -> int:
    """Run the notebooks one after the other, and tell of every one."""
    parser = argparse.ArgumentParser(prog="python notebooks/run.py", description="Run notebooks.")
    parser.add_argument("names", nargs="*", help="such as L05 (default: all)")
    parser.add_argument("--python", default=sys.executable, help="a Python with the course in it")
    parser.add_argument("--before", default="", help="code to run ahead of each notebook")
    asked = parser.parse_args(arguments)
    paths, failed = chosen(asked.names, folder), 0
    os.environ.setdefault("COURSE_PRESET", "smoke")
    with tempfile.TemporaryDirectory() as name:
        kernel = add_kernel(str(Path(asked.python).absolute()), Path(name) / "jupyter")
        os.environ["COURSE_RUNS_DIR"] = str(Path(name) / "runs")
        for path in paths:
            began = time.perf_counter()
            problem = run_notebook(path, Path(name), asked.before, kernel)
            seconds, state = time.perf_counter() - began, "FAILED" if problem else "ok"
            print(f"{path.name:45} {state:6} {seconds:6.1f} s", flush=True)
            if problem:
                failed += 1
                print(problem, flush=True)
    print(f"{len(paths) - failed} passed, {failed} failed")
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
