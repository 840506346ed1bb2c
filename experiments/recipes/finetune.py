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

# Published recipes. Learning rates are for a batch of 256 clips, including repeats. `protocol` is that of the test
# (`data.sampling`). `fps` is for originals that count the stride at 30 frames per second; it takes precedence over it.
STRONG = AugmentConfig(
    crop="random_resized", flip=True, rand_augment_ops=4, rand_augment_magnitude=7, random_erasing=0.25
)
LONG = LoopConfig(log_every=50)
# MCG-NJU/VideoMAE, scripts/kinetics and scripts/ssv2: 64 GPUs with 6 (B) or 2 (L) videos each, repeated twice.
VIDEOMAE_BASE = {
    "model": "videomae_base",
    "data": LabelledDataConfig(
        frames=16, stride=4, protocol="videomae", short_side=256, augment=STRONG, repeats=2
    ),
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
    frames=16, sampling="segments", protocol="videomae", short_side=256, augment=replace(STRONG, flip=False), repeats=2
)
# OpenGVLab/VideoMAEv2, scripts/finetune/vit_g_*: 32 GPUs with 3 videos each, repeated twice. Kinetics-710 starts from
# `hybrid_giant_1200` of mae_pretrain.py, and what says `from_k710` from the result: on Kinetics with --keep_head,
# for the rows of its head, elsewhere with a new one.
VIDEOMAE_GIANT = VIDEOMAE_BASE | {
    "model": "videomae_v2_giant",
    "drop_path": 0.3,
    "batch_size": 192,
    "epochs": 35,
    "optim": OptimizerConfig(
        learning_rate=5e-4, warmup_learning_rate=0.0, final_learning_rate=5e-7, warmup_epochs=5, beta2=0.999,
        weight_decay=0.1, layer_decay=0.9,
    ),
    "remat": "blocks",
}  # fmt: skip
GIANT_FROM_K710 = VIDEOMAE_GIANT | {
    "drop_path": 0.25,
    "epochs": 3,
    "optim": replace(VIDEOMAE_GIANT["optim"], learning_rate=5e-6, warmup_epochs=1),
}
GIANT_SMALL_SET = VIDEOMAE_GIANT | {
    "drop_path": 0.35,
    "dropout": 0.5,
    "batch_size": 48,
    "epochs": 50,
    "optim": replace(VIDEOMAE_GIANT["optim"], weight_decay=0.05),
}
# facebookresearch/TimeSformer, configs/Kinetics: SGD, 0.005 for 8 clips. Differences: the original resizes the short
# side to a random 256 to 320 pixels before cropping, and decays biases and norms too.
TIMESFORMER = {
    "model": "timesformer_base_divided",
    "data": LabelledDataConfig(frames=8, stride=32, fps=30 / 32, protocol="slowfast", augment=AugmentConfig(flip=True)),
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
    "data": LabelledDataConfig(frames=16, stride=4, protocol="slowfast_offset", augment=STRONG, repeats=2),
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

# mmaction2, configs/recognition: TSN with 0.01 for 256 videos, TSM with 0.02 for 128 and five times as much for the
# head. Difference: the originals decay biases and norms too.
HARD = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "loop": LONG}
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
# mmaction2, configs/recognition/csn: 5e-4 for 96 clips, from weights of IG-65M.
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
# facebookresearch/SlowFast, configs/Kinetics: SGD with Nesterov's momentum, 0.1 for 64 clips (X3D: for 128), and a
# cosine from the first epoch on. Differences: the original resizes the short side to a random 256 to 320 pixels (X3D-S:
# 182 to 228) before cropping; it decays the bias of the head; and before every test it computes the means and variances
# of batch norm from 200 batches ("precise BN"), in place of our running averages.
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
X3D = SLOWFAST | {
    "model": "x3d_m",
    "data": replace(SLOWFAST["data"], frames=16, stride=5, fps=30 / 5),
    "batch_size": 128,
    "epochs": 300,
    "optim": replace(
        SLOWFAST["optim"], learning_rate=0.2, warmup_learning_rate=0.02, warmup_epochs=35, weight_decay=5e-5
    ),
}
# The same, configs/Kinetics/MVIT*: 1e-4 for 16 videos, each twice.
MVIT = {
    "model": "mvit_base_16x4",
    "data": LabelledDataConfig(frames=16, stride=4, fps=30 / 4, protocol="slowfast_offset", augment=STRONG, repeats=2),
    "drop_path": 0.2,
    "batch_size": 32,
    "epochs": 200,
    "optim": OptimizerConfig(
        learning_rate=8e-4, warmup_learning_rate=8e-6, final_learning_rate=8e-6, warmup_epochs=30, beta2=0.999,
        clip_norm=1.0,
    ),
    "loop": LONG,
}  # fmt: skip
# mmaction2, configs/recognition/swin: 1e-3 for 64 clips, a tenth of it for all but the head. Difference: the original
# does not decay the tables of relative positions.
SWIN = {
    "model": "video_swin_t",
    "data": CSN["data"],
    **HARD,
    "drop_path": 0.1,
    "batch_size": 64,
    "epochs": 30,
    "head_factor": 10.0,
    "optim": OptimizerConfig(
        learning_rate=4e-4, warmup_learning_rate=4e-5, final_learning_rate=0.0, warmup_epochs=2.5, beta2=0.999,
        weight_decay=0.02,
    ),
}  # fmt: skip
# amazon-science/gluonmm, scripts/action_recognition: 0.01 for 24 clips. Differences: the original resizes the short
# side to a random 256 to 320 pixels before cropping, decays biases and norms too, spreads the frames of a training clip
# up to its last one, and has dropout of 0.1 inside blocks.
VIDTR = {
    "model": "vidtr_s",
    "data": LabelledDataConfig(frames=8, stride=8, short_side=256, augment=AugmentConfig(flip=True)),
    **HARD,
    "batch_size": 24,
    "epochs": 50,
    "optim": OptimizerConfig(
        kind="sgd", learning_rate=0.01 * 256 / 24, warmup_epochs=0, milestones=(25, 40), weight_decay=1e-5
    ),
}

# OpenGVLab/UniFormerV2, exp/*/run.sh, from CLIP or Kinetics-710: 1e-5 for 256 videos, and for 128 on
# Something-Something 4e-5 (B) or 2e-5 (L), repeated twice. Colour jitter is set there, but never used. What says
# `from_k710` starts with --keep_head: DATASET.md maps the head of Kinetics-710 to the target's classes, as the configs
# for Kinetics-600 and 700 do, while most of those for Kinetics-400 delete it. Differences: the original decays the
# queries, and drops branches of more than one clip at once (see the model).
UNIFORMERV2 = {
    "model": "uniformerv2_base_16",
    "data": LabelledDataConfig(
        frames=8, sampling="segments", protocol="slowfast_offset", augment=replace(STRONG, random_erasing=0.0)
    ),
    **HARD,
    "batch_size": 256,
    "epochs": 55,
    "optim": OptimizerConfig(
        learning_rate=1e-5, warmup_learning_rate=1e-6, final_learning_rate=1e-6, warmup_epochs=5, beta2=0.999,
        clip_norm=20.0,
    ),
}  # fmt: skip
UNIFORMERV2_SSV2 = UNIFORMERV2 | {
    "model": "uniformerv2_base_16_ssv2",
    "data": replace(
        SSV2, protocol="slowfast_offset", short_side=None, augment=replace(STRONG, flip=False, random_erasing=0.0)
    ),
    "epochs": 22,
    "optim": replace(UNIFORMERV2["optim"], learning_rate=4e-5),
}

RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos: the recipe of VideoMAE-B with a batch for one accelerator
    "videomae_base_k400": VIDEOMAE_BASE,  # 81.5 after 1600 epochs of pre-training, 5x3 views
    "videomae_large_k400": VIDEOMAE_LARGE,  # 85.2, 5x3 views
    "videomae_base_ssv2": VIDEOMAE_BASE | {"data": SSV2, "epochs": 30},  # 70.8, 2x3 views
    "videomae_large_ssv2": VIDEOMAE_LARGE | {"data": SSV2, "epochs": 30},  # not published: changed as for B
    "videomae_v2_giant_k710": VIDEOMAE_GIANT | {
        "optim": replace(VIDEOMAE_GIANT["optim"], clip_norm=5.0)
    },  # 83.8, 5x3 views
    "videomae_v2_giant_k400": VIDEOMAE_GIANT | {
        "drop_path": 0.2,
        "batch_size": 384,
        "epochs": 30,
    },  # 87.2, 5x3 views; 64 GPUs
    "videomae_v2_giant_k400_from_k710": GIANT_FROM_K710,  # 88.4, 5x3 views
    "videomae_v2_giant_k600_from_k710": GIANT_FROM_K710,  # 88.8, 5x3 views
    "videomae_v2_giant_ssv2": VIDEOMAE_GIANT | {
        "data": SSV2,
        "drop_path": 0.25,
        "epochs": 20,
        "optim": replace(VIDEOMAE_GIANT["optim"], learning_rate=1.5e-4, weight_decay=0.05),
    },  # 77.0, 2x3 views
    "videomae_v2_giant_ucf101_from_k710": GIANT_SMALL_SET,  # 99.6, 5x3 views
    "videomae_v2_giant_hmdb51_from_k710": GIANT_SMALL_SET | {
        "data": replace(VIDEOMAE_BASE["data"], stride=2),
        "epochs": 15,
        "optim": replace(GIANT_SMALL_SET["optim"], learning_rate=2.5e-4),
    },  # 88.1, 5x3 views
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
        "data": replace(SSV2, protocol="slowfast_offset"),
        "drop_path": 0.3,
        "epochs": 50,
        "optim": replace(UNIFORMER["optim"], learning_rate=8e-4, warmup_epochs=5),
    },  # 67.7 from K400, 1x3 views
    "uniformer_base_ssv2": UNIFORMER | {
        "model": "uniformer_base_16",
        "data": replace(SSV2, protocol="slowfast_offset"),
        "drop_path": 0.4,
        "batch_size": 80,
        "epochs": 50,
        "optim": replace(UNIFORMER["optim"], learning_rate=8e-4, warmup_epochs=5),
    },  # 70.4 from K400, 1x3 views; 2.5e-4 for 40 videos
    "uniformerv2_base_k400": UNIFORMERV2,  # 84.4 from CLIP, 4x3 views
    "uniformerv2_base_k710": UNIFORMERV2,  # from CLIP, for the recipes `from_k710`; no figure is published
    "uniformerv2_large_k710": UNIFORMERV2 | {
        "model": "uniformerv2_large_14",
        "batch_size": 512,
        "epochs": 40,
        "optim": replace(UNIFORMERV2["optim"], learning_rate=5e-6),  # 1e-5 for 512 videos
    },
    "uniformerv2_base_k400_from_k710": UNIFORMERV2 | {
        "epochs": 5,
        "optim": replace(UNIFORMERV2["optim"], learning_rate=2e-6, warmup_epochs=1),
    },  # 85.6, 4x3 views
    "uniformerv2_large_k400_from_k710": UNIFORMERV2 | {
        "model": "uniformerv2_large_14",
        "epochs": 5,
        "optim": replace(UNIFORMERV2["optim"], learning_rate=1.5e-6, warmup_epochs=1),
    },  # 88.8, 4x3 views
    "uniformerv2_large_336_frozen_k400": UNIFORMERV2 | {
        "model": "uniformerv2_large_14_336_frozen",
        "data": replace(UNIFORMERV2["data"], size=336),
        "batch_size": 512,
        "epochs": 50,
        # 8e-4 for 512 videos
        "optim": replace(UNIFORMERV2["optim"], learning_rate=4e-4, final_learning_rate=5e-7, warmup_epochs=0),
    },  # 86.7 from CLIP, 3x1 views
    "uniformerv2_base_ssv2": UNIFORMERV2_SSV2,  # 69.5 from CLIP, 1x3 views
    "uniformerv2_large_ssv2": UNIFORMERV2_SSV2 | {
        "model": "uniformerv2_large_14_ssv2",
        "optim": replace(UNIFORMERV2["optim"], learning_rate=2e-5),
    },  # 72.1 from CLIP, 1x3 views
    "r2plus1d_18_k400": R2PLUS1D,  # 67.5 (torchvision), 5x1 views
    "tsn_50_k400": TSN,  # 74.12 from ImageNet, 25x10 views
    "tsn_50_flow_k400": TSN_FLOW,  # of optical flow in records; no figure is published
    "tsm_50_k400": TSM,  # 73.18 from ImageNet, 1x10 views
    "ircsn_152_k400": CSN,  # 82.87 from IG-65M, 10x3 views
    "slow_50_k400": SLOWFAST | {"model": "slow_50_8x8", "data": EIGHT},  # 74.8, 10x3 views
    "i3d_50_k400": SLOWFAST | {"model": "i3d_50_8x8", "data": EIGHT},  # 73.5, 10x3 views
    "slowfast_50_4x16_k400": SLOWFAST | {"model": "slowfast_50_4x16"},  # 75.6, 10x3 views
    "slowfast_50_8x8_k400": SLOWFAST,  # 77.0, 10x3 views
    "x3d_s_k400": X3D | {
        "model": "x3d_s",
        "data": replace(X3D["data"], frames=13, stride=6, fps=30 / 6, size=160, short_side=182),
    },  # 73.5, 10x3 views
    "x3d_m_k400": X3D,  # 76.2, 10x3 views
    "mvit_base_k400": MVIT,  # 78.4, 5x1 views
    "mvitv2_small_k400": MVIT | {"model": "mvitv2_small_16x4"},  # 81.0, 5x1 views
    "vidtr_s_k400": VIDTR,  # 77.7 from ImageNet-21k, 10x3 views
    "video_swin_t_k400": SWIN,  # 78.9 from ImageNet, 4x3 views
    "video_swin_b_k400": SWIN | {
        "model": "video_swin_b",
        "drop_path": 0.3,
        "optim": replace(SWIN["optim"], weight_decay=0.05),
    },  # 80.57 from ImageNet, 4x3 views
}  # fmt: skip
