"""How large, how slow, how much memory: predicted from a configuration alone.

The tests hold every number here against a real model: parameters against the sum of its tensors,
operations against PyTorch's counter, memory against the bytes that training keeps.

Sources: Kaplan et al. 2020, section 2.1 (6ND); Hoffmann et al. 2022, appendix F (all operations);
Chowdhery et al. 2022, appendix B (model FLOPs utilisation).
"""

from dataclasses import dataclass

from course_lib.gpt import GPTConfig


def parameters(config: GPTConfig) -> dict[str, int]:
    """Trained values by component; their sum is `GPT.n_parameters`.

    `embedding` is the token matrix, which also makes the logits when tied; `lm_head` is 0 then.
    """
    c = config
    heads = c.n_heads + 2 * c.n_kv_heads
    wide = c.d_ff * (2 if c.activation == "swiglu" else 1)
    qkv, out = c.d_model * heads * c.d_head, c.d_model * c.d_model
    norm = c.d_model * (2 if c.norm == "layernorm" and c.bias else 1)
    attention, mlp = qkv + out, c.d_model * wide + c.d_ff * c.d_model
    if c.bias:
        attention += heads * c.d_head + c.d_model
        mlp += wide + c.d_model
    return {
        "embedding": c.vocab_size * c.d_model,
        "positions": c.context_length * c.d_model if c.positions == "learned" else 0,
        "attention": c.n_layers * attention,
        "mlp": c.n_layers * mlp,
        "norms": norm * (2 * c.n_layers + (c.norm_position == "pre")),
        "lm_head": 0 if c.tie_embeddings else c.vocab_size * c.d_model,
    }


def parameter_count(config: GPTConfig) -> int:
    """All trained values; a tied matrix counts once."""
    return sum(parameters(config).values())


def forward_flops(config: GPTConfig, length: int) -> dict[str, int]:
    """Floating-point operations of one sequence, by kind of matrix product.

    A product of `(a, b)` and `(b, c)` costs `2abc`: a multiplication and an addition each. Norms,
    activations and softmax are left out; they are few. `scores` counts the whole `length * length`
    table, as the plain path computes it; a kernel that skips the masked half does about half.
    """
    c, T = config, length
    wide = c.d_ff * (3 if c.activation == "swiglu" else 2)  # up (and gate), down
    return {
        "projections": 2
        * T
        * c.n_layers
        * c.d_model
        * (2 * c.n_heads + 2 * c.n_kv_heads)
        * c.d_head,
        "scores": 2 * 2 * T * T * c.n_layers * c.n_heads * c.d_head,  # q @ k.T, weights @ v
        "mlp": 2 * T * c.n_layers * c.d_model * wide,
        "logits": 2 * T * c.d_model * c.vocab_size,
    }


def training_flops(config: GPTConfig, tokens: int, length: int = 0) -> float:
    """Operations to train on `tokens` tokens.

    Without `length`, the estimate 6ND: every weight is multiplied and added once in the forward
    pass, twice in the backward pass (a gradient for the input, one for the weight). N leaves out
    what is only looked up. With `length`, the exact count for sequences of that length, with the
    attention scores that 6ND leaves out.
    """
    if length:
        return 3 * sum(forward_flops(config, length).values()) * tokens / length
    looked_up = parameters(config)["positions"]
    if not config.tie_embeddings:
        looked_up += parameters(config)["embedding"]
    return 6.0 * (parameter_count(config) - looked_up) * tokens


def training_seconds(flops: float, flops_per_second: float, utilization: float) -> float:
    """Time for that many operations.

    Args:
        flops_per_second: what the machine's maker states, for the number format in use.
        utilization: the share of it that training reaches; 0.3 to 0.5 is usual on large GPUs.
    """
    return flops / (flops_per_second * utilization)


def memory(
    config: GPTConfig, batch_size: int, length: int, bytes_per_value: int = 4
) -> dict[str, int]:
    """Bytes that training with AdamW holds at its peak.

    `weights`, `gradients` and `optimizer` (two running means in fp32) are exact.
    `activations_estimate` is what the forward pass keeps for the backward pass, matrices of
    `(B, T, ...)` only, with the fused kernel; frameworks differ, and temporary buffers come on top.
    """
    c, n = config, parameter_count(config)
    norm = (3 if c.norm == "rmsnorm" else 2) * c.d_model  # in, (scaled to size 1,) out
    turned = (c.n_heads + c.n_kv_heads) * c.d_head if c.positions == "rotary" else 0
    attention = (c.n_heads + 2 * c.n_kv_heads) * c.d_head + turned + 2 * c.d_model  # mixed, joined
    kept = {"swiglu": 4, "relu": 1}.get(c.activation, 2)  # swiglu: gate, its SiLU, value, product
    values = (
        c.n_layers * (2 * norm + attention + kept * c.d_ff) + norm + c.vocab_size
    )  # of one token
    return {
        "weights": bytes_per_value * n,
        "gradients": bytes_per_value * n,
        "optimizer": 2 * 4 * n,
        "activations_estimate": bytes_per_value * batch_size * length * values,
    }


def kv_cache_bytes(
    config: GPTConfig, length: int, batch_size: int = 1, bytes_per_value: int = 2
) -> int:
    """Bytes of the keys and values that generation keeps for `length` positions.

    Only the key and value heads count: grouped queries divide this by `n_heads / n_kv_heads`.
    """
    c = config
    return 2 * c.n_layers * c.n_kv_heads * c.d_head * length * batch_size * bytes_per_value


@dataclass(frozen=True)
class Published:
    """A model that others trained: its configuration, and how many parameters its authors state."""

    config: GPTConfig
    parameters: float
    source: str


def _gpt(n_layers: int, d_model: int, n_heads: int, context_length: int = 1024) -> GPTConfig:
    return GPTConfig(
        50257,
        context_length,
        d_model,
        n_layers,
        n_heads,
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh",
        bias=True,
    )


GPT2_SOURCE = "Radford et al. 2019, table 2; counts as corrected in the authors' repository"
PUBLISHED = {
    "GPT-2 small": Published(_gpt(12, 768, 12), 124e6, GPT2_SOURCE),
    "GPT-2 medium": Published(_gpt(24, 1024, 16), 355e6, GPT2_SOURCE),
    "GPT-2 large": Published(_gpt(36, 1280, 20), 774e6, GPT2_SOURCE),
    "GPT-2 XL": Published(_gpt(48, 1600, 25), 1558e6, GPT2_SOURCE),
    "GPT-3 175B": Published(_gpt(96, 12288, 96, 2048), 175.0e9, "Brown et al. 2020, table 2.1"),
    "Llama 2 7B": Published(
        GPTConfig(32_000, 4096, 4096, 32, 32, d_ff=11_008, tie_embeddings=False),
        6.7e9,
        "Touvron et al. 2023a, table 2 (Llama 1, same shape); 2023b, table 1 (context)",
    ),
    "Llama 3 8B": Published(
        GPTConfig(
            *(128_256, 8192, 4096, 32, 32, 8),
            d_ff=14_336,
            rope_theta=500_000.0,
            tie_embeddings=False,
        ),
        8.0e9,
        "Grattafiori et al. 2024, table 3; vocabulary and context as released",
    ),
    "SmolLM2-135M": Published(
        GPTConfig(49_152, 8192, 576, 30, 9, 3, d_ff=1536, rope_theta=100_000.0),
        135e6,
        "Allal et al. 2025; shape as released in its config.json",
    ),
}
