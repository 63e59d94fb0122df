"""Generation: batches against single prompts, the cache against none, streams, beams."""

import itertools

import pytest
import torch

from course_lib.errors import CourseError
from course_lib.generate import TextWriter, beam_search, generate, stream
from course_lib.sampling import GREEDY, Sampling
from course_lib.tokenizer import BPETokenizer

PROMPTS = [[1], [5, 6, 7, 8, 9], [3, 2], [11] * 12]


def greedy_without_cache(model, prompt, n):
    """The slowest way: the whole text anew for every token."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt) :]


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


def test_each_row_ends_where_its_own_context_does(make_model):
    model = make_model(context_length=16)
    prompts = [[1] * 13, [2, 3], [4] * 15]
    done = generate(model, prompts, 50)
    assert [len(c.ids) for c in done] == [3, 14, 1] and not any(c.ended for c in done)
    assert done == [generate(model, [p], 50)[0] for p in prompts]


def slid_without_cache(model, prompt, n):
    """The rule by the slowest way: past the context, half of it stays."""
    window, new, limit = list(prompt), [], model.config.context_length
    for _ in range(n):
        if len(window) > limit:
            window = window[-(limit // 2) :]
        new.append(model(torch.tensor([window]))[0, -1].argmax().item())
        window.append(new[-1])
    return new


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_sliding_past_the_context(make_model, positions):
    model = make_model(context_length=16, positions=positions)
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.dim() > 1 else 1)
    prompts = [[1] * 13, [2, 3], [5, 6, 7, 8, 9, 4]]
    together = [c.ids for c in generate(model, prompts, 45, slide=True)]
    assert together == [slid_without_cache(model, p, 45) for p in prompts]
    assert len({i for ids in together for i in ids}) >= 3  # not stuck on one token


def test_sliding_changes_nothing_before_the_context_is_full(tiny_model):
    free = generate(tiny_model, PROMPTS, 20)
    assert generate(tiny_model, PROMPTS, 20, slide=True) == free


def test_zero_new_tokens(tiny_model):
    assert generate(tiny_model, [[1]], 0)[0].ids == []


def test_bad_prompts_are_errors(make_model):
    model = make_model(context_length=16)
    with pytest.raises(CourseError, match="prompt is empty"):
        generate(model, [[1], []], 5)
    with pytest.raises(CourseError, match="16 tokens, the context holds 16"):
        generate(model, [[1] * 16], 5)
    with pytest.raises(CourseError, match="prompt is empty"):
        generate(model, [], 5)


def test_rows_that_end_do_not_change_what_the_others_draw(tiny_model):
    """Half of the rows end early and leave the batch: the rest must not notice."""

    def draw(stop):
        generator = torch.Generator().manual_seed(3)
        return [c.ids for c in generate(tiny_model, PROMPTS * 4, 30, stop, Sampling(), generator)]

    free = draw(())
    stop = {free[0][2], free[1][2]}
    ends = [next((t for t, i in enumerate(ids) if i in stop), 29) for ids in free]
    assert draw(stop) == [ids[: end + 1] for ids, end in zip(free, ends, strict=True)]
    assert sorted(ends)[8] < max(ends) - 4  # over half of the rows left well before the last


def test_with_a_generator_a_row_the_company_does_not_matter(tiny_model):
    def draw(rows):
        seeds = [torch.Generator().manual_seed(10 + row) for row in rows]
        prompts = [PROMPTS[row] for row in rows]
        return [c.ids for c in generate(tiny_model, prompts, 12, (), Sampling(), seeds)]

    everyone = draw([0, 1, 2, 3])
    assert draw([2]) == [everyone[2]] and draw([3, 1]) == [everyone[3], everyone[1]]
    assert len({tuple(ids) for ids in everyone}) == 4
    with pytest.raises(CourseError, match="1 generators for 4 prompts"):
        generate(tiny_model, PROMPTS, 5, (), Sampling(), [torch.Generator()])


def test_the_repetition_penalty_counts_prompt_and_new_tokens(tiny_model):
    """A huge penalty forbids repeating anything whose logit is positive."""
    penalised = generate(tiny_model, PROMPTS, 12, (), Sampling(0.0, repetition_penalty=1e6))
    for prompt, done in zip(PROMPTS, penalised, strict=True):
        text = list(prompt)
        for token in done.ids:
            logits = tiny_model(torch.tensor([text]))[0, -1]
            logits[text] = torch.where(logits[text] > 0, logits[text] / 1e6, logits[text] * 1e6)
            assert token == logits.argmax()
            text.append(token)


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


# -- text -----------------------------------------------------------------------------------------

BYTES = BPETokenizer([], ["<|end|>"])


def written(text, stop_strings):
    """What a writer shows for each byte of the text, and at the end."""
    writer, pieces = TextWriter(BYTES, stop_strings), []
    for token in BYTES.encode(text):
        pieces.append(writer.write(token))
        if writer.stopped:
            return pieces
    return [*pieces, writer.close()]


def test_a_character_is_shown_when_it_is_whole():
    assert written("aé🙂", ()) == ["a", "", "é", "", "", "", "🙂", ""]
    writer = TextWriter(BYTES)
    shown = [writer.write(b) for b in "🙂".encode()[:2]]
    assert shown == ["", ""] and writer.close() == "\ufffd"


def test_nothing_of_a_stop_string_is_shown():
    assert written("ab\n\nc", ["\n\n"]) == ["a", "b", "", ""]
    assert written("ab\nc", ["\n\n"]) == ["a", "b", "", "\nc", ""]
    assert written("ab\n", ["\n\n"]) == ["a", "b", "", "\n"]
    assert written("aab", ["aab"])[-1] == "" and "".join(written("aaab", ["aab"])) == "a"
    assert "".join(written("xENDy", ["END", "xE"])) == ""


@pytest.mark.parametrize("text", ["User: hi\nUser: ho", "aaaaab", "éééüé", "ab"])
@pytest.mark.parametrize("stop", [["\nUser:"], ["aab", "ab"], ["üé"], ["é"], []])
def test_what_is_shown_is_the_text_before_the_first_stop_string(text, stop):
    ends = [text.find(s) for s in stop if s in text]
    assert "".join(written(text, stop)) == text[: min(ends, default=len(text))]


def test_wrong_stop_strings_are_errors(tiny_model):
    with pytest.raises(CourseError, match="need the tokenizer"):
        generate(tiny_model, PROMPTS, 3, stop_strings=["x"])
    with pytest.raises(CourseError, match="empty"):
        TextWriter(BYTES, [""])


@pytest.fixture
def byte_model(make_model):
    """A model over bytes and one special token, sure enough of itself to say many things."""
    model = make_model(vocab_size=257)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return model


def test_a_stream_is_the_text_of_generate(byte_model):
    prompt, n = BYTES.encode("hello"), 40
    for seed in range(5):
        one, two = (torch.Generator().manual_seed(seed) for _ in range(2))
        done = generate(byte_model, [prompt], n, {256}, Sampling(1.2), one)[0]
        pieces = list(stream(byte_model, BYTES, prompt, n, {256}, Sampling(1.2), two))
        assert "".join(pieces) == BYTES.decode(done.ids[:-1] if done.ended else done.ids)
        assert len(pieces) > 5 and all(pieces)


def test_a_stream_slides_and_ends_with_the_context(make_model):
    model = make_model(vocab_size=257, context_length=16)
    prompt = BYTES.encode("hello")
    for slide, n in ((False, 11), (True, 40)):
        text = "".join(stream(model, BYTES, prompt, 40, slide=slide))
        ids = generate(model, [prompt], 40, slide=slide)[0].ids
        assert len(ids) == n and text == BYTES.decode(ids)


def test_a_stop_string_ends_rows_and_streams(byte_model):
    prompts = [BYTES.encode(text) for text in ("hello", "ab", "x")]
    free = [BYTES.decode(c.ids) for c in generate(byte_model, prompts, 30)]
    stop = free[0][4:6]
    done = generate(byte_model, prompts, 30, stop_strings=[stop], tokenizer=BYTES)
    for text, prompt, completion in zip(free, prompts, done, strict=True):
        before, found, _ = text.partition(stop)
        assert completion.ended == bool(found)
        shown = BYTES.decode(completion.ids)
        assert shown == before + found if found else shown == text
        assert "".join(stream(byte_model, BYTES, prompt, 30, stop_strings=[stop])) == before


# -- beams ----------------------------------------------------------------------------------------


def logprob(model, prompt, ids):
    logprobs = model(torch.tensor([prompt + ids]))[0].log_softmax(-1)
    return sum(logprobs[len(prompt) + t - 1, token].item() for t, token in enumerate(ids))


def test_enough_beams_find_the_best_text_of_all(make_model):
    model = make_model(vocab_size=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    for prompt in ([1], [2, 3], [0, 1, 2]):
        every = [list(ids) for ids in itertools.product(range(4), repeat=4)]
        best = max(every, key=lambda ids: logprob(model, prompt, ids))
        found = beam_search(model, prompt, 4, n_beams=64, length_penalty=0.0)
        assert found[0][1].ids == best
        assert found[0][0] == pytest.approx(logprob(model, prompt, best), abs=1e-4)


def test_one_beam_is_greedy_and_scores_are_log_probabilities(tiny_model):
    for prompt in PROMPTS:
        ((score, done),) = beam_search(tiny_model, prompt, 9, n_beams=1)
        assert done == generate(tiny_model, [prompt], 9)[0]
        assert score == pytest.approx(logprob(tiny_model, prompt, done.ids) / 9, abs=1e-4)


def test_beams_end_with_the_context_and_need_room(make_model):
    model = make_model(context_length=16)
    assert {len(c.ids) for _, c in beam_search(model, [1] * 12, 50, n_beams=3)} == {4}
    for wrong in ({"n_beams": 0}, {"max_new_tokens": 0}):
        with pytest.raises(CourseError, match="must be >= 1"):
            beam_search(model, [1], **({"max_new_tokens": 3} | wrong))
