"""The distribution a token is drawn from: every filter by hand, and the draw."""

import pytest
import torch

from course_lib.errors import CourseError
from course_lib.sampling import (
    Sampling,
    apply_repetition_penalty,
    draw,
    min_p_filter,
    next_token_probs,
    top_k_filter,
    top_p_filter,
    uniforms,
)


def probs(values, **sampling):
    return next_token_probs(torch.tensor(values).log(), Sampling(**sampling)).tolist()


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


def test_min_p_is_a_share_of_the_greatest():
    values = [0.5, 0.25, 0.15, 0.1]
    assert probs(values, min_p=0.5 - 1e-6) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-5)
    assert probs(values, min_p=0.25) == pytest.approx([0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0])
    assert probs(values, min_p=1.0) == pytest.approx([1, 0, 0, 0])
    # a flat distribution keeps all, whatever the absolute probabilities
    assert probs([0.25] * 4, min_p=0.9) == pytest.approx([0.25] * 4)


def test_the_repetition_penalty_makes_both_signs_less_likely():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0])
    seen = torch.tensor([True, True, False, True])
    assert apply_repetition_penalty(logits, seen, 2.0).tolist() == [1.0, -4.0, 1.0, 0.0]
    before, after = (
        next_token_probs(logits, Sampling(repetition_penalty=penalty), seen) for penalty in (1, 2)
    )
    assert after[0] < before[0] and after[1] < before[1] and after[2] > before[2]


def test_greedy_choice_is_made_after_the_penalty():
    logits, seen = torch.tensor([1.0, 0.9]), torch.tensor([True, False])
    greedy = next_token_probs(logits, Sampling(0.0, repetition_penalty=2.0), seen)
    assert greedy.tolist() == [0.0, 1.0]


def test_filters_apply_in_order_and_by_row():
    """Temperature first: it flattens 0.8 to 2/3, so that 0.75 is no longer reached by one."""
    assert probs([0.8, 0.2], top_p=0.75) == pytest.approx([1, 0])
    assert probs([0.8, 0.2], top_p=0.75, temperature=2.0) == pytest.approx([2 / 3, 1 / 3])
    # top-k before top-p: of the two kept, the first alone has 4/7 of the mass
    assert probs([0.4, 0.3, 0.3 - 1e-3, 1e-3], top_k=2, top_p=0.55) == pytest.approx([1, 0, 0, 0])
    rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert next_token_probs(rows, Sampling(top_k=1)).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("filter_", "argument"), [(top_k_filter, 3), (top_p_filter, 0.7), (min_p_filter, 0.3)]
)
def test_filters_take_any_leading_shape(filter_, argument):
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    rows = [filter_(row, argument) for row in logits.flatten(0, 1)]
    assert torch.equal(filter_(logits, argument), torch.stack(rows).view(2, 3, 9))


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"temperature": -1}, "top_p in"),
        ({"temperature": float("nan")}, "top_p in"),
        ({"top_k": -1}, "top_p in"),
        ({"top_p": 0}, "top_p in"),
        ({"top_p": 2}, "top_p in"),
        ({"min_p": -0.1}, "min_p must be"),
        ({"min_p": 1.1}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty > 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty > 0"),
    ],
)
def test_bad_settings_are_errors(wrong, problem):
    with pytest.raises(CourseError, match=problem):
        Sampling(**wrong)


def test_draws_follow_the_distribution():
    rows = torch.tensor([[0.5, 0.3, 0.0, 0.2, 0.0]]).expand(20_000, 5)
    drawn = draw(rows, uniforms(20_000, torch.Generator().manual_seed(0)))
    share = torch.bincount(drawn, minlength=5) / 20_000
    assert (share - rows[0]).abs().max() < 0.015 and share[2] == share[4] == 0


def test_a_draw_is_the_inverse_of_the_cumulative_distribution():
    rows = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(4, 5)
    assert draw(rows, torch.tensor([0.0, 0.2499, 0.25, 0.99999994])).tolist() == [1, 1, 3, 3]


def test_probabilities_that_are_not_numbers_are_an_error():
    with pytest.raises(CourseError, match="NaN"):
        draw(torch.tensor([[1.0, 0.0], [float("nan"), 0.0]]), torch.tensor([0.5, 0.5]))


def test_a_generator_a_row_makes_rows_independent():
    together = uniforms(5, [torch.Generator().manual_seed(s) for s in range(5)])
    alone = [uniforms(1, [torch.Generator().manual_seed(s)]) for s in range(5)]
    assert together.tolist() == torch.cat(alone).tolist()
