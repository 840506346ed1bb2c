"""Recipes of video_language_pretrain.py."""

from dataclasses import replace

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

CLIPS = CaptionedDataConfig(
    frames=8, size=32, short_side=32, stride=2, augment=AugmentConfig(crop="center"),
    split="compositions_train",
    validation="synthetic:moving_shapes", validation_split="compositions_held_out", validation_examples=256,
)  # fmt: skip
DEMO = {
    "video_model": "r2plus1d_tiny",
    "text_model": "text_tiny",
    "decoder_depth": 2,
    "data": CLIPS,
    "batch_size": 64,
    "steps": 340,
    "optim": OptimizerConfig(
        learning_rate=4e-3, final_learning_rate=4e-5, warmup_epochs=0.3, beta2=0.98, weight_decay=0.05, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=20, save_every=170, evaluate_every=170),
}
# OpenGVLab/InternVideo, CoTrain/config.py, `clip_kc_new_B16_vtc_cap_3plusM_choice`: AdamW 1e-4 (L: 8e-5) for what is
# new, the decoder and UniFormerV2's global blocks, and a tenth of it for CLIP; 4000 steps of warm-up, cosine, weight
# decay 0.2, 6 blocks, batches of 128 x 32. Differences: images and videos do not alternate; its decoder has CoCa's
# parallel blocks and sees 256 pooled tokens of the video; in L, blocks 12 to 23 of CLIP learn at the full rate.
INTERNVIDEO = {
    "video_model": "internvideo_base_16",
    "text_model": None,
    "decoder_factor": 10.0,
    "data": CaptionedDataConfig(
        frames=8, sampling="segments", short_side=256, augment=AugmentConfig(crop="random_resized", flip=True)
    ),
    "batch_size": 4096,
    "epochs": 10,
    "optim": OptimizerConfig(
        learning_rate=6.25e-7, warmup_learning_rate=0.0, final_learning_rate=0.0, warmup_epochs=1, beta2=0.98,
        weight_decay=0.2,
    ),
    "loop": LoopConfig(log_every=50),
}  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "videos": {},  # the user's videos
    "internvideo_base": INTERNVIDEO,
    "internvideo_large": INTERNVIDEO
    | {
        "video_model": "internvideo_large_14",
        "optim": replace(INTERNVIDEO["optim"], learning_rate=5e-7),
    },
}
