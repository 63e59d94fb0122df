"""Finds the exercises, the learner's stubs, the reference answers and the wrong answers.

- `reference/lNN.py`: one function for every exercise, the same code as the solution on the page.
- `wrong/lNN.py`: functions called `<exercise>__<misconception>`; the docstring of each is the
  phrase that the check's message must contain.
"""

import functools
import importlib
import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

from course_lib.checks import Check, run_limited

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STUBS = ROOT / "notebooks" / "exercises"
CHECKS = ROOT / "course_lib" / "checks"
_count = itertools.count()


def exercises() -> list[Check]:
    """The check of every exercise, lesson by lesson, in the order of the files."""
    found = []
    for path in sorted(CHECKS.glob("l[0-9][0-9].py")):
        module = importlib.import_module(f"course_lib.checks.{path.stem}")
        found += [thing for thing in vars(module).values() if isinstance(thing, Check)]
    return found


def id_of(check: Check) -> str:
    """`L03-softmax`: what `-k` selects by."""
    return f"{check.lesson}-{check.name}"


@functools.cache
def load(path: Path) -> ModuleType:
    """A file as a module of its own, in a limited time: it may be a learner's.

    Raises:
        whatever the file raises; TimeoutError if it does not end.
    """
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}_{next(_count)}", path)
    module = importlib.util.module_from_spec(spec)
    run_limited(lambda: spec.loader.exec_module(module), 20)
    return module


def reference(check: Check):
    """The reference answer of an exercise."""
    return getattr(load(HERE / "reference" / f"{check.lesson.lower()}.py"), check.name)


def wrong_answers(check: Check) -> dict:
    """Misconception -> wrong answer, for one exercise."""
    module = load(HERE / "wrong" / f"{check.lesson.lower()}.py")
    head = f"{check.name}__"
    return {
        name.removeprefix(head): fn for name, fn in vars(module).items() if name.startswith(head)
    }
