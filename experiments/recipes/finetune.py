"""Recipes of finetune.py."""

from dataclasses import replace

from recipes import _finetune_convolutional as convolutional
from recipes import _finetune_demos as demos
from recipes._finetune_convolutional import CSN, HARD, LONG
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.training.optimizer import OptimizerConfig

# Published recipes. Learning rates are for a batch of 256 clips, including repeats. `protocol` is that of the test
# (`data.sampling`). `fps` is for originals that count the stride at 30 frames per second; it takes precedence over it.
STRONG = AugmentConfig(
    crop="random_resized", flip=True, rand_augment_ops=4, rand_augment_magnitude=7, random_erasing=0.25
)
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
# facebookresearch/SlowFast, configs/Kinetics/MVIT*: 1e-4 for 16 videos, each twice.
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
MVIT_32X3 = MVIT | {
    "model": "mvit_base_32x3",
    "data": replace(MVIT["data"], frames=32, stride=3, fps=30 / 3),
    "drop_path": 0.3,
}
# configs/SSv2/MVITv2_*, from the weights of Kinetics-400: SGD with Nesterov's momentum, 0.0025 (S) or 0.0015 (B) for 16
# videos, 0.00125 (L) for 8. Difference: the original resizes the short side to a random 256 to 320 pixels (L: 356 to
# 446) before cropping.
MVIT_SSV2 = MVIT | {
    "model": "mvitv2_small_16x4",
    "data": replace(
        SSV2, protocol="slowfast_offset", augment=replace(STRONG, crop="multi_scale", flip=False), repeats=1
    ),
    "drop_path": 0.4,
    "batch_size": 16,
    "epochs": 100,
    "optim": OptimizerConfig(
        kind="sgd", nesterov=True, learning_rate=0.04, warmup_learning_rate=1.6e-3, final_learning_rate=1.6e-5,
        warmup_epochs=3, weight_decay=1e-4,
    ),
}  # fmt: skip
# mmaction2, configs/recognition/mvit: 9.6e-3 for 256 videos, each twice, from weights of MaskFeat.
MVIT_MASKFEAT = MVIT | {
    "model": "mvitv2_small_16x4_maskfeat",
    "data": LabelledDataConfig(
        frames=16, stride=4, protocol="mmaction2", short_side=256, augment=replace(STRONG, rand_augment_ops=2),
        repeats=2,
    ),
    "drop_path": 0.1,
    "batch_size": 512,
    "epochs": 100,
    "optim": OptimizerConfig(
        learning_rate=4.8e-3, warmup_learning_rate=8e-6, final_learning_rate=8e-6, warmup_epochs=20, beta2=0.999,
        clip_norm=5.0, layer_decay=0.75,
    ),
}  # fmt: skip
# mmaction2, configs/recognition/swin: 1e-3 for 64 clips, a tenth of it for all but the head. Those from ImageNet-22k
# and on Something-Something, which starts from the former: SwinTransformer/Video-Swin-Transformer, 3e-4 for 64 (its
# issue 59). L: mmaction2. Difference: the originals do not decay the tables of relative positions.
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
SWIN_FROM_22K = SWIN | {
    "model": "video_swin_b",
    "data": replace(SWIN["data"], protocol="video_swin"),
    "drop_path": 0.2,
    "optim": replace(SWIN["optim"], learning_rate=1.2e-4, warmup_learning_rate=1.2e-5, weight_decay=0.05),
}
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
    **demos.RECIPES,
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
    "mvit_base_k400": MVIT,  # 78.4, 5x1 views
    "mvit_base_32x3_k400": MVIT_32X3,  # 80.4, 5x1 views
    "mvit_base_32x3_k600": MVIT_32X3,  # 83.9, 5x1 views
    "mvitv2_small_k400": MVIT | {"model": "mvitv2_small_16x4"},  # 81.0, 5x1 views
    "mvitv2_small_maskfeat_k400": MVIT_MASKFEAT,  # 81.8 from MaskFeat, 10x1 views
    "mvitv2_base_k400": MVIT_32X3 | {"model": "mvitv2_base_32x3"},  # 82.9, 5x1 views
    "mvitv2_small_ssv2": MVIT_SSV2,  # 68.2 from K400, 1x3 views
    "mvitv2_base_ssv2": MVIT_SSV2 | {
        "model": "mvitv2_base_32x3",
        "data": replace(MVIT_SSV2["data"], frames=32),
        "optim": replace(MVIT_SSV2["optim"], learning_rate=0.024),
    },  # 70.5 from K400, 1x3 views
    "mvitv2_large_ssv2": MVIT_SSV2 | {
        "model": "mvitv2_large_40x3",
        "data": replace(MVIT_SSV2["data"], frames=40, size=312, short_side=356),
        "mixup": 0.0,
        "cutmix": 0.0,
        "drop_path": 0.75,
        "batch_size": 8,
        "epochs": 40,
        "optim": replace(
            MVIT_SSV2["optim"], warmup_learning_rate=3.2e-5, final_learning_rate=3.2e-5, clip_norm=2.0
        ),
        "remat": "blocks",
    },  # 73.3 from ImageNet-21k and K400, 1x3 views
    "vidtr_s_k400": VIDTR,  # 77.7 from ImageNet-21k, 10x3 views
    "video_swin_t_k400": SWIN,  # 78.9 from ImageNet, 4x3 views
    "video_swin_s_k400": SWIN | {"model": "video_swin_s", "drop_path": 0.2},  # 80.54 from ImageNet, 4x3 views
    "video_swin_b_k400": SWIN | {
        "model": "video_swin_b",
        "drop_path": 0.3,
        "optim": replace(SWIN["optim"], weight_decay=0.05),
    },  # 80.57 from ImageNet, 4x3 views
    "video_swin_b_k400_from_22k": SWIN_FROM_22K,  # 82.7 from ImageNet-22k, 4x3 views
    "video_swin_b_k600_from_22k": SWIN_FROM_22K,  # 84.0 from ImageNet-22k, 4x3 views
    "video_swin_l_k400": SWIN | {
        "model": "video_swin_l",
        "drop_path": 0.4,
        "optim": replace(SWIN["optim"], weight_decay=0.05),
    },  # 83.46 from ImageNet-22k, 4x3 views
    "video_swin_b_ssv2": SWIN_FROM_22K | {
        "model": "video_swin_b_16",
        "data": replace(SSV2, frames=32, protocol="video_swin", repeats=1),
        "label_smoothing": 0.1,
        "drop_path": 0.4,
        "epochs": 60,
    },  # 69.6 from K400, 1x3 views
}  # fmt: skip
RECIPES |= convolutional.RECIPES
