"""Recipes of localize.py."""

from vidjax.data.segments import SegmentConfig
from vidjax.evaluation.segments import Selection
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "model": "actionformer_tiny",
    "max_length": 64,
    "epochs": 60,
    "ema_decay": 0.99,
    "positives": 100.0,
    "thresholds": "activitynet",
    "optim": OptimizerConfig(
        learning_rate=3.2e-2, warmup_learning_rate=0, final_learning_rate=0, warmup_epochs=5, beta2=0.999, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=40, save_every=480, evaluate_every=160),
}
ENCODER = (
    "finetune.py demo --model uniformer_tiny --steps 640 --batch_size 16 --label_smoothing 0 "
    "--data.validation_examples 128 --optim.learning_rate 0.016 --optim.beta2 0.95 --loop.save_every 320 "
    "--loop.evaluate_every 320 --seed SEED --workdir WORKDIR/encoder",
    "embed.py --run WORKDIR/encoder --which last --data.source synthetic:untrimmed_shapes --data.split all "
    "--window 8 --stride 4 --batch_size 64 --out WORKDIR/features",
)
"""What the demo runs first: an encoder learns from trimmed clips, and writes the features of untrimmed videos."""

# Published recipes (happyharrycn/actionformer_release, configs). Learning rates are for a batch of 256; epochs include
# those of the warm-up. Original checkpoints of ActivityNet name their segments by the scores of another classifier.
ADAM = {"warmup_learning_rate": 0, "final_learning_rate": 0, "warmup_epochs": 5, "beta2": 0.999, "clip_norm": 1.0}
THUMOS = {
    "model": "actionformer_thumos_i3d",
    "channels": 2048,
    "data": SegmentConfig(train="validation", validation="test", stride=4, frames=16, ignored=("CliffDiving",)),
    "batch_size": 2,
    "epochs": 35,
    "ema_decay": 0.999,
    "optim": OptimizerConfig(learning_rate=1.28e-2, **ADAM),
}
ACTIVITYNET = {
    "batch_size": 16,
    "epochs": 15,
    "ema_decay": 0.999,
    "label_smoothing": 0.1,
    "thresholds": "activitynet",
    "optim": OptimizerConfig(learning_rate=1.6e-2, **ADAM),
}
PROPOSALS = {"classes_apart": False, "segments": 100}
RECIPES = {
    "demo": DEMO,
    "thumos_i3d": THUMOS,
    "activitynet_i3d": ACTIVITYNET
    | {
        "model": "actionformer_anet_i3d",
        "channels": 2048,
        "data": SegmentConfig(prefix="v_", fps=25, stride=16, frames=16, resize=True, one_class=True),
        "offset_weight": 2.0,
        "positives": 200.0,
        "selection": Selection(least_length=0.001, sigma=0.75, vote=0.9, **PROPOSALS),
    },
    "activitynet_tsp": ACTIVITYNET
    | {
        "model": "actionformer_anet_tsp",
        "channels": 512,
        "data": SegmentConfig(prefix="v_", fps=15, stride=16, frames=16, one_class=True),
        "positives": 400.0,
        "selection": Selection(least_length=0.1, sigma=0.8, vote=0.85, **PROPOSALS),
    },
    "videos": THUMOS | {"channels": None, "data": SegmentConfig()},  # the user's features, with the settings of THUMOS
}
