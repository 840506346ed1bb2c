"""Recipes of jepa_pretrain.py."""

from vidjax.data.config import AugmentConfig, DataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

# One place per frame, as a small shape covers few of several and the background is easiest to predict. Patches of one
# frame: those of two frames tell the direction to an untrained encoder. Masks hide whole frames.
DEMO = {
    "model": "vjepa2_tiny_frames",
    "data": DataConfig(frames=8, size=16, short_side=16, stride=4, augment=AugmentConfig(crop="center")),
    "short_blocks": 1,
    "short_scale": 1.0,
    "short_duration": 0.25,
    "long_blocks": 1,
    "long_scale": 1.0,
    "long_duration": 0.5,
    "batch_size": 32,
    "epochs": 6,
    "ema_decay": 0.99,  # of few steps; without the rise to 1 the targets lose rank
    "final_ema_decay": 1.0,
    "optim": OptimizerConfig(
        learning_rate=1.6e-2, final_learning_rate=8e-5, warmup_epochs=0.2, weight_decay=0.04, beta2=0.95,
        clip_norm=1.0,
    ),
    "loop": LoopConfig(log_every=64, save_every=512, evaluate_every=256),
    "probe_clips": 2048,
}  # fmt: skip
# 128 devices of 24 clips, with a warm-up from 1e-4 to a constant 5.25e-4; 12,000 of 240,000 steps are 1.68 passes over
# 22 million videos. Learning rates are for a batch of 256.
CLIPS = DataConfig(size=256, short_side=292, fps=4, augment=AugmentConfig(crop="random_resized", flip=True))
CONSTANT = OptimizerConfig(
    learning_rate=4.375e-5, warmup_learning_rate=8.333e-6, final_learning_rate=4.375e-5, warmup_epochs=1.68,
    weight_decay=0.04, beta2=0.999,
)  # fmt: skip
VM22M = {
    "data": CLIPS,
    "batch_size": 3072,
    "steps": 240_000,
    "optim": CONSTANT,
    "loop": LoopConfig(log_every=50, save_every=1000, evaluate_every=1000),
}

# Published recipes (facebookresearch/vjepa2, configs/train), on mix:K710=0.335,SSv2=0.1,HowTo100M=0.565. A cool-down
# starts from the run before: --init_from runs/g.
RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos: the published optimiser with a batch for one accelerator
    "large": VM22M | {"model": "vjepa2_large"},
    "huge": VM22M | {"model": "vjepa2_huge"},
    "giant": VM22M | {"model": "vjepa2_giant"},
    "giant_cooldown_384": VM22M
    | {
        "model": "vjepa2_giant",
        "data": DataConfig(frames=64, size=384, short_side=438, fps=4, augment=CLIPS.augment),
        "batch_size": 1536,
        "steps": 12_000,
        "optim": OptimizerConfig(
            learning_rate=8.75e-5, final_learning_rate=1.667e-7, warmup_epochs=0, weight_decay=0.04, beta2=0.999,
            linear=True,
        ),
    },
}  # fmt: skip
