"""Tokenizers in Hugging Face folders: `tokenizer.json` both ways, and GPT-2's two files.

Only byte-level BPE, as GPT-2, SmolLM2 and this course have it. Llama 1 and 2 use SentencePiece,
another algorithm.
"""

from pathlib import Path

from course_lib.errors import CourseError
from course_lib.files import read_json, write_json
from course_lib.interop.layouts import unsupported
from course_lib.pieces import DIGITS_PATTERN, GPT2_PATTERN
from course_lib.tokenizer import BPETokenizer, byte_letters

# `chat.chatml` as a Jinja template, which Transformers and vLLM apply to conversations.
CHATML_JINJA = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Tokens that end an answer, the first that a tokenizer has.
ENDS = ("<|im_end|>", "<|endoftext|>")


def load_tokenizer(folder: Path) -> BPETokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        CourseError: there is none, or it is not byte-level BPE with a split pattern alone.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if not (folder / "vocab.json").exists():
            raise CourseError(f"{folder} holds neither tokenizer.json nor vocab.json")
        return BPETokenizer.from_gpt2(folder / "vocab.json", folder / "merges.txt")
    state = read_json(path)
    try:
        model, added = state["model"], {t["content"]: t["id"] for t in state["added_tokens"]}
        pattern = _pattern(state["pre_tokenizer"])
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        tokens = model["vocab"] | added
    except (KeyError, TypeError):
        raise CourseError(
            f"{path} is no byte-level BPE tokenizer: only that is supported"
        ) from None
    if pattern is None or state.get("normalizer") or model.get("byte_fallback"):
        raise unsupported(str(path), "its way to split or change text", "GPT-2's way is")
    if model.get("ignore_merges"):
        raise unsupported(str(path), "'ignore_merges'", "replaying the merges is")
    return BPETokenizer.from_strings(tokens, merges, added, pattern)


def _pattern(pre: dict) -> str | None:
    """The pattern that a `pre_tokenizer` entry splits by; None for one that does more."""
    *before, last = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(before) > 1:
        return None
    own_split = last.get("use_regex", True)
    if not before:
        return GPT2_PATTERN if own_split else None
    first = before[0]
    if first["type"] == "Digits" and first["individual_digits"] and own_split:
        return DIGITS_PATTERN
    if first["type"] == "Split" and first["behavior"] == "Isolated" and not own_split:
        return first["pattern"].get("Regex")
    return None


def save_tokenizer(tokenizer: BPETokenizer, folder: Path, context_length: int) -> int | None:
    """Write the files that Transformers and vLLM read; returns the id that ends an answer.

    A tokenizer with ChatML's tokens gets its template too.
    """
    letters = byte_letters()
    spelled = {token: "".join(letters[b] for b in token) for token in tokenizer.vocab.values()}
    special = {i: token for token, i in tokenizer.special_ids.items()}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}}
    split |= {"behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": special[i], **flags, "special": True} for i in sorted(special)]
    vocab = {special.get(i, spelled[token]): i for i, token in tokenizer.vocab.items()}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
    model |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "byte_fallback": False}
    model |= {"vocab": vocab, "merges": [[spelled[a], spelled[b]] for a, b in tokenizer.merges]}
    state = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    state |= {"normalizer": None, "post_processor": None, "decoder": level, "model": model}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    end = next((token for token in ENDS if token in tokenizer.special_ids), None)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_length}
    about |= {"clean_up_tokenization_spaces": False, "eos_token": end, "pad_token": end}
    if {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special_ids):
        about["chat_template"] = CHATML_JINJA
    write_json(folder / "tokenizer.json", state)
    write_json(folder / "tokenizer_config.json", about)
    return tokenizer.special_ids[end] if end else None
