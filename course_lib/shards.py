"""Corpora larger than memory: tokenised once, by several processes, into memory-mapped files.

A folder of shards holds raw int32 ids and `index.json`, which is written last: without it the
folder is not complete. `open_shards` gives one long stream for `data.windows`; only the pages that
a batch touches are read from the disk.
"""

import errno
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from course_lib.data import end_of_text
from course_lib.errors import CourseError, optional
from course_lib.files import read_json, write_atomically, write_json
from course_lib.tokenizer import BPETokenizer


def stream_rows(
    name: str, /, columns: Sequence[str] = (), split: str = "train", **options
) -> Iterator[dict]:
    """The rows of a Hugging Face dataset, one after the other, without downloading it whole.

    Args:
        columns: what its rows must have.
        options: for `datasets.load_dataset`, such as `name="sample-10BT"` (a configuration) or
            `data_files=...`.

    Raises:
        CourseError: `datasets` is not installed, the dataset cannot be opened, is empty, or has no
            such column.
    """
    datasets = optional("datasets")
    try:
        rows = iter(datasets.load_dataset(name, split=split, streaming=True, **options))
        first = next(rows, None)
    except Exception as error:  # the library lets through errors of many others
        reason = str(error).strip().split("\n")[0]
        raise CourseError(f"cannot open the dataset {name} ({reason})") from error
    if first is None:
        raise CourseError(f"the dataset {name} has no rows in {split!r}")
    for column in columns:
        if column not in first:
            raise CourseError(
                f"the dataset {name} has no column {column!r}; its columns are "
                f"{', '.join(sorted(first))}"
            )
    return itertools.chain([first], rows)


def stream_dataset(
    name: str, /, column: str = "text", split: str = "train", **options
) -> Iterator[str]:
    """The texts of a Hugging Face dataset: a column of `stream_rows`, with its options.

    Raises:
        CourseError: as `stream_rows` does, or the column holds no texts; while it is read, for a
            row without a text.
    """
    rows = stream_rows(name, (), split, **options)
    first = next(rows)
    if not isinstance(first.get(column), str):
        raise CourseError(
            f"the dataset {name} has no column {column!r} of texts; its columns are "
            f"{', '.join(sorted(first))}"
        )
    return _texts(itertools.chain([first], rows), name, column)


def _texts(rows: Iterable[dict], name: str, column: str) -> Iterator[str]:
    for number, row in enumerate(rows):
        if not isinstance(text := row.get(column), str):
            raise CourseError(
                f"row {number} of the dataset {name} has no text in {column!r}: leave such rows "
                f"out, or choose another column"
            )
        yield text


def write_shards(
    documents: Iterable[str],
    tokenizer: BPETokenizer,
    folder: str | os.PathLike,
    workers: int = 1,
    shard_characters: int = 16_000_000,
) -> None:
    """Tokenise documents into a folder, each after an end-of-text token.

    The result does not depend on `workers`. Memory holds a few shards' texts for each of them.

    Args:
        shard_characters: a shard is closed when its texts are at least this long.

    Raises:
        CourseError: no documents, a worker died, or the disk is full; then no shard is left.
    """
    folder = Path(folder)
    _clear(folder)
    jobs = (
        (batch, tokenizer, folder / _name(number))
        for number, batch in enumerate(_batches(documents, shard_characters))
    )
    try:
        lengths = list(
            itertools.starmap(_write_shard, jobs) if workers == 1 else _share(jobs, workers)
        )
        if not lengths:
            raise CourseError("the corpus holds no documents: there is nothing to learn from it")
        index = {"dtype": "int32", "lengths": lengths, "vocab_size": tokenizer.vocab_size}
        write_json(folder / "index.json", index)
    except BrokenProcessPool:
        _clear(folder)
        raise CourseError(
            f"a process that tokenised for {folder} died, perhaps for lack of memory: use fewer "
            f"workers or smaller shards"
        ) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _clear(folder)
        raise CourseError(
            f"the disk is full: the shards in {folder} are removed; make room (4 bytes a token), "
            f"then run write_shards again"
        ) from None


def _clear(folder: Path) -> None:
    """Remove an earlier corpus: first what makes it complete, then its shards."""
    (folder / "index.json").unlink(missing_ok=True)
    for path in folder.glob("shard-*.bin"):
        path.unlink()


def _share(jobs: Iterable[tuple], workers: int) -> Iterator[int]:
    """`_write_shard` in several processes; never more than a few jobs wait in memory."""
    # Fresh processes: a copy of one that runs threads (PyTorch's) may stop for ever.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = deque()
        for job in jobs:
            running.append(pool.submit(_write_shard, *job))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _name(number: int) -> str:
    return f"shard-{number:05}.bin"


def _batches(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shard(documents: list[str], tokenizer: BPETokenizer, path: Path) -> int:
    """Runs in a worker; returns the number of tokens."""
    border = end_of_text(tokenizer)
    ids = [i for document in documents for i in (border, *tokenizer.encode(document))]
    data = torch.tensor(ids, dtype=torch.int32).numpy().tobytes()
    write_atomically(path, lambda p: p.write_bytes(data))
    return len(ids)


class Shards:
    """Many files as one stream `(N,)`: knows its length and gives the ids at any positions."""

    def __init__(self, files: list[Tensor]):
        self.files = files
        self.ends = torch.tensor([len(file) for file in files]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Ids at a tensor of positions, in its shape."""
        number = torch.bucketize(positions, self.ends, right=True)  # the file of each position
        ids = torch.empty(positions.shape, dtype=torch.long)
        for i in number.unique().tolist():
            here = number == i
            file = self.files[i]
            ids[here] = file[positions[here] - (self.ends[i] - len(file))].long()
        return ids


def open_shards(folder: str | os.PathLike) -> Shards:
    """A folder of `write_shards`, memory-mapped.

    Raises:
        CourseError: not complete, or a file is cut short.
    """
    folder = Path(folder)
    if not (folder / "index.json").exists():
        raise CourseError(f"{folder} is not a complete folder of shards: run write_shards again")
    files = []
    for number, length in enumerate(read_json(folder / "index.json")["lengths"]):
        path = folder / _name(number)
        size = path.stat().st_size if path.exists() else 0
        if size != 4 * length:
            raise CourseError(f"{path} has {size} bytes, not {4 * length}: run write_shards again")
        files.append(torch.from_file(str(path), shared=False, size=length, dtype=torch.int32))
    return Shards(files)
