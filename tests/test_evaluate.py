"""Measuring: intervals by published values, probabilities token by token, shares by hand."""

import itertools
import math

import oracles
import pytest
import torch

from course_lib import evaluate
from course_lib.atlas.families import FACTS
from course_lib.atlas.prompts import Prompt
from course_lib.chat import IM_END
from course_lib.evaluate import (
    Reply,
    accuracy,
    behaviour_shares,
    chat_ids,
    document_ids,
    fact_completion,
    mean_interval,
    next_token_bars,
    replies,
    response_logprobs,
    response_positions,
    sequence_kl,
    share_of,
    text_loss,
    wilson_interval,
)
from course_lib.generate import Completion, Sampling

PARIS = Prompt("fact", "What is the capital of France?", FACTS["capital", "France"])


def answer(text, ended=True):
    return Reply(PARIS, [1, 2], text, ended)


@pytest.fixture
def chat_model(make_model, tiny_tokenizer):
    return make_model(tiny_tokenizer.vocab_size, context_length=128)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (8, 10, 0.4902, 0.9433),
        (50, 100, 0.4038, 0.5962),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_interval_has_its_published_values(k, n, low, high):
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=6e-5)


def test_mean_interval_by_hand():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])  # variance 1
    assert (mean, high - mean) == (2.0, pytest.approx(1.959964 / math.sqrt(3)))
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval([5.0]) == (5.0, 5.0, 5.0)


def test_response_positions():
    oracles.check_response_positions(response_positions)


def test_response_logprobs():
    oracles.check_response_logprobs(response_logprobs)


def test_kl_of_a_model_with_itself_and_with_another(chat_model, make_model, tiny_tokenizer):
    answers = [Reply(PARIS, tiny_tokenizer.encode(t), t, True) for t in ("Paris.", "I think so")]
    assert sequence_kl(chat_model, chat_model, tiny_tokenizer, answers) == 0
    other = make_model(tiny_tokenizer.vocab_size, seed=1, context_length=128)
    expected = 0.0
    for r in answers:
        context = chat_ids(r.prompt, tiny_tokenizer)
        for t, token in enumerate(r.ids):
            idx = torch.tensor([context + r.ids[:t]])
            p, q = (m(idx)[0, -1].log_softmax(-1)[token] for m in (chat_model, other))
            expected += (p - q).item() / len(answers)
    found = sequence_kl(chat_model, other, tiny_tokenizer, answers)
    assert found == pytest.approx(expected, abs=1e-4)


def test_next_token_bars(chat_model, make_model, tiny_tokenizer):
    models = {"a": chat_model, "b": make_model(tiny_tokenizer.vocab_size, seed=1)}
    contexts = {"a": [1, 2, 3], "b": [4]}
    size = tiny_tokenizer.vocab_size
    rows = next_token_bars(models, tiny_tokenizer, contexts, n=size)
    for name, model in models.items():
        assert sum(row["probs"][name] for row in rows) == pytest.approx(1, abs=size * 1e-5)
        exact = model(torch.tensor([contexts[name]]))[0, -1].softmax(-1)
        top = max(rows, key=lambda row: row["probs"][name])["probs"][name]
        assert top == pytest.approx(exact.max().item(), abs=1e-5)
    totals = [sum(row["probs"].values()) for row in rows]
    assert all(a >= b - 4e-5 for a, b in itertools.pairwise(totals))
    assert next_token_bars(models, tiny_tokenizer, contexts, n=3) == rows[:3]


def test_text_loss_of_a_model_that_knows_nothing(make_model):
    model = make_model(40, context_length=8)
    torch.nn.init.zeros_(model.embedding.weight)
    assert text_loss(model, torch.arange(40)) == pytest.approx(math.log(40))


@pytest.mark.parametrize(("end", "share"), [(".", 1.0), (". And", 1.0), ("", 0.0), ("town.", 0.0)])
def test_fact_completion_wants_the_whole_answer(tiny_tokenizer, monkeypatch, end, share):
    def knows_everything(model, prompts, n):
        done = []
        for ids in prompts:
            asked = tiny_tokenizer.decode(ids[1:])
            done.append(Completion(tiny_tokenizer.encode(f" {answers[asked]}{end}"), False))
        return done

    answers = {
        FACTS[family, entity].fill(stem): FACTS[family, entity].answer
        for family, stem in evaluate.STEMS.items()
        for entity in evaluate.entities("country")
    }
    monkeypatch.setattr(evaluate, "generate", knows_everything)
    assert fact_completion(None, tiny_tokenizer) == dict.fromkeys(evaluate.STEMS, share)


def test_shares_by_hand():
    answers = [
        answer("The capital of France is Paris."),
        answer("The capital of France is Lima."),
        answer("What is it?"),
        answer("It is Paris."),
    ]
    assert accuracy(answers) == 0.5
    assert share_of(answers, *evaluate.DIRECT) == 0.75
    table = behaviour_shares(answers)
    assert sum(row["share"] for row in table.values()) == pytest.approx(1)
    assert sum(row["count"] for row in table.values()) == 4
    assert table["continuation"]["share"] == 0.25 and table["refusal"]["count"] == 0
    assert all(row["low"] <= row["share"] <= row["high"] for row in table.values())


def test_prompts_for_base_and_chat(tiny_tokenizer):
    first = (("user", "Hi"), ("assistant", "Hello"))
    prompt = Prompt("followup", "And its capital?", PARIS.subject, first)
    assert tiny_tokenizer.decode(document_ids(prompt, tiny_tokenizer)) == (
        "<|endoftext|>And its capital?"
    )
    assert tiny_tokenizer.decode(chat_ids(prompt, tiny_tokenizer)) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nAnd its capital?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_replies_are_cut_at_the_stop_and_do_not_depend_on_the_batch(chat_model, tiny_tokenizer):
    prompts = [PARIS, Prompt("fact", "Hm?", PARIS.subject)] * 3
    end = tiny_tokenizer.special_ids[IM_END]
    with torch.no_grad():
        chat_model.embedding.weight[end] *= 8  # likely to be drawn now and then
    sampled = replies(chat_model, tiny_tokenizer, prompts, Sampling(), seed=1)
    assert any(r.ended for r in sampled)
    for r in sampled:
        assert r.ended == (r.ids[-1] in tiny_tokenizer.special_ids.values())
        body = r.ids[:-1] if r.ended else r.ids
        assert r.text == tiny_tokenizer.decode(body)
        assert r.ended or len(r.ids) == evaluate.REPLY_TOKENS
    assert sampled == replies(chat_model, tiny_tokenizer, prompts, Sampling(), seed=1)
    greedy = replies(chat_model, tiny_tokenizer, prompts)
    assert greedy == replies(chat_model, tiny_tokenizer, prompts, batch_size=1)
