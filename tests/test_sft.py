"""Supervised fine-tuning: the shift, the mask in the loss, truncation, padding."""

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib.chat import SPECIAL_TOKENS, render
from course_lib.data import IGNORE_INDEX
from course_lib.errors import CourseError
from course_lib.sft import (
    block_mask,
    chat_batch,
    encode_conversations,
    pack,
    packed_batch,
    replay_loss,
    sft_loss,
)
from course_lib.tokenizer import BPETokenizer

BYTES = BPETokenizer([], SPECIAL_TOKENS)
TALKS = [
    [("user", "Hi"), ("assistant", "Hello!")],
    [("user", "A much longer question"), ("assistant", "Yes.")],
]


class Puppet(torch.nn.Module):
    """A model that puts all its mass on the token that `choose(idx)` names."""

    def __init__(self, choose):
        super().__init__()
        self.choose, self.embedding = choose, torch.nn.Embedding(BYTES.vocab_size, 1)

    def forward(self, idx):
        return 100.0 * torch.nn.functional.one_hot(self.choose(idx), BYTES.vocab_size)


def batch_of(talks):
    """Inputs and targets, a conversation a row."""
    examples = encode_conversations(talks, BYTES, 200)
    return packed_batch(examples, [[i] for i in range(len(talks))])[:2]


def test_an_oracle_gets_loss_zero_and_a_copier_does_not():
    idx, targets = batch_of(TALKS[:1])

    def right(idx):  # the next id of the one conversation there is
        return idx.roll(-1, dims=1)

    assert sft_loss(Puppet(right), idx, targets).item() < 1e-4
    assert sft_loss(Puppet(lambda idx: idx), idx, targets).item() > 10


def test_only_supervised_positions_count(make_model):
    model = make_model(BYTES.vocab_size, context_length=200)
    idx, targets = batch_of(TALKS)
    asked = targets != IGNORE_INDEX
    logprobs = model(idx).log_softmax(-1)
    by_hand = -logprobs[asked].gather(1, targets[asked][:, None]).mean()
    torch.testing.assert_close(sft_loss(model, idx, targets), by_hand)


def test_encoded_conversations_are_shifted_once():
    examples = encode_conversations(TALKS, BYTES, 200)
    assert examples.dropped == 0
    for talk, inputs, targets in zip(TALKS, examples.inputs, examples.targets, strict=True):
        ids = render(talk, BYTES).ids
        assert inputs == ids[:-1] and len(targets) == len(inputs)
        learned = [BYTES.vocab[t] for t in targets if t != IGNORE_INDEX]
        assert b"".join(learned).decode() == talk[1][1] + "<|im_end|>"


def test_conversations_are_cut_to_the_context_and_dropped_when_nothing_is_left():
    long = [("user", "x" * 300), ("assistant", "Yes.")]
    whole = len(render(TALKS[0], BYTES).ids)
    examples = encode_conversations([TALKS[0], long, long], BYTES, whole - 4)
    assert examples.dropped == 2
    assert [len(row) for row in examples.inputs] == [whole - 4]
    assert len(examples.targets[0]) == whole - 4
    with pytest.raises(CourseError, match="no conversation holds an assistant turn"):
        encode_conversations([long], BYTES, 50)


def test_a_tokenizer_without_the_templates_tokens_is_an_error():
    with pytest.raises(CourseError, match=r"no <\|im_end\|> and no <\|im_start\|>"):
        encode_conversations(TALKS, BPETokenizer([]), 200)


def test_a_conversation_without_an_answer_is_dropped():
    assert encode_conversations([TALKS[0], [("user", "Hi")]], BYTES, 99).dropped == 1


def test_padding_is_by_length_even_where_its_id_is_a_real_token():
    """The padding id is 0; a conversation that contains byte 0 keeps all its targets."""
    talk = [("user", "\0"), ("assistant", "\0\0")]
    _, targets = batch_of([talk, TALKS[1]])
    zero_rows = [row for row in targets.tolist() if 0 in row]
    assert zero_rows and all(row.count(0) == 2 for row in zero_rows)
    for row in targets.tolist():
        assert BYTES.special_ids["<|im_end|>"] in row  # the end of turn is never padded away


def test_what_stands_in_the_padding_does_not_matter(make_model):
    model = make_model(BYTES.vocab_size, context_length=200)
    idx, targets = batch_of(TALKS)
    lengths = {len(render(talk, BYTES).ids) - 1 for talk in TALKS}
    short = min(lengths)
    is_short = (targets[:, short:] == IGNORE_INDEX).all(1)
    assert is_short.any() and not is_short.all()
    before = sft_loss(model, idx, targets)
    idx[is_short, short:] = 77
    torch.testing.assert_close(sft_loss(model, idx, targets), before)


def test_a_batch_depends_on_seed_and_step_alone():
    examples = encode_conversations(TALKS * 20, BYTES, 200)
    first = chat_batch(examples, 8, 200, 3, 4)
    torch.manual_seed(9)
    assert all(map(torch.equal, first, chat_batch(examples, 8, 200, 3, 4)))
    other = chat_batch(examples, 8, 200, 3, 5)
    assert other[0].shape != first[0].shape or not torch.equal(other[0], first[0])


def test_a_batch_without_targets_is_an_error(make_model):
    idx = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(CourseError, match="every target is masked"):
        sft_loss(make_model(), idx, torch.full((2, 5), IGNORE_INDEX))


def test_replay_is_the_loss_on_windows_of_the_stream(make_model):
    model = make_model(context_length=6)
    stream = torch.arange(7)  # one window only
    logits = model(stream[None, :-1])
    expected = torch.nn.functional.cross_entropy(logits[0], stream[1:])
    torch.testing.assert_close(replay_loss(model, stream, 3, 0, 0), expected)


# -- packing --------------------------------------------------------------------------------------


def test_chat_batch_and_block_mask():
    oracles.check_chat_batch(chat_batch)
    oracles.check_block_mask(block_mask)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_packing_keeps_every_conversation_once_and_wastes_little(lengths):
    rows = pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= 20
    # Best fit leaves no two rows that would fit into one.
    assert len(rows) == 1 or sum(sorted(filled)[:2]) > 20


def test_a_conversation_longer_than_a_row_is_an_error():
    with pytest.raises(CourseError, match="21 tokens does not fit a row of 20"):
        pack([3, 21], 20)


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
def test_packed_rows_have_the_loss_and_gradients_of_the_conversations_alone(positions):
    oracles.check_packed_batch(packed_batch, positions=positions)


def test_nothing_leaks_across_the_border():
    """The loss of one conversation has no gradient at the tokens of the other, either way."""
    model = oracles.loud_model()
    idx, targets, positions, mask = packed_batch(oracles.EXAMPLES, [[0, 1]])

    def reach(of, mask):
        """The largest gradient of the loss at tokens `of` with respect to each token's vector."""
        vectors = []
        hook = model.embedding.register_forward_hook(
            lambda _, __, out: vectors.append(out.detach().requires_grad_()) or vectors[-1]
        )
        asked = torch.full_like(targets, IGNORE_INDEX)
        asked[:, of] = targets[:, of]
        loss = sft_loss(model, idx, asked, positions, mask)
        hook.remove()
        return torch.autograd.grad(loss, vectors[0])[0].abs().amax(-1)[0]

    assert (reach(slice(3, 5), mask)[:3] == 0).all() and (reach(slice(0, 3), mask)[3:] == 0).all()
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    assert (reach(slice(3, 5), causal)[:3] > 0).all()  # what the block mask is for


def test_packing_real_conversations(tiny_tokenizer, make_model):
    talks = [[("user", "Hi" * n), ("assistant", "Yes." * n)] for n in range(1, 9)]
    examples = encode_conversations(talks, tiny_tokenizer, 64)
    rows = pack([len(ids) for ids in examples.inputs], 64)
    assert len(rows) < len(talks)
    model = make_model(tiny_tokenizer.vocab_size)
    packed = sft_loss(model, *packed_batch(examples, rows))
    padded = sft_loss(model, *packed_batch(examples, [[i] for i in range(len(talks))]))
    torch.testing.assert_close(packed, padded)
