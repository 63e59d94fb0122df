"""Hugging Face checkpoints of GPT-2 and of the Llama family (Llama, SmolLM2), both ways.

A checkpoint is a folder: `config.json`, and the weights in one safetensors file or in several with
an index. Pickled weights (`.bin`, `.pt`) can run code when they are opened; they are refused.
"""

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from course_lib.errors import CourseError
from course_lib.files import load_tensors, read_json, write_atomically, write_json
from course_lib.gpt import GPT, GPTConfig
from course_lib.interop.layouts import (
    GPT2,
    LLAMA,
    build,
    shorten,
    split_halves,
    to_layout,
    unsupported,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LAYOUTS = {"gpt2": GPT2, "llama": LLAMA}
GELUS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
# Switches that our GPT does not have, and the only value of each that it computes.
FIXED = {
    "gpt2": {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {"hidden_act": "silu", "partial_rotary_factor": 1.0},
}


# -- configurations -------------------------------------------------------------------------------


def config_from_hf(hf: dict, source: str = "config.json") -> GPTConfig:
    """Our configuration for the content of a `config.json`.

    Raises:
        CourseError: another family, a missing entry, or a choice that our GPT does not have.
    """
    kind = hf.get("model_type")
    if kind not in LAYOUTS:
        raise unsupported(source, f"model_type {kind!r}", "these are: gpt2, llama")
    for key, value in FIXED[kind].items():
        if hf.get(key, value) != value:
            raise unsupported(source, f"{key}={hf[key]!r}", f"only {value!r} is")
    try:
        return GPTConfig(**(_from_gpt2(hf) if kind == "gpt2" else _from_llama(hf, source)))
    except KeyError as error:
        raise CourseError(f"{source} lacks {error.args[0]!r}: it is not complete") from None


def _from_gpt2(hf: dict) -> dict:
    return {
        "vocab_size": hf["vocab_size"],
        "context_length": hf["n_positions"],
        "d_model": hf["n_embd"],
        "n_layers": hf["n_layer"],
        "n_heads": hf["n_head"],
        "d_ff": hf.get("n_inner") or 4 * hf["n_embd"],
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "activation": GELUS.get(name := hf.get("activation_function", "gelu_new"), name),
        "bias": True,
        "tie_embeddings": hf.get("tie_word_embeddings", True),
        "dropout": hf.get("resid_pdrop", 0.1),
    }


def _from_llama(hf: dict, source: str) -> dict:
    rope = (hf.get("rope_scaling") or {}) | (hf.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear"):
        raise unsupported(source, f"rotary scaling of type {kind!r}", "'linear' and none are")
    if hf.get("attention_bias", False) != hf.get("mlp_bias", False):
        raise unsupported(source, "biases in only one of attention and MLP", "both or none are")
    if hf.get("head_dim") not in (None, width := hf["hidden_size"] // hf["num_attention_heads"]):
        raise unsupported(source, f"head_dim {hf['head_dim']}", f"width / heads, {width}, is")
    return {
        "vocab_size": hf["vocab_size"],
        "context_length": hf["max_position_embeddings"],
        "d_model": hf["hidden_size"],
        "n_layers": hf["num_hidden_layers"],
        "n_heads": hf["num_attention_heads"],
        "n_kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "d_ff": hf["intermediate_size"],
        "rope_theta": rope.get("rope_theta", hf.get("rope_theta", 10_000.0)),
        "rope_scaling": rope["factor"] if kind == "linear" else 1.0,
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "bias": hf.get("attention_bias", False),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
    }


def config_to_hf(config: GPTConfig) -> dict:
    """The content of a `config.json` for our configuration.

    Raises:
        CourseError: neither GPT-2 nor Llama is built like this; the message names what differs.
    """
    llama = {"positions": "rotary", "norm": "rmsnorm", "norm_position": "pre"}
    llama |= {"activation": "swiglu"}
    gpt2 = {"positions": "learned", "norm": "layernorm", "norm_position": "pre", "bias": True}
    gpt2 |= {"activation": "gelu_tanh" if config.activation == "swiglu" else config.activation}
    gpt2 |= {"n_kv_heads": config.n_heads}
    as_llama, as_gpt2 = (_differences(config, wanted) for wanted in (llama, gpt2))
    if as_llama and as_gpt2:
        raise CourseError(
            f"neither Llama nor GPT-2 is built like this model: Llama has {as_llama}; "
            f"GPT-2 has {as_gpt2}"
        )
    c = config
    shared = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tie_embeddings}
    shared |= {"bos_token_id": None, "dtype": "float32"}
    return shared | (_to_gpt2(c) if as_llama else _to_llama(c))


def _differences(config: GPTConfig, wanted: dict) -> str:
    wrong = (key for key in wanted if getattr(config, key) != wanted[key])
    return ", ".join(f"{key}={wanted[key]!r}" for key in wrong)


def _to_gpt2(c: GPTConfig) -> dict:
    names = {ours: theirs for theirs, ours in reversed(GELUS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": c.context_length,
        "n_embd": c.d_model,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_inner": c.d_ff,
        "activation_function": names[c.activation],
        "layer_norm_epsilon": c.norm_eps,
        "attn_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
    }


def _to_llama(c: GPTConfig) -> dict:
    scaling = {"rope_type": "linear", "factor": c.rope_scaling} if c.rope_scaling != 1 else None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": c.context_length,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
    }


# -- reading --------------------------------------------------------------------------------------


def load_folder(folder: Path, context_length: int = 0) -> GPT:
    """The model of a checkpoint folder; arguments and errors as in `interop.from_pretrained`."""
    if not (folder / "config.json").exists():
        raise CourseError(f"{folder} holds no config.json: it is not a checkpoint folder")
    hf = read_json(folder / "config.json")
    config = config_from_hf(hf, str(folder / "config.json"))
    tensors = _canonical(_read_weights(folder), hf["model_type"], config)
    config = shorten(config, context_length, str(folder))
    if config.positions == "learned" and context_length:
        table = GPT2.outer["position_embedding"] + ".weight"
        if table in tensors:
            tensors[table] = tensors[table][:context_length]
    return build(config, LAYOUTS[hf["model_type"]], tensors, str(folder))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).exists():
        shards = [WEIGHTS]
    elif (folder / INDEX).exists():
        shards = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    else:
        pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLED]
        if pickled:
            raise CourseError(
                f"{folder} holds only pickled weights ({pickled[0]}), which can run any code when "
                f"they are opened: get the checkpoint as safetensors"
            )
        raise CourseError(f"{folder} holds no {WEIGHTS}: it is not a complete checkpoint")
    if absent := [name for name in shards if not (folder / name).exists()]:
        raise CourseError(f"{folder} lacks {', '.join(absent)}: download it again")
    return {k: v for shard in shards for k, v in load_tensors(folder / shard)[0].items()}


def _canonical(tensors: dict[str, Tensor], kind: str, config: GPTConfig) -> dict[str, Tensor]:
    """The same tensors with the prefix that some files leave out, without what is no weight."""
    prefix = LAYOUTS[kind].outer["embedding"].split(".")[0] + "."
    bare = not any(name.startswith(prefix) for name in tensors)
    out = {}
    for name, tensor in tensors.items():
        if re.search(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$", name):
            continue  # masks and frequencies that old versions saved
        if name == "lm_head.weight" and config.tie_embeddings:
            continue  # the embedding once more
        out[prefix + name if bare and name != "lm_head.weight" else name] = tensor
    return out


# -- writing --------------------------------------------------------------------------------------


def save_folder(model: GPT, folder: Path, shard_bytes: int, end: int | None) -> None:
    """Write weights and `config.json`; arguments and errors as in `interop.save_pretrained`.

    Args:
        end: id of the token that ends an answer.
    """
    hf, c = config_to_hf(model.config) | {"eos_token_id": end}, model.config
    theirs = to_layout(model.state_dict(), LAYOUTS[hf["model_type"]], c)
    if c.rope_interleaved:
        for name, tensor in theirs.items():
            if heads := {"q_proj": c.n_heads, "k_proj": c.n_kv_heads}.get(name.split(".")[-2]):
                theirs[name] = split_halves(tensor, heads)
    for old in (*folder.glob("model*.safetensors"), folder / INDEX):
        old.unlink(missing_ok=True)  # a reader would mix two exports
    shards = _shards(theirs, shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = [WEIGHTS]
    for file, shard in zip(files, shards, strict=True):
        plain = {k: v.detach().cpu().contiguous() for k, v in shard.items()}
        write_atomically(folder / file, lambda p, t=plain: save_file(t, p, {"format": "pt"}))
    if len(shards) > 1:
        where = {k: file for file, shard in zip(files, shards, strict=True) for k in shard}
        size = sum(t.nbytes for t in theirs.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
    write_json(folder / "config.json", hf)
    if end is not None:  # where generation stops, and what shorter answers are padded with
        write_json(folder / "generation_config.json", {"eos_token_id": end, "pad_token_id": end})


def _shards(tensors: dict[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    shards, room = [{}], shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards
