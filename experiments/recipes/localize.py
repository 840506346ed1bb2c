"""Recipes of localize.py."""

from dataclasses import replace

from vidjax.data.segments import SHAPES, SegmentConfig
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

# An encoder that is new learns from few videos at first slowly: with half the learning rate, or four videos a step, mAP
# was half as high after the same time.
END_TO_END = DEMO | {
    "encoder": "uniformer_tiny",
    "data": SegmentConfig(videos=SHAPES, fps=8, frames=8, stride=4, size=32, short_side=32),
    "max_length": 32,
    "batch_size": 8,
    "epochs": 24,
    "ema_decay": 0.97,
    "optim": replace(DEMO["optim"], learning_rate=6.4e-2, warmup_epochs=2),
    "loop": LoopConfig(log_every=20, save_every=192, evaluate_every=192),
}

# Published recipes (happyharrycn/actionformer_release, configs at commit 61ea7eb, which its README's figures are of).
# Learning rates are for a batch of 256; epochs include those of the warm-up. Original checkpoints of ActivityNet name
# their segments by the scores of another classifier.
ADAM = {"warmup_learning_rate": 0, "final_learning_rate": 0, "warmup_epochs": 5, "beta2": 0.999, "clip_norm": 1.0}
THUMOS = {
    "model": "actionformer_thumos_i3d",
    "channels": 2048,
    "data": SegmentConfig(train="validation", validation="test", stride=4, frames=16),
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
    "offset_weight": 2.0,
    "positives": 200.0,
    "thresholds": "activitynet",
    "selection": Selection(least_length=0.001, sigma=0.75, vote=0.9, classes_apart=False, segments=100),
    "optim": OptimizerConfig(learning_rate=1.6e-2, **ADAM),
}


def activitynet(fps: float) -> SegmentConfig:
    """Features of 16 frames, 16 frames apart at this rate, stretched to the model's length."""
    return SegmentConfig(prefix="v_", fps=fps, stride=16, frames=16, resize=True, one_class=True)


RECIPES = {
    "demo": DEMO,
    "demo_end_to_end": END_TO_END,
    "thumos_i3d": THUMOS,
    "activitynet_i3d": ACTIVITYNET | {"model": "actionformer_anet_i3d", "channels": 2048, "data": activitynet(25)},
    "activitynet_tsp": ACTIVITYNET | {"model": "actionformer_anet_tsp", "channels": 512, "data": activitynet(15)},
    "videos": THUMOS | {"channels": None, "data": SegmentConfig()},  # the user's features, with the settings of THUMOS
}
