"""Wrong answers of L07. `<exercise>__<misconception>`: the docstring is in the check's message."""

import torch
import torch.nn.functional as F


def mlp__swapped(x, w_up, w_down):
    """gate and value are swapped"""
    value, gate = (x @ w_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * value) @ w_down.T


def mlp__no_bend(x, w_up, w_down):
    """nothing is bent"""
    gate, value = (x @ w_up.T).chunk(2, dim=-1)
    return (gate * value) @ w_down.T


def mlp__sigmoid(x, w_up, w_down):
    """that is a plain GLU"""
    gate, value = (x @ w_up.T).chunk(2, dim=-1)
    return (gate.sigmoid() * value) @ w_down.T


def mlp__take_turns(x, w_up, w_down):
    """cut in two halves"""
    wide = x @ w_up.T
    return (F.silu(wide[..., 0::2]) * wide[..., 1::2]) @ w_down.T


def mlp__weights_transposed(x, w_up, w_down):
    """(line"""
    gate, value = (x @ w_up).chunk(2, dim=-1)
    return (F.silu(gate) * value) @ w_down


def mlp__adds_to_the_stream(x, w_up, w_down):
    """silu(1) * 2"""
    gate, value = (x @ w_up.T).chunk(2, dim=-1)
    return x + (F.silu(gate) * value) @ w_down.T


def mlp__cut_along_time(x, w_up, w_down):
    """it stops with"""
    gate, value = (x @ w_up.T).chunk(2, dim=1)
    return (F.silu(gate) * value) @ w_down.T


def _block(x, w, n_heads, causal=True, order=(0, 1, 2), post=False, stream=1, by_head=False):
    B, T, C = x.shape

    def norm(y, name):
        return F.rms_norm(y, (C,), w[name], 1e-5)

    def attention(y):
        wide = y @ w["attention.qkv.weight"].T
        if by_head:
            parts = wide.view(B, T, n_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        else:
            parts = [p.view(B, T, n_heads, -1).transpose(1, 2) for p in wide.chunk(3, dim=-1)]
        q, k, v = (parts[i] for i in order)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return mixed.transpose(1, 2).reshape(B, T, C) @ w["attention.out.weight"].T

    def feed(y):
        gate, value = (y @ w["mlp.up.weight"].T).chunk(2, dim=-1)
        return (F.silu(gate) * value) @ w["mlp.down.weight"].T

    if post:
        x = norm(x + attention(x), "norm1.weight")
        return norm(x + feed(x), "norm2.weight")
    x = stream * x + attention(norm(x, "norm1.weight"))
    return stream * x + feed(norm(x, "norm2.weight"))


def block__no_mask(x, weights, n_heads):
    """the future is visible"""
    return _block(x, weights, n_heads, causal=False)


def block__post_norm(x, weights, n_heads):
    """that is post-norm"""
    return _block(x, weights, n_heads, post=True)


def block__keys_first(x, weights, n_heads):
    """q and k are swapped"""
    return _block(x, weights, n_heads, order=(1, 0, 2))


def block__no_residual(x, weights, n_heads):
    """both additions are missing"""
    return _block(x, weights, n_heads, stream=0)


def block__rows_by_head(x, weights, n_heads):
    """the rows are cut head by head"""
    return _block(x, weights, n_heads, by_head=True)


def block__one_head(x, weights, n_heads):
    """one big head"""
    return _block(x, weights, 1)


def block__four_heads_always(x, weights, n_heads):
    """it differs from the block"""
    return _block(x, weights, 4)


def next_token_loss__no_shift(model, idx):
    """there is no shift"""
    return F.cross_entropy(model(idx).flatten(0, 1), idx.flatten())


def next_token_loss__both_shifted(model, idx):
    """inputs and targets are both shifted"""
    return F.cross_entropy(model(idx[:, 1:]).flatten(0, 1), idx[:, 1:].flatten())


def next_token_loss__predicts_the_past(model, idx):
    """the shift goes the wrong way"""
    return F.cross_entropy(model(idx[:, 1:]).flatten(0, 1), idx[:, :-1].flatten())


def next_token_loss__rolled(model, idx):
    """the first token of its row"""
    return F.cross_entropy(model(idx).flatten(0, 1), idx.roll(-1, dims=1).flatten())


def next_token_loss__last_position_only(model, idx):
    """only the last position"""
    return F.cross_entropy(model(idx[:, :-1])[:, -1], idx[:, -1])


def next_token_loss__one_run_a_position(model, idx):
    """one run gives the logits"""
    losses = [F.cross_entropy(model(idx[:, :t])[:, -1], idx[:, t]) for t in range(1, idx.size(1))]
    return torch.stack(losses).mean()


def next_token_loss__vocabulary_on_the_wrong_axis(model, idx):
    """it stops with"""
    return F.cross_entropy(model(idx[:, :-1]), idx[:, 1:])


def count_parameters__shared_twice(model):
    """counted twice"""
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    return counts | {name: p.numel() for name, p in model.named_parameters(recurse=False)}


def count_parameters__tensors(model):
    """count the values in them"""
    return {name: len(list(m.parameters())) for name, m in model.named_children()}


def count_parameters__total(model):
    """return a dict"""
    return sum(p.numel() for p in model.parameters())


def count_parameters__with_buffers(model):
    """a buffer is counted"""
    counts = {name: 0 for name, _ in model.named_children()}
    for name, value in model.state_dict().items():
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + value.numel()
    return counts


def count_parameters__own_forgotten(model):
    """belongs to the model itself"""
    counts, seen = {}, set()
    for name, child in model.named_children():
        new = [p for p in child.parameters() if p not in seen]
        seen.update(new)
        counts[name] = sum(p.numel() for p in new)
    return counts


def count_parameters__full_names(model):
    """direct children"""
    return {name: p.numel() for name, p in model.named_parameters()}


def count_parameters__no_bias(model):
    """the bias is missing"""
    return {
        name: sum(p.numel() for p in m.parameters() if p.dim() > 1)
        for name, m in model.named_children()
    }
