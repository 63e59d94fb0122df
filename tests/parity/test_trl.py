"""Fine-tuning and RL against TRL 1.12, the last version with a PPO trainer.

Where TRL has a function or a method, it is called. Where a formula stands in the middle of a long
method, the lines are taken from the installed package and run as they are (`own_lines`), on the
same tensors that our functions get. Nothing of TRL's is written down again here, but for the
adaptive price of the KL, which TRL 0.11 was the last to have.

What differs on purpose:

- Whitening divides by the plain variance, TRL's by the one with n - 1.
- Missing end of turn: our penalty is added (a negative number), TRL's is subtracted.
- The score of a reply stands on its last token, the end of turn. TRL's PPO puts it one place later,
  on the first padding, wherever there is padding, and learns a value there too.
- TRL finds the end of a reply by looking for the padding id, we know the lengths: the same scores,
  unless the padding id is also a real token.
- TRL trains policy and value model with one optimiser on one weighted loss, we train each with its
  own. TRL logs the divergence of a step by k2 over all places, we by k3 over the response.
- GRPO: TRL adds the price of the KL to the loss, we subtract it from the reward
  (`test_grpo.py` shows why); our mean over tokens is TRL's `loss_type="bnpo"`.
- SFT: we encode a conversation piece by piece, TRL as one text. A template that ends in a space
  ("[INST] ") then gives other tokens: the space stays the template's, it does not join the word.
- TRL's own ChatML template also trains the line breaks before and after an assistant's turn, which
  the template writes and the model never has to.
"""

import inspect
import os
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import transformers
from datasets import Dataset

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from trl.experimental.ppo import ppo_trainer as trl_ppo
from trl.experimental.utils import get_reward
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import entropy_from_logits

from course_lib import dpo, grpo, ppo, sft
from course_lib.chat import SPECIAL_TOKENS, render, supervised_targets
from course_lib.evaluate import response_logprobs
from course_lib.reward import RewardModel, pairwise_loss
from course_lib.tokenizer import BPETokenizer

PAD, VOCAB = 31, 32
BYTES = BPETokenizer([], SPECIAL_TOKENS)
close = torch.testing.assert_close


def own_lines(function, first, last):
    """The lines of a TRL function from the one that holds `first` to the one that holds `last`."""
    lines = inspect.getsource(function).splitlines()
    begin = next((i for i, line in enumerate(lines) if first in line), None)
    end = next((i for i, line in enumerate(lines) if last in line and i >= (begin or 0)), None)
    assert begin is not None and end is not None, f"TRL {trl.__version__} has no such lines"
    return textwrap.dedent("\n".join(lines[begin : end + 1]))


def trainer_with(**attributes):
    """What a method of a TRL trainer needs of its trainer, in evaluation mode on one process."""

    def same(x, reduction=None):
        return x

    accelerator = SimpleNamespace(
        gather=same, gather_for_metrics=same, reduce=same, device="cpu", num_processes=1
    )
    basic = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=False, is_gradient_checkpointing=False),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "aux_loss_enabled": False,
    }
    return SimpleNamespace(**basic | attributes)


def llama(seed, head=transformers.LlamaForCausalLM):
    """A tiny Llama with opinions."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=PAD,
        num_labels=1,
        attn_implementation="eager",
    )
    return head(config).eval()


class AsOurs(torch.nn.Module):
    """A Hugging Face model with the few names that our functions need of a GPT."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.embedding = model.get_input_embeddings()
        self.config = SimpleNamespace(d_model=model.config.hidden_size)

    def hidden(self, idx):
        return self.model.model(input_ids=idx).last_hidden_state

    def logits(self, hidden):
        return self.model.lm_head(hidden)


CONTEXTS = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
RESPONSES = [[10, 11], [12, 13, 14, 15], [16, 17, 18]]


def padded():
    """The same as TRL lays it out: prompts padded on the left, replies on the right."""
    query = torch.tensor([[PAD] * (4 - len(c)) + c for c in CONTEXTS])
    reply = torch.tensor([r + [PAD] * (4 - len(r)) for r in RESPONSES])
    return query, reply


# -- log-probabilities and scores -----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs_and_entropy(temperature):
    model = llama(0)
    query, reply = padded()
    with torch.no_grad():
        logits = trl_ppo.forward(model, torch.cat((query, reply), 1), PAD).logits
        logits = logits[:, query.size(1) - 1 : -1] / temperature
        theirs = trl_ppo.selective_log_softmax(logits, reply)
        ours, entropy, mask = response_logprobs(AsOurs(model), CONTEXTS, RESPONSES, temperature)
    assert torch.equal(mask, reply != PAD)
    close(ours, theirs * mask, rtol=1e-4, atol=1e-5)
    close(entropy, entropy_from_logits(logits) * mask, rtol=1e-4, atol=1e-5)


def test_the_place_of_the_score():
    theirs = llama(0, transformers.LlamaForSequenceClassification)
    ours = RewardModel(AsOurs(theirs))
    with torch.no_grad():
        ours.head.weight.copy_(theirs.score.weight)
        query, reply = padded()
        _, scores, _ = get_reward(theirs, torch.cat((query, reply), 1), PAD, query.size(1))
        close(ours(CONTEXTS, RESPONSES), scores, rtol=1e-4, atol=1e-5)


# -- SFT ------------------------------------------------------------------------------------------

TALKS = [
    [("user", "Hi there"), ("assistant", "Hello!")],
    [("system", "Be brief."), ("user", "Capital of Peru?"), ("assistant", "Lima.")],
    [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "e 1 2.")],
]
ASSISTANT = "{% generation %}{{ m['content'] }}END{% endgeneration %}"
JINJA = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    + ASSISTANT.replace("END", "<|im_end|>")
    + "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}",
    "llama2": "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% elif m['role'] == 'user' %}"
    "<s>[INST] {% if ns.system %}<<SYS>>\n{{ ns.system }}\n<</SYS>>\n\n{% set ns.system = '' %}"
    "{% endif %}{{ m['content'] }} [/INST] {% else %}"
    + ASSISTANT.replace("END", " </s>")
    + "{% endif %}{% endfor %}",
    "alpaca": "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    + ASSISTANT.replace("END", "<|endoftext|>")
    + "{{ '\n\n' }}{% elif m['role'] == 'system' %}{{ m['content'] }}{{ '\n\n' }}{% else %}"
    "### Instruction:\n{{ m['content'] }}\n\n### Response:\n{% endif %}{% endfor %}",
}


def hugging_face_tokenizer(ours):
    """Our vocabulary and merges in Hugging Face's byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(odd)}

    def spell(token):
        return "".join(letters[b] for b in token)

    special = set(ours.special_ids.values())
    vocab = {spell(token): i for i, token in ours.vocab.items() if i not in special}
    model = models.BPE(vocab, [(spell(a), spell(b)) for a, b in ours.merges])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for text, _ in sorted(ours.special_ids.items(), key=lambda item: item[1]):
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    assert all(tokenizer.token_to_id(text) == i for text, i in ours.special_ids.items())
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def trl_labels(tokenizer, template, talks, directory):
    """Inputs and labels as TRL's SFT trainer prepares them."""
    hf = hugging_face_tokenizer(tokenizer)
    hf.chat_template = template
    rows = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in talks]
    model = llama(0)
    model.resize_token_embeddings(len(hf))
    options = {"output_dir": str(directory), "report_to": "none", "use_cpu": True, "bf16": False}
    args = trl.SFTConfig(**options, assistant_only_loss=True, disable_tqdm=True)
    trainer = trl.SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=hf
    )
    return trainer.train_dataset["input_ids"], trainer.train_dataset["labels"]


@pytest.mark.parametrize("name", sorted(JINJA))
def test_labels_of_every_template(name, tmp_path):
    ids, labels = trl_labels(BYTES, JINJA[name], TALKS, tmp_path)
    for talk, row, asked in zip(TALKS, ids, labels, strict=True):
        rendered = render(talk, BYTES, name)
        assert rendered.ids == row
        assert supervised_targets(rendered.ids, rendered.mask) == asked[1:]  # they shift later


def test_labels_of_trls_own_chatml_template(tiny_tokenizer, tmp_path):
    """TRL's training template for Qwen 2.5, with merged tokens; it wants a system turn."""
    template = trl.chat_template_utils.qwen2_5_training_chat_template
    talks = [talk if talk[0][0] == "system" else [("system", "Be kind."), *talk] for talk in TALKS]
    ids, labels = trl_labels(tiny_tokenizer, template, talks, tmp_path)
    for talk, row, asked in zip(talks, ids, labels, strict=True):
        rendered = render(talk, tiny_tokenizer)
        assert rendered.ids == row
        ours = supervised_targets(rendered.ids, rendered.mask)
        more = [i for i, (a, b) in enumerate(zip(ours, asked[1:], strict=True)) if a != b]
        [line_break] = tiny_tokenizer.encode("\n")
        assert len(more) == 2 * ours.count(tiny_tokenizer.special_ids["<|im_end|>"])
        assert all(ours[i] == -100 and asked[1 + i] == line_break for i in more)


def test_packing_needs_no_more_rows():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (200,), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": [list(range(n)) for n in lengths]})
    theirs = trl.pack_dataset(data, seq_length=64, strategy="bfd")
    assert len(sft.pack(lengths, 64)) <= len(theirs)
    examples = sft.ChatExamples([[1] * n for n in lengths], [[1] * n for n in lengths], 0)
    rows = [[0, 1, 2], [3, 4]]
    _, _, positions, _ = sft.packed_batch(examples, rows)
    collator = trl.trainer.sft_trainer.DataCollatorForLanguageModeling
    of = collator.get_position_ids_from_packed_seq_lengths
    for row, found, expected in zip(
        rows, positions, of([[lengths[i] for i in row] for row in rows]), strict=True
    ):
        close(found[: sum(lengths[i] for i in row)], expected)


# -- preferences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [None, 0.3])
def test_reward_loss(margin):
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    inputs = {"attention_mask": torch.ones(12, 1)}
    if margin is not None:
        inputs["margin"] = torch.full((6,), margin)
    trainer = trainer_with(args=SimpleNamespace(center_rewards_coefficient=0.01))
    logits = torch.cat((chosen, rejected))[:, None]
    theirs = trl.RewardTrainer.compute_loss(
        trainer, lambda **_: SimpleNamespace(logits=logits), inputs
    )
    ours = pairwise_loss(chosen, rejected, margin or 0.0) + 0.01 * ((chosen + rejected) ** 2).mean()
    close(ours, theirs)


def test_dpo_loss_and_its_gradient():
    policy, reference = llama(0), llama(1)
    chosen, rejected = RESPONSES, [[20], [21, 22], [23, 24, 25, 26]]
    examples = [
        {"prompt_ids": c, "chosen_ids": a, "rejected_ids": b}
        for c, a, b in zip(CONTEXTS, chosen, rejected, strict=True)
    ]
    inputs = DataCollatorForPreference(pad_token_id=PAD)(examples)
    trainer = trainer_with(
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        ref_model=reference,
        beta=0.3,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
        label_smoothing=0.0,
    )
    theirs = trl.DPOTrainer._compute_loss(trainer, policy, inputs, False)
    logprobs = [
        dpo.reply_logprobs(AsOurs(model), CONTEXTS, replies)
        for model in (policy, reference)
        for replies in (chosen, rejected)
    ]
    ours = dpo.dpo_loss(*logprobs[:2], *logprobs[2:], beta=0.3)
    close(ours, theirs, rtol=1e-4, atol=1e-5)
    weights = list(policy.parameters())
    for a, b in zip(
        torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True
    ):
        close(a, b, rtol=1e-3, atol=1e-4)


# -- PPO ------------------------------------------------------------------------------------------


def test_masked_mean_and_whitening():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [4]])
    close(ppo.masked_mean(x, mask), trl_ppo.masked_mean(x, mask))
    n = mask.sum()
    theirs = trl_ppo.masked_whiten(x, mask) * (n / (n - 1)).sqrt()
    close(ppo.masked_whiten(x, mask), theirs * mask)


def rollout(lengths, width=5):
    """Random log-probabilities, values and scores; TRL's invalid ones where there is padding."""
    generator = torch.Generator().manual_seed(0)
    logprobs, ref_logprobs, values = torch.randn(3, len(lengths), width, generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    scores = torch.randn(len(lengths), generator=generator)
    return logprobs, ref_logprobs, values * mask, scores, mask


def trl_advantages(logprobs, ref_logprobs, values, scores, mask, kl_estimator="k1"):
    """TRL's own lines from the log-probabilities to the whitened advantages."""
    lines = own_lines(
        trl_ppo.PPOTrainer.train, "# 4. compute rewards", "advantages, padding_mask, 0)"
    )
    lengths = mask.sum(-1) - 1
    places = torch.arange(mask.size(1)).expand_as(mask)
    options = {"kl_estimator": kl_estimator, "kl_coef": 0.3, "gamma": 0.9, "lam": 0.8}
    args = SimpleNamespace(**options, whiten_rewards=False)
    names = {
        **vars(trl_ppo),
        "self": SimpleNamespace(args=args),
        "args": args,
        "logprobs": logprobs.masked_fill(~mask, trl_ppo.INVALID_LOGPROB),
        "ref_logprobs": ref_logprobs.masked_fill(~mask, trl_ppo.INVALID_LOGPROB),
        "values": values,
        "scores": scores,
        "responses": places,
        "sequence_lengths": lengths,
        "sequence_lengths_p1": lengths + 1,
        "padding_mask": ~mask,
        "padding_mask_p1": places > lengths[:, None] + 1,
    }
    exec(lines, names)
    return names


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators(estimator):
    logprobs, ref_logprobs, values, scores, mask = rollout([5, 2, 4])
    theirs = trl_advantages(logprobs, ref_logprobs, values, scores, mask, estimator)["kl"]
    ours = ppo.kl_estimates(logprobs, ref_logprobs)[estimator]
    close(ours * mask, theirs, rtol=1e-4, atol=1e-6)


def test_rewards_advantages_and_returns_of_replies_that_fill_the_row():
    logprobs, ref_logprobs, values, scores, mask = rollout([5, 5, 5])
    theirs = trl_advantages(logprobs, ref_logprobs, values, scores, mask)
    rewards = ppo.token_rewards(scores, logprobs, ref_logprobs, mask, 0.3)
    close(rewards, theirs["rewards"])
    advantages, returns = ppo.gae(rewards, values, mask, 0.9, 0.8)
    close(returns, theirs["returns"])
    n = mask.sum()
    white = ppo.masked_whiten(advantages, mask)
    close(white, theirs["advantages"] * (n / (n - 1)).sqrt(), rtol=1e-4, atol=1e-5)


def test_advantages_of_short_replies_but_for_the_place_of_the_score():
    """The price of the KL is TRL's, and with the score in TRL's place so is our estimate."""
    logprobs, ref_logprobs, values, scores, mask = rollout([2, 5, 4])
    theirs = trl_advantages(logprobs, ref_logprobs, values, scores, mask)
    rewards = ppo.token_rewards(torch.zeros(3), logprobs, ref_logprobs, mask, 0.3)
    ends = mask.sum(-1).clamp(max=4)  # one after the last token, where there is room
    close(rewards.index_put((torch.arange(3), ends), scores, accumulate=True), theirs["rewards"])
    longer = torch.arange(5) <= mask.sum(-1, keepdim=True)
    _, returns = ppo.gae(theirs["rewards"], values, longer, 0.9, 0.8)
    close(returns * mask, theirs["returns"] * mask)


def test_policy_and_value_loss():
    generator = torch.Generator().manual_seed(0)
    shape = (4, 6)
    new, old, advantages, values, returns = torch.randn(5, *shape, generator=generator)
    new, old = new / 3, old / 3
    vpred = values + torch.randn(shape, generator=generator) / 3
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [4]])
    rows = torch.arange(4)
    names = {
        **vars(trl_ppo),
        "args": SimpleNamespace(cliprange_value=0.2, cliprange=0.2, vf_coef=1.0),
        "vpred": vpred,
        "mb_values": values,
        "mb_return": returns,
        "mb_advantage": advantages,
        "mb_logprobs": old,
        "new_logprobs": new,
        "micro_batch_inds": rows,
        "padding_mask": ~mask,
        "padding_mask_p1": ~mask,
    }
    train = trl_ppo.PPOTrainer.train
    exec(own_lines(train, "vpredclipped = torch.clamp(", "loss = pg_loss + args.vf_coef"), names)
    exec(own_lines(train, "pg_clipfrac = masked_mean(", "(pg_losses2 > pg_losses)") + "\n)", names)
    loss, share = ppo.policy_loss(new, old, advantages, mask, 0.2)
    close(loss, names["pg_loss"])
    close(share, names["pg_clipfrac"])
    assert 0 < share < 1
    close(ppo.value_loss(vpred, values, returns, mask, 0.2), names["vf_loss"])


def test_missing_end_penalty():
    lines = own_lines(
        trl_ppo.PPOTrainer.train,
        "contain_eos_token = torch.any(",
        "-= self.args.missing_eos_penalty",
    )
    names = {
        "torch": torch,
        "scores": torch.tensor([1.0, 2.0]),
        "postprocessed_responses": torch.tensor([[5, 9], [5, 6]]),
        "self": SimpleNamespace(
            processing_class=SimpleNamespace(eos_token_id=9),
            args=SimpleNamespace(missing_eos_penalty=1.5),
        ),
    }
    exec(lines, names)
    close(ppo.penalise_missing_end(torch.tensor([1.0, 2.0]), [True, False], -1.5), names["scores"])


def test_adaptive_price_of_the_kl():
    """The controller of TRL 0.11 (`AdaptiveKLController`), which later versions dropped."""
    value = 0.2
    for kl in (3.0, 9.0, 6.1, 5.9, 0.0):
        error = torch.tensor(kl / 6 - 1).clip(-0.2, 0.2).item()
        theirs = value * (1 + error * 64 / 1000)
        assert ppo.adapt_kl_coef(value, kl, 6.0, 64, 1000) == pytest.approx(theirs)
        value = theirs


# -- GRPO -----------------------------------------------------------------------------------------


def test_group_advantages():
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0))
    rewards[:4] = 2.0  # a group without differences
    lines = own_lines(
        trl.GRPOTrainer._generate_and_score_completions,
        "mean_grouped_rewards = torch.nanmean(",
        "advantages = advantages / (std_rewards + 1e-4)",
    )
    names = {
        **inspect.getmodule(trl.GRPOTrainer).__dict__,
        "self": SimpleNamespace(scale_rewards="group"),
        "rewards": rewards,
        "num_generations": 4,
    }
    exec(lines, names)
    close(grpo.group_advantages(rewards, 4), names["advantages"])


def test_the_loss_of_grpo_is_ppos_policy_loss():
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 4, 6, generator=generator) / 3
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [4]])
    advantages = torch.randn(4, generator=generator)
    trainer = trainer_with(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=True),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        loss_type="bnpo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        _entropy_bonus_enabled=False,
    )
    ids = torch.zeros(4, 6, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": ids,
        "completion_mask": mask.int(),
        "advantages": advantages,
        "old_per_token_logps": old,
    }
    theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    close(ppo.policy_loss(new, old, advantages[:, None] * mask, mask, 0.2)[0], theirs)
