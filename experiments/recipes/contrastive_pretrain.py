"""Recipes of contrastive_pretrain.py."""

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

DEMO = {
    "video_model": "r2plus1d_tiny",
    "text_model": "text_tiny",
    "data": CaptionedDataConfig(
        frames=8,
        size=32,
        short_side=32,
        stride=2,
        augment=AugmentConfig(crop="center"),
        split="compositions_train",
        validation="synthetic:moving_shapes",
        validation_split="compositions_held_out",
        validation_examples=256,
    ),
    "batch_size": 64,
    "steps": 340,
    "optim": OptimizerConfig(
        learning_rate=4e-3, final_learning_rate=4e-5, warmup_epochs=0.3, beta2=0.98, weight_decay=0.05, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=20, save_every=170, evaluate_every=170),
}
# OpenGVLab/InternVideo, CoTrain/config.py, `clip_kc_nc_vtc_choice`: contrast alone, 1e-5 for 256 videos of WebVid-10M,
# with 4000 steps of warm-up; CLIP's text tower is frozen.
INTERNVIDEO_CONTRAST = {
    "video_model": "internvideo_base_16",
    "text_model": None,
    "freeze": "text",
    "data": CaptionedDataConfig(
        frames=8, sampling="segments", short_side=256, augment=AugmentConfig(crop="random_resized", flip=True)
    ),
    "batch_size": 256,
    "epochs": 10,
    "optim": OptimizerConfig(
        learning_rate=1e-5, warmup_learning_rate=0.0, final_learning_rate=0.0, warmup_epochs=0.1, beta2=0.98,
        weight_decay=0.2,
    ),
    "loop": LoopConfig(log_every=50),
}  # fmt: skip
# sallymmx/ActionCLIP, configs/k400 and utils/solver.py: 5e-6 for 128 clips. Differences: the original applies
# RandAugment and colour jitter to each frame separately, not to the whole clip, and decays biases and norms too.
ACTIONCLIP = {
    "video_model": "actionclip_base_16",
    "text_model": None,
    "objective": "kl",
    "data": CaptionedDataConfig(
        frames=8,
        sampling="segments",
        short_side=256,
        templates="actionclip",
        augment=AugmentConfig(
            crop="multi_scale", flip=True, color_jitter=0.4, grey=0.2, rand_augment_ops=2, rand_augment_magnitude=9
        ),
    ),
    "batch_size": 128,
    "epochs": 50,
    "optim": OptimizerConfig(
        learning_rate=1e-5, warmup_learning_rate=0.0, final_learning_rate=0.0, warmup_epochs=5, beta2=0.98,
        weight_decay=0.2,
    ),
    "head_factor": 10.0,
    "loop": LoopConfig(log_every=50),
}  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos
    "actionclip_base_32_k400": ACTIONCLIP | {"video_model": "actionclip_base_32"},  # 78.4, 1x1 views
    "actionclip_base_16_k400": ACTIONCLIP,  # 81.1, 1x1 views, from CLIP's weights
    "internvideo_base": INTERNVIDEO_CONTRAST,
    "internvideo_large": INTERNVIDEO_CONTRAST | {"video_model": "internvideo_large_14"},  # not published: as B
}
