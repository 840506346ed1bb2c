"""Recipes of text_to_image.py."""

from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

# Appendix B.1 and B.2 of the paper: images of 256 pixels, AdamW with betas 0.9 and 0.96 and weight decay 4.5e-2, 4.5e-4
# for 1,024 images with a warm-up of 5,000 steps. Difference: the rate decays by a cosine rather than on plateaus.
FRAMES = CaptionedDataConfig(frames=1, size=256, augment=AugmentConfig(crop="random_resized"))
OPTIMIZER = OptimizerConfig(
    learning_rate=1.1e-4, final_learning_rate=1e-6, warmup_epochs=1, beta2=0.96, weight_decay=4.5e-2, clip_norm=4.0
)
DEMO = {
    "model": "dalle_gpt_tiny",
    "image_tokenizer": "runs/tokenizer",
    "data": CaptionedDataConfig(
        frames=1, size=32, short_side=32, augment=AugmentConfig(crop="center"),
        validation="synthetic:moving_shapes", validation_examples=64,
    ),
    "batch_size": 64,
    "steps": 1500,
    "optim": OptimizerConfig(
        learning_rate=8e-3, final_learning_rate=8e-5, warmup_epochs=0.5, beta2=0.96, weight_decay=4.5e-2, clip_norm=1.0
    ),
    "loop": LoopConfig(log_every=50, save_every=500, evaluate_every=500),
}  # fmt: skip

RECIPES = {"demo": DEMO, "videos": {}}
