"""L06 The causal mask: write each function, then run `pytest tests/exercises -k L06`.

In a notebook: `from course_lib.checks.l06 import check_leaks`, then `check_leaks(leaks)`.
"""

import torch


def causal_mask(n_queries, n_keys=None):
    """Where may each query look? Easy, 5 minutes.

    Returns booleans (n_queries, n_keys), True where query t may see
    key s. Without n_keys there are as many keys as queries. With
    more keys, the queries are the last positions.

    >>> causal_mask(2, 3)
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """
    raise NotImplementedError


def causal_padding_mask(real):
    """No look ahead, and none at padding. Medium, 15 minutes.

    real: booleans (B, T), False where a row is padded. Returns
    booleans (B, 1, T, T), True where a query may see a key. Every
    query may see itself, padding too: no row is empty.

    >>> causal_padding_mask(torch.tensor([[False, True, True]]))[0, 0].int()
    tensor([[1, 0, 0],
            [0, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    raise NotImplementedError


def leaks(model, idx, vocab_size):
    """Can any output see a later token? Hard, 20 minutes.

    model: a function from ids (B, T) to logits (B, T, vocab_size).
    idx: ids (B, T) to try it on. Returns True if the logits at some
    position change when a later token changes.

    >>> sums = lambda idx: idx[..., None].float().cumsum(1)
    >>> leaks(sums, torch.tensor([[1, 2, 3]]), 10)
    False
    """
    raise NotImplementedError
