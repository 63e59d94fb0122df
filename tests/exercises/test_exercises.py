"""The learner's answers, one test an exercise: solved, wrong with a reason, or not attempted.

`pytest tests/exercises -k L03` runs one lesson, `-k softmax` one exercise.
"""

import pytest

from course_lib.checks import NOT_ATTEMPTED, WRONG, Verdict
from exercises.bank import STUBS, exercises, id_of, load


def graded(check, folder):
    """The verdict on the answer in `folder/lNN.py`."""
    path = folder / f"{check.lesson.lower()}.py"
    try:
        answer = getattr(load(path.resolve()), check.name)
    except FileNotFoundError:
        return Verdict(NOT_ATTEMPTED)
    except AttributeError:
        return Verdict(WRONG, f"{path} has no function `{check.name}`: keep the names of the stubs")
    except TimeoutError:
        return Verdict(WRONG, f"{path} does not end when it is loaded: is there an endless loop?")
    except BaseException as error:
        return Verdict(WRONG, f"{path} cannot be loaded: {type(error).__name__}: {error}")
    return check.grade(answer)


@pytest.mark.parametrize("check", exercises(), ids=id_of)
def test_exercise(check, request, record_property):
    """Fails with the check's message alone: no traceback through code the learner never saw."""
    verdict = graded(check, request.config.getoption("answers", default=None) or STUBS)
    record_property("lesson", check.lesson)
    record_property("exercise", check.name)
    record_property("status", verdict.status)
    record_property("message", verdict.message)
    print(verdict.printed)
    if verdict.status == NOT_ATTEMPTED and request.config.getoption("required", default=False):
        pytest.fail(f"{check.name}: {NOT_ATTEMPTED}", pytrace=False)
    if verdict.status == NOT_ATTEMPTED:
        pytest.skip(NOT_ATTEMPTED)
    if verdict.status == WRONG:
        pytest.fail(f"{check.name}: {verdict.message}", pytrace=False)
