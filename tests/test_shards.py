"""Shards: the same stream whoever wrote it, read as a batch needs it; bad folders and datasets."""

import errno
import json
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from course_lib import shards as shards_module
from course_lib.atlas.documents import documents
from course_lib.data import read_corpus, token_stream, windows
from course_lib.errors import CourseError
from course_lib.shards import open_shards, stream_dataset, stream_rows, write_shards

TEXTS = list(documents(120, 3))


@pytest.fixture(scope="module")
def folders(tiny_tokenizer, tmp_path_factory):
    """The same corpus, written by one process and by two."""
    made = [tmp_path_factory.mktemp("shards") for _ in range(2)]
    for workers, folder in enumerate(made, 1):
        write_shards(iter(TEXTS), tiny_tokenizer, folder, workers, shard_characters=3000)
    return made


def test_any_number_of_workers_writes_the_same_files(folders):
    contents = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert len(contents[0]) > 4


def test_shards_are_the_stream(folders, tiny_tokenizer):
    shards = open_shards(folders[0])
    stream = token_stream(TEXTS, tiny_tokenizer)[:-1]  # which has one more border at its end
    assert len(shards) == len(stream)
    everywhere = torch.arange(len(stream))
    assert torch.equal(shards[everywhere], stream)
    assert torch.equal(shards[everywhere.flip(0)[:90].view(9, 10)], stream.flip(0)[:90].view(9, 10))
    for step in range(20):
        ours, expected = (windows(s, 8, 64, seed=1, step=step) for s in (shards, stream))
        assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
        assert ours[0].dtype == torch.long


def test_damaged_folders(folders, tiny_tokenizer, tmp_path):
    with pytest.raises(CourseError, match="not a complete folder"):
        open_shards(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"lengths": [3, 2]}))
    (tmp_path / "shard-00000.bin").write_bytes(bytes(12))
    for size in (0, 7):
        (tmp_path / "shard-00001.bin").write_bytes(bytes(size))
        with pytest.raises(CourseError, match=rf"shard-00001.bin has {size} bytes, not 8"):
            open_shards(tmp_path)
    with pytest.raises(CourseError, match="no documents"):
        write_shards([], tiny_tokenizer, tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_an_interrupted_corpus_leaves_no_complete_folder(tiny_tokenizer, tmp_path):
    def broken():
        yield "some text"
        raise KeyError("the source broke off")

    write_shards(["old"], tiny_tokenizer, tmp_path)
    with pytest.raises(KeyError):
        write_shards(broken(), tiny_tokenizer, tmp_path, shard_characters=1)
    with pytest.raises(CourseError, match="not a complete folder"):
        open_shards(tmp_path)


def test_a_full_disk(tiny_tokenizer, tmp_path, monkeypatch):
    written = Path.write_bytes

    def fails_in_the_second(path, data):
        written(path, data[:5])
        if "00001" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", fails_in_the_second)
    with pytest.raises(CourseError, match=r"the disk is full: .*are removed; make room"):
        write_shards(TEXTS, tiny_tokenizer, tmp_path, shard_characters=3000)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies(tiny_tokenizer, tmp_path, monkeypatch):
    def dies(jobs, workers):
        (tmp_path / "shard-00000.bin").write_bytes(b"half")
        raise BrokenProcessPool

    monkeypatch.setattr(shards_module, "_share", dies)
    with pytest.raises(CourseError, match="died, perhaps for lack of memory"):
        write_shards(TEXTS, tiny_tokenizer, tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_shorter_corpus_leaves_no_old_shard(tiny_tokenizer, tmp_path):
    write_shards(TEXTS, tiny_tokenizer, tmp_path, shard_characters=3000)
    write_shards(TEXTS[:1], tiny_tokenizer, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.json", "shard-00000.bin"]


def test_texts_of_a_folder(tiny_tokenizer, tmp_path):
    """Any text files: what `read_corpus` gives is a corpus for the shards as well."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    for place, text in (("a.txt", TEXTS[0]), ("more/b.md", TEXTS[1]), ("c.csv", "1,2")):
        (tmp_path / "in" / place).write_text(text, encoding="utf-8")
    write_shards(read_corpus(tmp_path / "in"), tiny_tokenizer, tmp_path / "out")
    shards, stream = open_shards(tmp_path / "out"), token_stream(TEXTS[:2], tiny_tokenizer)[:-1]
    assert torch.equal(shards[torch.arange(len(shards))], stream)


# -- Hugging Face datasets ------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the package `datasets`; its `rows` are what every dataset holds."""
    state = SimpleNamespace(rows=[], asked=None)

    def load_dataset(path, **options):
        state.asked = (path, options)
        if isinstance(state.rows, Exception):
            raise state.rows
        return state.rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return state


def test_a_dataset_is_streamed(library):
    library.rows = ({"text": str(i), "url": "x"} for i in range(3))  # can be read only once
    assert list(stream_dataset("some/web", name="small")) == ["0", "1", "2"]
    name, options = library.asked
    assert name == "some/web"
    assert options == {"split": "train", "streaming": True, "name": "small"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "x", "url": "y"}], "no column 'text' of texts; its columns are body, url"),
        ([{"text": 3}], "no column 'text' of texts"),
        ([], "no rows in 'train'"),
        (FileNotFoundError("not on the hub\nlong story"), r"some/web \(not on the hub\)"),
    ],
)
def test_bad_datasets(rows, message, library):
    library.rows = rows
    with pytest.raises(CourseError, match=message):
        stream_dataset("some/web")


def test_streamed_rows(library):
    library.rows = [{"messages": [1]}, {"messages": [2]}]
    rows = list(stream_rows("some/chats", ["messages"], "test", revision="v1"))
    assert rows == [{"messages": [1]}, {"messages": [2]}]
    options = {"split": "test", "streaming": True, "revision": "v1"}
    assert library.asked == ("some/chats", options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (FileNotFoundError("no such\nand more"), r"cannot open the dataset some/chats \(no such\)"),
        ([], "no rows in 'train'"),
        (
            [{"messages": [1]}],
            "the dataset some/chats has no column 'prompt'; its columns are messages",
        ),
    ],
)
def test_bad_rows(rows, message, library):
    library.rows = rows
    with pytest.raises(CourseError, match=message):
        stream_rows("some/chats", ["prompt"])


def test_a_row_without_a_text(library):
    library.rows = [{"text": "a"}, {"text": "b"}, {"text": None}]
    texts = stream_dataset("some/web")
    assert [next(texts), next(texts)] == ["a", "b"]
    with pytest.raises(CourseError, match=r"row 2 of the dataset some/web has no text in 'text'"):
        next(texts)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CourseError, match="pip install datasets"):
        stream_dataset("some/web")


def test_the_real_library_on_a_local_file(tmp_path):
    pytest.importorskip("datasets")
    lines = [json.dumps({"text": text}) for text in TEXTS[:5]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    files = str(tmp_path / "rows.jsonl")
    assert list(stream_dataset("json", data_files=files)) == TEXTS[:5]
    with pytest.raises(CourseError, match="its columns are text"):
        stream_dataset("json", column="body", data_files=files)


def test_a_worker_that_dies_is_reported(tiny_tokenizer, tmp_path, monkeypatch):
    def die(jobs, workers):
        raise BrokenProcessPool

    monkeypatch.setattr("course_lib.shards._share", die)
    with pytest.raises(CourseError, match=r"died.*fewer workers"):
        write_shards(TEXTS, tiny_tokenizer, tmp_path, workers=2)
    assert not (tmp_path / "index.json").exists()
