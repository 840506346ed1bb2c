"""Recipes of finetune.py."""

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

# Published recipes. Learning rates are for a batch of 256 clips, including repeats.
STRONG = AugmentConfig(
    crop="random_resized", flip=True, rand_augment_ops=4, rand_augment_magnitude=7, random_erasing=0.25
)
LONG = LoopConfig(log_every=50)
# MCG-NJU/VideoMAE, scripts/kinetics and scripts/ssv2: 64 GPUs with 6 (B) or 2 (L) videos each, repeated twice.
VIDEOMAE_BASE = {
    "model": "videomae_base",
    "data": LabelledDataConfig(frames=16, stride=4, short_side=256, augment=STRONG, repeats=2),
    "drop_path": 0.1,
    "batch_size": 768,
    "epochs": 75,
    "optim": OptimizerConfig(
        learning_rate=2.5e-4, warmup_learning_rate=5e-7, final_learning_rate=5e-7, warmup_epochs=5, beta2=0.999,
        layer_decay=0.75,
    ),
    "loop": LONG,
}  # fmt: skip
VIDEOMAE_LARGE = VIDEOMAE_BASE | {
    "model": "videomae_large",
    "batch_size": 256,
    "epochs": 35,
    "optim": replace(VIDEOMAE_BASE["optim"], learning_rate=1e-3),
}
SSV2 = LabelledDataConfig(
    frames=16, sampling="segments", short_side=256, augment=replace(STRONG, flip=False), repeats=2
)
# facebookresearch/TimeSformer, configs/Kinetics: SGD, 0.005 for 8 clips. Differences: the original resizes the short
# side to a random 256 to 320 pixels before cropping, and decays biases and norms too.
TIMESFORMER = {
    "model": "timesformer_base_divided",
    "data": LabelledDataConfig(frames=8, stride=32, augment=AugmentConfig(flip=True)),
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
    "batch_size": 8,
    "epochs": 15,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.16, warmup_epochs=0, milestones=(11, 14), weight_decay=1e-4
    ),
    "loop": LONG,
}  # fmt: skip
# google-research/scenic, projects/vivit/configs: SGD, 0.05 and 0.4 for 64 clips, no weight decay.
VIVIT = {
    "model": "vivit_base_16x2_factorized_encoder",
    "data": LabelledDataConfig(frames=32, stride=2, augment=AugmentConfig(flip=True, color_jitter=0.4, grey=0.1)),
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
    "batch_size": 64,
    "epochs": 30,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.2, warmup_learning_rate=0.0, final_learning_rate=0.0, warmup_epochs=2.5,
        weight_decay=0.0, clip_norm=1.0,
    ),
    "loop": LONG,
}  # fmt: skip
# Sense-X/UniFormer, exp/*/run.sh: 1e-4 for 32 videos, repeated twice. Colour jitter is set there, but never used.
UNIFORMER = {
    "model": "uniformer_small_16",
    "data": LabelledDataConfig(frames=16, stride=4, augment=STRONG, repeats=2),
    "drop_path": 0.1,
    "batch_size": 64,
    "epochs": 110,
    "optim": OptimizerConfig(
        learning_rate=4e-4, warmup_learning_rate=4e-6, final_learning_rate=4e-6, warmup_epochs=10, beta2=0.999
    ),
    "loop": LONG,
}
# arXiv:1711.11248 and torchvision's reference: 0.01 for 32 clips, divided by 10 every 10 of 45 epochs. One of their
# epochs has five clips of each video.
R2PLUS1D = {
    "model": "r2plus1d_18",
    "data": LabelledDataConfig(frames=16, size=112, short_side=128, stride=2, augment=AugmentConfig(flip=True)),
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
    "batch_size": 256,
    "epochs": 225,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.08, warmup_epochs=50, milestones=(100, 150, 200), weight_decay=1e-4
    ),
    "loop": LONG,
}

RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos: the recipe of VideoMAE-B with a batch for one accelerator
    "videomae_base_k400": VIDEOMAE_BASE,  # 81.5 after 1600 epochs of pre-training, 5x3 views
    "videomae_large_k400": VIDEOMAE_LARGE,  # 85.2, 5x3 views
    "videomae_base_ssv2": VIDEOMAE_BASE | {"data": SSV2, "epochs": 30},  # 70.8, 2x3 views
    "videomae_large_ssv2": VIDEOMAE_LARGE | {"data": SSV2, "epochs": 30},  # not published: changed as for B
    "timesformer_base_k400": TIMESFORMER,  # 77.9 from ImageNet-21k, 1x3 views
    "vivit_base_fe_k400": VIVIT,  # 78.4 from ImageNet-21k, 4x3 views
    "vivit_large_fe_ssv2": VIVIT | {
        "model": "vivit_large_16x2_factorized_encoder",
        # Scenic's RandAugment magnitude of 20 exceeds the maximum of the scale, 10.
        "data": LabelledDataConfig(
            frames=32, stride=1, size=256, short_side=288,
            augment=AugmentConfig(rand_augment_ops=2, rand_augment_magnitude=10),
        ),
        "drop_path": 0.3,
        "mixup": 0.3,
        "label_smoothing": 0.3,
        "epochs": 35,
        "optim": replace(VIVIT["optim"], learning_rate=1.6),
    },
    "uniformer_small_k400": UNIFORMER,  # 80.8, 4x1 views
    "uniformer_base_k400": UNIFORMER | {"model": "uniformer_base_16", "drop_path": 0.3},  # 82.0, 4x1 views
    "uniformer_small_ssv2": UNIFORMER | {
        "data": SSV2,
        "drop_path": 0.3,
        "epochs": 50,
        "optim": replace(UNIFORMER["optim"], learning_rate=8e-4, warmup_epochs=5),
    },  # 67.7 from K400, 1x3 views
    "uniformer_base_ssv2": UNIFORMER | {
        "model": "uniformer_base_16",
        "data": SSV2,
        "drop_path": 0.4,
        "batch_size": 80,
        "epochs": 50,
        "optim": replace(UNIFORMER["optim"], learning_rate=8e-4, warmup_epochs=5),
    },  # 70.4 from K400, 1x3 views; 2.5e-4 for 40 videos
    "r2plus1d_18_k400": R2PLUS1D,  # 67.5 (torchvision), 5x1 views
}  # fmt: skip
