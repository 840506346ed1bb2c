"""Recipes of ground.py."""

import recipes.localize
from vidjax.data.moments import MomentConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "model": "moment_detr_tiny",
    "max_length": 32,
    "words": 16,
    "epochs": 40,
    "ema_decay": 0.99,
    "optim": OptimizerConfig(
        learning_rate=1.6e-2, warmup_learning_rate=0, final_learning_rate=1.6e-4, warmup_epochs=3, beta2=0.98,
        weight_decay=1e-2, clip_norm=1.0,
    ),
    "loop": LoopConfig(log_every=40, save_every=600, evaluate_every=300),
}  # fmt: skip
TOWERS = (
    recipes.localize.ENCODER[0],
    "contrastive_pretrain.py demo --video_model uniformer_tiny --init_video_from WORKDIR/encoder --steps 100 "
    "--data.validation None --loop.save_every 100 --seed SEED --workdir WORKDIR/towers",
    recipes.localize.ENCODER[1].replace("split all", "split moments"),
)
"""What the demo runs first: an encoder learns from trimmed clips, a text tower from captions of such clips, and the
features of untrimmed videos are written."""

# jayleicn/moment_detr, moment_detr/scripts/train.sh and config.py: 1e-4 for 32 queries, constant for 200 epochs.
# Differences: the original also decays biases and norms, and initialises with Xavier's uniform distribution.
QVHIGHLIGHTS = {
    "model": "moment_detr_slowfast_clip",
    "channels": 2816,
    "text_channels": 512,
    "rounded": True,
    "data": MomentConfig(clip_seconds=2.0),
    "batch_size": 32,
    "epochs": 200,
    "optim": OptimizerConfig(
        learning_rate=8e-4, final_learning_rate=8e-4, warmup_epochs=0, beta2=0.999, weight_decay=1e-4, clip_norm=0.1
    ),
    "loop": LoopConfig(log_every=50),
}
RECIPES = {
    "demo": DEMO,
    "qvhighlights": QVHIGHLIGHTS,
    "qvhighlights_clip": QVHIGHLIGHTS | {"model": "moment_detr_clip", "channels": 512},
    "videos": QVHIGHLIGHTS  # the user's features, with the settings of QVHighlights
    | {"model": "moment_detr_clip", "channels": None, "text_channels": None, "rounded": False, "data": MomentConfig()},
}
