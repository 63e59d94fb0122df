"""Mutants that pass a check because they are right: each was looked at, with the reason.

The text is the change, as `mutants.py` writes it, without its number.
"""

TWO_AXES = "for two dimensions, axis 1 is the last"
DEFAULT = "the last axis is PyTorch's default"
OVERWRITTEN = "every value is overwritten"
EQUIVALENT = {
    "L01-split_special": {
        "sorted(special, key=len, reverse=True) -> sorted(special, reverse=True)": "where two "
        "match "
        "at one place, one begins with the other, and the longer comes later in the alphabet",
    },
    "L02-sinusoidal_table": {
        "torch.arange(length).float() -> torch.arange(length)": "outer makes floats of the product",
    },
    "L03-previous_token_head": {
        "20 -> 21": "any large number will do",
        "n_positions ** 0.5 -> n_positions * 0.5": "larger still",
        "0.5 -> 1.5": "larger still",
    },
    "L06-leaks": {
        "min -> max": "more replacements",
        "4 -> 5": "more replacements",
        "changed[:, t] + step -> changed[:, t] - step": "other replacements",
        "torch.allclose(model(changed)[:, :t], before[:, :t], atol=1e-06) -> "
        "torch.allclose(model(changed)[:, :t], before[:, :t])": "a smaller tolerance",
    },
    "L09-learning_rate": {"step - warmup -> warmup - step": "the cosine is even"},
    "L10-top_k_filter": {
        "logits.topk(min(k, logits.size(-1)), dim=-1) -> logits.topk(min(k, "
        "logits.size(-1)))": DEFAULT,
    },
    "L10-top_p_filter": {
        "logits.softmax(dim=-1).sort(dim=-1, descending=True) -> "
        "logits.softmax(dim=-1).sort(descending=True)": DEFAULT,
        "torch.zeros_like -> torch.ones_like": OVERWRITTEN,
    },
    "L10-repetition_penalty": {
        "-1 -> 1": TWO_AXES,
        "seen > 0 -> seen >= 0": "zero divided or multiplied is zero",
    },
    "L10-beam_search": {"True -> False": "strict guards, it changes nothing", "-1 -> 1": TWO_AXES},
    "L11-last_token_reward": {"-1 -> 1": TWO_AXES},
    "L11-gae": {"torch.zeros_like -> torch.ones_like": OVERWRITTEN},
}
