"""The table of benchmarks goes on where one of them cannot run, and says so."""

import importlib
from types import SimpleNamespace

from course_lib.errors import CourseError
from tests.benchmarks import __main__ as benchmarks


def test_a_benchmark_that_lacks_something_does_not_stop_the_others(monkeypatch, capsys):
    def bench():
        raise CourseError("cannot download it\nsave it yourself")

    row = {"work": "reading", "ours": 2.0, "theirs": 1.0, "ratio": 2.0, "unit": "MB"}
    modules = {
        "tests.benchmarks.bench_train": SimpleNamespace(bench=bench),
        "tests.benchmarks.bench_tokenizer": SimpleNamespace(bench=lambda: [row]),
    }
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    assert benchmarks.main(["train", "tokenizer"]) == 1
    _, _, failed, measured = capsys.readouterr().out.splitlines()
    assert failed.split() == ["train:", "not", "measured", "cannot", "download", "it"]
    assert measured.split()[:4] == ["reading", "2.0", "1.0", "2.00x"]
    assert benchmarks.main(["tokenizer"]) == 0
