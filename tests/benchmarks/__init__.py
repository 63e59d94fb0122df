"""Speed against the libraries everyone uses: `make bench`. Measured, never asserted in a test.

Each `bench_<name>.py` has a function `bench()` that returns rows: what was done (`work`), our speed
and theirs (`ours`, `theirs`, None without the other library) in `unit` a second, and the `ratio`.
"""

import time


def seconds(work):
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
