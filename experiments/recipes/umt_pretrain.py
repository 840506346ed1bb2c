"""Recipes of umt_pretrain.py."""

from vidjax.data.config import AugmentConfig, DataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

SEGMENTS = DataConfig(frames=8, sampling="segments", augment=AugmentConfig(crop="multi_scale", flip=True))
K710 = {"data": SEGMENTS, "batch_size": 2048, "epochs": 201, "loop": LoopConfig(save_every=1000)}

# OpenGVLab/unmasked_teacher, single_modality/exp/pretraining, with the top-1 accuracy on K400 after fine-tuning.
RECIPES = {
    "demo": {
        "model": "umt_tiny",
        "data": DataConfig(frames=8, size=32, short_side=32, stride=2, augment=AugmentConfig(crop="center")),
        "layers": 2,
        "batch_size": 16,
        "epochs": 2,
        "optim": OptimizerConfig(learning_rate=1.6e-2, final_learning_rate=1.6e-4, warmup_epochs=0.2),
    },
    "videos": {},  # the user's videos: the published optimiser with a batch for one accelerator
    "k710_base": K710,  # 87.4; the teacher is CLIP's ViT-B/16
    "k710_large": K710 | {"model": "umt_large"},  # 90.3; the teacher is CLIP's ViT-L/14, at 196 pixels
}
