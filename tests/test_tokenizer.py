"""Byte-level BPE: merges by hand, a slow textbook trainer, Hugging Face, and any string."""

import base64
import itertools
import json
import tracemalloc
from collections import Counter

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from course_lib.atlas.documents import documents
from course_lib.errors import CourseError
from course_lib.pieces import DIGITS_PATTERN, GPT2_PATTERN
from course_lib.tokenizer import BPETokenizer, byte_letters


def merge_pair(symbols, pair):
    """Replace a pair by its concatenation, left to right."""
    out, rest = [], list(symbols)
    while rest:
        n = 2 if tuple(rest[:2]) == pair else 1
        out.append(b"".join(rest[:n]))
        del rest[:n]
    return tuple(out)


def textbook_merges(text, n_merges):
    """BPE as the papers tell it: count every pair anew in every round."""
    words = Counter(regex.findall(GPT2_PATTERN, text))
    words = {tuple(bytes([b]) for b in word.encode()): n for word, n in words.items()}
    merges = []
    for _ in range(n_merges):
        counts = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                counts[pair] += n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        merged = Counter()
        for word, n in words.items():
            merged[merge_pair(word, best)] += n
        words = merged
    return merges


# -- training -----------------------------------------------------------------------------------


def test_the_wikipedia_example():
    tokenizer = BPETokenizer.train("aaabdaaabac", 256 + 3)
    # aa occurs four times; then (aa, a) and (a, b) twice each, and the greater pair wins; then
    # only (aaa, b) still occurs twice.
    assert tokenizer.merges == [(b"a", b"a"), (b"aa", b"a"), (b"aaa", b"b")]
    assert tokenizer.encode("aaabdaaabac") == [258, ord("d"), 258, ord("a"), ord("c")]


def test_ties_go_to_the_greater_pair():
    assert BPETokenizer.train("ab cd", 257).merges == [(b"c", b"d")]
    assert BPETokenizer.train("cd ab", 257).merges == [(b"c", b"d")]
    assert BPETokenizer.train("ab cd ab", 257).merges == [(b"a", b"b")]


def test_equals_the_textbook_trainer_on_atlas():
    text = "\n".join(documents(40, 3))
    tokenizer = BPETokenizer.train(text, 256 + 150)
    assert tokenizer.merges == textbook_merges(text, 150)


@given(st.text(alphabet="ab ", max_size=40))
def test_equals_the_textbook_trainer_on_hard_texts(text):
    if not text:
        return
    tokenizer = BPETokenizer.train(text, 256 + 12)
    assert tokenizer.merges == textbook_merges(text, 12)
    assert len(set(tokenizer.merges)) == len(tokenizer.merges)


def test_encoding_ends_in_the_segmentation_of_training():
    text = "\n".join(documents(20, 4))
    tokenizer = BPETokenizer.train(text, 256 + 100)
    for word in set(regex.findall(GPT2_PATTERN, text)):
        symbols = tuple(bytes([b]) for b in word.encode())
        for pair in tokenizer.merges:
            symbols = merge_pair(symbols, pair)
        assert [tokenizer.vocab[i] for i in tokenizer.encode(word)] == list(symbols)


def test_stops_when_no_pair_is_left():
    tokenizer = BPETokenizer.train("ab ab", 300)
    assert tokenizer.merges == [(b"a", b"b"), (b" ", b"ab")]
    assert tokenizer.vocab_size == 258


def test_special_tokens_in_the_training_text_are_cut_out():
    text = "ab<|x|>ab<|x|>" * 20
    tokenizer = BPETokenizer.train(text, 256 + 1 + 5, ["<|x|>"])
    assert tokenizer.merges == [(b"a", b"b")]


def test_too_small_a_vocabulary_and_empty_texts_are_errors():
    with pytest.raises(CourseError, match="at least 258"):
        BPETokenizer.train("abc", 257, ["<a>", "<b>"])
    assert BPETokenizer.train("abc", 258, ["<a>", "<b>"]).merges == []
    for empty in ("", [], ["", ""]):
        with pytest.raises(CourseError, match="empty"):
            BPETokenizer.train(empty, 300)


def test_files_texts_and_iterators_train_alike(tmp_path):
    text = "\n\n  ".join(documents(30, 6))
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    merges = BPETokenizer.train(text, 256 + 80).merges
    assert BPETokenizer.train(path, 256 + 80).merges == merges
    assert BPETokenizer.train(iter([path]), 256 + 80).merges == merges
    assert BPETokenizer.train([path, text], 256 + 80).merges == merges  # all counts double


def test_a_long_file_is_read_in_blocks(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("abcd " * 300_000 + "abcd", encoding="utf-8")  # over one block
    assert BPETokenizer.train(path, 300).merges == BPETokenizer.train(path.read_text(), 300).merges


def test_unreadable_training_files_are_errors(tmp_path):
    with pytest.raises(CourseError, match="cannot read"):
        BPETokenizer.train(tmp_path / "none.txt", 300)
    path = tmp_path / "latin.txt"
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(CourseError, match="not UTF-8"):
        BPETokenizer.train(path, 300)


def test_texts_of_an_iterator_do_not_touch():
    assert BPETokenizer.train(["a", "b"] * 9, 257).merges == []


def test_repeated_empty_and_colliding_special_tokens_are_errors():
    for wrong in (["<a>", "<a>"], [""], {"<a>": 7}):
        with pytest.raises(CourseError, match="special token"):
            BPETokenizer([], wrong)


def test_a_merge_of_unknown_tokens_is_an_error():
    with pytest.raises(CourseError, match="a merge needs the token b'ab'"):
        BPETokenizer([(b"ab", b"c")])


# -- Hugging Face -------------------------------------------------------------------------------


def to_hugging_face(tokenizer):
    """The same merges in Hugging Face's `tokenizers`, whose alphabet maps bytes to characters."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()

    def spell(symbol):
        return "".join(letters[b] for b in symbol)

    vocab = {spell(symbol): i for i, symbol in tokenizer.vocab.items()}
    merges = [(spell(a), spell(b)) for a, b in tokenizer.merges]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return theirs


@given(text=st.text(max_size=60) | st.sampled_from(documents(30, 9)))
def test_encodes_like_hugging_face(text):
    ours, theirs = _pair_of_tokenizers()
    assert ours.encode(text) == theirs.encode(text).ids


def _pair_of_tokenizers(made=[]):  # noqa: B006 (the list is the memory)
    if not made:
        ours = BPETokenizer.train(documents(60, 5), 256 + 200)
        made.extend((ours, to_hugging_face(ours)))
    return made


def test_trains_like_hugging_face_where_no_counts_are_equal():
    tokenizers = pytest.importorskip("tokenizers")
    words = {"ab": 40, "cb": 23, "bd": 12, "abd": 9, "cbd": 5}  # no two counts are ever equal
    text = "\n".join(word for word, n in words.items() for _ in range(n))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 5, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([text], trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    ours = BPETokenizer.train(text, 256 + 5).merges
    assert [[a.decode(), b.decode()] for a, b in ours] == [list(pair) for pair in merges]


# -- encoding and decoding ----------------------------------------------------------------------


@given(text=st.text())
def test_every_text_comes_back(text):
    tokenizer, _ = _pair_of_tokenizers()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(data=st.binary())
def test_every_byte_string_comes_back(data):
    tokenizer, _ = _pair_of_tokenizers()
    assert tokenizer.decode_bytes(data) == data  # ids 0 to 255 are the bytes themselves
    text = data.decode("utf-8", errors="replace")
    assert tokenizer.decode(data) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(alphabet=st.characters(categories=["Cs", "L"]), max_size=20))
def test_unpaired_surrogates_become_question_marks(text):
    tokenizer, _ = _pair_of_tokenizers()
    expected = "".join("?" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_unpaired_surrogates_can_be_trained_on():
    assert BPETokenizer.train("\ud800\udfff", 257).merges == [(b"?", b"?")]


END = "<|end|>"
SCRAPS = [*"a 1.'\n\t", "  ", "'re", "'ll", "é", END, END + END, "<|", "end", "|>", "word"]


@given(parts=st.lists(st.sampled_from(SCRAPS), max_size=12))
def test_encode_iterable_equals_encode_wherever_the_text_is_cut(parts):
    text = "".join(parts)
    cuts = [[text[:i], text[i:]] for i in range(1, len(text))] + [list(text), parts]
    for pattern in (GPT2_PATTERN, DIGITS_PATTERN):
        tokenizer = BPETokenizer(
            [(b" ", b" "), (b" ", b"a"), (b"'", b"r")], [END, END * 2], pattern
        )
        for allowed in ((), (END,), "all"):
            ids = tokenizer.encode(text, allowed)
            for chunks in cuts:
                assert list(tokenizer.encode_iterable(chunks, allowed)) == ids


def test_encode_iterable_reads_no_further_than_it_must(tiny_tokenizer):
    endless = itertools.repeat("some words ")
    ids = list(itertools.islice(tiny_tokenizer.encode_iterable(endless), 500))
    assert ids == tiny_tokenizer.encode("some words " * 500)[:500]


def test_encode_iterable_takes_constant_memory(tiny_tokenizer):
    """Eight times the text, nearly the same peak: neither the text nor its ids are collected."""

    def peak(chunks):
        text = (f"number {i % 100} of the words " for i in range(chunks))
        tracemalloc.start()
        count = sum(1 for _ in tiny_tokenizer.encode_iterable(text))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, highest

    peak(200)  # fills the cache of words
    (few, little), (many, much) = peak(1_000), peak(8_000)
    assert many == 8 * few > 50_000
    assert much < 2 * little and much < many  # bytes: not even one a token


@pytest.mark.timeout(60)
def test_long_words_take_no_quadratic_time():
    tokenizer = BPETokenizer([(b"t", b"h"), (b"th", b"th"), (b" ", b" ")])
    assert len(tokenizer.encode("th" * 200_000)) == 100_000
    assert len(tokenizer.encode(" " * 200_000)) == 100_000


def test_half_a_character_decodes_to_the_replacement_character(tiny_tokenizer):
    assert tiny_tokenizer.decode("é".encode()[:1]) == "\ufffd"


def test_text_never_becomes_a_special_token_unasked(tiny_tokenizer):
    text = "a<|im_end|>b<|endoftext|>"
    ids = tiny_tokenizer.encode(text)
    assert not set(ids) & set(tiny_tokenizer.special_ids.values())
    assert tiny_tokenizer.decode(ids) == text


def test_only_the_allowed_special_tokens_count(tiny_tokenizer):
    end, text = (
        tiny_tokenizer.special_ids["<|im_end|>"],
        tiny_tokenizer.special_ids["<|endoftext|>"],
    )
    both = "<|im_end|><|endoftext|>"
    assert tiny_tokenizer.encode(both, "all") == [end, text]
    some = tiny_tokenizer.encode(both, ["<|im_end|>"])
    assert some[0] == end and text not in some
    assert tiny_tokenizer.decode(some) == both
    with pytest.raises(CourseError, match="unknown special"):
        tiny_tokenizer.encode("a", ["<|nope|>"])


def test_the_longest_special_token_wins():
    for order in (["<s>", "<s><s>"], ["<s><s>", "<s>"]):
        tokenizer = BPETokenizer([], order)
        ids = tokenizer.encode("<s><s><s>", "all")
        assert ids == [tokenizer.special_ids["<s><s>"], tokenizer.special_ids["<s>"]]


def test_special_characters_of_patterns_are_plain_in_special_tokens():
    tokenizer = BPETokenizer([], ["[a.*]"])
    assert tokenizer.encode("[abb]", "all") == list(b"[abb]")


def test_an_id_outside_the_vocabulary_is_an_error(tiny_tokenizer):
    for wrong in (tiny_tokenizer.vocab_size, -1):
        with pytest.raises(CourseError, match=str(wrong)):
            tiny_tokenizer.decode([65, wrong])


# -- files --------------------------------------------------------------------------------------


def test_save_and_load(tiny_tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tiny_tokenizer.save(path)
    again = BPETokenizer.load(path)
    assert again.vocab == tiny_tokenizer.vocab and again.special_ids == tiny_tokenizer.special_ids
    text = documents(1, 7)[0] + " éß🙂"
    assert again.encode(text) == tiny_tokenizer.encode(text)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


# -- other people's vocabularies ------------------------------------------------------------------


def shuffled():
    """A small vocabulary in GPT-2's alphabet: a special token first, then merges, then bytes."""
    letters = byte_letters()
    merges = ["Ġ t", "h e", "Ġt he"]
    tokens = ["<|end|>", *(m.replace(" ", "") for m in merges), *letters]
    return tokens, merges


def test_gpt2_letters_are_those_of_transformers():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert byte_letters() == [bytes_to_unicode()[b] for b in range(256)]


def test_a_vocabulary_with_its_own_order(tmp_path):
    tokens, merges = shuffled()
    tokenizer = BPETokenizer.from_strings(tokens, merges, ["<|end|>"])
    assert tokenizer.merges == [(b" ", b"t"), (b"h", b"e"), (b" t", b"he")]
    assert tokenizer.special_ids == {"<|end|>": 0} and tokenizer.vocab[3] == b" the"
    ids = tokenizer.encode("x the<|end|>", "all")
    assert ids == [4 + ord("x"), 3, 0] and tokenizer.decode(ids) == "x the<|end|>"
    assert 0 not in tokenizer.encode("<|end|>")
    tokenizer.save(tmp_path / "t.json")
    again = BPETokenizer.load(tmp_path / "t.json")
    assert again.vocab == tokenizer.vocab and again.special_ids == tokenizer.special_ids
    assert again.encode("x the<|end|>", "all") == ids


def test_gpt2_files(tmp_path):
    tokens, merges = shuffled()
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    lines = ["#version: 0.2", *merges, ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    paths = tmp_path / "vocab.json", tmp_path / "merges.txt"
    expected = BPETokenizer.from_strings(tokens, merges, ["<|end|>"])
    assert BPETokenizer.from_gpt2(*paths, ["<|end|>"]).vocab == expected.vocab
    with pytest.raises(CourseError, match=r"lacks the special tokens \['<|endoftext|>'\]"):
        BPETokenizer.from_gpt2(*paths)
    paths[0].write_text("{")
    with pytest.raises(CourseError, match="not a complete JSON file"):
        BPETokenizer.from_gpt2(*paths)


def test_tiktoken_files_give_back_the_merges(tmp_path, tiny_tokenizer):
    path, special = tmp_path / "x.tiktoken", tiny_tokenizer.special_ids
    rows = [
        f"{base64.b64encode(token).decode()} {i}"
        for i, token in tiny_tokenizer.vocab.items()
        if i not in special.values()
    ]
    path.write_text("\n".join(rows) + "\n")
    again = BPETokenizer.from_tiktoken(path, special)
    assert again.merges == tiny_tokenizer.merges and again.vocab == tiny_tokenizer.vocab
    path.write_text("\n".join([*rows, "YWJjZA== 999"]))  # "abcd", of which no part is known
    with pytest.raises(CourseError, match="no merge of two earlier tokens makes b'abcd'"):
        BPETokenizer.from_tiktoken(path, special)
    path.write_text(rows[0] + "\nabc")
    with pytest.raises(CourseError, match=r"not a complete \.tiktoken file"):
        BPETokenizer.from_tiktoken(path, special)


def test_wrong_vocabularies_are_errors():
    tokens, merges = shuffled()
    with pytest.raises(CourseError, match="not written in GPT-2's byte alphabet"):
        BPETokenizer.from_strings([*tokens, "two words"], merges, ["<|end|>"])
    with pytest.raises(CourseError, match="a merge needs the token"):
        BPETokenizer.from_strings(tokens, [*merges, "q q"], ["<|end|>"])
    no_x = [t for t in tokens if t != "x"]
    assert BPETokenizer.from_strings(no_x, merges, ["<|end|>"]).encode("y")
    with pytest.raises(CourseError, match="'xyz' holds the byte b'x'"):
        BPETokenizer.from_strings(no_x, merges, ["<|end|>"]).encode("xyz")


def test_missing_truncated_and_foreign_files_are_errors(tiny_tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CourseError, match="no tokenizer"):
        BPETokenizer.load(path)
    tiny_tokenizer.save(path)
    whole = path.read_bytes()
    foreign = (b"[]", b"{}", b'{"merges": [[1, 2]], "special_tokens": [], "pattern": ""}', b"\xff")
    for content in (whole[: len(whole) // 2], b"", *foreign):
        path.write_bytes(content)
        with pytest.raises(CourseError, match="not a complete tokenizer"):
            BPETokenizer.load(path)
