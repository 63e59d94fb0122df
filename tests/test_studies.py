"""Recorded studies: each can be run again, and its record is there and belongs to its code."""

import json

import pytest

from course_lib import studies
from course_lib.__main__ import main
from course_lib.errors import CourseError


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_slice_of_every_study_runs_and_gives_what_is_recorded(name, small_study):
    small, recorded = small_study(name), studies.open_study(name)
    assert set(small) == set(recorded)
    assert set(small["results"]) == set(recorded["results"])
    json.dumps(small, allow_nan=False)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_records_are_complete_and_belong_to_the_code(name):
    record = studies.open_study(name)
    assert record["scale"] == "full" and record["seconds"] > 0
    assert record["command"] == f"python -m course_lib study {name}"
    assert studies.state(name) == "recorded", (
        f"the code of study {name!r} has changed since it was recorded: run it again "
        f"({record['command']}) or show that its results cannot have changed"
    )


def test_every_record_has_its_study():
    assert {path.stem for path in studies.studies_dir().glob("*.json")} == set(studies.STUDIES)


def test_unknown_studies_and_scales_are_errors(capsys):
    with pytest.raises(CourseError, match="unknown study 'nothing'"):
        studies.run_study("nothing")
    with pytest.raises(CourseError, match="unknown scale"):
        studies.run_study("positions", "huge")
    assert main(["study", "nothing"]) == 2
    assert "choose one of" in capsys.readouterr().err
