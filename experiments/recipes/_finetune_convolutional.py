"""Recipes of finetune.py for convolutional networks, which `recipes.finetune` adds to the others."""

from dataclasses import replace

from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

# See `recipes.finetune` for what all published recipes have in common.
LONG = LoopConfig(log_every=50)
HARD = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "loop": LONG}
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

# mmaction2, configs/recognition: TSN with 0.01 for 256 videos, TSM with 0.02 for 128 and five times as much for the
# head. Differences: the originals decay biases and norms too; and on Something-Something they mirror clips, with the
# labels of left and right exchanged.
SEGMENTS = LabelledDataConfig(
    frames=8, sampling="segments", protocol="mmaction2", short_side=256, augment=AugmentConfig(flip=True)
)
TSN = {
    "model": "tsn_50",
    "data": SEGMENTS,
    **HARD,
    "batch_size": 256,
    "epochs": 100,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.01, warmup_epochs=0, milestones=(40, 80), weight_decay=1e-4, clip_norm=40.0
    ),
}
TSN_FLOW = TSN | {
    "model": "tsn_50_flow",
    "data": replace(
        SEGMENTS, stream="flow", frames=15, consecutive=5, augment=AugmentConfig(crop="random_resized", flip=True)
    ),
    "epochs": 110,
    "optim": replace(TSN["optim"], learning_rate=0.005, milestones=(70, 100)),
}
TSM = TSN | {
    "model": "tsm_50_8",
    "batch_size": 128,
    "epochs": 50,
    "head_factor": 5.0,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.04, warmup_learning_rate=0.004, warmup_epochs=5, milestones=(25, 45),
        weight_decay=1e-4, clip_norm=20.0,
    ),
}  # fmt: skip
UNFLIPPED = replace(SEGMENTS, augment=AugmentConfig())
TSM_SSV2 = TSM | {"model": "tsm_50_8_ssv2", "data": UNFLIPPED, "optim": replace(TSM["optim"], weight_decay=5e-4)}
# mmaction2, configs/recognition/csn: 5e-4 for 96 clips, from weights of IG-65M. Differences: the originals decay biases
# and norms too; and those of `ipcsn_152` and `ircsn_50` keep batch norms as pre-trained.
CSN = {
    "model": "ircsn_152",
    "data": LabelledDataConfig(
        frames=32, stride=2, protocol="mmaction2", short_side=256,
        augment=AugmentConfig(crop="random_resized", flip=True),
    ),
    **HARD,
    "batch_size": 96,
    "epochs": 58,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=5e-4 * 256 / 96, warmup_learning_rate=5e-5 * 256 / 96, warmup_epochs=16,
        milestones=(32, 48), weight_decay=1e-4, clip_norm=40.0,
    ),
}  # fmt: skip
# mmaction2, configs/recognition/i3d: 0.01 for 64 clips. Differences: the original decays biases and norms too, and has
# square crops of 1 or 0.8 times the short side.
I3D_MMACTION2 = CSN | {
    "model": "i3d_50_32x2_mmaction2",
    "data": replace(CSN["data"], augment=AugmentConfig(flip=True)),
    "batch_size": 64,
    "epochs": 100,
    "optim": replace(TSN["optim"], learning_rate=0.04),
}
# mmaction2, configs/recognition/slowonly: 0.2 for 128 clips, or 0.02 from ImageNet; and slowfast: 0.1 for 64, with a
# cosine from the first epoch on. Difference: the originals decay biases and norms too.
SLOW_MMACTION2 = CSN | {
    "model": "slow_50_8x8_mmaction2",
    "data": replace(CSN["data"], frames=8, stride=8),
    "batch_size": 128,
    "epochs": 256,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.4, warmup_learning_rate=0.04, final_learning_rate=0.0, warmup_epochs=34,
        weight_decay=1e-4, clip_norm=40.0,
    ),
}  # fmt: skip
SLOWFAST_MMACTION2 = CSN | {
    "model": "slowfast_50_8x8_mmaction2",
    "batch_size": 64,
    "epochs": 256,
    "optim": replace(SLOW_MMACTION2["optim"], cosine_from_start=True),
}
# facebookresearch/SlowFast, configs/Kinetics: SGD with Nesterov's momentum, 0.1 for 64 clips (X3D: for 128), and a
# cosine from the first epoch on. Networks of 101 layers have their configs in configs/Kinetics/pytorchvideo; that of
# `c2d_50_nopool` is for tests, with these values. Differences: the original resizes the short side to a random 256 to
# 320 pixels (X3D-XS and S: 182 to 228, L: 356 to 446, `slowfast_101_16x8`: 256 to 360) before cropping; it decays the
# biases of the head and of non-local blocks; and before every test it computes the means and variances of batch norm
# from 200 batches ("precise BN"), in place of our running averages.
SLOWFAST = {
    "model": "slowfast_50_8x8",
    "data": LabelledDataConfig(frames=32, stride=2, fps=30 / 2, protocol="slowfast", augment=AugmentConfig(flip=True)),
    **HARD,
    "batch_size": 64,
    "epochs": 196,
    "optim": OptimizerConfig(
        kind="sgd", nesterov=True, learning_rate=0.4, warmup_learning_rate=0.04, final_learning_rate=0.0,
        warmup_epochs=34, cosine_from_start=True, weight_decay=1e-4,
    ),
}  # fmt: skip
EIGHT = replace(SLOWFAST["data"], frames=8, stride=8, fps=30 / 8)
# The configs `*_IN1K`: 0.01 for 64 clips from weights of ImageNet, inflated.
FROM_IMAGENET = {
    "epochs": 118,
    "optim": OptimizerConfig(
        kind="sgd", nesterov=True, learning_rate=0.04, warmup_epochs=0, milestones=(44, 88), weight_decay=1e-4
    ),
}
# configs/SSv2/SLOWFAST_16x8_R50.yaml: 0.03 for 16 clips, from `slowfast_50_8x8_k400`.
SLOWFAST_SSV2 = SLOWFAST | {
    "model": "slowfast_50_16x8",
    "data": LabelledDataConfig(frames=64, sampling="segments", protocol="slowfast"),
    "batch_size": 16,
    "epochs": 22,
    "optim": OptimizerConfig(
        kind="sgd", nesterov=True, learning_rate=0.48, warmup_learning_rate=1.6e-3, warmup_epochs=0.19,
        milestones=(14, 18), weight_decay=1e-6,
    ),
}  # fmt: skip
X3D = SLOWFAST | {
    "model": "x3d_m",
    "data": replace(SLOWFAST["data"], frames=16, stride=5, fps=30 / 5),
    "batch_size": 128,
    "epochs": 300,
    "optim": replace(
        SLOWFAST["optim"], learning_rate=0.2, warmup_learning_rate=0.02, warmup_epochs=35, weight_decay=5e-5
    ),
}
X3D_SMALL = replace(X3D["data"], frames=13, stride=6, fps=30 / 6, size=160, short_side=182)
# LisaAnne/lisa-caffe-public, examples/LRCN_activity_recognition: 0.001 for 24 clips, a tenth every 10,000 steps, and
# weights after 30,000, which are 75 epochs of UCF101's first split; ten times as much for the head. It starts from a
# network of single frames (`--init_from`). Differences: the original crops at one scale, has twice the rate for biases,
# and averages the losses of the frames instead of their probabilities.
LRCN = {
    "model": "lrcn",
    "data": LabelledDataConfig(frames=16, stride=1, size=227, short_side=240, augment=AugmentConfig(flip=True)),
    **HARD,
    "batch_size": 24,
    "epochs": 75,
    "head_factor": 10.0,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.001 * 256 / 24, warmup_epochs=0, milestones=(25, 50), weight_decay=5e-3,
        clip_norm=5.0,
    ),
}  # fmt: skip
# Karpathy et al. 2014, section 4.1: 0.001 for 32 clips, lowered by hand when the validation error stopped improving;
# crops of 170 of 200 pixels. Differences: the numbers of epochs are ours, as none is given, and crops have many scales.
DEEPVIDEO = LRCN | {
    "model": "deepvideo_slow",
    "data": LabelledDataConfig(frames=10, stride=1, size=170, short_side=200, augment=AugmentConfig(flip=True)),
    "batch_size": 32,
    "epochs": 30,
    "head_factor": 1.0,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.001 * 256 / 32, warmup_epochs=0, milestones=(15, 25), weight_decay=5e-4
    ),
}

RECIPES = {
    "deepvideo_single_sports1m": DEEPVIDEO | {
        "model": "deepvideo_single",
        "data": replace(DEEPVIDEO["data"], frames=1),
    },  # 59.3, 20x4 views
    "deepvideo_early_sports1m": DEEPVIDEO | {"model": "deepvideo_early"},  # 57.7, 20x4 views
    "deepvideo_late_sports1m": DEEPVIDEO | {
        "model": "deepvideo_late",
        "data": replace(DEEPVIDEO["data"], frames=16),
    },  # 59.3, 20x4 views
    "deepvideo_slow_sports1m": DEEPVIDEO,  # 60.9, 20x4 views
    "lrcn_ucf101": LRCN,  # table 1 of the paper, 16 frames every 8 with 10 crops
    "r2plus1d_18_k400": R2PLUS1D,  # 67.5 (torchvision), 5x1 views
    "tsn_50_k400": TSN,  # 74.12 from ImageNet, 25x10 views
    "tsn_101_k400": TSN | {"model": "tsn_101"},  # 75.89 from ImageNet, 25x10 views
    "tsn_50_flow_k400": TSN_FLOW,  # of optical flow in records; no figure is published
    "tsn_50_ssv2": TSN | {
        "data": UNFLIPPED,
        "dropout": 0.5,
        "epochs": 50,
        "optim": replace(TSN["optim"], milestones=(20, 40)),
    },  # 35.51 from ImageNet, 25x10 views
    "tsm_50_k400": TSM,  # 73.18 from ImageNet, 1x10 views
    "tsm_50_16_k400": TSM | {
        "model": "tsm_50_16",
        "data": replace(SEGMENTS, frames=16),
    },  # 75.12 from ImageNet, 1x10 views
    "tsm_50_ssv2": TSM_SSV2,  # 62.72 from ImageNet, 1x3 views
    "tsm_50_16_ssv2": TSM_SSV2 | {
        "model": "tsm_50_16_ssv2",
        "data": replace(UNFLIPPED, frames=16),
    },  # 64.16 from ImageNet, 1x3 views
    "tsm_101_ssv2": TSM_SSV2 | {"model": "tsm_101_8_ssv2"},  # 63.70 from ImageNet, 1x3 views
    "ircsn_50_k400": CSN | {"model": "ircsn_50"},  # 79.44 from IG-65M, 10x3 views
    "ircsn_152_k400": CSN,  # 82.87 from IG-65M, 10x3 views
    "ipcsn_152_k400": CSN | {"model": "ipcsn_152"},  # 82.68 from IG-65M, 10x3 views
    "ircsn_101_k400": SLOWFAST | {"model": "ircsn_101_pytorchvideo", "dropout": 0.5},  # 77.0, 10x3 views
    "c2d_50_k400": SLOWFAST | {"model": "c2d_50_8x8", "data": EIGHT},  # 71.46 (PyTorchVideo), 10x3 views
    "c2d_50_nopool_k400": SLOWFAST | {"model": "c2d_50_8x8_nopool", "data": EIGHT},  # 67.2, 10x3 views
    "c2d_50_nonlocal_k400": SLOWFAST | {
        "model": "c2d_50_8x8_nonlocal",
        "data": EIGHT,
    },  # no figure is published
    "c2d_50_k400_from_imagenet": SLOWFAST | FROM_IMAGENET | {
        "model": "c2d_50_8x8",
        "data": EIGHT,
    },  # no figure is published
    "c2d_50_nonlocal_k400_from_imagenet": SLOWFAST | FROM_IMAGENET | {
        "model": "c2d_50_8x8_nonlocal",
        "data": EIGHT,
    },  # no figure is published
    "i3d_50_k400": SLOWFAST | {"model": "i3d_50_8x8", "data": EIGHT},  # 73.5, 10x3 views
    "i3d_50_nonlocal_k400": SLOWFAST | {"model": "i3d_50_8x8_nonlocal", "data": EIGHT},  # 74.0, 10x3 views
    "i3d_50_k400_from_imagenet": SLOWFAST | FROM_IMAGENET | {
        "model": "i3d_50_8x8",
        "data": EIGHT,
    },  # no figure is published
    "i3d_50_nonlocal_k400_from_imagenet": SLOWFAST | FROM_IMAGENET | {
        "model": "i3d_50_8x8_nonlocal",
        "data": EIGHT,
    },  # no figure is published
    "i3d_50_32x2_mmaction2_k400": I3D_MMACTION2,  # 73.47 from ImageNet, 10x3 views
    "slow_50_4x16_k400": SLOWFAST | {
        "model": "slow_50_4x16",
        "data": replace(EIGHT, frames=4, stride=16, fps=30 / 16),
    },  # 72.7, 10x3 views
    "slow_50_k400": SLOWFAST | {"model": "slow_50_8x8", "data": EIGHT},  # 74.8, 10x3 views
    "slow_50_nonlocal_k400": SLOWFAST | {
        "model": "slow_50_8x8_nonlocal",
        "data": EIGHT,
    },  # no figure is published
    "slow_50_mmaction2_k400": SLOW_MMACTION2,  # 75.15, 10x3 views
    "slow_50_mmaction2_k400_from_imagenet": SLOW_MMACTION2 | {
        "epochs": 150,
        "optim": OptimizerConfig(
            kind="sgd", learning_rate=0.04, warmup_learning_rate=0.004, warmup_epochs=10, milestones=(90, 130),
            weight_decay=1e-4, clip_norm=40.0,
        ),
    },  # 76.45 from ImageNet, 10x3 views
    "slowfast_50_4x16_k400": SLOWFAST | {"model": "slowfast_50_4x16"},  # 75.6, 10x3 views
    "slowfast_50_8x8_k400": SLOWFAST,  # 77.0, 10x3 views
    "slowfast_101_8x8_k400": SLOWFAST | {"model": "slowfast_101_8x8"},  # 77.90, 10x3 views
    "slowfast_101_16x8_k400": SLOWFAST | {
        "model": "slowfast_101_16x8_50_50",
        "data": replace(SLOWFAST["data"], frames=64),
    },  # 78.70, 10x3 views
    "slowfast_50_16x8_ssv2": SLOWFAST_SSV2,  # 63.0 from K400, 1x1 views
    "slowfast_50_4x16_mmaction2_k400": SLOWFAST_MMACTION2 | {
        "model": "slowfast_50_4x16_mmaction2",
    },  # 75.55, 10x3 views
    "slowfast_50_8x8_mmaction2_k400": SLOWFAST_MMACTION2,  # 76.8, 10x3 views
    "slowfast_101_8x8_mmaction2_k400": SLOWFAST_MMACTION2 | {
        "model": "slowfast_101_8x8_mmaction2",
    },  # 78.65, 10x3 views
    "x3d_xs_k400": X3D | {
        "model": "x3d_xs",
        "data": replace(X3D_SMALL, frames=4, stride=12, fps=30 / 12),
    },  # 69.5, 10x3 views
    "x3d_s_k400": X3D | {"model": "x3d_s", "data": X3D_SMALL},  # 73.5, 10x3 views
    "x3d_m_k400": X3D,  # 76.2, 10x3 views
    "x3d_l_k400": X3D | {
        "model": "x3d_l",
        "data": replace(X3D["data"], size=312, short_side=356),
        "batch_size": 64,
        "epochs": 256,
        "optim": replace(X3D["optim"], warmup_learning_rate=0.04),
    },  # 77.5, 10x3 views; 0.05 for 64 clips
}  # fmt: skip
