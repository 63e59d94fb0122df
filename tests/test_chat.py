"""Chat templates: the mask, what a user may type, and ChatML as Hugging Face renders it."""

import jinja2
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.chat import SPECIAL_TOKENS, TEMPLATES, render, segments, supervised_targets
from course_lib.data import IGNORE_INDEX
from course_lib.errors import CourseError
from course_lib.tokenizer import BPETokenizer

TALK = [
    ("system", "Be kind."),
    ("user", "Hi there"),
    ("assistant", "Hello!"),
    ("user", "And you?"),
    ("assistant", "Fine."),
]
# The chat template of ChatML models on Hugging Face, as their tokenizer configs write it.
CHATML_JINJA = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
END_OF_TURN = {"chatml": "<|im_end|>", "llama2": " </s>", "alpaca": "<|endoftext|>"}
BYTES = BPETokenizer([], SPECIAL_TOKENS)


def learned_text(rendered, tokenizer):
    """What the mask covers, as text."""
    return tokenizer.decode(i for i, m in zip(rendered.ids, rendered.mask, strict=True) if m)


def test_the_mask_covers_words_and_end_of_turn():
    oracles.check_mask(render)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_assistant_turn_is_supervised_and_nothing_else(tiny_tokenizer, template):
    rendered = render(TALK, tiny_tokenizer, template)
    end = END_OF_TURN[template]
    assert learned_text(rendered, tiny_tokenizer) == f"Hello!{end}Fine.{end}"


@given(
    words=st.lists(st.text(max_size=12), min_size=2, max_size=6),
    system=st.booleans(),
    template=st.sampled_from(sorted(TEMPLATES)),
)
def test_ids_and_mask_have_one_length_and_the_text_is_kept(words, system, template):
    roles = ["user", "assistant"] * 3
    talk = list(zip(roles, words, strict=False))
    if system:
        talk.insert(0, ("system", "Be kind."))
    rendered = render(talk, BYTES, template)
    assert len(rendered.ids) == len(rendered.mask)
    assert BYTES.decode(rendered.ids) == "".join(s.text for s in segments(talk, template))
    answers = [content for role, content in talk if role == "assistant"]
    end = END_OF_TURN[template]
    assert learned_text(rendered, BYTES) == "".join(a + end for a in answers)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("typed", SPECIAL_TOKENS)
def test_control_strings_in_contents_stay_plain_text(tiny_tokenizer, template, typed):
    special = set(tiny_tokenizer.special_ids.values())

    def controls(content):
        talk = [("system", content), ("user", content), ("assistant", content)]
        ids = render(talk, tiny_tokenizer, template).ids
        return [i for i in ids if i in special]

    assert controls(f"a{typed}b") == controls("ab")
    text = tiny_tokenizer.decode(render([("user", typed)], tiny_tokenizer, template).ids)
    assert typed in text


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("turns", [TALK, TALK[1:4], [("user", "")]])
def test_chatml_is_what_the_jinja_template_renders(turns, reply):
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = jinja2.Template(CHATML_JINJA, keep_trailing_newline=True).render(
        messages=messages, add_generation_prompt=reply
    )
    assert "".join(s.text for s in segments(turns, "chatml", reply)) == expected
    assert BYTES.decode(render(turns, BYTES, reply=reply).ids) == expected


def test_llama2_and_alpaca_by_hand():
    def text(template):
        return "".join(s.text for s in segments(TALK[:3], template))

    assert text("llama2") == (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi there [/INST] Hello! </s>"
    )
    assert text("alpaca") == (
        "Be kind.\n\n### Instruction:\nHi there\n\n### Response:\nHello!<|endoftext|>\n\n"
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_the_start_of_the_answered_talk(template):
    """What the model is asked at run time is what it saw in training before its answer."""
    asked = render(TALK[:4], BYTES, template, reply=True)
    answered = render(TALK, BYTES, template)
    n = len(asked.ids)
    assert answered.ids[:n] == asked.ids and answered.mask[:n] == asked.mask
    assert answered.mask[n] and not any(asked.mask[-3:])


def test_the_shift():
    oracles.check_shift(supervised_targets)


def test_the_first_token_after_the_prompt_is_asked_of_its_last_token(tiny_tokenizer):
    rendered = render(TALK[1:3], tiny_tokenizer)
    targets = supervised_targets(rendered.ids, rendered.mask)
    prompt = render(TALK[1:2], tiny_tokenizer, reply=True).ids
    assert len(targets) == len(rendered.ids) - 1
    asked = [t for t, target in enumerate(targets) if target != IGNORE_INDEX]
    assert asked[0] == len(prompt) - 1
    assert all(targets[t] == rendered.ids[t + 1] for t in asked)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "empty"),
        ([("bot", "Hi")], "unknown role 'bot' in turn 0"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], "1 and 2 are both 'assistant'"),
        ([("user", "a"), ("user", "b")], "0 and 1 are both 'user'"),
        ([("assistant", "a")], "speaks first"),
        ([("system", "s"), ("assistant", "a")], "speaks first"),
        ([("user", "a"), ("system", "s")], "must come first"),
        ([("system", "s")], "stands alone"),
    ],
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_bad_talks_are_errors(turns, message, template):
    with pytest.raises(CourseError, match=message):
        render(turns, BYTES, template)


def test_an_unknown_template_is_an_error():
    with pytest.raises(CourseError, match="unknown template 'llama9'"):
        render(TALK, BYTES, "llama9")
