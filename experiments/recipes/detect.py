"""Recipes of detect.py."""

from vidjax.data.config import SHAPES, AugmentConfig, DetectionConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "model": "uniformer_tiny",
    "stage": 3,  # an eighth of the height and width: shapes are 9 to 14 pixels wide
    "bins": 3,
    "dropout": 0.0,
    "crops": 1,
    "data": DetectionConfig(
        frames=8, size=64, short_side=64, stride=1, augment=AugmentConfig(crop="center"), validation=SHAPES
    ),
    "batch_size": 16,
    "epochs": 3,
    "optim": OptimizerConfig(
        learning_rate=3e-2, final_learning_rate=1e-4, warmup_epochs=0.2, beta2=0.999, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=24, save_every=144, evaluate_every=144),
}

# facebookresearch/SlowFast, configs/AVA/SLOWFAST_32x2_R50_SHORT.yaml and SLOW_8x8_R50_SHORT.yaml (which has 4 frames 16
# apart): SGD, 0.1 for 64 clips, from weights of Kinetics-400. Differences: the original also trains on detected persons
# that overlap an annotated one, resizes the short side to a random 256 to 320 pixels before cropping 224, and tests
# whole frames; here squares of 0.66 to 1 times the short side are cut and resized, and three crops cover a frame.
AVA = {
    "batch_size": 64,
    "epochs": 20,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.4, warmup_learning_rate=5e-4, warmup_epochs=5, milestones=(10, 15),
        weight_decay=1e-7,
    ),
    "loop": LoopConfig(log_every=50),
}  # fmt: skip


def ava(frames: int, stride: int, least_box_score: float) -> DetectionConfig:
    """Clips of AVA's films, which are cut to minutes 15 to 30; the stride is counted at 30 frames per second."""
    return DetectionConfig(
        frames=frames, stride=stride, fps=30 / stride, short_side=256, start=900.0, augment=AugmentConfig(flip=True),
        least_box_score=least_box_score,
    )  # fmt: skip


RECIPES = {
    "demo": DEMO,
    "ava_slowfast_50_8x8": AVA | {"model": "slowfast_50_8x8", "data": ava(32, 2, 0.8)},
    "ava_slowfast_50_4x16": AVA | {"model": "slowfast_50_4x16", "data": ava(32, 2, 0.8)},  # published by mmaction2 only
    "ava_slow_50_4x16": AVA | {"model": "slow_50_4x16", "data": ava(4, 16, 0.9)},
    "videos": AVA  # the user's key frames, with the settings of AVA
    | {"data": DetectionConfig(frames=32, stride=2, short_side=256, augment=AugmentConfig(flip=True))},
}
