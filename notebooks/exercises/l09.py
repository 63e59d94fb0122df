"""L09 Training: write each function, then run `pytest tests/exercises -k L09`.

In a notebook: `from course_lib.checks.l09 import check_adamw_step`, then
`check_adamw_step(adamw_step)`.
"""

import torch


def batch_windows(stream, starts, length):
    """Cut windows out of a token stream, and the same windows one
    step later. Easy, 10 minutes.

    stream: ids (N,). starts: where each window begins, (B,), all at
    most N - length - 1. Returns idx and targets, both (B, length);
    targets[b, t] is the token after idx[b, t].

    >>> batch_windows(torch.arange(10, 20), torch.tensor([0, 5]), 3)
    (tensor([[10, 11, 12],
             [15, 16, 17]]), tensor([[11, 12, 13],
             [16, 17, 18]]))
    """
    raise NotImplementedError


def cross_entropy(logits, targets):
    """Mean surprise at the targets, in nats. Medium, 15 minutes.

    logits: (B, T, V). targets: ids (B, T), or -100 where nothing is
    asked: those positions take no part in the mean. Safe for large
    logits. Do not call PyTorch's cross_entropy or nll_loss.

    >>> cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))  # ln 4
    tensor(1.3863)
    """
    raise NotImplementedError


def adamw_step(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """One step of AdamW for one parameter. Medium, 20 minutes.

    m, v: running means of grad and of its square, zero before the
    first step; step counts from 1. Returns the new (p, m, v). The
    decay shrinks p itself, by lr * weight_decay.

    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> adamw_step(one, one, zero, zero, step=1, lr=0.1)[0]   # 1 - 0.01 - 0.1
    tensor([0.8900])
    """
    raise NotImplementedError


def learning_rate(step, peak, warmup, steps, final_share=0.05):
    """Linear warm-up, then a cosine. Easy, 10 minutes.

    step counts from 0 to steps - 1. In the warm-up, step s has
    (s + 1) / warmup of the peak, so step warmup - 1 is at the peak.
    From step warmup (the peak) to the last step
    (final_share of the peak) the rate falls along half a cosine
    wave.

    >>> [round(learning_rate(s, 1.0, 2, 5, 0.1), 3) for s in range(5)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    raise NotImplementedError


def accumulate_gradients(model, batches, loss_fn):
    """Gradients of a large batch from small ones.
    Medium, 15 minutes.

    batches: list of (x, y), all of the same size. loss_fn(model(x),
    y) is the mean loss of one. Clears old gradients first, and
    leaves in every .grad the gradient of the mean over all batches.
    Runs backward once a batch, so that only one is in memory.
    Returns the mean loss, a float.

    >>> loss = accumulate_gradients(model, [(x1, y1), (x2, y2)], F.mse_loss)
    """
    raise NotImplementedError


def train_on_text(text):
    """Capstone: train a model on a text of your own.
    Hard, 60 minutes.

    text: a string. Returns (model, tokenizer), a GPT and a
    BPETokenizer of course_lib. The check gives you the first nine
    tenths of a text and keeps the rest. There the model must need
    at most 0.85 of the bits per byte that a table of byte pairs
    needs. Use what you have built: windows, loss, schedule.

    >>> check_train_on_text(train_on_text)    # on documents of this course
    >>> check_train_on_text(train_on_text, "novel.txt")    # on your file
    """
    raise NotImplementedError
