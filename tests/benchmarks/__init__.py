"""Speed against the libraries everyone uses: `make bench`. Measured, never asserted in a test.

Each `bench_<name>.py` has a function `bench()` that returns rows: what was done (`work`), our speed
and theirs (`ours`, `theirs`, None without the other library) in `unit` a second, and the `ratio`.
Where most of the work is matrix products, `share` says how near we are to the speed of nothing but
fp32 products: how much is left to win without other arithmetic.
"""

import time

import torch

MATRIX = 1024


def seconds(work):
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def matmul_peak(rounds=5):
    """Floating-point operations a second of fp32 products of square matrices: the best of some."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    return 2 * MATRIX**3 / min(seconds(lambda: a @ b) for _ in range(rounds))


def llama_config(config, **rest):
    """Transformers' configuration of a Llama with the shape and number of weights of our GPT."""
    import transformers

    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=True,
        **rest,
    )
