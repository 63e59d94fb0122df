"""Named sizes for the whole pipeline: `smoke` for tests, `laptop` for the book, `gpu` for Colab.

Everything a run can be told is in a `Preset`; the code in `recipes.py` is the same for all.
"""

from dataclasses import dataclass, replace

from course_lib.errors import CourseError
from course_lib.ppo import PPOSettings
from course_lib.train import TrainSettings


@dataclass(frozen=True)
class Preset:
    """Sizes of data, model and training for the whole pipeline."""

    name: str
    n_documents: int
    vocab_size: int
    model: dict
    base: TrainSettings
    base_batch: int
    n_conversations: int
    sft: TrainSettings
    sft_batch: int
    replay_windows: int
    ptx_windows: int
    n_compared: int
    n_replies: int
    flip_share: float
    reward: TrainSettings
    reward_batch: int
    ppo: PPOSettings
    n_eval: int


LAPTOP = Preset(
    name="laptop",
    n_documents=80_000,
    vocab_size=3072,
    model={"context_length": 128, "d_model": 160, "n_layers": 4, "n_heads": 5},
    base=TrainSettings(steps=1400, learning_rate=5e-3),
    base_batch=16,
    n_conversations=24_000,
    sft=TrainSettings(steps=1050, learning_rate=1e-3, final_share=0.0),
    sft_batch=32,
    replay_windows=8,
    ptx_windows=8,
    n_compared=3_600,
    n_replies=4,
    flip_share=0.1,
    reward=TrainSettings(steps=150, learning_rate=1e-3, muon=False),
    reward_batch=24,
    ppo=PPOSettings(iterations=75, learning_rate=1.5e-4),
    n_eval=200,
)
# Five times the parameters and six times the tokens of `laptop`, at learning rates that shrink with
# the width (Yang et al. 2022); not tuned. On a T4 it runs in fp32, from Ampere on in bf16.
GPU = replace(
    LAPTOP,
    name="gpu",
    n_documents=400_000,
    model={"context_length": 128, "d_model": 320, "n_layers": 6, "n_heads": 10},
    base=TrainSettings(steps=2016, learning_rate=2.5e-3, warmup=100, checkpoint_every=250),
    base_batch=64,
    n_conversations=48_000,
    sft=TrainSettings(steps=1050, learning_rate=5e-4, final_share=0.0),
    sft_batch=64,
    replay_windows=16,
    reward=TrainSettings(steps=150, learning_rate=5e-4, muon=False),
    ppo=PPOSettings(iterations=75, learning_rate=7.5e-5),
)
SMOKE = Preset(
    name="smoke",
    n_documents=400,
    vocab_size=2048,  # the lessons need countries that are one token
    model={"context_length": 128, "d_model": 32, "n_layers": 2, "n_heads": 2},
    base=TrainSettings(steps=28, learning_rate=8e-3, checkpoint_every=10),
    base_batch=8,
    n_conversations=200,
    sft=TrainSettings(steps=20, learning_rate=3e-3, checkpoint_every=10),
    sft_batch=8,
    replay_windows=2,
    ptx_windows=2,
    n_compared=24,
    n_replies=3,
    flip_share=0.1,
    reward=TrainSettings(steps=10, learning_rate=1e-3, checkpoint_every=5, muon=False),
    reward_batch=8,
    ppo=PPOSettings(iterations=4, batch_size=8, minibatch_size=4, checkpoint_every=2),
    n_eval=24,
)
PRESETS = {preset.name: preset for preset in (SMOKE, LAPTOP, GPU)}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        CourseError: there is none of that name.
    """
    if name not in PRESETS:
        raise CourseError(f"unknown preset {name!r}: choose one of {sorted(PRESETS)}")
    return PRESETS[name]
