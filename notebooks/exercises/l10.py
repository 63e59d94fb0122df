"""L10 Sampling: write each function, then run `pytest tests/exercises -k L10`.

In a notebook: `from course_lib.checks.l10 import check_top_p_filter`, then
`check_top_p_filter(top_p_filter)`.
"""

import torch


def apply_temperature(logits, temperature):
    """Sharpen or flatten a distribution. Easy, 5 minutes.

    logits: (..., V). Returns logits of the same shape. Temperature
    0 means greedy: 0 for the largest logit
    (the first, if several are equal), minus infinity for all
    others.

    >>> apply_temperature(torch.tensor([1.0, 2.0]), 0.5)
    tensor([2., 4.])
    >>> apply_temperature(torch.tensor([1.0, 2.0]), 0)
    tensor([-inf, 0.])
    """
    raise NotImplementedError


def top_k_filter(logits, k):
    """Keep the k largest logits of every row, drop the others.
    Easy, 10 minutes.

    logits: (..., V), no two equal. Dropped ones become minus
    infinity. k may exceed V.

    >>> top_k_filter(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    tensor([[-inf, 3., 2.]])
    """
    raise NotImplementedError


def top_p_filter(logits, p):
    """Keep the smallest set of likely tokens whose probability
    reaches p. Hard, 20 minutes.

    logits: (..., V). Dropped ones become minus infinity. The token
    with which the sum reaches p is kept, and so is always the most
    likely one.

    >>> top_p_filter(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6).exp()
    tensor([0.0000, 0.5000, 0.3000])
    """
    raise NotImplementedError


def repetition_penalty(logits, idx, penalty):
    """Make tokens that are already in the text less likely.
    Medium, 10 minutes.

    logits: (B, V). idx: ids of the text so far, (B, T); each row
    has its own. A positive logit of a token in the text is divided
    by penalty, a negative one multiplied, once.

    >>> logits = torch.tensor([[4.0, -4.0, 1.0]])
    >>> repetition_penalty(logits, torch.tensor([[0, 1, 0]]), 2.0)
    tensor([[ 2., -8.,  1.]])
    """
    raise NotImplementedError


def beam_search(model, prompt, n_beams, n_tokens):
    """Find a likely continuation, keeping n_beams candidates.
    Hard, 30 minutes.

    model: from ids (B, T) to logits (B, T, V). prompt: list of ids.
    Returns the n_tokens new ids of the best candidate, and the sum
    of their log-probabilities, a float.

    >>> ids, score = beam_search(model, [3, 7], n_beams=4, n_tokens=5)
    """
    raise NotImplementedError


def generate_cached(model, prompt, n_tokens):
    """Continue a prompt greedily, running each token through the
    model once. Medium, 15 minutes.

    model: a GPT of course_lib. caches = model.new_caches(1) makes
    empty caches; model(idx, caches=caches) appends to them, gives
    the logits (1, T, V) of the new tokens, and counts positions
    from the end of the cache. Returns the list of n_tokens new ids.

    >>> ids = generate_cached(model, [3, 7], n_tokens=5)
    """
    raise NotImplementedError
