"""The loss of each training script equals one computed in NumPy from the model's outputs on pixels scaled by hand.

Nothing here comes from vidjax but the models and which tokens are masked: not the scaling, the targets or the means.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import draw_variables

import vidjax
from vidjax.data.config import CaptionedDataConfig
from vidjax.data.text import open_tokenizer
from vidjax.objectives import masking
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import contrastive_pretrain
import finetune
import mae_pretrain

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
"""Mean and std of the pixels that VideoMAE was trained on."""
HALVES = 0.5, 0.5
"""Those of ViT."""
VALID = np.array([True, False, True, True])
KEY = jax.random.key(0)


def draw_clips(frames, size):
    """Four clips, dark and bright, so that wrong scaling changes the loss."""
    draw = np.random.default_rng(5)
    video = draw.integers(0, 256, (4, frames, size, size, 3)) * draw.uniform(0.2, 1, (4, 1, 1, 1, 3))
    return video.astype(np.uint8)


def scaled(video, mean, std):
    return jnp.asarray((video / 255 - mean) / std, jnp.float32)


def loss_of(loss_fn, variables, batch):
    state = {name: value for name, value in variables.items() if name != "params"}
    return jax.jit(loss_fn)(variables["params"], Aux(state, None, None, 0), batch, KEY)[0]


def log_softmax(logits, axis=-1):
    logits = logits - logits.max(axis=axis, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=axis, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_fine_tuning_loss_is_cross_entropy_with_smooth_labels_over_valid_clips(smoothing):
    model = vidjax.create_model("vit_tiny", num_classes=5, num_frames=2, image_size=32)
    variables = draw_variables(model)
    video, labels = draw_clips(2, 32), np.array([3, -1, 0, 4])
    config = finetune.Config(model="vit_tiny", mixup=0.0, cutmix=0.0, label_smoothing=smoothing)
    loss = loss_of(
        finetune.make_loss(config, model, None), variables, {"video": video, "label": labels, "valid": VALID}
    )
    logits = np.asarray(model.apply(variables, scaled(video, *HALVES)), np.float64)
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(target * log_softmax(logits)).sum(axis=1)[VALID].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_pre_training_loss_is_the_squared_error_of_masked_patches_of_valid_clips(normalize):
    model = vidjax.create_model("videomae_tiny_pretrain")
    variables, grid = draw_variables(model), (4, 3, 3)
    video = draw_clips(8, 48)
    config = mae_pretrain.Config(model="videomae_tiny", mask="random", mask_ratio=0.75, normalize_target=normalize)
    loss = loss_of(mae_pretrain.make_loss(config, model, grid), variables, {"video": video, "valid": VALID})
    kept, masked, _ = masking.draw(jax.random.split(KEY)[0], 4, grid, "random", 0.75)
    predicted = np.asarray(model.apply(variables, scaled(video, *IMAGENET), kept, masked), np.float64)
    errors = []
    for i in range(4):
        for j, token in enumerate(np.asarray(masked[i])):
            t, y, x = np.unravel_index(token, grid)
            patch = video[i, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].reshape(-1, 3) / 255
            if normalize:
                patch = (patch - patch.mean(axis=0)) / (patch.std(axis=0, ddof=1) + 1e-6)
            errors.append(np.square(predicted[i, j] - patch.reshape(-1)).mean())
    expected = np.reshape(errors, (4, -1)).mean(axis=1)[VALID].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("objective", ["info_nce", "sigmoid", "kl", "kl_normalized"])
def test_contrastive_pre_training_compares_the_valid_pairs_of_a_batch(objective):
    config = contrastive_pretrain.Config(
        video_model="vit_tiny",
        text_model="text_tiny",
        features=16,
        data=CaptionedDataConfig(frames=2, size=32, templates="plain"),
        objective=objective,
    )
    model = contrastive_pretrain.make_model(config, open_tokenizer("bytes"))
    variables = draw_variables(model)
    variables["params"]["logit_scale"] = jnp.log(7.0)
    video, labels = draw_clips(2, 32), np.array([2, -1, 2, 0])
    ids = np.random.default_rng(2).integers(1, 256, (4, model.text.context))
    batch = {"video": video, "label": labels, "ids": ids, "valid": VALID}
    loss = loss_of(contrastive_pretrain.make_loss(config, model), variables, batch)
    clips = model.apply(variables, scaled(video, *HALVES), method="embed_video")
    texts = model.apply(variables, jnp.asarray(ids), method="embed_text")
    clips, texts = (np.asarray(each, np.float64)[VALID] for each in (clips, texts))
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([clips, texts]), axis=1), 1, rtol=1e-5)
    logits = 7 * clips @ texts.T
    if objective == "sigmoid":
        logits = np.where(np.eye(3, dtype=bool), 1, -1) * (logits + float(variables["params"]["logit_bias"]))
        expected = np.log1p(np.exp(-logits)).sum(axis=1).mean()
    else:
        equal = np.equal.outer(labels[VALID], labels[VALID]).astype(float)
        target = {"info_nce": np.eye(3), "kl": np.exp(10 * equal), "kl_normalized": equal}[objective]
        target = target / target.sum(axis=1, keepdims=True)
        own = np.where(target > 0, target * np.log(np.where(target > 0, target, 1)), 0).sum(axis=1)
        both = [own - (target * log_softmax(each)).sum(axis=1) for each in (logits, logits.T)]
        expected = np.mean(both)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
