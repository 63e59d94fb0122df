"""Models and tokenizers of others: read Hugging Face folders, the hub and GGUF files; export ours.

>>> from course_lib.interop import from_pretrained, smollm2_file, tokenizer_from_pretrained
>>> model = from_pretrained(smollm2_file(), context_length=1024)  # doctest: +SKIP
>>> tokenizer = tokenizer_from_pretrained(smollm2_file())  # doctest: +SKIP
"""

import re
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.gpt import GPT
from course_lib.interop.gguf import SMOLLM2_SYSTEM, gguf_tokenizer, load_gguf, smollm2_file
from course_lib.interop.hub import download
from course_lib.interop.huggingface import load_folder, save_folder
from course_lib.interop.vocabularies import load_tokenizer, save_tokenizer
from course_lib.tokenizer import BPETokenizer

__all__ = [
    "SMOLLM2_SYSTEM",
    "from_pretrained",
    "save_pretrained",
    "smollm2_file",
    "tokenizer_from_pretrained",
]


def from_pretrained(
    source: str | Path, context_length: int = 0, revision: str | None = None
) -> GPT:
    """A GPT-2 or Llama-family model in fp32 and evaluation mode.

    Args:
        source: a folder with a Hugging Face checkpoint, a `.gguf` file, or the name of a
            repository on the hub, such as "openai-community/gpt2" (needs `huggingface_hub`).
        context_length: a shorter context than trained; the caches of generation need less memory.
        revision: branch, tag or commit of a repository.

    Raises:
        CourseError: nothing there, pickled, incomplete or damaged files, missing, unknown or
            misshapen tensors, or an architecture that our GPT does not have.
    """
    place = _locate(source, revision)
    if place.suffix == ".gguf":
        return load_gguf(place, context_length)
    return load_folder(place, context_length)


def tokenizer_from_pretrained(source: str | Path, revision: str | None = None) -> BPETokenizer:
    """The byte-level BPE tokenizer of a checkpoint; arguments as in `from_pretrained`.

    Raises:
        CourseError: there is none, or it is of another kind.
    """
    place = _locate(source, revision)
    return gguf_tokenizer(place) if place.suffix == ".gguf" else load_tokenizer(place)


def save_pretrained(
    model: GPT,
    folder: str | Path,
    tokenizer: BPETokenizer | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` and vLLM load.

    Args:
        folder: made if needed; an earlier export in it is replaced.
        tokenizer: written too, with the ChatML template if it has ChatML's tokens.
        shard_bytes: weights are cut into files of at most this size.

    Raises:
        CourseError: neither GPT-2 nor Llama is built like this model, or it has adapters beside its
            weights.
    """
    if adapters := [name for name in model.state_dict() if ".lora_" in name]:
        raise CourseError(
            f"the model holds {len(adapters)} adapter matrices that no other program would read: "
            f"export finetune.merged(model) instead"
        )
    end = (
        save_tokenizer(tokenizer, Path(folder), model.config.context_length) if tokenizer else None
    )
    save_folder(model, Path(folder), shard_bytes, end)


def _locate(source: str | Path, revision: str | None) -> Path:
    """The local file or folder of a source; repositories are downloaded."""
    path = Path(source)
    if path.is_dir() or path.suffix == ".gguf":
        return path
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise CourseError(f"no checkpoint folder at {source}")
    return download(source, revision)
