"""Recipes of vision_language_pretrain.py."""

from dataclasses import replace
from pathlib import Path

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

WRITES = ("itc", "itm", "lm")
DEMO = {
    "model": "blip_tiny",
    "objectives": WRITES,
    "video_model": "tsm_tiny",  # an image tower would not see the motion that captions tell of
    "data": CaptionedDataConfig(
        frames=8, stride=3, size=32, short_side=32, augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes", validation_examples=256,
    ),
    "tokenizer": str(Path(__file__).resolve().with_name("moving_shapes.json")),  # words: bytes take longer to learn
    "context": 16,
    # In small batches, captions fit other videos less often, which contrast and matching take as negatives.
    "queue_size": 32,
    "batch_size": 32,
    "ema_decay": 0.9,
    "alpha_epochs": 4.0,
    "steps": 720,
    "optim": OptimizerConfig(
        learning_rate=16e-3, final_learning_rate=16e-5, warmup_epochs=0.3, beta2=0.98, weight_decay=0.05, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=20, save_every=360, evaluate_every=360),
}  # fmt: skip
SEEN = DEMO | {
    "objectives": ("lm",),
    "workdir": "runs/motion_seen",
    "steps": 320,
    "loop": LoopConfig(log_every=20, save_every=320, evaluate_every=320),
}
"""A captioner of which `NOT_TOLD` takes the video tower: a new one would learn no motion from captions without it."""
NOT_TOLD = SEEN | {
    "init_video_from": SEEN["workdir"],
    "data": replace(SEEN["data"], split="random_motion"),
    "workdir": "runs/motion_not_told",
    "steps": 160,
    "optim": replace(SEEN["optim"], learning_rate=6e-3, final_learning_rate=6e-5),
    "loop": LoopConfig(log_every=20, save_every=160, evaluate_every=160),
}
"""The captioner that preference_tune.py's demo tunes: its captions name motion at random."""
# salesforce/ALBEF, configs/Pretrain.yaml and Pretrain.py: 1e-4 for 8 x 64 images, 2000 steps of warm-up from 1e-5, to
# 1e-5; 14.1 million images. Differences: RandAugment has all of its operations; biases and norms are alike not decayed.
ALBEF = {
    "model": "albef_base",
    "data": CaptionedDataConfig(
        frames=1,
        size=256,
        augment=AugmentConfig(crop="random_resized", flip=True, rand_augment_ops=2, rand_augment_magnitude=7),
    ),
    "context": 25,
    "batch_size": 512,
    "epochs": 30,
    "optim": OptimizerConfig(
        learning_rate=5e-5, warmup_learning_rate=5e-6, final_learning_rate=5e-6, warmup_epochs=0.07, beta2=0.999,
        weight_decay=0.02,
    ),
    "loop": LoopConfig(log_every=50),
}  # fmt: skip

# Li et al. 2022 (BLIP, arXiv:2201.12086), section 4.1: 3e-4 for batches of 2,880, weight decay of 0.05, 20 epochs of 14
# million images. The warm-up of 3,000 steps and the first and last rates are as we remember the released code.
# Differences: a cosine instead of a factor of 0.85 per epoch; RandAugment has all of its operations; captions are not
# bootstrapped.
BLIP = {
    "model": "blip_base",
    "objectives": WRITES,
    "data": CaptionedDataConfig(
        frames=1,
        size=224,
        augment=AugmentConfig(crop="random_resized", flip=True, rand_augment_ops=2, rand_augment_magnitude=5),
    ),
    "context": 30,
    "alpha_epochs": 2.0,
    "batch_size": 2880,
    "epochs": 20,
    "optim": OptimizerConfig(
        learning_rate=2.67e-5, warmup_learning_rate=9e-8, final_learning_rate=9e-8, warmup_epochs=0.5, beta2=0.999,
        weight_decay=0.05,
    ),
    "loop": LoopConfig(log_every=50),
}  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "demo_motion_seen": SEEN,
    "demo_motion_not_told": NOT_TOLD,
    "demo_albef": DEMO | {"model": "albef_tiny", "objectives": ("itc", "itm", "mlm")},
    "videos": {},  # the user's videos
    "albef_base": ALBEF,
    "blip_base": BLIP,
}
