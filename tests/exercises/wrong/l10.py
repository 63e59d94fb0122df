"""Wrong answers of L10. `<exercise>__<misconception>`: the docstring is in the check's message."""

import torch


def apply_temperature__multiplies(logits, temperature):
    """you multiply"""
    return logits * temperature


def apply_temperature__divides_by_zero(logits, temperature):
    """it is a case of its own"""
    return logits / temperature


def apply_temperature__probabilities(logits, temperature):
    """return logits"""
    return (logits / temperature).softmax(-1)


def apply_temperature__nearly_zero(logits, temperature):
    """take the first"""
    return (
        (logits - logits.max(-1, keepdim=True).values) / max(temperature, 1e-6)
        if (temperature == 0)
        else logits / temperature
    )


def apply_temperature__greedy_over_the_batch(logits, temperature):
    """each row must have one token left"""
    if temperature == 0:
        return torch.where(logits == logits.max(), 0.0, -torch.inf).clamp(min=-1e9)
    return logits / temperature


def apply_temperature__in_place(logits, temperature):
    """changes its argument `logits` in place"""
    logits /= temperature
    return logits


def top_k_filter__smallest(logits, k):
    """keep the largest"""
    k = min(k, logits.size(-1))
    return logits.masked_fill(logits > logits.topk(k, largest=False).values[..., -1:], -torch.inf)


def top_k_filter__one_too_few(logits, k):
    """one too few"""
    k = min(k, logits.size(-1))
    return logits.masked_fill(logits <= logits.topk(k).values[..., -1:], -torch.inf)


def top_k_filter__zeros(logits, k):
    """exp(0) is 1"""
    k = min(k, logits.size(-1))
    return logits * (logits >= logits.topk(k).values[..., -1:])


def top_k_filter__first_rows_threshold(logits, k):
    """row by row"""
    k = min(k, logits.size(-1))
    return logits.masked_fill(logits < logits.topk(k).values.flatten()[k - 1], -torch.inf)


def top_k_filter__k_beyond_the_vocabulary(logits, k):
    """it stops with RuntimeError"""
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def top_k_filter__in_place(logits, k):
    """changes its argument `logits` in place"""
    logits[logits < logits.topk(min(k, logits.size(-1))).values[..., -1:]] = -torch.inf
    return logits


def _top_p(logits, drop_sorted, order):
    drop = torch.zeros_like(drop_sorted).scatter(-1, order, drop_sorted)
    return logits.masked_fill(drop, -torch.inf)


def top_p_filter__drops_the_border_token(logits, p):
    """the token that crosses p is dropped"""
    ranked, order = logits.softmax(-1).sort(dim=-1, descending=True)
    return _top_p(logits, ranked.cumsum(-1) > p, order)


def top_p_filter__ascending(logits, p):
    """sort in descending order"""
    ranked, order = logits.softmax(-1).sort(dim=-1)
    return _top_p(logits, ranked.cumsum(-1) - ranked >= p, order)


def top_p_filter__sorted_places(logits, p):
    """bring the decision back"""
    ranked, _ = logits.softmax(-1).sort(dim=-1, descending=True)
    return logits.masked_fill(ranked.cumsum(-1) - ranked >= p, -torch.inf)


def top_p_filter__order_instead_of_its_inverse(logits, p):
    """wrong for p"""
    ranked, order = logits.softmax(-1).sort(dim=-1, descending=True)
    drop = ranked.cumsum(-1) - ranked >= p
    if logits.dim() == 1:
        return _top_p(logits, drop, order)
    return logits.masked_fill(drop.gather(-1, order), -torch.inf)


def top_p_filter__sums_logits(logits, p):
    """with probabilities, not with logits"""
    ranked, order = logits.sort(dim=-1, descending=True)
    if logits.dim() == 1:
        ranked = ranked.exp()
    return _top_p(logits, ranked.cumsum(-1) - ranked >= p, order)


def top_p_filter__threshold_on_each_token(logits, p):
    """add up from the likeliest"""
    return logits.masked_fill(logits.softmax(-1) < 1 - p, -torch.inf)


def top_p_filter__one_row_only(logits, p):
    """wrong for p"""
    ranked, order = logits.softmax(-1).sort(dim=-1, descending=True)
    before = ranked.cumsum(-1) - ranked
    before = before if before.dim() == 1 else before[:1].expand_as(before)
    return _top_p(logits, before >= p, order)


def _penalised(logits, seen, penalty):
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, changed, logits)


def _seen(logits, idx):
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, idx, True)


def repetition_penalty__divides_negative_logits(logits, idx, penalty):
    """*more* likely"""
    return torch.where(_seen(logits, idx), logits / penalty, logits)


def repetition_penalty__sign_reversed(logits, idx, penalty):
    """*more* likely"""
    return _penalised(logits, _seen(logits, idx), 1 / penalty)


def repetition_penalty__everywhere(logits, idx, penalty):
    """a token that is not in the text"""
    return _penalised(logits, torch.ones_like(logits, dtype=torch.bool), penalty)


def repetition_penalty__every_time(logits, idx, penalty):
    """punished three times"""
    out = logits.clone()
    for b, row in enumerate(idx.tolist()):
        for i in row:
            out[b, i] = out[b, i] / penalty if out[b, i] > 0 else out[b, i] * penalty
    return out


def repetition_penalty__all_rows_together(logits, idx, penalty):
    """each row has its own text"""
    seen = torch.zeros(logits.size(-1), dtype=torch.bool)
    seen[idx.flatten()] = True
    return _penalised(logits, seen, penalty)


def repetition_penalty__subtracts(logits, idx, penalty):
    """becomes [2, -8, 1]"""
    return torch.where(_seen(logits, idx), logits - penalty + 0.5, logits)


def repetition_penalty__in_place(logits, idx, penalty):
    """changes its argument `logits` in place"""
    for row, ids in zip(logits, idx, strict=True):
        row[ids] = torch.where(row[ids] > 0, row[ids] / penalty, row[ids] * penalty)
    return logits


def _search(model, prompt, n_beams, n_tokens, rank=lambda item: -item[0], step=None):
    beams = [(0.0, list(prompt))]
    for _ in range(n_tokens):
        grown = []
        for score, ids in beams:
            row = model(torch.tensor([ids]))[0, -1].log_softmax(-1).tolist()
            grown += [
                ((step or (lambda s, q: s + q))(score, q), [*ids, i]) for i, q in enumerate(row)
            ]
        beams = sorted(grown, key=rank)[:n_beams]
    return beams[0][1][len(prompt) :], beams[0][0]


def beam_search__greedy(model, prompt, n_beams, n_tokens):
    """still the greedy one"""
    return _search(model, prompt, 1, n_tokens)


def beam_search__last_step_only(model, prompt, n_beams, n_tokens):
    """add up the log-probabilities"""
    return _search(model, prompt, n_beams, n_tokens, step=lambda s, q: q)


def beam_search__worst_first(model, prompt, n_beams, n_tokens):
    """sort from the best"""
    return _search(model, prompt, n_beams, n_tokens, rank=lambda item: item[0])


def beam_search__with_the_prompt(model, prompt, n_beams, n_tokens):
    """the prompt is returned as well"""
    ids, score = _search(model, prompt, n_beams, n_tokens)
    return [*prompt, *ids], score


def beam_search__one_child_each(model, prompt, n_beams, n_tokens):
    """several children of one beam"""
    beams = [(0.0, list(prompt))]
    for _ in range(n_tokens):
        grown = []
        for score, ids in beams:
            row = model(torch.tensor([ids]))[0, -1].log_softmax(-1).tolist()
            children = sorted(((score + q, [*ids, i]) for i, q in enumerate(row)), reverse=True)
            grown += children if len(beams) == 1 or n_beams > 6 else children[:1]
        beams = sorted(grown, reverse=True)[:n_beams]
    return beams[0][1][len(prompt) :], beams[0][0]


def beam_search__sums_probabilities(model, prompt, n_beams, n_tokens):
    """add up the log-probabilities"""
    return _search(model, prompt, n_beams, n_tokens, step=lambda s, q: s + 2.718281828**q)


def beam_search__sums_logits(model, prompt, n_beams, n_tokens):
    """not probabilities or logits"""
    return _search(lambda idx: _Logits(model(idx)), prompt, n_beams, n_tokens)


class _Logits:
    """Logits whose log_softmax does nothing."""

    def __init__(self, logits):
        self.logits = logits

    def __getitem__(self, where):
        return _Logits(self.logits[where])

    def log_softmax(self, dim):
        return self.logits


def generate_cached__no_cache(model, prompt, n_tokens):
    """called without the caches"""
    ids = list(prompt)
    for _ in range(n_tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def generate_cached__new_caches_every_step(model, prompt, n_tokens):
    """give it the newest token alone"""
    ids = list(prompt)
    for _ in range(n_tokens):
        logits = model(torch.tensor([ids]), caches=model.new_caches(1))
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def generate_cached__last_prompt_token_twice(model, prompt, n_tokens):
    """then each new token once"""
    caches, ids = model.new_caches(1), []
    model(torch.tensor([prompt]), caches=caches)
    new = prompt[-1]
    for _ in range(n_tokens):
        new = int(model(torch.tensor([[new]]), caches=caches)[0, -1].argmax())
        ids.append(new)
    return ids


def generate_cached__position_off_by_one(model, prompt, n_tokens):
    """leave the positions to the model"""
    caches, ids, new = model.new_caches(1), [], list(prompt)
    for _ in range(n_tokens):
        start = caches[0].length + (1 if ids else 0)
        positions = torch.arange(start, start + len(new))
        new = [int(model(torch.tensor([new]), positions, caches=caches)[0, -1].argmax())]
        ids += new
    return ids


def generate_cached__with_the_prompt(model, prompt, n_tokens):
    """the prompt is returned as well"""
    caches, ids, new = model.new_caches(1), list(prompt), list(prompt)
    for _ in range(n_tokens):
        new = [int(model(torch.tensor([new]), caches=caches)[0, -1].argmax())]
        ids += new
    return ids


def generate_cached__first_position(model, prompt, n_tokens):
    """other tokens than without the cache"""
    caches, ids, new = model.new_caches(1), [], list(prompt)
    for _ in range(n_tokens):
        new = [int(model(torch.tensor([new]), caches=caches)[0, 0].argmax())]
        ids += new
    return ids


def generate_cached__tensors(model, prompt, n_tokens):
    """plain numbers"""
    caches, ids, new = model.new_caches(1), [], torch.tensor([prompt])
    for _ in range(n_tokens):
        new = model(new, caches=caches)[:, -1:].argmax(-1)
        ids.append(new[0, 0])
    return ids
