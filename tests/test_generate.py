"""Sampling: filters by hand, batches against single prompts, the cache against none."""

import pytest
import torch

from course_lib.errors import CourseError
from course_lib.generate import GREEDY, Sampling, generate, next_token_probs

PROMPTS = [[1], [5, 6, 7, 8, 9], [3, 2], [11] * 12]


def probs(values, **sampling):
    return next_token_probs(torch.tensor(values).log(), Sampling(**sampling)).tolist()


def greedy_without_cache(model, prompt, n):
    """The slowest way: the whole text anew for every token."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt) :]


# -- the distribution ---------------------------------------------------------------------------


def test_temperature_by_hand():
    assert probs([0.8, 0.2]) == pytest.approx([0.8, 0.2])
    assert probs([0.8, 0.2], temperature=0.5) == pytest.approx([0.64 / 0.68, 0.04 / 0.68])
    assert probs([0.2, 0.8], temperature=0.0) == [0.0, 1.0]


def test_top_k_keeps_k():
    assert probs([0.1, 0.4, 0.2, 0.3], top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probs([0.1, 0.9], top_k=5) == pytest.approx([0.1, 0.9])
    assert probs([0.1, 0.9], top_k=1) == pytest.approx([0, 1])


def test_top_p_keeps_the_token_that_crosses_the_border():
    values = [0.125, 0.5, 0.125, 0.25]
    assert probs(values, top_p=0.6) == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert probs(values, top_p=0.75) == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert probs(values, top_p=0.5) == pytest.approx([0, 1, 0, 0])
    assert probs(values, top_p=0.01) == pytest.approx([0, 1, 0, 0])
    assert probs(values, top_p=1.0) == pytest.approx(values)


def test_filters_apply_in_order_and_by_row():
    """Temperature first: it flattens 0.8 to 2/3, so that 0.75 is no longer reached by one."""
    assert probs([0.8, 0.2], top_p=0.75) == pytest.approx([1, 0])
    assert probs([0.8, 0.2], top_p=0.75, temperature=2.0) == pytest.approx([2 / 3, 1 / 3])
    # top-k before top-p: of the two kept, the first alone has 4/7 of the mass
    assert probs([0.4, 0.3, 0.3 - 1e-3, 1e-3], top_k=2, top_p=0.55) == pytest.approx([1, 0, 0, 0])
    rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert next_token_probs(rows, Sampling(top_k=1)).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 2}])
def test_bad_settings_are_errors(wrong):
    with pytest.raises(CourseError, match="top_p in"):
        Sampling(**wrong)


# -- the loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal"])
def test_a_batch_equals_its_prompts_one_by_one(make_model, positions):
    model = make_model(positions=positions)
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.dim() > 1 else 1)
    together = [c.ids for c in generate(model, PROMPTS, 20)]
    assert together == [generate(model, [p], 20)[0].ids for p in PROMPTS]
    assert together == [greedy_without_cache(model, p, 20) for p in PROMPTS]
    assert len({i for ids in together for i in ids}) >= 4  # the model is not stuck on one token


def test_a_stop_token_ends_a_row_and_is_kept(tiny_model):
    free = [c.ids for c in generate(tiny_model, PROMPTS, 20)]
    stop = free[1][7]
    for ids, done in zip(free, generate(tiny_model, PROMPTS, 20, {stop}), strict=True):
        cut = ids[: ids.index(stop) + 1] if stop in ids else ids
        assert done.ids == cut and done.ended == (stop in ids)


def test_generation_ends_where_the_context_does(make_model):
    model = make_model(context_length=16)
    done = generate(model, [[1] * 13, [2, 3]], 50)
    assert [len(c.ids) for c in done] == [3, 3] and not any(c.ended for c in done)
    assert [len(c.ids) for c in generate(model, [[1] * 15], 50)] == [1]


def test_zero_new_tokens(tiny_model):
    assert generate(tiny_model, [[1]], 0)[0].ids == []


def test_bad_prompts_are_errors(make_model):
    model = make_model(context_length=16)
    with pytest.raises(CourseError, match="prompt is empty"):
        generate(model, [[1], []], 5)
    with pytest.raises(CourseError, match="16 tokens, the context holds 16"):
        generate(model, [[1] * 16], 5)


def test_the_same_generator_state_gives_the_same_text(tiny_model):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return [c.ids for c in generate(tiny_model, PROMPTS, 12, (), Sampling(), generator)]

    assert draw(0) == draw(0) != draw(1)


def test_samples_follow_the_distribution(tiny_model):
    n = 4000
    generator = torch.Generator().manual_seed(0)
    done = generate(tiny_model, [[3, 4]] * n, 1, (), Sampling(), generator)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in done]), minlength=40) / n
    expected = tiny_model(torch.tensor([[3, 4]]))[0, -1].softmax(-1)
    assert (counts - expected).abs().max() < 0.03


def test_top_k_one_is_greedy(tiny_model):
    sampled = generate(tiny_model, PROMPTS, 8, (), Sampling(top_k=1), torch.Generator())
    assert sampled == generate(tiny_model, PROMPTS, 8, (), GREEDY)
