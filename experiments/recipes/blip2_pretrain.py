"""Recipes of blip2_pretrain.py."""

from pathlib import Path

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.data.moving_shapes import COLORS, PHRASES
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "stage": "all",
    "model": "blip2_tiny",
    "video_model": "r2plus1d_tiny",
    "init_video_from": "runs/attributes",  # of `finetune.py demo_attributes`: what it has not learnt, no query can see
    "data": CaptionedDataConfig(
        frames=8, stride=3, size=32, short_side=32, augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes", validation_examples=256,
    ),
    "tokenizer": str(Path(__file__).resolve().with_name("moving_shapes.json")),
    "context": 16,
    "attributes": (
        "motion=" + "|".join(PHRASES), "color=" + "|".join(COLORS), "shape=circle|square|triangle", "size=small|large",
    ),
    "batch_size": 32,
    "steps": 300,
    "optim": OptimizerConfig(
        learning_rate=16e-3, final_learning_rate=16e-5, warmup_epochs=0.1, beta2=0.98, weight_decay=0.05, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=20, save_every=300, evaluate_every=150),
}  # fmt: skip
# Li et al. 2023 (arXiv:2301.12597), section 3.4 and appendix, and LAVIS' pretrain_stage1.yaml and pretrain_stage2.yaml:
# AdamW 1e-4 to 1e-5, weight decay 0.05, batches of 16 x 100 and 16 x 64, warm-up of 5000 and 2000 steps from 1e-6, 10
# epochs of 129 million images. Differences: the Q-Former does not start from BERT; captions are not bootstrapped.
FIRST = {
    "stage": "1",
    "data": CaptionedDataConfig(
        frames=1, size=224, augment=AugmentConfig(crop="random_resized", flip=True)
    ),
    "batch_size": 1600,
    "optim": OptimizerConfig(
        learning_rate=1.6e-5, warmup_learning_rate=1.6e-7, final_learning_rate=1.6e-6, warmup_epochs=0.06, beta2=0.98,
        weight_decay=0.05,
    ),
    "loop": LoopConfig(log_every=50),
}  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos
    "blip2_stage1": FIRST,
    "blip2_stage2": FIRST | {
        "stage": "2",
        "batch_size": 1024,
        "optim": OptimizerConfig(
            learning_rate=2.5e-5, warmup_learning_rate=2.5e-7, final_learning_rate=2.5e-6, warmup_epochs=0.016,
            beta2=0.98, weight_decay=0.05,
        ),
    },
}  # fmt: skip
