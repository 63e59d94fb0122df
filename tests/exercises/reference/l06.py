"""Reference answers of L06, the solutions of its page."""

import torch


def causal_mask(n_queries, n_keys=None):
    n_keys = n_queries if n_keys is None else n_keys
    last = torch.arange(n_keys - n_queries, n_keys)[:, None]  # where each query stands
    return last >= torch.arange(n_keys)


def causal_padding_mask(real):
    T = real.size(1)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    itself = torch.eye(T, dtype=torch.bool)
    return causal & real[:, None, None, :] | itself  # (B, 1, T, T)


def leaks(model, idx, vocab_size):
    before = model(idx)
    for t in range(1, idx.size(1)):
        for step in range(1, min(vocab_size, 4)):
            changed = idx.clone()
            changed[:, t] = (changed[:, t] + step) % vocab_size
            if not torch.allclose(model(changed)[:, :t], before[:, :t], atol=1e-6):
                return True
    return False
