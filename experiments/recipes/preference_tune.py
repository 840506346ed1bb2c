"""Recipes of preference_tune.py."""

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.data.moving_shapes import COLORS, PHRASES
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "init_from": "runs/motion_not_told",
    "data": CaptionedDataConfig(
        frames=8, stride=3, size=32, short_side=32, augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes", validation_examples=128,
    ),
    "freeze": "video",
    "beta": 2.0,
    "attributes": ("motion=" + "|".join(PHRASES), "color=" + "|".join(COLORS)),
    "batch_size": 32,
    "steps": 200,
    "optim": OptimizerConfig(
        learning_rate=2e-3, final_learning_rate=2e-5, warmup_epochs=0.1, beta2=0.98, weight_decay=0.0, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=20, save_every=200, evaluate_every=40),
}  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "demo_grpo": DEMO | {"method": "grpo", "reward": "motion+color", "beta": 0.04},
    "demo_reward": DEMO | {"method": "reward"},
    "videos": {},  # the user's videos
}
