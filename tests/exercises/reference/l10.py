"""Reference answers of L10, the solutions of its page."""

import torch


def apply_temperature(logits, temperature):
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    return logits / temperature


def top_k_filter(logits, k):
    smallest = logits.topk(min(k, logits.size(-1)), dim=-1).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < smallest, -torch.inf)


def top_p_filter(logits, p):
    ranked, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked  # mass of the likelier tokens
    drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(drop, -torch.inf)


def repetition_penalty(logits, idx, penalty):
    seen = logits.gather(-1, idx)  # (B, T)
    punished = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits.scatter(-1, idx, punished)


def beam_search(model, prompt, n_beams, n_tokens):
    beams = [(0.0, list(prompt))]
    for _ in range(n_tokens):
        logits = model(torch.tensor([ids for _, ids in beams]))[:, -1]  # (beams, V)
        grown = []
        for (score, ids), row in zip(beams, logits.log_softmax(-1).tolist(), strict=True):
            grown += [(score + logprob, [*ids, i]) for i, logprob in enumerate(row)]
        beams = sorted(grown, reverse=True)[:n_beams]
    score, ids = beams[0]
    return ids[len(prompt) :], score


def generate_cached(model, prompt, n_tokens):
    caches, ids = model.new_caches(1), []
    new = list(prompt)
    for _ in range(n_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([new]), caches=caches)
        new = [int(logits[0, -1].argmax())]
        ids += new
    return ids
