"""Wrong answers of L08. `<exercise>__<misconception>`: the docstring is in the check's message."""


def _count(c, tied=1, kv=None, mlp=3, gains=2, last=1, out=True, layers=None):
    heads = c.n_heads + 2 * (c.n_kv_heads if kv is None else kv) + (c.n_heads if out else 0)
    block = c.d_model * c.d_head * heads + mlp * c.d_model * c.d_ff + gains * c.d_model
    return tied * c.vocab_size * c.d_model + (layers or c.n_layers) * block + last * c.d_model


def parameter_count__untied(config):
    """counted twice"""
    return _count(config, tied=2)


def parameter_count__no_embedding(config):
    """the embedding is missing"""
    return _count(config, tied=0)


def parameter_count__two_mlp_matrices(config):
    """three matrices"""
    return _count(config, mlp=2)


def parameter_count__all_heads_have_keys(config):
    """n_kv_heads heads"""
    return _count(config, kv=config.n_heads)


def parameter_count__no_last_norm(config):
    """the last gain"""
    return _count(config, last=0)


def parameter_count__no_norms(config):
    """the gains of the norms are missing"""
    return _count(config, gains=0, last=0)


def parameter_count__no_projection(config):
    """the output projection"""
    return _count(config, out=False)


def parameter_count__one_block(config):
    """multiply by n_layers"""
    return _count(config, layers=1)


def parameter_count__position_table(config):
    """rotary positions have no parameters"""
    return _count(config) + config.context_length * config.d_model


def _flops(c, tokens, scores, factor=6, logits=1):
    matrices = c.d_model * c.d_head * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_model * c.d_ff
    return (
        factor
        * tokens
        * (
            c.n_layers * matrices
            + scores * c.n_layers * c.d_model
            + logits * c.vocab_size * c.d_model
        )
    )


def training_flops__no_addition(config, tokens, length):
    """*and* an addition"""
    return _flops(config, tokens, 2 * length, factor=3)


def training_flops__forward_only(config, tokens, length):
    """the forward pass alone"""
    return _flops(config, tokens, 2 * length, factor=2)


def training_flops__backward_once(config, tokens, length):
    """the factor is 3"""
    return _flops(config, tokens, 2 * length, factor=4)


def training_flops__no_scores(config, tokens, length):
    """the attention scores are missing"""
    return _flops(config, tokens, 0)


def training_flops__no_mixing(config, tokens, length):
    """one is missing"""
    return _flops(config, tokens, length)


def training_flops__no_logits(config, tokens, length):
    """the logits are missing"""
    return _flops(config, tokens, 2 * length, logits=0)


def training_flops__embedding_counted(config, tokens, length):
    """looked up, for free"""
    return _flops(config, tokens, 2 * length, logits=2)


def training_flops__keys_of_all_tokens(config, tokens, length):
    """length, not tokens"""
    return _flops(config, tokens, 2 * tokens)


def _cache(c, length, batch_size, size, heads=None, layers=None, both=2):
    heads = c.n_kv_heads if heads is None else heads
    return both * (layers or c.n_layers) * heads * c.d_head * length * batch_size * size


def kv_cache_bytes__keys_only(config, length, batch_size=1, bytes_per_value=2):
    """keys *and* values"""
    return _cache(config, length, batch_size, bytes_per_value, both=1)


def kv_cache_bytes__all_heads(config, length, batch_size=1, bytes_per_value=2):
    """only n_kv_heads heads"""
    return _cache(config, length, batch_size, bytes_per_value, heads=config.n_heads)


def kv_cache_bytes__one_layer(config, length, batch_size=1, bytes_per_value=2):
    """multiply by n_layers"""
    return _cache(config, length, batch_size, bytes_per_value, layers=1)


def kv_cache_bytes__no_batch(config, length, batch_size=1, bytes_per_value=2):
    """every sequence of the batch"""
    return _cache(config, length, 1, bytes_per_value)


def kv_cache_bytes__number_of_values(config, length, batch_size=1, bytes_per_value=2):
    """multiply by bytes_per_value"""
    return _cache(config, length, batch_size, 1)


def kv_cache_bytes__bits(config, length, batch_size=1, bytes_per_value=2):
    """bytes, not bits"""
    return 8 * _cache(config, length, batch_size, bytes_per_value)
