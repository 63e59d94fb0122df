"""Recorded studies: measurements that need many trainings, run once and committed.

A study is a module here with `TITLE`, `CODE` (the library files whose change makes it stale), and
`run(scale)`: "full" for the book, "small" for the tests, which re-run a slice of every study in
seconds. `record` writes the result to `book/studies/<name>.json` with what it takes to run it
again: command, code hash, versions, machine, seconds. Pages read it with `open_study`.
"""

import importlib
import math
import pkgutil
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from course_lib import __version__
from course_lib.errors import CourseError
from course_lib.files import read_json, write_json
from course_lib.runs import code_hash

SCALES = ("full", "small")
STUDIES = tuple(module.name for module in pkgutil.iter_modules(__path__))


def _module(name: str):
    if name not in STUDIES:
        raise CourseError(f"unknown study {name!r}: choose one of {', '.join(STUDIES)}")
    return importlib.import_module(f"course_lib.studies.{name}")


def study_code(name: str) -> str:
    """Hash of the study's own file and of the library files it says it depends on."""
    return code_hash((f"studies/{name}.py", *_module(name).CODE))


def studies_dir() -> Path:
    """Where the recorded results are: `book/studies` of the checkout."""
    return Path(__file__).parents[2] / "book" / "studies"


def run_study(name: str, scale: str = "full") -> dict:
    """Run a study and return its record, a JSON value; nothing is written.

    Raises:
        CourseError: no such study or scale.
    """
    if scale not in SCALES:
        raise CourseError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    module, began = _module(name), time.perf_counter()
    results = module.run(scale)
    return {
        "title": module.TITLE,
        "command": f"python -m course_lib study {name}",
        "scale": scale,
        "code": study_code(name),
        "seconds": round(time.perf_counter() - began, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"course_lib": __version__, "torch": torch.__version__},
        "machine": {"threads": torch.get_num_threads(), "platform": platform.platform()},
        "results": results,
    }


def record(name: str, folder: Path | None = None) -> Path:
    """Run a study at full scale and write its record; returns the file."""
    path = (folder or studies_dir()) / f"{name}.json"
    write_json(path, run_study(name))
    return path


def open_study(name: str) -> dict:
    """The record of a study, for a page.

    Raises:
        CourseError: it has not been recorded yet.
    """
    path = studies_dir() / f"{name}.json"
    if not path.exists():
        raise CourseError(f"no record of study {name!r} at {path}: run `make studies`")
    return read_json(path)


def state(name: str) -> str:
    """ "recorded", "not recorded", or "stale": its code has changed since it was recorded."""
    if not (studies_dir() / f"{name}.json").exists():
        return "not recorded"
    return "recorded" if open_study(name)["code"] == study_code(name) else "stale"


# 97.5 % quantiles of Student's t by degrees of freedom (Student 1908; any table of it).
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of two to five values with its 95 % t interval: `(mean, low, high)`.

    >>> [round(x, 2) for x in t_interval([1.0, 2.0, 3.0, 4.0, 5.0])]
    [3.0, 1.04, 4.96]
    """
    n = len(values)
    if n - 1 not in T_QUANTILES:
        raise CourseError(f"a t interval of {n} values: from two to five are possible here")
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = T_QUANTILES[n - 1] * deviation / math.sqrt(n)
    return mean, mean - half, mean + half
