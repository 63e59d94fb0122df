"""Run directories: one folder a stage, read and written through one class.

Each stage folder holds the weights, the metrics by step and `stage.json` with a key. The key hashes
the stage's settings, the code it runs and the key of the stage before it, so that a result always
belongs to its settings and nothing is trained twice.
"""

import ast
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from course_lib.errors import CourseError
from course_lib.files import MetricLog, load_tensors, load_weights, read_json, save_tensors
from course_lib.gpt import GPT, GPTConfig
from course_lib.presets import Preset
from course_lib.reward import Pair, RewardModel
from course_lib.tokenizer import BPETokenizer

STAGES = ("tokenizer", "base", "sft", "reward", "rlhf")
MODELS = ("base", "sft", "rlhf")


def runs_dir() -> Path:
    """Where runs live: `$COURSE_RUNS_DIR`, else `runs` in the checkout, else in this folder."""
    if "COURSE_RUNS_DIR" in os.environ:
        return Path(os.environ["COURSE_RUNS_DIR"])
    checkout = Path(__file__).parents[1]
    return (checkout if (checkout / "_toc.yml").exists() else Path.cwd()) / "runs"


@dataclass
class Run:
    """A finished or growing run directory; everything in it is read through this class.

    Raises:
        CourseError: from any method, if the stage is not there or a file of it is damaged.
    """

    path: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def stage(self, name: str) -> dict:
        """What a stage recorded: key, seconds, results, settings."""
        return read_json(self.path / name / "stage.json")

    def results(self, name: str) -> dict:
        """The measured figures of a stage."""
        return self.stage(name)["results"]

    def metrics(self, name: str) -> list[dict]:
        """Metrics by step of a stage."""
        return MetricLog.read(self.path / name / "metrics.jsonl")

    def tokenizer(self) -> BPETokenizer:
        """The tokenizer that all models of the run share."""
        return BPETokenizer.load(self.path / "tokenizer" / "tokenizer.json")

    def model(self, name: str) -> GPT:
        """The model a stage ended with: "base", "sft" or "rlhf"."""
        return load_model(self.path / name / "model.safetensors").to(self.device)

    def snapshot(self, steps: int) -> Path:
        """The file with the base model after so many training steps, for `load_model`."""
        return self.path / "base" / "snapshots" / f"{steps}.safetensors"

    def snapshots(self) -> list[int]:
        """After how many steps the base model was kept, in order; 0 is before training."""
        return sorted(int(file.stem) for file in self.snapshot(0).parent.glob("*.safetensors"))

    def reward_model(self) -> RewardModel:
        """The reward model, with the normalisation of its scores."""
        path = self.path / "reward" / "model.safetensors"
        tensors, note = load_tensors(path)
        model = RewardModel(GPT(GPTConfig(**note["config"])))
        load_weights(model, tensors, str(path))
        return model.eval().to(self.device)

    def pairs(self) -> dict[str, list[Pair]]:
        """Preference pairs of the reward stage: "train" and "heldout"."""
        rows = read_json(self.path / "reward" / "pairs.json")
        return {part: [Pair(**row) for row in rows[part]] for part in rows}


def open_run(path: str | Path | None = None) -> Run:
    """Open a run directory for reading; by default the laptop run, which the book shows.

    `$COURSE_PRESET` names another preset, whose run is then the default. The models of a run are
    on the CPU: so small ones answer fastest there, and the pages' cells use it.

    Raises:
        CourseError: there is no run, or it is not complete.
    """
    preset = os.environ.get("COURSE_PRESET", "laptop")
    path = Path(path or runs_dir() / preset)
    missing = [s for s in STAGES if not (path / s / "stage.json").exists()]
    if len(missing) == len(STAGES):
        raise CourseError(
            f"no run at {path}: train one with `python -m course_lib train --preset {preset} "
            f"--out {path}`"
        )
    if missing:
        raise CourseError(
            f"the run at {path} lacks {', '.join(missing)}: the same train command resumes it"
        )
    return Run(path)


def save_model(model: torch.nn.Module, config: GPTConfig, path: Path) -> None:
    """Weights and config in one safetensors file."""
    save_tensors(path, model.state_dict(), {"config": config.to_dict()})


def load_model(path: Path) -> GPT:
    """A GPT from a file of `save_model`, in evaluation mode.

    Raises:
        CourseError: no such file, one that is cut short, or one without a model's configuration.
    """
    tensors, note = load_tensors(path)
    if "config" not in note:
        raise CourseError(f"{path} holds no model configuration: it is not a model of this course")
    model = GPT(GPTConfig(**note["config"]))
    load_weights(model, tensors, str(path))
    return model.eval()


# -- keys and stages ----------------------------------------------------------------------------

# What each stage runs, and which settings it reads: together they make its key.
STAGE_CODE = {
    "tokenizer": ("bpe.py", "pieces.py", "tokenizer.py", "atlas"),
    "base": (
        *("positions.py", "attention.py", "layers.py", "gpt.py", "data.py"),
        *("optim.py", "train.py"),
        *("sampling.py", "generate.py", "chat.py", "evaluate.py"),
    ),
    "sft": ("sft.py",),
    "reward": ("reward.py",),
    "rlhf": ("ppo.py",),
}
STAGE_SETTINGS = {
    "tokenizer": ("n_documents", "n_conversations", "vocab_size"),
    "base": ("model", "base", "base_batch", "n_eval"),
    "sft": ("n_conversations", "sft", "sft_batch", "replay_windows", "n_eval"),
    "reward": ("n_compared", "n_replies", "flip_share", "reward", "reward_batch", "n_eval"),
    "rlhf": ("ppo", "ptx_windows", "n_eval"),
}


def code_hash(names: tuple[str, ...]) -> str:
    """Hash of what the named library files do: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for name in names:
        path = root / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix == ".py":
                digest.update(_skeleton(file.read_text(encoding="utf-8")).encode())
            elif file.suffix == ".csv":
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _skeleton(source: str) -> str:
    """The syntax tree of a file as text, without docstrings; the same in every Python."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
    return repr(_plain(tree))


def _plain(node) -> object:
    """A syntax tree as tuples, without the empty fields that newer versions of Python add."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return type(node).__name__, *((name, _plain(value)) for name, value in fields)


def stage_key(name: str, preset: Preset, seed: int, upstream: str) -> str:
    """What a stage's result depends on, as one hash."""
    settings = asdict(preset)
    parts = {
        "stage": name,
        "settings": {key: settings[key] for key in STAGE_SETTINGS[name]},
        "code": code_hash(STAGE_CODE[name]),
        "recipe": code_hash(("recipes.py",)) if name != "tokenizer" else "",
        "seed": seed,
        "upstream": upstream,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
