"""Reference answers of L07, the solutions of its page."""

import torch.nn.functional as F


def mlp(x, w_up, w_down):
    gate, value = (x @ w_up.T).chunk(2, dim=-1)  # (B, T, d_ff) each
    return (F.silu(gate) * value) @ w_down.T


def block(x, weights, n_heads):
    B, T, C = x.shape
    norm1, norm2 = weights["norm1.weight"], weights["norm2.weight"]
    qkv = F.rms_norm(x, (C,), norm1, 1e-5) @ weights["attention.qkv.weight"].T
    heads = qkv.view(B, T, 3 * n_heads, C // n_heads).transpose(1, 2)
    q, k, v = heads.chunk(3, dim=1)  # (B, n_heads, T, d_head) each
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + mixed.transpose(1, 2).reshape(B, T, C) @ weights["attention.out.weight"].T
    normed = F.rms_norm(x, (C,), norm2, 1e-5)
    return x + mlp(normed, weights["mlp.up.weight"], weights["mlp.down.weight"])


def next_token_loss(model, idx):
    logits = model(idx[:, :-1])  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())


def count_parameters(model):
    counts = {name: 0 for name, _ in model.named_children()}
    for name, parameter in model.named_parameters():  # a shared one comes once
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts
