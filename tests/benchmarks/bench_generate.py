"""Speed of cached greedy generation: ours against Hugging Face's `generate`, the same Llama.

The two take turns, so that whatever else the machine does slows both alike; each is judged by its
best round. Run alone with `python -m tests.benchmarks generate`.
"""

import torch

from course_lib.generate import generate
from course_lib.gpt import GPT, GPTConfig
from tests.benchmarks import llama_config, seconds

THREADS, ROUNDS = 2, 5
PROMPT, NEW, VOCAB_SIZE = 16, 128, 1536
CONFIG = GPTConfig(VOCAB_SIZE, context_length=256, d_model=192, n_layers=4, n_heads=6)


def their_model():
    """A Llama of the same shape and the same number of weights."""
    import transformers

    config = llama_config(CONFIG, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    return transformers.LlamaForCausalLM(config).eval()


def bench():
    """Rows `{"work", "ours", "theirs", "ratio", "unit"}`, speeds in new tokens a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    ours, theirs, rows = GPT(CONFIG).eval(), their_model(), []
    for batch in (1, 32):
        idx = torch.randint(1, VOCAB_SIZE, (batch, PROMPT))
        prompts, mask = idx.tolist(), torch.ones_like(idx)

        def our_run(prompts=prompts):
            generate(ours, prompts, NEW)

        def their_run(idx=idx, mask=mask):
            theirs.generate(idx, attention_mask=mask, max_new_tokens=NEW, do_sample=False)

        rounds = [(seconds(our_run), seconds(their_run)) for _ in range(ROUNDS)]
        best, their_best = map(min, zip(*rounds, strict=True))
        millions = f"{ours.n_parameters / 1e6:.1f} M parameters"
        rows.append(
            {
                "work": f"cached generation, {millions}, batch {batch}",
                "ours": batch * NEW / best,
                "theirs": batch * NEW / their_best,
                "ratio": their_best / best,
                "unit": "tokens",
            }
        )
    torch.set_num_threads(before)
    return rows
