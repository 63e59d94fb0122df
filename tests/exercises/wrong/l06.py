"""Wrong answers of L06. `<exercise>__<misconception>`: the docstring is in the check's message."""

import torch


def causal_mask__upper_triangle(n_queries, n_keys=None):
    """that is the upper triangle"""
    return torch.ones(n_queries, n_keys or n_queries).triu().bool()


def causal_mask__without_itself(n_queries, n_keys=None):
    """a query sees itself"""
    return torch.ones(n_queries, n_keys or n_queries).tril(-1).bool()


def causal_mask__sees_the_next(n_queries, n_keys=None):
    """query t sees key t + 1"""
    return torch.ones(n_queries, n_keys or n_queries).tril(1).bool()


def causal_mask__numbers(n_queries, n_keys=None):
    """it must hold booleans"""
    return torch.ones(n_queries, n_keys or n_queries).tril()


def causal_mask__minus_infinity(n_queries, n_keys=None):
    """it must hold booleans"""
    return torch.full((n_queries, n_keys or n_queries), -torch.inf).triu(1)


def causal_mask__queries_first(n_queries, n_keys=None):
    """the queries are the last positions"""
    return torch.ones(n_queries, n_keys or n_queries).tril().bool()


def causal_mask__inverted(n_queries, n_keys=None):
    """the mask is inverted"""
    return torch.ones(n_queries, n_keys or n_queries).triu(1).bool()


def _parts(real):
    T = real.size(1)
    return torch.ones(T, T).tril().bool(), torch.eye(T).bool()


def causal_padding_mask__empty_rows(real):
    """Let every query see itself"""
    return _parts(real)[0] & real[:, None, None, :]


def causal_padding_mask__masks_queries(real):
    """mask the keys"""
    return _parts(real)[0] & real[:, None, :, None]


def causal_padding_mask__masks_queries_but_itself(real):
    """mask the keys"""
    causal, itself = _parts(real)
    return causal & real[:, None, :, None] | itself


def causal_padding_mask__or(real):
    """combine with &"""
    return _parts(real)[0] | real[:, None, None, :]


def causal_padding_mask__no_causal(real):
    """the causal mask is missing"""
    return real[:, None, None, :] | _parts(real)[1]


def causal_padding_mask__no_padding(real):
    """the padding is ignored"""
    return _parts(real)[0].expand(len(real), 1, -1, -1)


def causal_padding_mask__no_head_axis(real):
    """it must be (3, 1, 6, 6)"""
    causal, itself = _parts(real)
    return causal & real[:, None, :] | itself


def causal_padding_mask__first_row_only(real):
    """it must be (3, 1, 6, 6)"""
    causal, itself = _parts(real)
    return (causal & real[0] | itself)[None, None]


def causal_padding_mask__real_inverted(real):
    """you see the padding alone"""
    causal, itself = _parts(real)
    return causal & ~real[:, None, None, :] | itself


def leaks__changes_the_last_token_only(model, idx, vocab_size):
    """change every token"""
    changed = idx.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocab_size
    return not torch.allclose(model(changed)[:, :-1], model(idx)[:, :-1])


def leaks__counts_the_position_itself(model, idx, vocab_size):
    """the output at t may depend on token t"""
    for t in range(idx.size(1)):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % vocab_size
        if not torch.allclose(model(changed)[:, : t + 1], model(idx)[:, : t + 1]):
            return True
    return False


def leaks__looks_one_step_back_only(model, idx, vocab_size):
    """compare all earlier outputs"""
    for t in range(1, idx.size(1)):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % vocab_size
        if not torch.allclose(model(changed)[:, t - 1], model(idx)[:, t - 1]):
            return True
    return False


def leaks__changes_in_place(model, idx, vocab_size):
    """changes its argument `idx` in place"""
    before = model(idx)
    for t in range(1, idx.size(1)):
        idx[:, t] = (idx[:, t] + 1) % vocab_size
        if not torch.allclose(model(idx)[:, :t], before[:, :t]):
            return True
    return False


def leaks__reversed(model, idx, vocab_size):
    """the answer is reversed"""
    return not _leaks(model, idx, vocab_size)


def leaks__first_row_only(model, idx, vocab_size):
    """in the second row of the batch"""
    return _leaks(lambda row: model(row.expand(2, -1))[:1], idx[:1], vocab_size)


def leaks__even_steps_only(model, idx, vocab_size):
    """try a few replacements"""
    return _leaks(model, idx, vocab_size, steps=(2,))


def leaks__outside_the_vocabulary(model, idx, vocab_size):
    """outside the vocabulary"""
    before = model(idx)
    for t in range(1, idx.size(1)):
        for step in (1, 2, 3):
            changed = idx.clone()
            changed[:, t] = changed[:, t] + step if vocab_size < 9 else (changed[:, t] + step) % 20
            if not torch.allclose(model(changed)[:, :t], before[:, :t]):
                return True
    return False


def _leaks(model, idx, vocab_size, steps=(1, 2)):
    before = model(idx)
    for t in range(1, idx.size(1)):
        for step in steps:
            changed = idx.clone()
            changed[:, t] = (changed[:, t] + step) % vocab_size
            if not torch.allclose(model(changed)[:, :t], before[:, :t]):
                return True
    return False
