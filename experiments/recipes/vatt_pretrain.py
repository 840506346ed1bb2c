"""Recipes of vatt_pretrain.py."""

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

CLIPS = CaptionedDataConfig(
    frames=32, fps=10, augment=AugmentConfig(crop="random_resized", flip=True, color_jitter=0.4)
)  # 3.2 s
DEMO = {
    "model": "vatt_tiny",
    "data": CaptionedDataConfig(
        source="synthetic:sounding_shapes",
        validation="synthetic:sounding_shapes",
        validation_examples=256,
        frames=8,
        fps=8,
        size=32,
        short_side=32,
        augment=AugmentConfig(crop="center"),
    ),
    "batch_size": 64,
    "steps": 600,
    "optim": OptimizerConfig(learning_rate=4e-3, final_learning_rate=4e-5, warmup_epochs=0.5, clip_norm=1.0),
    "loop": LoopConfig(log_every=50, save_every=300, evaluate_every=300),
}
# google-research/vatt, configs/experiment.py and dataset.py: Adam without decay, 5,000 steps of warm-up (epochs of 3
# million videos), a cosine from 1e-4 to 5e-5 over 500,000 steps, for 2,048 clips of HowTo100M and AudioSet. A clip
# there is compared with four captions around it; those of AudioSet have none, which is an error here.
VATT = {
    "data": CLIPS,
    "batch_size": 2048,
    "texts": 4,
    "steps": 500_000,
    "optim": OptimizerConfig(
        learning_rate=1e-4 / 8, warmup_learning_rate=0.0, final_learning_rate=5e-5 / 8, warmup_epochs=3.4, beta2=0.999,
        weight_decay=0.0,
    ),
    "loop": LoopConfig(log_every=50),
}  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos
    "vatt_base": VATT | {"model": "vatt_base"},
    "vatt_medium": VATT | {"model": "vatt_medium"},
    "vatt_large": VATT | {"model": "vatt_large"},
    "vatt_medium_agnostic": VATT | {"model": "vatt_medium_agnostic"},
}
