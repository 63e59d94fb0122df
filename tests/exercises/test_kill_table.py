"""`pytest tests/exercises --kill-table`: what the checks catch of wrong answers and mutants."""

import pytest

from course_lib.checks import SECONDS, SOLVED
from exercises.bank import exercises, id_of, wrong_answers
from exercises.equivalent import EQUIVALENT
from exercises.mutants import mutants


@pytest.mark.filterwarnings("ignore:The use of .x.T. on tensors")
@pytest.mark.parametrize("check", exercises(), ids=id_of)
def test_kills(check, record_property):
    """Every wrong answer and every mutant that behaves differently must be caught."""
    wrong = wrong_answers(check)
    survivors = [name for name, fn in wrong.items() if check.grade(fn).status == SOLVED]
    known, tried, killed, equivalent = EQUIVALENT.get(id_of(check), {}), 0, 0, 0
    trains = check.seconds > SECONDS  # a capstone: a mutant that trains worse may pass
    for text, fn in () if trains else mutants(check):
        if fn is None:
            continue
        tried += 1
        if check.grade(fn, seconds=3).status != SOLVED:
            killed += 1
        elif text.rsplit(" [", 1)[0] in known:
            equivalent += 1
        else:
            survivors.append(text)
    for name, value in {
        "exercise": id_of(check),
        "wrong": len(wrong),
        "wrong_killed": len(wrong) - sum(name in wrong for name in survivors),
        "mutants": tried,
        "killed": killed,
        "equivalent": equivalent,
    }.items():
        record_property(name, value)
    assert not survivors, "these wrong answers pass the check"
