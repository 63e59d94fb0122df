"""L11 Fine-tuning: write each function, then run `pytest tests/exercises -k L11`.

In a notebook: `from course_lib.checks.l11 import check_gae`, then `check_gae(gae)`.
"""

import torch


def render_chat(turns, tokenizer):
    """ChatML ids, and which of them the model learns to write.
    Medium, 20 minutes.

    turns: list of (role, content). A turn is <|im_start|>role, a
    line break, the content, <|im_end|>, a line break. Learned: the
    assistant's content and its <|im_end|>, no more.
    tokenizer.encode(text, "all") may make control tokens,
    tokenizer.encode(text) never does. Returns (ids, mask), two
    lists of one length; mask holds True where a token is learned.

    >>> turns = [("user", "Hi"), ("assistant", "Hello")]
    >>> ids, mask = render_chat(turns, tokenizer)
    """
    raise NotImplementedError


def sft_loss(logits, ids, mask):
    """Cross-entropy of the learned tokens alone, in nats.
    Medium, 10 minutes.

    logits: (B, T, V), of the model that read ids. ids: (B, T).
    mask: (B, T), True at the tokens that are learned. Each token is
    predicted by the logits one place before it. Returns the mean
    over all learned tokens of the batch. F.cross_entropy is
    allowed.

    >>> ids = torch.tensor([[1, 2, 3]])
    >>> sft_loss(torch.zeros(1, 3, 4), ids, mask=ids == 3)    # ln 4
    tensor(1.3863)
    """
    raise NotImplementedError


def pairwise_loss(chosen, rejected, margin=0.0):
    """How surprised is a reward model by who won? Easy, 10 minutes.

    chosen, rejected: scores (B,). Returns the mean of -log
    sigmoid(chosen - rejected - margin), finite also for a pair that
    is misjudged by 90.

    >>> pairwise_loss(torch.ones(1), torch.ones(1))    # a coin: ln 2
    tensor(0.6931)
    """
    raise NotImplementedError


def last_token_reward(scores, logprobs, ref_logprobs, mask, kl_coef):
    """Rewards for PPO: a KL price at every token, the score at the
    last. Medium, 15 minutes.

    scores: (B,). logprobs, ref_logprobs, mask: (B, R); mask is True
    at the tokens of a response and False in the padding on its
    right. Returns (B, R): -kl_coef * (logprobs - ref_logprobs) at
    every token, plus the score at the last one, and zero in the
    padding.

    >>> same = torch.tensor([[-1.0, -1.0, 0.0]])
    >>> last_token_reward(torch.tensor([5.0]), same, same, same < 0, 0.1)
    tensor([[-0., 5., -0.]])
    """
    raise NotImplementedError


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation. Hard, 25 minutes.

    rewards, values, mask: (B, R), padded on the right; anything may
    stand in the padding. delta_t = r_t + gamma * V_{t+1} - V_t and
    A_t = delta_t + gamma * lam * A_{t+1}, where V and A behind the
    last token are zero. Returns advantages and returns (A + V),
    zero in the padding.

    >>> r, v = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> gae(r, v, torch.ones(1, 2).bool(), gamma=1.0, lam=0.5)
    (tensor([[0.2500, 0.5000]]), tensor([[0.7500, 1.0000]]))
    """
    raise NotImplementedError


def clipped_policy_loss(new_logprobs, logprobs, advantages, mask, clip_range):
    """PPO's loss: the worse of the plain and of the clipped one.
    Medium, 15 minutes.

    All tensors (B, R). ratio = exp(new_logprobs - logprobs). At
    each token the larger of -A * ratio and -A * (ratio, kept within
    1 - clip_range and 1 + clip_range) counts. Returns the mean over
    the tokens where mask is True.

    >>> one = torch.ones(1, 1); log2 = torch.full((1, 1), 2.0).log()
    >>> clipped_policy_loss(log2, 0 * one, one, one.bool(), 0.2)
    tensor(-1.2000)
    """
    raise NotImplementedError


def kl_estimators(logprobs, ref_logprobs):
    """Three estimates of KL(policy || reference) from samples of
    the policy. Easy, 10 minutes.

    Both: log-probabilities of the sampled tokens, of any shape.
    With d = logprobs - ref_logprobs, returns {"k1": d, "k2":
    d ** 2 / 2, "k3": exp(-d) - 1 + d}; k3 must be exact near zero,
    too.

    >>> kl_estimators(torch.tensor([0.0]), torch.tensor([-1.0]))
    {'k1': tensor([1.]), 'k2': tensor([0.5000]), 'k3': tensor([0.3679])}
    """
    raise NotImplementedError


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Learn from comparisons without a reward model.
    Medium, 10 minutes.

    chosen, rejected: log-probabilities (B,) of whole replies under
    the policy; ref_chosen, ref_rejected: under the reference. The
    reward of a reply is beta times the difference of the two.
    Returns the mean pairwise loss of these rewards, finite for any
    input.

    >>> dpo_loss(*torch.zeros(4, 1), beta=0.1)
    tensor(0.6931)
    """
    raise NotImplementedError


def retrain(policy, prompts, rubric, stop_id):
    """Capstone: move a model to a rubric of your own.
    Hard, 90 minutes.

    policy: a GPT, which must stay as it is. prompts: lists of ids.
    rubric: a function from a reply, a list of ids, to a number. A
    reply ends with stop_id, or after 12 tokens. Returns a new GPT
    whose samples (temperature 1) score clearly higher, on prompts
    it has not seen too, at most 10 nats a reply away from policy.
    `course_lib.generate`, `course_lib.evaluate.response_logprobs`
    and all of this lesson may help.

    >>> short = retrain(policy, prompts, lambda reply: -len(reply), stop_id)
    """
    raise NotImplementedError
