"""From text to batches: borders, the shift by one, and bad files."""

import hashlib
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib import data
from course_lib.data import (
    IGNORE_INDEX,
    SHAKESPEARE_SHA256,
    CharTokenizer,
    pad_right,
    read_corpus,
    read_text,
    split,
    step_generator,
    tiny_shakespeare,
    token_stream,
    windows,
)
from course_lib.errors import CourseError
from course_lib.tokenizer import BPETokenizer


def test_a_stream_has_a_border_before_every_document_and_at_the_end(tiny_tokenizer):
    border = tiny_tokenizer.special_ids["<|endoftext|>"]
    stream = token_stream(["Hi", "<|endoftext|>"], tiny_tokenizer)
    typed = tiny_tokenizer.encode("<|endoftext|>")
    expected = [border, *tiny_tokenizer.encode("Hi"), border, *typed, border]
    assert stream.tolist() == expected
    with pytest.raises(CourseError, match="no documents"):
        token_stream([], tiny_tokenizer)


def test_targets_are_the_next_tokens():
    stream = torch.arange(100)
    idx, targets = windows(stream, 8, 10, seed=0, step=0)
    assert idx.shape == targets.shape == (8, 10)
    assert torch.equal(targets, idx + 1)
    assert torch.equal(idx, idx[:, :1] + torch.arange(10))


def test_windows_reach_both_ends_of_the_stream():
    firsts, lasts = set(), set()
    for step in range(200):
        idx, targets = windows(torch.arange(6), 4, 3, seed=0, step=step)
        firsts |= set(idx[:, 0].tolist())
        lasts |= set(targets[:, -1].tolist())
    assert firsts == {0, 1, 2} and lasts == {3, 4, 5}


def test_a_batch_depends_on_seed_and_step_alone():
    stream = torch.arange(1000)
    torch.manual_seed(1)
    first = windows(stream, 4, 8, seed=5, step=7)[0]
    torch.manual_seed(2)
    assert torch.equal(windows(stream, 4, 8, seed=5, step=7)[0], first)
    assert not torch.equal(windows(stream, 4, 8, seed=5, step=8)[0], first)
    assert not torch.equal(windows(stream, 4, 8, seed=6, step=7)[0], first)
    draws = {torch.rand((), generator=step_generator(s, i)).item() for s in (0, 1) for i in (0, 1)}
    assert len(draws) == 4


def test_too_short_a_stream_is_an_error():
    windows(torch.arange(9), 1, 8, 0, 0)
    with pytest.raises(CourseError, match="8 tokens, fewer than one window of 9"):
        windows(torch.arange(8), 1, 8, 0, 0)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_pad_right(rows):
    padded = pad_right(rows, -7)
    assert padded.shape == (len(rows), max(map(len, rows)))
    for row, line in zip(rows, padded.tolist(), strict=True):
        assert line == row + [-7] * (len(line) - len(row))


def test_read_text(tmp_path):
    path = tmp_path / "corpus.txt"
    with pytest.raises(CourseError, match="no text file"):
        read_text(path)
    path.write_bytes("naïve".encode())
    assert read_text(path) == "naïve"
    for empty in (b"", b" \n\t"):
        path.write_bytes(empty)
        with pytest.raises(CourseError, match="is empty"):
            read_text(path)
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(CourseError, match=r"not UTF-8 \(byte 2\)"):
        read_text(path)


def test_read_corpus(tmp_path):
    for name, text in (("b.txt", "two"), ("a/x.md", "one"), ("b.png", "no"), ("c.TXT", "three")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_corpus(tmp_path) == ["one", "two", "three"]
    assert read_corpus(tmp_path / "b.txt") == ["two"]
    (tmp_path / "d.txt").write_text("")
    with pytest.raises(CourseError, match=r"d.txt is empty"):
        read_corpus(tmp_path)
    with pytest.raises(CourseError, match=r"holds no .txt or .md file"):
        (tmp_path / "empty").mkdir()
        read_corpus(tmp_path / "empty")
    with pytest.raises(CourseError, match="no text file"):
        read_corpus(tmp_path / "absent")


def test_split():
    train, validation = split(torch.arange(100), 0.1)
    assert torch.equal(torch.cat((train, validation)), torch.arange(100))
    assert len(validation) == 10
    for length, share in ((1, 0.1), (100, 0.0), (100, 1.0), (0, 0.5)):
        with pytest.raises(CourseError, match="one part empty"):
            split(torch.arange(length), share)


def test_characters():
    tokenizer = CharTokenizer("naïve\n")
    assert tokenizer.vocab_size == 6
    assert tokenizer.decode(tokenizer.encode("vaïn")) == "vaïn"
    assert tokenizer.encode("\na") == [0, 1]
    with pytest.raises(CourseError, match="'q' is not among the 6"):
        tokenizer.encode("q")
    with pytest.raises(CourseError, match="empty"):
        CharTokenizer("")


@pytest.fixture
def shakespeare(tmp_path, monkeypatch):
    """A server that has a small text, and an empty data folder."""
    text = b"First Citizen:\nBefore we proceed any further, hear me speak."
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(text)

    monkeypatch.setattr(data.urllib.request, "urlopen", urlopen)
    return tmp_path / "data" / "tinyshakespeare.txt", text.decode(), asked


def test_tiny_shakespeare_is_downloaded_once(shakespeare):
    path, text, asked = shakespeare
    assert tiny_shakespeare() == text == path.read_text()
    assert tiny_shakespeare() == text
    assert asked == [data.SHAKESPEARE_URL]
    assert SHAKESPEARE_SHA256.startswith("86c4e6aa")  # the original's, as published


def test_another_text_is_not_taken_for_it(shakespeare, monkeypatch):
    path, text, _ = shakespeare
    path.parent.mkdir()
    path.write_text(text + ".")
    with pytest.raises(CourseError, match=r"tinyshakespeare.txt is not the original"):
        tiny_shakespeare()
    path.unlink()
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", "0" * 64)
    with pytest.raises(CourseError, match=r"input.txt is not the original"):
        tiny_shakespeare()
    assert list(path.parent.iterdir()) == []  # nothing half-written stays


def test_no_connection_and_a_full_disk(shakespeare, monkeypatch):
    path, _, _ = shakespeare

    def fail(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(data.urllib.request, "urlopen", fail)
    with pytest.raises(CourseError, match=r"no route to host.*COURSE_DATA_DIR"):
        tiny_shakespeare()
    assert list(path.parent.iterdir()) == []


def test_a_connection_that_breaks_off(shakespeare, monkeypatch):
    def fail(url, timeout):
        raise data.http.client.IncompleteRead(b"First")

    monkeypatch.setattr(data.urllib.request, "urlopen", fail)
    with pytest.raises(CourseError, match=r"IncompleteRead.*COURSE_DATA_DIR"):
        tiny_shakespeare()


def test_a_tokenizer_without_a_border_is_an_error():
    with pytest.raises(CourseError, match=r"no <\|endoftext\|>.*special_tokens"):
        token_stream(["a"], BPETokenizer.train("hello", 260))


def test_ids_that_no_character_has():
    for wrong in (-1, 4, IGNORE_INDEX):
        with pytest.raises(CourseError, match=f"{wrong} stands for no character"):
            CharTokenizer("hello").decode([0, wrong])


def test_a_folder_is_no_text_file(tmp_path):
    with pytest.raises(CourseError, match="cannot read"):
        data.read_text(tmp_path)
