"""Files on disk: atomic writes, model directories, metric logs.

Weights are safetensors, everything else is JSON: loading never runs pickled code. A file appears
under its final name only when it is complete, so that a killed process leaves nothing half-written.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from course_lib.errors import CourseError


def write_atomically(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then move it to `path` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: str | os.PathLike):
    """Read a JSON file.

    Raises:
        CourseError: the file is missing or cut short.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CourseError(f"{path} is missing: the run is incomplete, train it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CourseError(
            f"{path} is not complete JSON ({error}): delete it, train again"
        ) from None


def save_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], note: dict) -> None:
    """Write tensors and a JSON note about them into one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"note": json.dumps(note)}
    write_atomically(path, lambda p: save_file(plain, p, metadata))


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Read a file of `save_tensors`: the tensors and the note.

    Raises:
        CourseError: the file is missing, cut short, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {}).get("note", "{}"))
    except (FileNotFoundError, IsADirectoryError):
        raise CourseError(f"no weights at {path}: train the model first") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CourseError(
            f"{path} is damaged or cut short ({error}): delete it, then train or download it again"
        ) from None


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into a model, strictly.

    Raises:
        CourseError: names or shapes differ; the message lists them.
    """
    check_tensors(model.state_dict(), tensors, source)
    model.load_state_dict(tensors)


def check_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes with those that are needed.

    Raises:
        CourseError: they differ; the message lists how.
    """
    wrong = [f"missing {name}" for name in own.keys() - tensors.keys()]
    wrong += [f"unknown {name}" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:6]) + ("; ..." if len(wrong) > 6 else "")
        raise CourseError(f"{source} holds weights of another configuration: {listed}")


class MetricLog:
    """Metrics by step, one JSON object a line; on resume, later lines are dropped."""

    def __init__(self, path: str | os.PathLike, start: int = 0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in self.read(self.path) if row["step"] < start]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.path, lambda p: p.write_text(lines, encoding="utf-8"))

    def write(self, **row) -> None:
        """Append one row; `step` is required."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict]:
        """All complete rows; a line cut short by a kill is ignored."""
        rows = []
        path = Path(path)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows
