"""Our sampling and generation against Hugging Face's, on tiny random models copied over."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib.generate import beam_search, generate
from course_lib.interop import from_pretrained
from course_lib.sampling import Sampling, next_token_probs

transformers = pytest.importorskip("transformers")
from transformers.generation import logits_process as theirs  # noqa: E402

PROMPTS = [[1, 2, 3], [40], [7, 7, 9, 30, 2, 2, 11], [5, 6]]
SIZES = {"vocab_size": 48, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SIZES,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SIZES, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    )


@pytest.fixture(scope="module", params=[llama, gpt2])
def pair(request, tmp_path_factory):
    """Their model, with weights large enough to have opinions, and ours with the same weights."""
    torch.manual_seed(3)
    model = request.param().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(7 if parameter.dim() > 1 else 1)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    model.save_pretrained(folder)
    return model, from_pretrained(folder).eval()


def left_padded(prompts):
    width = max(map(len, prompts))
    idx = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": idx, "attention_mask": mask}


def new_ids(output, n_prompt):
    return output[:, n_prompt:].tolist()


# -- the loop -------------------------------------------------------------------------------------


def test_cached_greedy_generation_is_identical(pair):
    model, ours = pair
    batch = left_padded(PROMPTS)
    output = model.generate(**batch, max_new_tokens=40, do_sample=False)
    expected = new_ids(output, batch["input_ids"].size(1))
    assert [c.ids for c in generate(ours, PROMPTS, 40)] == expected
    assert len({i for ids in expected for i in ids}) > 5  # not stuck on one token


def test_greedy_generation_with_a_penalty_is_identical(pair):
    model, ours = pair
    for prompt in PROMPTS:
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=30, do_sample=False, repetition_penalty=1.7
        )
        sampling = Sampling(temperature=0.0, repetition_penalty=1.7)
        done = generate(ours, [prompt], 30, sampling=sampling)
        assert done[0].ids == new_ids(output, len(prompt))[0]


def test_stop_tokens_end_the_same_texts(pair):
    model, ours = pair
    free = generate(ours, PROMPTS, 30)
    stop = [free[0].ids[4], free[2].ids[7]]
    batch = left_padded(PROMPTS)
    output = model.generate(**batch, max_new_tokens=30, do_sample=False, eos_token_id=stop)
    done = generate(ours, PROMPTS, 30, stop)
    assert any(c.ended for c in done)
    for ids, completion in zip(new_ids(output, 7), done, strict=True):
        assert ids[: len(completion.ids)] == completion.ids
        assert not any(ids[len(completion.ids) :])  # padding


# -- the distribution -----------------------------------------------------------------------------


def their_probs(logits, idx, s):
    """Their processors in the order of their `generate`."""
    if s.repetition_penalty != 1:
        logits = theirs.RepetitionPenaltyLogitsProcessor(s.repetition_penalty)(idx, logits)
    logits = theirs.TemperatureLogitsWarper(s.temperature)(idx, logits)
    if s.top_k:
        logits = theirs.TopKLogitsWarper(s.top_k)(idx, logits)
    if s.top_p < 1:
        logits = theirs.TopPLogitsWarper(s.top_p)(idx, logits)
    if s.min_p:
        logits = theirs.MinPLogitsWarper(s.min_p)(idx, logits)
    return logits.softmax(-1)


@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 30, 100]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    penalty=st.sampled_from([0.7, 1.0, 1.3, 3.0]),
)
def test_all_filters_together(seed, temperature, top_k, top_p, min_p, penalty):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 50, generator=generator)
    idx = torch.randint(50, (4, 9), generator=generator)
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, idx, True)
    expected = their_probs(logits.clone(), idx, sampling)
    torch.testing.assert_close(next_token_probs(logits, sampling, seen), expected)


def test_the_order_is_that_of_their_generate(pair):
    """With a filter that leaves one token, sampling is decided: any other order would show."""
    model, ours = pair
    for s in (Sampling(1.5, 3, 0.2), Sampling(0.8, 0, 0.9, 0.999), Sampling(2.0, 1, 1.0, 0.0, 1.5)):
        output = model.generate(
            torch.tensor([PROMPTS[2]]),
            max_new_tokens=20,
            do_sample=True,
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p or None,
            repetition_penalty=s.repetition_penalty,
        )
        done = generate(ours, [PROMPTS[2]], 20, (), s, torch.Generator())
        assert done[0].ids == new_ids(output, len(PROMPTS[2]))[0]


# -- beams ----------------------------------------------------------------------------------------

BEAMS = list(itertools.product((2, 4, 7), (0.0, 1.0, 2.0), (True, False)))


@pytest.mark.parametrize(("n_beams", "length_penalty", "stops"), BEAMS)
def test_beam_search_is_identical(pair, n_beams, length_penalty, stops):
    model, ours = pair
    for prompt in PROMPTS:
        likely = generate(ours, [prompt], 12)[0].ids
        stop = [likely[3], likely[9]] if stops else []
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            num_beams=n_beams,
            num_return_sequences=n_beams,
            length_penalty=length_penalty,
            do_sample=False,
            eos_token_id=stop or None,
            output_scores=True,
            return_dict_in_generate=True,
        )
        found = beam_search(ours, prompt, 12, stop, n_beams, length_penalty)
        scores = torch.tensor([score for score, _ in found])
        torch.testing.assert_close(scores, output.sequences_scores, rtol=1e-4, atol=1e-4)
        for (_, done), ids in zip(found, new_ids(output.sequences, len(prompt)), strict=True):
            assert ids[: len(done.ids)] == done.ids
