"""Reference answers of L09, the solutions of its page."""

import math

import torch

from course_lib.gpt import GPT, GPTConfig
from course_lib.tokenizer import BPETokenizer


def batch_windows(stream, starts, length):
    index = starts[:, None] + torch.arange(length + 1)  # (B, length + 1)
    chunk = stream[index]
    return chunk[:, :-1], chunk[:, 1:]


def cross_entropy(logits, targets):
    asked = targets != -100
    logprobs = logits - logits.logsumexp(dim=-1, keepdim=True)  # (B, T, V)
    chosen = logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # (B, T)
    return -chosen[asked].mean()


def adamw_step(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    p = p * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps)
    return p, m, v


def learning_rate(step, peak, warmup, steps, final_share=0.05):
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)  # 0 to 1
    cosine = 0.5 * (1 + math.cos(math.pi * progress))  # 1 to 0
    return peak * (final_share + (1 - final_share) * cosine)


def accumulate_gradients(model, batches, loss_fn):
    model.zero_grad()
    total = 0.0
    for x, y in batches:
        loss = loss_fn(model(x), y) / len(batches)
        loss.backward()
        total += loss.item()
    return total


def train_on_text(text):
    tokenizer = BPETokenizer.train(text, vocab_size=400)
    stream = torch.tensor(tokenizer.encode(text))
    model = GPT(GPTConfig(400, context_length=64, d_model=64, n_layers=2, n_heads=2))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(200):
        starts = torch.randint(len(stream) - 64, (16,))
        idx, targets = batch_windows(stream, starts, 64)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 5e-3, 20, 200)
        optimizer.zero_grad()
        cross_entropy(model(idx), targets).backward()
        optimizer.step()
    return model, tokenizer
