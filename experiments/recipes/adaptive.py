"""Recipes of adaptive.py."""

from dataclasses import replace

from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

BRIEF = LabelledDataConfig(
    train="synthetic:brief_shapes",
    validation="synthetic:brief_shapes",
    frames=8,
    stride=2,
    size=32,
    short_side=32,
    augment=AugmentConfig(crop="center"),
)
# That of finetune.py without layer decay; DynamicViT's own takes 30 epochs too.
OPTIMIZER = OptimizerConfig(learning_rate=5e-4, final_learning_rate=1e-6, warmup_epochs=5, beta2=0.999)
RATES = {"final_learning_rate": 1e-5, "warmup_epochs": 0.2, "beta2": 0.95, "clip_norm": 1.0}

# Each trains the full network first.
DEMO = {
    "model": "dynamicvit_tiny_8",
    "data": BRIEF,
    "batch_size": 32,
    "steps": 400,
    "full_steps": 400,
    "optim": OptimizerConfig(learning_rate=1.2e-2, **RATES),
    "full_optim": OptimizerConfig(learning_rate=1.2e-2, **RATES),
    "loop": LoopConfig(log_every=50, save_every=200, evaluate_every=200),
}

RECIPES = {
    "demo": DEMO,
    "demo_stts": DEMO | {"model": "stts_tiny_8"},
    # A single frame of each clip shows the shape. The network hardly learns: it would learn to do with any choice.
    "demo_adavit": DEMO
    | {
        "model": "adavit_tiny",
        "data": replace(BRIEF, frames=4, stride=4),
        "network_factor": 0.02,
        "budget": 0.3,
        "budgets": (0.2, 0.3, 0.4, 0.5),
    },
    "demo_ada3d": DEMO | {"model": "ada3d_tiny", "budgets": (0.2, 0.3, 0.4, 0.5)},
    "videos": {},  # the user's videos
}
