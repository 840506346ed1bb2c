"""Recipes of adaptive.py."""

from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

BRIEF = {
    "train": "synthetic:brief_shapes",
    "validation": "synthetic:brief_shapes",
    "frames": 8,
    "stride": 2,
    "augment": AugmentConfig(crop="center"),
}
RATES = {"final_learning_rate": 1e-5, "warmup_epochs": 0.2, "beta2": 0.95, "clip_norm": 1.0}
DEMO = {
    "model": "dynamicvit_tiny",
    "data": LabelledDataConfig(**BRIEF, size=64, short_side=64),
    "batch_size": 32,
    "steps": 400,
    "full_steps": 500,
    "optim": OptimizerConfig(learning_rate=8e-3, **RATES),
    "full_optim": OptimizerConfig(learning_rate=8e-3, **RATES),
    "loop": LoopConfig(log_every=50, save_every=250, evaluate_every=250),
}
SMALL = DEMO | {"data": LabelledDataConfig(**BRIEF, size=32, short_side=32)}

# Each trains the full network first. The masked training of DynamicViT costs as much as the full network's.
RECIPES = {
    "demo": DEMO,
    "demo_stts": DEMO | {"model": "stts_tiny"},
    "demo_adavit": SMALL | {"model": "adavit_tiny"},
    "demo_ada3d": SMALL | {"model": "ada3d_tiny"},
}
