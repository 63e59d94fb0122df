"""Fine-tuning with adapters: reading public rows, sharing weights, and every stage on a CPU."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from course_lib import dpo, finetune, lora, ppo, sft
from course_lib.atlas.conversations import conversations
from course_lib.chat import IM_END, render
from course_lib.data import IGNORE_INDEX
from course_lib.errors import CourseError
from course_lib.evaluate import response_logprobs
from course_lib.files import MetricLog
from course_lib.finetune import LoRASettings, read_pairs, read_talks
from course_lib.interop import from_pretrained, save_pretrained
from course_lib.reward import pair_margins
from course_lib.train import TrainSettings, _one_step, make_optimizers

ROOM = 96


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def say(*texts):
    return messages(*zip(("user", "assistant") * len(texts), texts, strict=False))


def settings(steps=12, accumulate=1, rate=3e-3, size=4, **more):
    loop = TrainSettings(
        steps, rate, warmup=2, weight_decay=0.0, accumulate=accumulate, muon=False, **more
    )
    return LoRASettings(loop, size, rank=4, evaluate_every=5)


@pytest.fixture
def model(make_model, tiny_tokenizer):
    """Its weights are large enough that small changes beside them can be heard."""
    model = make_model(tiny_tokenizer.vocab_size, context_length=ROOM)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def examples(tiny_tokenizer):
    rows = [{"messages": messages(*talk)} for talk in conversations(80, 0)]
    talks, _ = read_talks(rows)
    return sft.encode_conversations(talks, tiny_tokenizer, ROOM)


@pytest.fixture(scope="module")
def pairs(tiny_tokenizer):
    """The chosen replies are all alike, so that a few steps can learn to tell them."""
    rows = [
        {"prompt": talk[-2][1], "chosen": f"Certainly. It is {i}.", "rejected": f"No, not {i}."}
        for i, talk in enumerate(conversations(24, 1))
    ]
    return read_pairs(rows, tiny_tokenizer, ROOM)[0]


def weights(model):
    return {name: p.clone() for name, p in model.state_dict().items() if ".lora_" not in name}


# -- rows -----------------------------------------------------------------------------------------


def test_conversations_are_read_and_odd_ones_counted():
    good = messages(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
    rows = [{"messages": say("Hi", "Hello", "And?")}, {"messages": good}]
    odd = [
        {"messages": messages(("assistant", "I begin"))},
        {"messages": messages(("user", "One"), ("user", "Two"))},
        {"messages": messages(("tool", "42"))},
    ]
    talks, dropped = read_talks([*odd, *rows])
    assert talks[0] == [("user", "Hi"), ("assistant", "Hello"), ("user", "And?")]
    assert talks[1][0] == ("system", "Be brief.") and (len(talks), dropped) == (2, 3)
    with pytest.raises(CourseError, match="none of the 3 rows"):
        read_talks(odd)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": say("Hi"), "chosen": "Yes", "rejected": "No"},
        {"prompt": "Hi", "chosen": messages(("assistant", "Yes")), "rejected": "No"},
        {"prompt": "Hi", "chosen": say("Hi", "Yes"), "rejected": say("Hi", "No")},
        {"chosen": say("Hi", "Yes"), "rejected": say("Hi", "No"), "score_chosen": 7.0},
    ],
)
def test_the_forms_of_public_pairs_all_say_the_same(row, tiny_tokenizer):
    [pair], dropped = read_pairs([row], tiny_tokenizer, ROOM)
    end = tiny_tokenizer.special_ids[IM_END]
    assert pair.context == render([("user", "Hi")], tiny_tokenizer, reply=True).ids
    assert pair.chosen == [*tiny_tokenizer.encode("Yes"), end]
    assert pair.rejected == [*tiny_tokenizer.encode("No"), end]
    assert dropped == 0 and pair.label_right and pair.group == 0


def test_earlier_turns_belong_to_the_prompt(tiny_tokenizer):
    row = {"chosen": say("A", "B", "C", "Yes"), "rejected": say("A", "B", "C", "No")}
    [pair], _ = read_pairs([row], tiny_tokenizer, ROOM)
    turns = [("user", "A"), ("assistant", "B"), ("user", "C")]
    assert pair.context == render(turns, tiny_tokenizer, reply=True).ids


def test_control_tokens_in_replies_are_text(tiny_tokenizer):
    row = {"prompt": "Hi", "chosen": f"a{IM_END}b", "rejected": "c"}
    [pair], _ = read_pairs([row], tiny_tokenizer, ROOM)
    assert pair.chosen.count(tiny_tokenizer.special_ids[IM_END]) == 1


def test_unusable_pairs_are_dropped_and_counted(tiny_tokenizer):
    good = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    bad = [
        good | {"rejected": "Yes"},
        good | {"chosen": "long " * 200},
        good | {"chosen": say("Hi", "Yes"), "rejected": say("Bye", "No")},
        good | {"chosen": say("Hi"), "rejected": say("Ho")},
        good | {"prompt": messages(("user", "A"), ("assistant", "B"))},
    ]
    pairs, dropped = read_pairs([*bad, good, good], tiny_tokenizer, ROOM)
    assert dropped == len(bad) and [p.group for p in pairs] == [0, 1]
    with pytest.raises(CourseError, match=r"none of the 5 rows.*longer context"):
        read_pairs(bad, tiny_tokenizer, ROOM)


def test_missing_columns_are_named(tiny_tokenizer):
    with pytest.raises(CourseError, match=r"row 0 has no column 'messages'.*are answer, question"):
        read_talks([{"question": "?", "answer": "!"}])
    good = {"chosen": say("Hi", "Yes"), "rejected": say("Hi", "No")}
    with pytest.raises(CourseError, match=r"row 1 has no column 'prompt'.*chosen, rejected"):
        read_pairs([good, {"chosen": "Yes", "rejected": "No"}], tiny_tokenizer, ROOM)
    for value in (3, [], ["Hi"], [{"role": "user"}], [{"role": "user", "content": None}]):
        with pytest.raises(CourseError, match="row 0: the column 'messages' holds neither"):
            read_talks([{"messages": value}])


def test_a_tokenizer_without_ends_is_refused():
    bare = SimpleNamespace(special_ids={}, encode=lambda text, allowed=(): [1])
    with pytest.raises(CourseError, match=r"has no <\|im_end\|>"):
        read_pairs([{"prompt": "Hi", "chosen": "a", "rejected": "b"}], bare, ROOM)


# -- shared weights -------------------------------------------------------------------------------


def storages(*models):
    return {p.data_ptr() for model in models for p in model.parameters()}


def test_a_twin_shares_what_is_frozen_and_copies_what_learns(model):
    model.requires_grad_(False)
    twin = finetune.twin(model)
    assert storages(twin) == storages(model) and twin is not model
    lora.add_lora(twin, finetune.ADAPTED, rank=2)
    assert not lora.lora_layers(model)  # modules are its own
    again = finetune.twin(twin)
    shared = storages(twin) & storages(again)
    assert shared == storages(model)
    learning = [p for p in again.parameters() if p.requires_grad]
    assert learning and not storages(twin) & {p.data_ptr() for p in learning}


def test_merged_is_a_plain_model_of_its_own(model):
    model.requires_grad_(False)
    reference = finetune.twin(model)
    before = weights(model)
    lora.add_lora(model, finetune.ADAPTED, rank=2)
    for layer in lora.lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_b)
    idx = torch.arange(20).view(2, 10)
    with torch.no_grad():
        expected = model(idx)
        plain = finetune.merged(model)
        torch.testing.assert_close(plain(idx), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(reference(idx), expected, atol=1e-2)
    assert not lora.lora_layers(plain) and not storages(plain) & storages(model)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())


def test_merging_in_place_moves_the_reference(model):
    """The trap that `twin` warns of, and that page L11f shows."""
    model.requires_grad_(False)
    reference = finetune.twin(model)
    lora.add_lora(model, ["up"], rank=2)
    for layer in lora.lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_b)
    idx = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert not torch.allclose(reference(idx), model(idx), atol=1e-2)
        lora.merge(model)
        assert torch.equal(reference(idx), model(idx))


# -- stages ---------------------------------------------------------------------------------------


def test_sft_trains_the_adapters_alone(model, examples, tmp_path):
    before, first = weights(model), finetune.chat_loss(model, examples)
    finetune.train_sft(model, examples, examples, settings(30, rate=1e-2), tmp_path)
    rows = MetricLog.read(tmp_path / "metrics.jsonl")
    assert rows[-1]["heldout_loss"] == pytest.approx(finetune.chat_loss(model, examples))
    assert rows[-1]["heldout_loss"] < first - 0.3
    assert [row["step"] for row in rows if "heldout_loss" in row] == [4, 9, 14, 19, 24, 29]
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }


def test_chat_loss_weighs_every_target_alike(model, examples):
    logits = [model(torch.tensor([ids]))[0].log_softmax(-1) for ids in examples.inputs]
    asked = [
        -row[t, target]
        for row, targets in zip(logits, examples.targets, strict=True)
        for t, target in enumerate(targets)
        if target != IGNORE_INDEX
    ]
    expected = torch.stack(asked).mean().item()
    assert finetune.chat_loss(model, examples) == pytest.approx(expected, rel=1e-3)
    assert finetune.chat_loss(model, examples, rows_at_once=1) == pytest.approx(expected, rel=1e-3)


def test_parts_that_learn_whole(model, examples, tmp_path):
    before = weights(model)
    how = LoRASettings(settings(3).train, 4, whole=("embedding",))
    finetune.train_sft(model, examples, examples, how, tmp_path)
    moved = {name for name, p in weights(model).items() if not torch.equal(p, before[name])}
    assert moved == {"embedding.weight"}


def test_what_learns_whole_is_not_the_twins(model, pairs, tmp_path):
    """A reference, or the policy beside a reward model, keeps the weights that it had."""
    plain, idx = copy.deepcopy(model), torch.arange(20).view(2, 10)
    how = LoRASettings(settings(3).train, 4, whole=("embedding",))
    scorer = finetune.train_reward(model, pairs[:16], pairs[16:], how, tmp_path / "reward")
    reference = finetune.train_dpo(model, pairs[:16], pairs[16:], how, tmp_path / "dpo")
    with torch.no_grad():
        assert torch.equal(reference(idx), plain(idx))
    assert not any(p.requires_grad for p in reference.parameters())
    for learned in (model, scorer.body):
        assert not torch.equal(learned.embedding.weight, plain.embedding.weight)


def test_a_folder_goes_on_with_its_own_training_alone(model, pairs, examples, tmp_path):
    how, fresh = settings(8, checkpoint_every=5), copy.deepcopy(model)
    finetune.train_sft(model, examples, examples, how, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").exists()
    with pytest.raises(CourseError, match=r"another training \(its train differ\)"):
        finetune.train_sft(copy.deepcopy(fresh), examples, examples, settings(9), tmp_path)
    with pytest.raises(CourseError, match=r"another training \(its stage, beta differ\)"):
        finetune.train_dpo(copy.deepcopy(fresh), pairs[:16], pairs[16:], how, tmp_path)
    finetune.train_sft(fresh, examples, examples, how, tmp_path)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_seed_decides_the_adapters(model, examples, tmp_path):
    twins = [copy.deepcopy(model) for _ in range(3)]
    for number, (twin, seed) in enumerate(zip(twins, (0, 0, 1), strict=True)):
        torch.manual_seed(number)
        folder = tmp_path / str(number)
        finetune.train_sft(twin, examples, examples, settings(2), folder, seed=seed)
    a, b, c = (next(iter(lora.lora_layers(twin).values())).lora_a for twin in twins)
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-2)


def test_accumulated_batches_equal_one_large_batch(model, examples):
    """The step of the loop itself, on batches that hold different numbers of targets."""
    lora.add_lora(model, finetune.ADAPTED, rank=2)
    large = copy.deepcopy(model)
    parts = [[0], [1], [2], [3]]
    targets = [sum(t != IGNORE_INDEX for t in row) for row in examples.targets[:4]]
    assert len(set(targets)) > 1  # else any mean of means would do

    def loss_of(model, rows):
        idx, targets, *rest = sft.packed_batch(examples, rows)
        return sft.sft_loss(model, idx, targets, *rest), int((targets != IGNORE_INDEX).sum())

    for which, n, loss_at in (
        (model, 4, lambda m, i: loss_of(m, [parts[i]])),
        (large, 1, lambda m, i: loss_of(m, parts)),
    ):
        loop = settings(1, accumulate=n).train
        device = torch.device("cpu")
        loss, _ = _one_step(which, loss_at, make_optimizers(which, loop), loop, 0, 1.0, device)
        which.loss = loss
    assert model.loss == pytest.approx(large.loss, rel=1e-3)
    for a, b in zip(model.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_every_micro_batch_brings_its_number_of_targets(model, examples, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(finetune, "train", lambda m, loss_at, *rest: found.append(loss_at(m, 3)))
    finetune.train_sft(model, examples, examples, settings(), tmp_path, seed=7)
    [(loss, count)] = found
    idx, targets, *rest = sft.chat_batch(examples, 4, ROOM, 7, 3)
    assert count == (targets != IGNORE_INDEX).sum() > 0
    assert loss.item() == pytest.approx(sft.sft_loss(model, idx, targets, *rest).item())


class Killed(Exception):
    """Stands for a lost connection."""


def test_a_killed_stage_goes_on_exactly(model, examples, tmp_path, monkeypatch):
    twin = copy.deepcopy(model)
    how = settings(8, accumulate=2, checkpoint_every=3)
    finetune.train_sft(model, examples, examples, how, tmp_path / "whole")
    calls = []

    def dies(*args, real=sft.sft_loss):
        calls.append(1)
        if len(calls) == 15:  # in step 7
            raise Killed
        return real(*args)

    fresh = copy.deepcopy(twin)
    monkeypatch.setattr(sft, "sft_loss", dies)
    with pytest.raises(Killed):
        finetune.train_sft(fresh, examples, examples, how, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint.safetensors").exists()
    monkeypatch.undo()
    finetune.train_sft(twin, examples, examples, how, tmp_path / "killed")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    logs = [MetricLog.read(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert [r["loss"] for r in logs[0]] == [r["loss"] for r in logs[1]]


def test_muon_is_refused(model, examples, tmp_path):
    how = LoRASettings(TrainSettings(2))
    with pytest.raises(CourseError, match="muon=False"):
        finetune.train_sft(model, examples, examples, how, tmp_path)


def test_the_reward_model_learns_beside_the_policy(model, pairs, tmp_path):
    before, idx = weights(model), torch.arange(20).view(2, 10)
    with torch.no_grad():
        said = model(idx)
    scorer = finetune.train_reward(model, pairs[:16], pairs[16:], settings(25), tmp_path)
    with torch.no_grad():
        assert torch.equal(model(idx), said) and not lora.lora_layers(model)
        assert (pair_margins(scorer, pairs[16:]) > 0).float().mean() > 0.8
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    rows = MetricLog.read(tmp_path / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["pair_accuracy"] > 0.8
    shared = storages(model) & storages(scorer)
    assert shared == storages(model)
    learning = {n for n, p in scorer.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < learning
    assert all(".lora_" in n for n in learning - {"head.weight", "head.bias"})


def test_dpo_moves_the_policy_and_not_the_reference(model, pairs, tmp_path):
    before, plain = weights(model), copy.deepcopy(model)
    reference = finetune.train_dpo(model, pairs[:16], pairs[16:], settings(25), tmp_path)
    rows = MetricLog.read(tmp_path / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and rows[-1]["loss"] < 0.6
    assert rows[-1]["pair_accuracy"] > 0.8
    idx = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(reference(idx), plain(idx))
        assert not torch.allclose(model(idx), plain(idx), atol=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    assert not any(p.requires_grad for p in reference.parameters())
    scorer = dpo.implicit_scorer(model, reference, 0.1)
    assert (pair_margins(scorer, pairs[:16]) > 0).all()


def test_ppo_on_one_set_of_weights(model, pairs, tiny_tokenizer, tmp_path):
    scorer = finetune.train_reward(model, pairs[:16], pairs[16:], settings(3), tmp_path)
    how = ppo.PPOSettings(
        2, batch_size=4, minibatch_size=2, epochs=2, max_new_tokens=6, learning_rate=1e-2
    )
    scores = [scorer([p.context for p in pairs[:4]], [p.chosen for p in pairs[:4]]).tolist()]
    players = finetune.ppo_players(model, scorer, how, rank=2)
    four = (players.policy, players.reference, players.reward, players.value)
    own = sum(
        p.numel() for m in four for p in m.parameters() if p.data_ptr() not in storages(four[1])
    )
    assert own < 0.75 * players.reference.n_parameters  # the widths are tiny, the ranks are not
    stop = {tiny_tokenizer.special_ids[IM_END]}
    contexts = [p.context for p in pairs[:4]]
    before = weights(players.reference)
    value = {n: p.clone() for n, p in players.value.named_parameters() if p.requires_grad}
    for step in range(2):
        dice = torch.Generator().manual_seed(step)
        row = ppo.ppo_iteration(players, contexts, stop, how, dice, 1.0)
        assert row["first_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert (abs(row["kl"]) < 1e-4) == (step == 0)
    assert all(torch.equal(p, before[name]) for name, p in weights(players.reference).items())
    scores.append(scorer([p.context for p in pairs[:4]], [p.chosen for p in pairs[:4]]).tolist())
    assert scores[0] == scores[1]  # the reward model stays; the value model and the policy learn
    assert any(
        not torch.equal(p, value[n]) for n, p in players.value.named_parameters() if n in value
    )
    again = finetune.ppo_players(finetune.merged(model), scorer, how, rank=2)
    assert any(p.requires_grad for p in again.value.parameters())  # a scorer serves twice
    responses = [p.chosen for p in pairs[:4]]
    with torch.no_grad():
        now, ref = (response_logprobs(m, contexts, responses)[0] for m in four[:2])
    assert (now - ref).abs().max() > 1e-5


# -- export ---------------------------------------------------------------------------------------


def test_adapters_are_not_exported_unseen(model, tiny_tokenizer, tmp_path):
    lora.add_lora(model, finetune.ADAPTED)
    with pytest.raises(CourseError, match=r"16 adapter matrices.*finetune\.merged"):
        save_pretrained(model, tmp_path / "out", tiny_tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_tuned_model_travels(model, examples, tiny_tokenizer, tmp_path):
    finetune.train_sft(model, examples, examples, settings(4, rate=3e-2), tmp_path / "sft")
    save_pretrained(finetune.merged(model), tmp_path / "out", tiny_tokenizer)
    end = tiny_tokenizer.special_ids[IM_END]
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert stops == {"eos_token_id": end, "pad_token_id": end}
    again = from_pretrained(tmp_path / "out")
    idx = torch.tensor([examples.inputs[0]])
    with torch.no_grad():
        torch.testing.assert_close(again(idx), model(idx), rtol=1e-4, atol=1e-4)


def test_transformers_asks_and_answers_alike(model, examples, tiny_tokenizer, tmp_path):
    from course_lib.generate import generate

    transformers = pytest.importorskip("transformers")
    finetune.train_sft(model, examples, examples, settings(40, rate=1e-2), tmp_path / "sft")
    ours = finetune.merged(model)
    save_pretrained(ours, tmp_path / "out", tiny_tokenizer)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == words.eos_token_id
    for turns in ([("user", "Hi?")], [("system", "Be brief."), ("user", "What is it? ")]):
        inputs = words.apply_chat_template(
            messages(*turns), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        asked = render(turns, tiny_tokenizer, reply=True).ids
        assert inputs["input_ids"][0].tolist() == asked
        out = theirs.generate(**inputs, max_new_tokens=24, do_sample=False)[0].tolist()
        end = tiny_tokenizer.special_ids[IM_END]
        [answer] = generate(ours, [asked], 24, {end})
        assert out == asked + answer.ids
