"""Recipes of token_pretrain.py."""

from dataclasses import replace

from vidjax.data.config import AugmentConfig, DataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

SHAPES = DataConfig(frames=8, size=32, short_side=32, stride=2, augment=AugmentConfig(crop="center"))
OFTEN = LoopConfig(log_every=50, save_every=500, evaluate_every=250)
# DALL-E's appendix A.2 has 1e-4 to 1.25e-6 over 1,200,000 steps of 512 images; such a small model and few steps want
# larger rates and faster schedules.
DEMO = {
    "objective": "tokenizer",
    "model": "dalle_tiny",
    "data": replace(SHAPES, frames=2),
    "batch_size": 32,
    "steps": 1500,
    "temperature_steps": 1000,
    # From the second step: as the weight rises slowly, such a small encoder first ends with one token for all places.
    "divergence_weight": 6.6,
    "divergence_steps": 1,
    "optim": OptimizerConfig(
        learning_rate=2.4e-2, final_learning_rate=2.4e-4, warmup_epochs=0.5, weight_decay=1e-4, beta2=0.999,
        clip_norm=1.0,
    ),
    "loop": OFTEN,
    "probe_clips": 0,
    "workdir": "runs/tokenizer",
}  # fmt: skip
SMALL = {
    "data": SHAPES,
    "mask_ratio": 0.5,
    "least_patches": 2,
    "images_per_clip": 4,
    "batch_size": 16,
    "steps": 2000,
    "optim": OptimizerConfig(
        learning_rate=1.6e-2, final_learning_rate=1.6e-4, warmup_epochs=0.2, beta2=0.98, clip_norm=1.0
    ),
    "loop": OFTEN,
    "probe_clips": 2048,
}  # fmt: skip
# xyzforever/BEVT, swin_base_patch244_window877_bevt_in1k_k400.py: 5e-4 for 512 videos, of 16 frames at a stride of 8.
# Difference: there, images are ImageNet's, 64 for 8 videos; here they are frames of the videos, 8 of each.
BEVT = OptimizerConfig(
    learning_rate=2.5e-4, warmup_learning_rate=0.0, final_learning_rate=0.0, warmup_epochs=10, beta2=0.999,
    clip_norm=3.0,
)  # fmt: skip
CLIPS = DataConfig(stride=8, augment=AugmentConfig(crop="random_resized", flip=True))
# microsoft/unilm, beit/README.md: 1.5e-3 for 2048 images, 75 of 196 patches masked.
BEIT = {
    "objective": "images",
    "model": "beit_base_16",
    "data": replace(CLIPS, frames=1, augment=replace(CLIPS.augment, color_jitter=0.4)),
    "mask_ratio": 75 / 196,
    "images_per_clip": 1,
    "batch_size": 2048,
    "epochs": 800,
    "optim": replace(BEVT, learning_rate=1.875e-4, final_learning_rate=1.25e-6),
}

RECIPES = {
    "demo": DEMO,  # a tokenizer
    "videos": {},  # the user's videos: BEVT with a batch for one accelerator
    "tokenizer": {  # DALL-E's optimiser
        "objective": "tokenizer",
        "model": "dalle_small",
        "data": replace(CLIPS, frames=2, size=112),
        "optim": OptimizerConfig(
            learning_rate=5e-5, final_learning_rate=6.25e-7, warmup_epochs=0, weight_decay=1e-4, beta2=0.999
        ),
        "probe_clips": 0,
    },
    "beit_tiny": SMALL | {"objective": "images", "model": "beit_tiny"},
    "bevt_tiny": SMALL | {"model": "bevt_tiny"},
    "beit_base": BEIT,
    "beit_large": BEIT | {"model": "beit_large_16"},
    "bevt_base_images": {"objective": "images", "batch_size": 512, "epochs": 800},
    "bevt_base": {"batch_size": 512},
}  # fmt: skip
