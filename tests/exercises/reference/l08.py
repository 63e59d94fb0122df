"""Reference answers of L08, the solutions of its page."""


def parameter_count(config):
    c = config
    attention = c.d_model * c.d_head * (2 * c.n_heads + 2 * c.n_kv_heads)  # q, out; k, v
    mlp = 3 * c.d_model * c.d_ff  # gate, value, down
    block = attention + mlp + 2 * c.d_model
    return c.vocab_size * c.d_model + c.n_layers * block + c.d_model


def training_flops(config, tokens, length):
    c = config
    attention = c.d_model * c.d_head * (2 * c.n_heads + 2 * c.n_kv_heads)
    matrices = c.n_layers * (attention + 3 * c.d_model * c.d_ff) + c.vocab_size * c.d_model
    scores = 2 * c.n_layers * length * c.d_model  # q @ k.T and weights @ v, for one token
    forward = 2 * tokens * (matrices + scores)
    return 3.0 * forward


def kv_cache_bytes(config, length, batch_size=1, bytes_per_value=2):
    values = 2 * config.n_layers * config.n_kv_heads * config.d_head * length * batch_size
    return values * bytes_per_value
