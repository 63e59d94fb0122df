"""L08 Architecture: write each function, then run `pytest tests/exercises -k L08`.

In a notebook: `from course_lib.checks.l08 import check_parameter_count`, then
`check_parameter_count(parameter_count)`.
"""

from course_lib.gpt import GPTConfig


def parameter_count(config):
    """Number of trained values, from the configuration alone.
    Medium, 15 minutes.

    config: a GPTConfig with SwiGLU, RMS norm, rotary positions,
    tied embeddings and no biases. Use its vocab_size, d_model,
    n_layers, n_heads, n_kv_heads, d_head and d_ff. A block has the
    matrices q, k, v, out, gate, value, down and two gains; one more
    gain follows the last block.

    >>> config = GPTConfig(512, d_model=160, n_layers=4, n_heads=5, d_ff=432)
    >>> parameter_count(config)
    1322400
    """
    raise NotImplementedError


def training_flops(config, tokens, length):
    """Operations to train on so many tokens, in sequences of
    length. Medium, 15 minutes.

    The same kind of config. A product of (a, b) and (b, c) costs 2
    a b c. Count the matrices of all blocks, scores and mixing
    (every query with every key, no savings for the mask), and the
    logits; the embedding is looked up and costs nothing. The
    backward pass costs twice the forward.

    >>> config = GPTConfig(512, d_model=160, n_layers=4, n_heads=5, d_ff=432)
    >>> training_flops(config, 10**6, 128)
    8908800000000.0
    """
    raise NotImplementedError


def kv_cache_bytes(config, length, batch_size=1, bytes_per_value=2):
    """Memory of the keys and values that generation keeps.
    Easy, 5 minutes.

    config: a GPTConfig; n_kv_heads may be less than n_heads.

    >>> config = GPTConfig(512, d_model=160, n_layers=4, n_heads=5)
    >>> kv_cache_bytes(config, 128)
    327680
    """
    raise NotImplementedError
