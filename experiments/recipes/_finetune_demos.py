"""Recipes of finetune.py for the embedded data sets, which `recipes.finetune` adds to the others."""

from dataclasses import replace

from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "model": "r2plus1d_tiny",
    "data": LabelledDataConfig(
        frames=8,
        size=32,
        short_side=32,
        stride=2,
        augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes",
        validation_examples=512,
    ),
    "batch_size": 16,
    "epochs": 2,
    "mixup": 0.0,
    "cutmix": 0.0,
    "train_accuracy": True,
    "optim": OptimizerConfig(
        learning_rate=3e-2, final_learning_rate=1e-4, warmup_epochs=0.1, beta2=0.999, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=50, save_every=256, evaluate_every=256),
}

ATTRIBUTES = DEMO | {
    "hashtags": "all",
    "train_accuracy": False,
    "data": replace(
        DEMO["data"], stride=3, train="synthetic:moving_shapes", train_split="hashtags_train",
        validation_split="hashtags_validation",
    ),
    "batch_size": 32,
    "epochs": 4,
    "workdir": "runs/attributes",
}  # fmt: skip
"""An encoder that tells colour, shape and motion, which blip2_pretrain.py's demo freezes."""

# Of the last colours there are few videos. `--hashtag_sampling uniform` for a comparison.
LONG_TAIL = ATTRIBUTES | {
    "model": "fr2d_tiny",
    "data": replace(
        ATTRIBUTES["data"], frames=2, stride=4, train_split="hashtags_long_tail", validation_examples=None
    ),
    "label_smoothing": 0.0,
    "steps": 600,
    "workdir": "runs/hashtags",
}  # fmt: skip
PHOTOS = "mix:synthetic:shape_photos=1,synthetic:shape_clips=1"
# Many images with labels beside few clips. Without images: --data.train synthetic:shape_clips --data.validation
# synthetic:shape_clips --heads --stills --batch_size 16
STILLS = DEMO | {
    "model": "r3d_tiny",
    "data": replace(DEMO["data"], frames=4, train=PHOTOS, validation=PHOTOS, validation_examples=None),
    "heads": ("photos", "clips"),
    "stills": ("photos",),
    "batch_size": 32,
    "label_smoothing": 0.0,
    "train_accuracy": False,
    "steps": 300,
    "workdir": "runs/stills",
}

FLOW = DEMO | {
    "model": "tsn_tiny_flow",
    "data": replace(DEMO["data"], stream="flow", frames=4, stride=3, train_examples=64),
    "steps": 300,
    "loop": replace(DEMO["loop"], evaluate_every=300),
    "workdir": "runs/flow",
}
# It learns from demo_flow, which saw 64 labels, and from none itself. The same network on these labels and no teacher,
# with as many steps of warm-up: --teacher None --label_weight 1 --data.train_examples 64 --optim.warmup_epochs 2.5
D3D = DEMO | {
    "model": "r3d_tiny",
    "data": replace(DEMO["data"], frames=4, stride=3),
    "teacher": "runs/flow",
    "label_weight": 0.0,
    "steps": 300,
    "optim": replace(DEMO["optim"], warmup_epochs=0.02),
    "loop": replace(DEMO["loop"], evaluate_every=300),
    "workdir": "runs/d3d",
}

RECIPES = {
    "demo": DEMO,
    "demo_attributes": ATTRIBUTES,
    "demo_hashtags": LONG_TAIL,
    "demo_stills": STILLS,
    "demo_flow": FLOW,
    "demo_d3d": D3D,
}
