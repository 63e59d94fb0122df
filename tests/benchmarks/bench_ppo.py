"""Speed of one PPO iteration: ours against TRL's trainer, at equal sizes, side by side.

Both hold four models of the course's shape (policy, reference, reward, value), sample a reply of
56 tokens to each of 64 prompts, score them, and make two epochs of two minibatches, in fp32 with
AdamW. The trainers take turns iteration by iteration, so that whatever else the machine does slows
both alike; each is judged by its best. Run alone with `python -m tests.benchmarks.bench_ppo`.

TRL dropped its PPO trainer after version 1.12; with a later one the row has only our side.
"""

import contextlib
import io
import os
import tempfile
import time
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib import ppo
from course_lib.gpt import GPT, GPTConfig
from course_lib.reward import RewardModel
from tests.benchmarks import llama_config, matmul_peak

THREADS, ROUNDS = 2, 3
PAD, END, VOCAB_SIZE, REPLIES = 0, 1, 3072, 64
CONFIG = GPTConfig(VOCAB_SIZE, context_length=128, d_model=160, n_layers=4, n_heads=5)
SETTINGS = ppo.PPOSettings(1, batch_size=REPLIES, minibatch_size=REPLIES // 2, epochs=2)


def prompts():
    """Random prompts of 12 to 32 tokens, as many as there are replies."""
    torch.manual_seed(0)
    lengths = torch.randint(12, 33, (REPLIES,)).tolist()
    return [torch.randint(2, VOCAB_SIZE, (n,)).tolist() for n in lengths]


def our_iteration(config=CONFIG):
    """A function that runs one iteration of ours and returns its seconds."""
    torch.manual_seed(0)
    policy, reference = GPT(config), GPT(config)
    value = RewardModel(GPT(config))
    optimizers = ppo.make_optimizers(policy, value, SETTINGS)
    players = ppo.Players(policy, reference, RewardModel(GPT(config)), value, optimizers)
    contexts, generator = prompts(), torch.Generator().manual_seed(0)

    def iteration():
        began = time.perf_counter()
        ppo.ppo_iteration(players, contexts, {END}, SETTINGS, generator, 1.0)
        return time.perf_counter() - began

    return iteration


def flops_of_an_iteration():
    """Floating-point operations of one iteration, counted by PyTorch on plain attention."""
    with FlopCounterMode(display=False) as counter:
        our_iteration(replace(CONFIG, fused=False))()
    return counter.get_total_flops()


def their_models():
    """TRL's four models: Llamas of the same shape and the same number of weights."""
    import transformers

    config = llama_config(
        CONFIG,
        pad_token_id=PAD,
        bos_token_id=END,
        eos_token_id=END,
        num_labels=1,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    kinds = [transformers.LlamaForCausalLM] * 2 + [transformers.LlamaForSequenceClassification] * 2
    return [kind(config) for kind in kinds]


def their_tokenizer():
    """A tokenizer that TRL needs to pad prompts with; it never sees a text."""
    import transformers
    from tokenizers import Tokenizer, models

    vocab = {f"<{i}>": i for i in range(VOCAB_SIZE)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<2>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<0>", eos_token="<1>", padding_side="left"
    )


def take_turns(ours, folder):
    """Seconds of every iteration: ours, and TRL's. Ours run in a callback between TRL's."""
    import transformers
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    seconds = {"ours": [], "theirs": []}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            seconds["theirs"].append(time.perf_counter() - self.began)
            seconds["ours"].append(ours())
            self.began = time.perf_counter()

    config = PPOConfig(
        output_dir=folder,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        num_sample_generations=0,
        disable_tqdm=True,
        total_episodes=REPLIES * ROUNDS,
        per_device_train_batch_size=REPLIES,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=REPLIES,
        num_mini_batches=2,
        num_ppo_epochs=SETTINGS.epochs,
        response_length=SETTINGS.max_new_tokens,
        temperature=SETTINGS.temperature,
        learning_rate=SETTINGS.learning_rate,
        stop_token="eos",
    )
    policy, reference, reward, value = their_models()
    clock = Clock()
    trainer = PPOTrainer(
        config,
        their_tokenizer(),
        policy,
        reference,
        reward,
        Dataset.from_dict({"input_ids": prompts()}),
        value,
        callbacks=[clock],
    )
    clock.began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # TRL prints its metrics
        trainer.train()
    return seconds


def bench():
    """One row `{"work", "ours", "theirs", "ratio", "unit", "share"}`: replies a second."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    ours, work = our_iteration(), f"one PPO iteration, {REPLIES} replies"
    try:
        with tempfile.TemporaryDirectory() as folder:
            seconds = take_turns(ours, folder)
    except ModuleNotFoundError as missing:
        seconds = {"ours": [ours() for _ in range(ROUNDS)], "theirs": []}
        work += f" (nothing to compare with: {missing})"
    peak, flops = matmul_peak(50), flops_of_an_iteration()
    torch.set_num_threads(before)
    best, theirs = min(seconds["ours"]), min(seconds["theirs"], default=None)
    return [
        {
            "work": work,
            "ours": REPLIES / best,
            "theirs": theirs and REPLIES / theirs,
            "ratio": theirs and theirs / best,
            "unit": "replies",
            "share": flops / best / peak,
        }
    ]


if __name__ == "__main__":
    for row in bench():
        against = f" against {row['theirs']:.1f}: {row['ratio']:.2f} times" if row["ratio"] else ""
        print(f"{row['work']}: {row['ours']:.1f} replies/s{against}")
