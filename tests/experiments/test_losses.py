"""The loss of each training script equals one computed in NumPy from the model's outputs on pixels scaled by hand.

Nothing here comes from vidjax but the models and which tokens are masked: not the scaling, the targets or the means.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipe
from small_runs import draw_variables

import vidjax
from vidjax.convert import from_state_dict
from vidjax.data.config import CaptionedDataConfig, DataConfig
from vidjax.data.text import open_tokenizer
from vidjax.objectives import masking
from vidjax.runs.cross_model import make_cross_model, trained_parts
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import contrastive_pretrain
import cross_model
import finetune
import mae_pretrain
import video_language_pretrain

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


@pytest.mark.parametrize(("objective", "smoothing"), [("cross_entropy", 0.3), ("evidential", 0.0)])
def test_fine_tuning_loss_is_the_objective_with_smooth_labels_over_valid_clips(objective, smoothing):
    model = vidjax.create_model("vit_tiny", num_classes=5, num_frames=2, image_size=32)
    variables = draw_variables(model)
    video, labels = draw_clips(2, 32), np.array([3, -1, 0, 4])
    config = finetune.Config(model="vit_tiny", mixup=0.0, cutmix=0.0, objective=objective, label_smoothing=smoothing)
    loss = loss_of(
        finetune.make_loss(config, model, None), variables, {"video": video, "label": labels, "valid": VALID}
    )
    logits = np.asarray(jax.jit(model.apply)(variables, scaled(video, *HALVES)), np.float64)
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    alpha = 1 + np.exp(logits)
    scores = {"cross_entropy": log_softmax(logits), "evidential": np.log(alpha / alpha.sum(axis=1, keepdims=True))}
    expected = -(target * scores[objective]).sum(axis=1)[VALID].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_fine_tuning_loss_shares_the_target_among_the_hashtags_of_a_clip():
    model = vidjax.create_model("vit_tiny", num_classes=5, num_frames=2, image_size=32)
    variables, video = draw_variables(model), draw_clips(2, 32)
    tags = np.array([[3, 0, -1], [-1, -1, -1], [4, 2, 1], [1, -1, -1]])
    config = finetune.Config(model="vit_tiny", mixup=0.0, cutmix=0.0, hashtags="all", label_smoothing=0.2)
    batch = {"video": video, "label": tags[:, 0], "hashtags": tags, "valid": VALID}
    loss = loss_of(finetune.make_loss(config, model, None), variables, batch)
    target = np.array([[0.5, 0, 0, 0.5, 0], [0, 0, 0, 0, 0], [0, 1 / 3, 1 / 3, 0, 1 / 3], [0, 1, 0, 0, 0]])
    target = 0.8 * target + 0.2 / 5
    scores = log_softmax(np.asarray(jax.jit(model.apply)(variables, scaled(video, *HALVES)), np.float64))
    np.testing.assert_allclose(loss, -(target * scores).sum(axis=1)[VALID].mean(), rtol=1e-5)


def test_cross_model_loss_is_cross_entropy_of_the_weighted_scores_each_with_its_normalisation():
    fields = {"width": 16, "depth": 1, "heads": 2, "num_classes": 5, "num_frames": 2, "image_size": 32}
    masked, other = vidjax.create_model("videomae_tiny", **fields), vidjax.create_model("vit_tiny", **fields)
    config = cross_model.Config(label_smoothing=0.3)
    model = make_cross_model(masked, other, (1,), tuple("abcde"))
    variables, trained = draw_variables(model), trained_parts(model)
    params = variables["params"]
    for part in ("inward_1", "outward"):  # without interaction
        params[part] |= {"attention_gate": jnp.zeros(()), "mlp_gate": jnp.zeros(())}
    params["score_weights"] = jnp.asarray([0.7, 1.1])
    video, labels = draw_clips(2, 32), np.array([3, -1, 0, 4])
    loss = loss_of(
        cross_model.make_loss(config, model, trained), variables, {"video": video, "label": labels, "valid": VALID}
    )
    scores = [
        np.asarray(jax.jit(each.apply)({"params": params[name]}, scaled(video, *pixels)), np.float64)
        for each, name, pixels in ((masked, "masked", IMAGENET), (other, "contrastive", HALVES))
    ]
    target = 0.7 * np.eye(5)[labels] + 0.3 / 5
    expected = -(target * log_softmax(0.7 * scores[0] + 1.1 * scores[1])).sum(axis=1)[VALID].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(("normalize", "epsilon"), [(True, 1e-6), (True, 0.2), (False, 1e-6)])
def test_masked_pre_training_loss_is_the_squared_error_of_masked_patches_of_valid_clips(normalize, epsilon):
    model = vidjax.create_model("videomae_tiny_pretrain")
    variables, grid = draw_variables(model), (4, 3, 3)
    video = draw_clips(8, 48)
    fields = {"data": DataConfig(frames=8, size=48), "mask": "random", "mask_ratio": 0.75}
    fields |= {"normalize_target": normalize, "target_epsilon": epsilon}
    config = mae_pretrain.Config(model="videomae_tiny", **fields)
    task = mae_pretrain.make_task(config, model)
    loss = loss_of(mae_pretrain.make_loss(model, task), variables, {"video": video, "valid": VALID})
    kept, masked, _ = masking.draw(jax.random.split(KEY)[0], 4, grid, "random", 0.75)
    predicted = np.asarray(jax.jit(model.apply)(variables, scaled(video, *IMAGENET), kept, masked), np.float64)
    errors = []
    for i in range(4):
        for j, token in enumerate(np.asarray(masked[i])):
            t, y, x = np.unravel_index(token, grid)
            patch = video[i, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].reshape(-1, 3) / 255
            if normalize:
                patch = (patch - patch.mean(axis=0)) / (patch.std(axis=0, ddof=1) + epsilon)
            errors.append(np.square(predicted[i, j] - patch.reshape(-1)).mean())
    expected = np.reshape(errors, (4, -1)).mean(axis=1)[VALID].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_masked_pre_training_of_hiera_has_the_squared_error_of_first_frames_in_masked_units():
    model, size = vidjax.create_model("hiera_tiny_mae"), 64
    variables, video = draw_variables(model), draw_clips(4, size)
    fields = {"data": DataConfig(frames=4, size=size), "mask": "random", "mask_ratio": 0.7}
    task = mae_pretrain.make_task(mae_pretrain.Config(model="hiera_tiny", **fields), model)
    loss = loss_of(mae_pretrain.make_loss(model, task), variables, {"video": video, "valid": VALID})
    keys = jax.random.split(jax.random.split(KEY)[0], 4)
    kept = jax.vmap(lambda key: masking.units(key, (2, 2, 2), 0.7))(keys)
    assert kept.shape == (4, 2)  # of eight
    pixels = scaled(video, (0.45,) * 3, (0.225,) * 3)
    predicted = np.asarray(jax.jit(model.apply)(variables, pixels, kept), np.float64).reshape(4, 2, 4, 4, -1)
    errors = [[] for _ in video]
    for i, t, y, x in np.ndindex(4, 2, 4, 4):
        if np.ravel_multi_index((t, y // 2, x // 2), (2, 2, 2)) not in kept[i]:
            patch = np.asarray(pixels, np.float64)[i, 2 * t, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].reshape(-1)
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            errors[i].append(np.square(predicted[i, t, y, x] - patch).mean())
    np.testing.assert_allclose(loss, np.mean(errors, axis=1)[VALID].mean(), rtol=1e-5)


def test_dual_masking_has_the_loss_and_the_gradient_of_the_original(monkeypatch):
    """A whole training step of VideoMAE V2."""
    golden = recipe.load("videomae_v2_step")
    c, (video, hidden, not_predicted) = golden.config, golden.inputs
    model = vidjax.create_model(
        "videomae_tiny_pretrain", width=c["D"], depth=c["L"], heads=c["H"], decoder_width=c["dD"],
        decoder_depth=c["dL"], decoder_heads=c["dH"], patch_size=(2, c["P"], c["P"]),
    )  # fmt: skip
    kept, masked, predicted = (
        jnp.asarray([np.flatnonzero(row) for row in rows]) for rows in (~hidden, hidden, ~not_predicted)
    )
    counted = jnp.stack([masking.membership(*each, hidden.shape[1]) for each in zip(predicted, masked, strict=True)])
    monkeypatch.setattr(masking, "draw", lambda *_: (kept, predicted, counted))
    config = mae_pretrain.Config(data=DataConfig(frames=8, size=4 * c["P"]), decoder_mask="running_cell")
    loss_fn = mae_pretrain.make_loss(model, mae_pretrain.make_task(config, model))
    batch = {"video": jnp.asarray(video), "valid": jnp.ones(2, bool)}
    step = jax.jit(jax.value_and_grad(lambda params, batch: loss_fn(params, Aux({}, None, None, 0), batch, KEY)[0]))
    loss, gradient = step(from_state_dict(model, golden.weights, strict=True)["params"], batch)
    np.testing.assert_allclose(loss, golden.outputs["loss"], rtol=1e-5)
    np.testing.assert_allclose(optax.global_norm(gradient), golden.outputs["gradient_norm"], rtol=1e-5)


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


def test_captions_are_contrasted_and_predicted_word_by_word():
    config = video_language_pretrain.Config(
        video_model="vit_tiny",
        text_model="text_tiny",
        context=6,
        decoder_depth=1,
        data=CaptionedDataConfig(frames=2, size=32),
    )
    model = video_language_pretrain.make_model(config, open_tokenizer("bytes"))
    variables = draw_variables(model)
    variables["params"]["logit_scale"] = jnp.log(7.0)
    video, ids = draw_clips(2, 32), np.array([[257, 3, 4, 258, 0, 0]] * 3 + [[257, 9, 8, 7, 6, 258]], np.int32)
    batch = {"video": video, "ids": ids, "valid": VALID}
    loss = loss_of(video_language_pretrain.make_loss(config, model), variables, batch)
    clips, seen, texts, read = model.apply(variables, scaled(video, *HALVES), jnp.asarray(ids), method="align")
    clips, texts = (np.asarray(each, np.float64)[VALID] for each in (clips, texts))
    logits = 7 * clips @ texts.T
    contrast = -(np.trace(log_softmax(logits)) + np.trace(log_softmax(logits.T))) / 2 / len(logits)
    words = log_softmax(np.asarray(model.apply(variables, read, seen, method="words"), np.float64))
    likelihoods = [words[i, j, ids[i, j + 1]] for i in np.flatnonzero(VALID) for j in range(5) if ids[i, j + 1]]
    np.testing.assert_allclose(loss, contrast - np.mean(likelihoods), rtol=1e-5)
