"""Wrong answers of L09. `<exercise>__<misconception>`: the docstring is in the check's message."""

import math

import torch

from course_lib.gpt import GPT, GPTConfig
from course_lib.tokenizer import BPETokenizer


def _windows(stream, starts, length):
    return stream[starts[:, None] + torch.arange(length)]


def batch_windows__no_shift(stream, starts, length):
    """Shift them by one"""
    return _windows(stream, starts, length), _windows(stream, starts, length)


def batch_windows__rolled(stream, starts, length):
    """the last target comes from the start of the window"""
    idx = _windows(stream, starts, length)
    return idx, idx.roll(-1, dims=1)


def batch_windows__shifted_back(stream, starts, length):
    """shift the other way"""
    starts = starts.clamp(min=1)
    return _windows(stream, starts, length), _windows(stream, starts - 1, length)


def batch_windows__two_ahead(stream, starts, length):
    """two steps ahead"""
    starts = starts.clamp(max=len(stream) - length - 2)
    return _windows(stream, starts, length), _windows(stream, starts + 2, length)


def batch_windows__one_too_short(stream, starts, length):
    """the result has shape"""
    idx = _windows(stream, starts, length)
    return idx[:, :-1], idx[:, 1:]


def batch_windows__first_window_only(stream, starts, length):
    """the result has shape"""
    start = int(starts[0])
    return stream[None, start : start + length], stream[None, start + 1 : start + length + 1]


def _nll(logits, targets):
    logprobs = logits.log_softmax(-1)
    return -logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]


def cross_entropy__sum(logits, targets):
    """take the mean"""
    return _nll(logits, targets)[targets != -100].sum()


def cross_entropy__sign(logits, targets):
    """the sign is reversed"""
    return -_nll(logits, targets)[targets != -100].mean()


def cross_entropy__divides_by_all(logits, targets):
    """you divide by all positions"""
    return (_nll(logits, targets) * (targets != -100)).mean()


def cross_entropy__ignored_as_token_zero(logits, targets):
    """which PyTorch gives"""
    return _nll(logits, targets).mean()


def cross_entropy__index_minus_100(logits, targets):
    """it stops with RuntimeError"""
    return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


def cross_entropy__log_of_softmax(logits, targets):
    """use logsumexp"""
    probs = logits.softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -probs.log()[targets != -100].mean()


def cross_entropy__softmax_over_time(logits, targets):
    """ln 4"""
    chosen = logits.log_softmax(1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -chosen[targets != -100].mean()


def cross_entropy__mean_of_rows(logits, targets):
    """the mean is taken by row first"""
    asked = targets != -100
    return ((_nll(logits, targets) * asked).sum(1) / asked.sum(1)).mean()


def cross_entropy__bits(logits, targets):
    """ln 4"""
    return _nll(logits, targets)[targets != -100].mean() / math.log(2)


def _adam(p, grad, m, v, step, lr, betas, eps, weight_decay, correct=True, inside=False):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    a = m / (1 - betas[0] ** step) if correct else m
    b = v / (1 - betas[1] ** step) if correct else v
    root = (b + eps).sqrt() if inside else b.sqrt() + eps
    return p * (1 - lr * weight_decay) - lr * a / root, m, v


def adamw_step__no_correction(
    p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
):
    """divide by 1 - beta ** step"""
    return _adam(p, grad, m, v, step, lr, betas, eps, weight_decay, correct=False)


def adamw_step__eps_inside(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """outside of it"""
    return _adam(p, grad, m, v, step, lr, betas, eps, weight_decay, inside=True)


def adamw_step__l2(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """that is L2 in Adam"""
    return _adam(p, grad + weight_decay * p, m, v, step, lr, betas, eps, 0.0)


def adamw_step__decay_without_rate(
    p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
):
    """not weight_decay alone"""
    return _adam(p, grad, m, v, step, lr, betas, eps, weight_decay / lr)


def adamw_step__decay_grows(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """the decay has the wrong sign"""
    return _adam(p, grad, m, v, step, lr, betas, eps, -weight_decay)


def adamw_step__no_decay(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """the decay still acts"""
    return _adam(p, grad, m, v, step, lr, betas, eps, 0.0)


def adamw_step__uphill(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """it moves uphill"""
    new, m, v = _adam(p, grad, m, v, step, -lr, betas, eps, -weight_decay)
    return new, m, v


def adamw_step__no_root(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """the *root* of v"""
    m, v = betas[0] * m + (1 - betas[0]) * grad, betas[1] * v + (1 - betas[1]) * grad**2
    a, b = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return p * (1 - lr * weight_decay) - lr * a / (b + eps), m, v


def adamw_step__returns_the_corrected(
    p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
):
    """m after one gradient"""
    new, m, v = _adam(p, grad, m, v, step, lr, betas, eps, weight_decay)
    return new, m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)


def adamw_step__square_forgotten(
    p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
):
    """*squared* gradients"""
    m, v = betas[0] * m + (1 - betas[0]) * grad, betas[1] * v + (1 - betas[1]) * grad.abs()
    return p - lr * m / (v.sqrt() + eps), m, v


def adamw_step__in_place(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """in place"""
    m.mul_(betas[0]).add_(grad, alpha=1 - betas[0])
    v.mul_(betas[1]).add_(grad**2, alpha=1 - betas[1])
    return p, m, v


def adamw_step__counts_from_zero(
    p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
):
    """1 - 0.1 = 0.9"""
    return _adam(p, grad, m, v, step + 1, lr, betas, eps, weight_decay)


def _cosine(step, peak, warmup, steps, final_share):
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def learning_rate__starts_at_zero(step, peak, warmup, steps, final_share=0.05):
    """one step is wasted"""
    if step < warmup:
        return peak * step / warmup
    return _cosine(step, peak, warmup, steps, final_share)


def learning_rate__ends_too_early(step, peak, warmup, steps, final_share=0.05):
    """the cosine has steps - 1 - warmup steps"""
    if step < warmup:
        return peak * (step + 1) / warmup
    return _cosine(step, peak, warmup, steps + 1, final_share)


def learning_rate__ignores_the_warmup(step, peak, warmup, steps, final_share=0.05):
    """count the cosine's progress"""
    if step < warmup:
        return peak * (step + 1) / warmup
    return _cosine(step, peak, 0, steps, final_share)


def learning_rate__ends_at_zero(step, peak, warmup, steps, final_share=0.05):
    """end at final_share"""
    if step < warmup:
        return peak * (step + 1) / warmup
    return _cosine(step, peak, warmup, steps, 0.0)


def learning_rate__straight_line(step, peak, warmup, steps, final_share=0.05):
    """a straight line"""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (1 - (1 - final_share) * progress)


def learning_rate__whole_wave(step, peak, warmup, steps, final_share=0.05):
    """must have 0.05 of the peak"""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(2 * math.pi * progress)))


def learning_rate__divides_by_no_warmup(step, peak, warmup, steps, final_share=0.05):
    """ZeroDivisionError"""
    warm = peak * (step + 1) / warmup
    return warm if step < warmup else _cosine(step, peak, warmup, steps, final_share)


def accumulate_gradients__not_divided(model, batches, loss_fn):
    """divide each loss by the number of batches"""
    model.zero_grad()
    total = 0.0
    for x, y in batches:
        loss = loss_fn(model(x), y)
        loss.backward()
        total += loss.item() / len(batches)
    return total


def accumulate_gradients__never_cleared(model, batches, loss_fn):
    """clear them first"""
    total = 0.0
    for x, y in batches:
        loss = loss_fn(model(x), y) / len(batches)
        loss.backward()
        total += loss.item()
    return total


def accumulate_gradients__cleared_in_the_loop(model, batches, loss_fn):
    """only the last batch counts"""
    total = 0.0
    for x, y in batches:
        model.zero_grad()
        loss = loss_fn(model(x), y) / len(batches)
        loss.backward()
        total += loss.item()
    return total


def accumulate_gradients__one_large_batch(model, batches, loss_fn):
    """only one is in memory"""
    model.zero_grad()
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    loss = loss_fn(model(x), y)
    loss.backward()
    return loss.item()


def accumulate_gradients__sum_of_losses(model, batches, loss_fn):
    """return the mean"""
    model.zero_grad()
    total = 0.0
    for x, y in batches:
        loss = loss_fn(model(x), y)
        (loss / len(batches)).backward()
        total += loss.item()
    return total


def accumulate_gradients__returns_a_tensor(model, batches, loss_fn):
    """return a float"""
    model.zero_grad()
    total = 0.0
    for x, y in batches:
        loss = loss_fn(model(x), y) / len(batches)
        loss.backward()
        total += loss.detach()
    return total


def accumulate_gradients__no_backward(model, batches, loss_fn):
    """call backward"""
    model.zero_grad()
    return sum(loss_fn(model(x), y).item() for x, y in batches) / len(batches)


def accumulate_gradients__cleared_at_the_end(model, batches, loss_fn):
    """a gradient is missing"""
    total = 0.0
    for x, y in batches:
        loss = loss_fn(model(x), y) / len(batches)
        loss.backward()
        total += loss.item()
    model.zero_grad()
    return total


def _trained(text, steps, shift=1, vocab_size=256, **changes):
    tokenizer = BPETokenizer([])
    stream = torch.tensor(tokenizer.encode(text))
    sizes = {"context_length": 32, "d_model": 32, "n_layers": 1, "n_heads": 2} | changes
    model = GPT(GPTConfig(vocab_size, **sizes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        index = torch.randint(len(stream) - 33, (16, 1)) + torch.arange(32)
        loss = torch.nn.functional.cross_entropy(
            model(stream[index]).flatten(0, 1), stream[index + shift].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, tokenizer


def train_on_text__not_trained(text):
    """has learned nothing"""
    return _trained(text, 0)


def train_on_text__too_few_steps(text):
    """Train longer"""
    return _trained(text, 12)


def train_on_text__no_shift(text):
    """are the targets shifted"""
    return _trained(text, 40, shift=0)


def train_on_text__model_only(text):
    """return the model and its tokenizer"""
    return _trained(text, 0)[0]


def train_on_text__sees_the_future(text):
    """its causal mask is gone"""
    model, tokenizer = _trained(text, 0)
    plain = model.hidden

    def hidden(idx, *args, **kwargs):
        return plain(idx, mask=torch.ones(idx.size(1), idx.size(1), dtype=torch.bool))

    model.hidden = hidden
    for parameter in model.parameters():
        parameter.data.mul_(20)
    return model, tokenizer
