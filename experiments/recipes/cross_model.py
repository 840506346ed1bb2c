"""Recipes of cross_model.py. The paper gives none."""

from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "data": LabelledDataConfig(
        frames=8,
        size=48,
        short_side=48,
        stride=2,
        augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes",
        validation_examples=512,
    ),
    "batch_size": 16,
    "epochs": 1,
    "optim": OptimizerConfig(
        learning_rate=1e-2, final_learning_rate=1e-4, warmup_epochs=0.1, beta2=0.999, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=50, save_every=256, evaluate_every=256),
}

RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos
}
