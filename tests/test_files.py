"""Files: complete or absent, never half-written; damaged ones are named."""

import ast
from pathlib import Path

import pytest
import torch

import course_lib
from course_lib.errors import CourseError
from course_lib.files import (
    MetricLog,
    load_tensors,
    load_weights,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, lambda p: p.write_text("old"))

    def fail(temporary):
        temporary.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_the_file_is_not_there_before_it_is_complete(tmp_path):
    path, written = tmp_path / "file.txt", []

    def write(temporary):
        temporary.write_text("new")
        written.append(temporary.stat().st_ino)
        assert not path.exists() and temporary.parent == path.parent

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert path.stat().st_ino == written[0]  # moved into place, not copied


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"é": [1, None]})
    assert read_json(path) == {"é": [1, None]}
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"é": [1, None]}
    for damaged in (b'{"a": ', b"", b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(CourseError, match="not complete JSON"):
            read_json(path)
    with pytest.raises(CourseError, match="missing"):
        read_json(tmp_path / "b.json")


def test_tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(7)}
    save_tensors(path, tensors, {"step": 3})
    loaded, note = load_tensors(path)
    assert note == {"step": 3} and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_damaged_and_missing_weights_are_errors(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(CourseError, match="no weights at"):
        load_tensors(path)
    with pytest.raises(CourseError):
        load_tensors(tmp_path)
    save_tensors(path, {"a": torch.randn(100)}, {})
    whole = path.read_bytes()
    for size in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CourseError, match="damaged or cut short"):
            load_tensors(path)
    path.write_text("not weights at all, only words")
    with pytest.raises(CourseError, match="damaged or cut short"):
        load_tensors(path)


def test_weights_of_another_config_are_named():
    model = torch.nn.Linear(3, 2)
    good = {name: value.clone() + 1 for name, value in model.state_dict().items()}
    load_weights(model, good, "here")
    assert torch.equal(model.bias, good["bias"])
    wrong = {"weight": torch.zeros(5, 2), "gain": torch.zeros(1)}
    with pytest.raises(CourseError, match="another configuration") as caught:
        load_weights(model, wrong, "there.safetensors")
    for part in ("there.safetensors", "missing bias", "unknown gain", "(5, 2), not (2, 3)"):
        assert part in str(caught.value)
    assert torch.equal(model.bias, good["bias"])


def test_many_wrong_names_stay_one_short_message():
    tensors = {f"extra.{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(CourseError) as caught:
        load_weights(torch.nn.Linear(1, 1), tensors, "x")
    assert len(str(caught.value)) < 300 and str(caught.value).endswith("...")


def test_a_resumed_metric_log_drops_what_will_be_repeated(tmp_path):
    path = tmp_path / "stage" / "metrics.jsonl"
    log = MetricLog(path)
    for step in range(5):
        log.write(step=step, loss=step / 2)
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    assert [row["step"] for row in MetricLog.read(path)] == [0, 1, 2, 3, 4]
    resumed = MetricLog(path, start=3)
    resumed.write(step=3, loss=9.0)
    assert [row["loss"] for row in MetricLog.read(path)] == [0.0, 0.5, 1.0, 9.0]
    assert MetricLog.read(tmp_path / "none.jsonl") == []


PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def opens_pickles(source):
    """Does this code import something that unpickles, or call a `load` that may?"""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
        if PICKLES & {name.split(".")[0] for name in [*names, getattr(node, "module", None) or ""]}:
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
            return True
    return False


def test_no_file_of_the_library_opens_pickles():
    assert opens_pickles("from pickle import loads") and opens_pickles("x = torch.load(path)")
    assert opens_pickles("import os, dill") and not opens_pickles("import os; json.load(file)")
    library = Path(course_lib.__file__).parent
    assert [p.name for p in library.rglob("*.py") if opens_pickles(p.read_text("utf-8"))] == []
