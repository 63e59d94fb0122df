"""Measuring models: loss on text, recall of facts, behaviour, shifts of probability, KL.

Shares come with Wilson score intervals, means with normal intervals, both at 95 %.

Sources: Wilson 1927 (interval); Schulman 2020 (KL from samples).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.atlas.families import FACTS, entities
from course_lib.atlas.judge import BEHAVIOURS, Verdict, judge
from course_lib.atlas.prompts import Prompt, all_fact_prompts, prompt_mix
from course_lib.chat import IM_END, render
from course_lib.data import END_OF_TEXT, end_of_text, pad_right, windows
from course_lib.generate import GREEDY, Sampling, generate
from course_lib.gpt import GPT
from course_lib.tokenizer import BPETokenizer
from course_lib.train import cross_entropy

DIRECT = ("direct answer, right", "direct answer, wrong")

# Kinds of prompts, by weight, that preferences and PPO train on and that replies are judged on.
TRAIN_MIX = {
    "fact": 32,
    "followup": 12,
    "harmless": 22,
    "harmful": 16,
    "haiku": 9,
    "ambiguous": 9,
}
JUDGE_MIX = TRAIN_MIX
CHART_MIX = {"fact": 60, "harmless": 10, "harmful": 10, "haiku": 10, "ambiguous": 10}

REPLY_TOKENS = 56  # the longest reply that is sampled
Z95 = 1.959964  # normal quantile for 95 % intervals


@dataclass(frozen=True)
class Reply:
    """What a model said to a prompt, and whether it ended its turn by itself."""

    prompt: Prompt
    ids: list[int]
    text: str
    ended: bool

    @property
    def verdict(self) -> Verdict:
        """The noise-free judge's opinion."""
        return judge(self.prompt, self.text, self.ended)


# -- loss and facts -----------------------------------------------------------------------------


@torch.no_grad()
def text_loss(model: GPT, stream: Tensor, n_windows: int = 64) -> float:
    """Mean loss in nats a token on fixed windows of a held-out stream.

    Args:
        stream: token ids `(N,)`.

    Raises:
        CourseError: the stream is shorter than one window.
    """
    device = model.embedding.weight.device
    length = model.config.context_length
    idx, targets = windows(stream, n_windows, length, seed=0, step=0)
    return cross_entropy(model(idx.to(device)), targets.to(device)).item()


# The start of an encyclopedia sentence whose next words are the answer.
STEMS = {
    "capital": "The capital of {e} is",
    "continent": "{E} is in",
    "currency": "The currency of {e} is the",
}


def fact_completion(model: GPT, tokenizer: BPETokenizer) -> dict[str, float]:
    """Share of countries whose fact the model completes greedily, by family."""
    shares = {}
    border = end_of_text(tokenizer)
    for family, stem in STEMS.items():
        facts = [FACTS[family, entity] for entity in entities("country")]
        prompts = [[border, *tokenizer.encode(fact.fill(stem))] for fact in facts]
        texts = [tokenizer.decode(c.ids) for c in generate(model, prompts, 10)]
        right = [
            text.startswith(f" {fact.answer}.") for text, fact in zip(texts, facts, strict=True)
        ]
        shares[family] = sum(right) / len(right)
    return shares


# -- replies and behaviour ----------------------------------------------------------------------


def document_ids(prompt: Prompt, tokenizer: BPETokenizer) -> list[int]:
    """The bare text of a prompt at the start of a document: how a base model is asked."""
    return [end_of_text(tokenizer), *tokenizer.encode(prompt.text)]


def chat_ids(prompt: Prompt, tokenizer: BPETokenizer) -> list[int]:
    """The prompt in the chat template, the assistant's turn opened."""
    return render([*prompt.history, ("user", prompt.text)], tokenizer, reply=True).ids


def replies(
    model: GPT,
    tokenizer: BPETokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling = GREEDY,
    seed: int = 0,
    as_document: bool = False,
    batch_size: int = 128,
) -> list[Reply]:
    """One reply to every prompt; `as_document` asks a base model, without any template.

    Raises:
        CourseError: a prompt leaves no room in the context.
    """
    encode = document_ids if as_document else chat_ids
    stop = {tokenizer.special_ids[END_OF_TEXT], tokenizer.special_ids[IM_END]}
    generator = torch.Generator().manual_seed(seed)
    out = []
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        ids = [encode(prompt, tokenizer) for prompt in chunk]
        done = generate(model, ids, REPLY_TOKENS, stop, sampling, generator)
        for prompt, completion in zip(chunk, done, strict=True):
            body = completion.ids[:-1] if completion.ended else completion.ids
            text = tokenizer.decode(body)
            out.append(Reply(prompt, completion.ids, text, completion.ended))
    return out


def accuracy(answers: Sequence[Reply]) -> float:
    """Share of direct and right answers."""
    return sum(r.verdict.behaviour == "direct answer, right" for r in answers) / len(answers)


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a share; sensible also at 0 and 1, where the normal one has no width.

    >>> tuple(round(x, 3) for x in wilson_interval(0, 200))
    (0.0, 0.019)
    """
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = Z95) -> tuple[float, float, float]:
    """Mean with its normal 95 % interval: `(mean, low, high)`."""
    n, mean = len(values), sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    half = z * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def behaviour_shares(answers: Sequence[Reply]) -> dict[str, dict[str, float]]:
    """For each behaviour class: share, interval, count."""
    counts, n = Counter(r.verdict.behaviour for r in answers), len(answers)
    table = {}
    for name in BEHAVIOURS:
        low, high = wilson_interval(counts[name], n)
        table[name] = {"share": counts[name] / n, "low": low, "high": high, "count": counts[name]}
    return table


def share_of(answers: Sequence[Reply], *names: str) -> float:
    """Share of replies whose behaviour is one of `names`."""
    return sum(r.verdict.behaviour in names for r in answers) / len(answers)


# -- a chat model's report card ---


def evaluate_chat(
    model: GPT, tokenizer: BPETokenizer, n_eval: int, seed: int
) -> tuple[dict, list[Reply]]:
    """Everything a chat model is measured on; also the judged replies themselves.

    All samples are drawn at temperature 1 on held-out prompts; `accuracy_*` is greedy.
    """
    sampling = Sampling()
    questions = prompt_mix(n_eval, False, seed, {"fact": 1})
    asked = replies(model, tokenizer, questions, sampling, seed)
    judged = replies(
        model, tokenizer, prompt_mix(2 * n_eval, False, seed + 2, JUDGE_MIX), sampling, seed
    )
    mean, low, high = mean_interval([r.verdict.points for r in judged])
    harm = {
        kind: replies(
            model, tokenizer, prompt_mix(n_eval, False, seed + 3, {kind: 1}), sampling, seed
        )
        for kind in ("harmful", "harmless")
    }
    greedy = {
        part: replies(model, tokenizer, all_fact_prompts(part == "seen"))
        for part in ("seen", "unseen")
    }
    return {
        "direct_answer_share": share_of(asked, *DIRECT),
        "sampled_accuracy_unseen": accuracy(asked),
        "accuracy_seen": accuracy(greedy["seen"]),
        "accuracy_unseen": accuracy(greedy["unseen"]),
        "accuracy_unseen_by_family": _by_family(greedy["unseen"]),
        "ends_turn": sum(r.ended for r in judged) / len(judged),
        "reply_tokens": sum(len(r.ids) for r in judged) / len(judged),
        "judge_mean": mean,
        "judge_interval": [low, high],
        "judge_by_kind": _points_by_kind(judged),
        "refusal_harmful": share_of(harm["harmful"], "refusal"),
        "refusal_harmless": share_of(harm["harmless"], "refusal"),
    }, judged


def _by_family(answers: list[Reply]) -> dict[str, float]:
    names = dict.fromkeys(r.prompt.subject.family for r in answers)
    return {
        name: accuracy([r for r in answers if r.prompt.subject.family == name]) for name in names
    }


def _points_by_kind(answers: list[Reply]) -> dict[str, float]:
    table = {}
    for kind in JUDGE_MIX:
        points = [r.verdict.points for r in answers if r.prompt.kind == kind]
        table[kind] = sum(points) / max(1, len(points))
    return table


# -- probabilities ------------------------------------------------------------------------------


def response_logprobs(
    model: GPT, contexts: list[list[int]], responses: list[list[int]], temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of every response token given its context.

    Returns:
        `logprobs` and `entropy`, `(B, R)` with R the longest response, zero where padded; and
        the mask `(B, R)`, True at response tokens. Temperature is that of the sampling.
    """
    device = model.embedding.weight.device
    rows = [c + r for c, r in zip(contexts, responses, strict=True)]
    idx = pad_right(rows, 0).to(device)  # padding is on the right: causal attention never sees it
    index, mask = response_positions(contexts, responses)
    index, mask = index.to(device), mask.to(device)
    hidden = model.hidden(idx)
    picked = hidden.gather(1, index[..., None].expand(-1, -1, hidden.size(-1)))  # (B, R, C)
    logprobs = (model.logits(picked).float() / temperature).log_softmax(-1)  # (B, R, V)
    tokens = pad_right(responses, 0).to(device)
    with torch.no_grad():  # it is watched, and no loss has it
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    chosen = logprobs.gather(-1, tokens[..., None])[..., 0]
    return chosen * mask, entropy * mask, mask


def response_positions(contexts: list[list[int]], responses: list[list[int]]) -> tuple:
    """Where the states stand that predict each response token: `(B, R)` indices and their mask.

    The token at position p is predicted by the state at p - 1, so the first response token by
    the last token of its context.
    """
    longest = max(map(len, responses))
    steps = torch.arange(longest)
    first = torch.tensor([len(c) - 1 for c in contexts])[:, None]
    mask = steps < torch.tensor([len(r) for r in responses])[:, None]
    return (first + steps) * mask, mask


@torch.no_grad()
def sequence_kl(policy: GPT, reference: GPT, tokenizer: BPETokenizer, answers) -> float:
    """KL(policy || reference) in nats a reply, from the policy's own samples (estimator k1)."""
    contexts = [chat_ids(r.prompt, tokenizer) for r in answers]
    responses = [r.ids for r in answers]
    logprobs, _, _ = response_logprobs(policy, contexts, responses)
    ref_logprobs, _, _ = response_logprobs(reference, contexts, responses)
    return (logprobs - ref_logprobs).sum(-1).mean().item()


@torch.no_grad()
def next_token_bars(
    models: dict[str, GPT], tokenizer: BPETokenizer, contexts: dict[str, list[int]], n: int = 8
) -> list[dict]:
    """The most likely next tokens under any of the models, with each model's probability.

    Args:
        contexts: for each model its own rendering of the same text so far.

    Returns:
        `n` rows `{"token": text, "probs": {model: probability}}`, most likely (summed over the
        models) first.
    """
    probs = {}
    for name, model in models.items():
        idx = torch.tensor([contexts[name]], device=model.embedding.weight.device)
        probs[name] = model(idx)[0, -1].float().softmax(-1).cpu()
    total = sum(probs.values())
    return [
        {
            "token": tokenizer.decode([i]),
            "probs": {name: round(p[i].item(), 5) for name, p in probs.items()},
        }
        for i in total.topk(n).indices.tolist()
    ]
