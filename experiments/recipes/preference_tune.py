"""Recipes of preference_tune.py."""

from pathlib import Path

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.data.moving_shapes import COLORS, PHRASES
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

CLIPS = CaptionedDataConfig(
    frames=8, stride=3, size=32, short_side=32, augment=AugmentConfig(crop="center"),
    validation="synthetic:moving_shapes", validation_examples=256,
)  # fmt: skip
CAPTIONER = {
    "model": "blip_tiny",
    "objectives": ("lm",),
    "video_model": "tsm_tiny",
    "tokenizer": str(Path(__file__).resolve().with_name("moving_shapes.json")),
    "context": 16,
    "queue_size": 32,
    "batch_size": 32,
    "ema_decay": 0.9,
    "workdir": "runs/colors_not_motion",
    "steps": 300,
    "optim": OptimizerConfig(
        learning_rate=16e-3, final_learning_rate=16e-5, warmup_epochs=0.3, beta2=0.98, weight_decay=0.05, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=20, save_every=300, evaluate_every=300),
}  # fmt: skip
"""The captioner that the demo starts from: the motion in its captions is random (`data.split random_motion`)."""

DEMO = {
    "init_from": CAPTIONER["workdir"],
    "data": CLIPS,
    "beta": 1.0,
    "attributes": ("motion=" + "|".join(PHRASES), "color=" + "|".join(COLORS)),
    "batch_size": 32,
    "steps": 360,
    "optim": OptimizerConfig(
        learning_rate=2e-3, final_learning_rate=2e-5, warmup_epochs=0.1, beta2=0.98, weight_decay=0.0, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=20, save_every=120, evaluate_every=120),
}  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "demo_grpo": DEMO | {"method": "grpo", "reward": "motion", "beta": 0.04},
    "demo_reward": DEMO | {"method": "reward"},
    "videos": {},  # the user's videos
}
