"""Recipes of mae_pretrain.py."""

from dataclasses import replace

from vidjax.data.config import AugmentConfig, DataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "model": "videomae_tiny",
    "data": DataConfig(frames=8, size=48, short_side=48, stride=2, augment=AugmentConfig(crop="center")),
    "mask": "random",  # such a small model learns faster with it than with tubes
    "mask_ratio": 0.75,
    # Most patches are flat. Normalised to a std of 1 as published, the loss stays at 1.0 for 500 to 1,500 steps.
    "target_epsilon": 0.2,
    "batch_size": 16,
    "epochs": 4,
    "optim": OptimizerConfig(
        learning_rate=3.2e-2, final_learning_rate=1.6e-4, warmup_epochs=0.2, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=50, save_every=500, evaluate_every=500),
    "probe_clips": 2048,
}  # fmt: skip
K400 = {
    "batch_size": 2048,
    "epochs": 1600,
    "loop": LoopConfig(log_every=50, save_every=1000, evaluate_every=5000),
}
SSV2 = K400 | {"data": DataConfig(stride=2), "epochs": 2400}
# OpenGVLab/VideoMAEv2, scripts/pretrain: 1e-3 (giant: 6e-4) for 256 videos, of each of which four clips are made, so
# that 300 passes over the videos count as 1200 epochs. Difference: the original samples Something-Something at a stride
# of 2 and the other data sets at 4; here the stride, or --data.fps, is that of the whole mix.
HYBRID = {
    "data": DataConfig(repeats=4),
    "decoder_mask": "running_cell",
    "batch_size": 4096,
    "epochs": 200,
    "optim": OptimizerConfig(
        learning_rate=2.5e-4, warmup_learning_rate=0.0, final_learning_rate=2.5e-6, warmup_epochs=20
    ),
    "loop": K400["loop"],
}  # fmt: skip
HYBRID_GIANT = HYBRID | {
    "model": "videomae_v2_giant",
    "batch_size": 8192,
    "epochs": 300,
    "optim": replace(HYBRID["optim"], learning_rate=1.5e-4, warmup_epochs=30, clip_norm=0.02),
    "remat": "blocks",
}

# Published recipes (MCG-NJU/VideoMAE, scripts/pretrain and MODEL_ZOO.md), with the top-1 accuracy after fine-tuning.
RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos: the published optimiser with a batch for one accelerator
    "k400_small_1600": K400 | {"model": "videomae_small", "batch_size": 1024},  # 79.0
    "k400_base_800": K400 | {"epochs": 800},  # 81.0
    "k400_base_1600": K400,  # 81.5
    "k400_large_1600": K400 | {"model": "videomae_large"},  # 85.2
    "k400_huge_1600": K400 | {"model": "videomae_huge"},  # 86.6
    "ssv2_small_2400": SSV2 | {"model": "videomae_small", "batch_size": 1024},  # 66.8
    "ssv2_base_800": SSV2 | {"epochs": 800},  # 69.6
    "ssv2_base_2400": SSV2,  # 70.8
    # The first stage of VideoMAE V2; `videomae_v2_giant_k710` and `_k400_from_k710` of finetune.py are the others.
    "hybrid_base_800": HYBRID,  # the zoo has no figure
    "hybrid_giant_1200": HYBRID_GIANT,  # 87.2, or 88.4 after K710
}
