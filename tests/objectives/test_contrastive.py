"""Contrastive losses and their gradients equal their definitions, also in chunks and on eight devices."""

import re
from functools import cache, partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from vidjax.objectives.contrastive import (
    clamp_scale,
    clamp_temperature,
    enqueue,
    info_nce,
    momentum_info_nce,
    multi_positive_kl,
    query_info_nce,
    sigmoid,
)
from vidjax.training.sharding import batch_sharding, make_mesh

BATCH, WIDTH = 48, 16
SCALE, BIAS = 14.0, -3.0


def make_batch(batch=BATCH, seed=0):
    """Correlated unit embeddings, labels that repeat, and a validity mask with invalid clips."""
    random = np.random.default_rng(seed)
    video = random.normal(size=(batch, WIDTH)) + 0.5
    text = video + random.normal(size=(batch, WIDTH))
    video, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text))
    labels, valid = random.integers(0, 7, batch), np.arange(batch) % 5 != 2
    return jnp.asarray(video, jnp.float32), jnp.asarray(text, jnp.float32), jnp.asarray(labels), jnp.asarray(valid)


VIDEO, TEXT, LABELS, VALID = make_batch()
LOSSES = {
    "info_nce": lambda video, text, scale, bias, labels, valid, chunk: info_nce(video, text, scale, valid, chunk),
    "sigmoid": lambda video, text, scale, bias, labels, valid, chunk: sigmoid(video, text, scale, bias, valid, chunk),
    "released": lambda video, text, scale, bias, labels, valid, chunk: multi_positive_kl(
        video, text, scale, labels, False, valid, chunk
    ),
    "paper": lambda video, text, scale, bias, labels, valid, chunk: multi_positive_kl(
        video, text, scale, labels, True, valid, chunk
    ),
}


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def defined(name, video, text, labels):
    """Each loss as its paper defines it, on whole matrices in float64."""
    cosines = np.asarray(video, np.float64) @ np.asarray(text, np.float64).T
    logits = SCALE * cosines
    if name == "info_nce":
        return -(np.trace(log_softmax(logits)) + np.trace(log_softmax(logits.T))) / 2 / len(logits)
    if name == "sigmoid":
        signs = 2 * np.eye(len(logits)) - 1
        return np.log1p(np.exp(-signs * (logits + BIAS))).sum() / len(logits)
    gt = np.equal.outer(np.asarray(labels), np.asarray(labels)).astype(np.float64)
    target = np.exp(log_softmax(10 * gt)) if name == "released" else gt / gt.sum(axis=1, keepdims=True)
    logs = np.log(np.where(target > 0, target, 1))
    return np.mean([(target * (logs - log_softmax(x))).sum() / len(gt) for x in (logits, logits.T)])


@cache
def gradients(name, chunk):
    """The loss and its gradients with respect to both embeddings, scale and bias, as a function of `arguments`."""
    return jax.jit(jax.value_and_grad(partial(LOSSES[name], chunk=chunk), (0, 1, 2, 3)))


def arguments(video, text, labels, valid):
    return video, text, jnp.float32(SCALE), jnp.float32(BIAS), labels, valid


def values(program, *arrays):
    return jax.device_get(program(*arguments(*arrays)))


def assert_same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("chunk", [None, 12])
@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_equals_its_definition(name, chunk):
    loss = jax.jit(LOSSES[name], static_argnums=6)
    value = loss(VIDEO, TEXT, SCALE, BIAS, LABELS, None, chunk)
    np.testing.assert_allclose(value, defined(name, VIDEO, TEXT, LABELS), rtol=1e-5)
    # Invalid clips are ignored.
    value = loss(VIDEO, TEXT, SCALE, BIAS, LABELS, VALID, chunk)
    np.testing.assert_allclose(value, defined(name, VIDEO[VALID], TEXT[VALID], LABELS[VALID]), rtol=1e-5)


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_each_loss_equals_that_of_transformers(family):
    transformers = peers.transformers()
    import torch

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 99, "max_position_embeddings": 7, "eos_token_id": 98, **size}
    vision = {"image_size": 8, "patch_size": 8, **size}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        ids, pixels = torch.arange(56).reshape(8, 7), torch.randn(8, 3, 8, 8)
        out = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    embeddings = [jnp.asarray(x.numpy()) for x in (out.image_embeds, out.text_embeds)]
    scale = model.logit_scale.exp().item()
    loss = info_nce(*embeddings, scale) if family == "CLIP" else sigmoid(*embeddings, scale, model.logit_bias.item())
    np.testing.assert_allclose(loss, out.loss.numpy(), rtol=1e-5)


def test_the_released_kl_equals_its_pytorch_code():
    """utils/KLLoss.py written in PyTorch's operators: a mean over elements, times the batch."""
    torch = pytest.importorskip("torch")
    gt = torch.from_numpy(np.equal.outer(np.asarray(LABELS), np.asarray(LABELS)).astype(np.float32))
    losses = []
    for logits in (SCALE * VIDEO @ TEXT.T, SCALE * TEXT @ VIDEO.T):
        logs = torch.log_softmax(torch.from_numpy(np.array(logits)), dim=1)
        elements = torch.nn.functional.kl_div(logs, torch.softmax(gt * 10, dim=1), reduction="none")
        losses.append(elements.mean() * len(gt))
    np.testing.assert_allclose(multi_positive_kl(VIDEO, TEXT, SCALE, LABELS), sum(losses).numpy() / 2, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_chunked_loss_has_the_same_gradients(name):
    expected = values(gradients(name, None), VIDEO, TEXT, LABELS, VALID)
    for chunk in (1, 8, BATCH):
        assert_same(values(gradients(name, chunk), VIDEO, TEXT, LABELS, VALID), expected)
    for gradient in expected[1][:2]:
        assert np.abs(gradient[VALID]).max() > 1e-3 and not gradient[~VALID].any()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("name", LOSSES)
def test_eight_devices_give_the_gradients_of_one_and_none_stores_the_matrix(name):
    batch, chunk, devices = 256, 32, 8
    arrays = make_batch(batch)
    expected = values(gradients(name, None), *arrays)
    sharded = [jax.device_put(x, batch_sharding(make_mesh())) for x in arrays]
    largest = {}
    for size in (None, chunk):
        program = gradients(name, size).lower(*arguments(*sharded)).compile()
        assert_same(values(program, *sharded), expected)
        shapes = re.findall(r"\w\d+\[([\d,]+)\]", program.as_text())
        largest[size] = max(prod(map(int, shape.split(","))) for shape in shapes)
    assert largest[None] >= batch * batch // devices
    assert largest[chunk] <= batch * WIDTH  # all captions, and the rows of one chunk of similarities


@pytest.mark.parametrize("chunk", [None, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_valid_clips_gives_zero_and_no_nan(name, chunk):
    nothing = jnp.zeros(BATCH, bool)
    for x in jax.tree.leaves(values(gradients(name, chunk), VIDEO, TEXT, LABELS, nothing)):
        np.testing.assert_array_equal(x, 0)
    # A chunk without valid clips gives no nan either.
    valid = jnp.arange(BATCH) % (BATCH // 8) != 0
    for x in jax.tree.leaves(values(gradients(name, chunk), VIDEO, TEXT, LABELS, valid)):
        assert np.isfinite(x).all()


def test_losses_of_perfect_pairs_and_of_repeated_captions():
    perfect = jnp.eye(8)
    assert info_nce(perfect, perfect, 100.0) < 1e-6
    assert sigmoid(perfect, perfect, 100.0, -50.0) < 1e-6
    assert multi_positive_kl(perfect, perfect, 100.0, jnp.arange(8), normalized=True) < 1e-6
    # Two clips of each of four classes with ideal embeddings: for InfoNCE the other clip of the class is a negative.
    pairs, labels = jnp.repeat(jnp.eye(4), 2, axis=0), jnp.repeat(jnp.arange(4), 2)
    np.testing.assert_allclose(info_nce(pairs, pairs, 100.0), np.log(2), rtol=1e-5)
    np.testing.assert_allclose(multi_positive_kl(pairs, pairs, 100.0, labels, normalized=True), 0, atol=2e-5)
    # The released target is reached at a scale of 10, where it equals the softmax of the logits.
    np.testing.assert_allclose(multi_positive_kl(pairs, pairs, 10.0, labels), 0, atol=2e-5)


def test_half_precision_embeddings_are_compared_in_float32():
    half = VIDEO.astype(jnp.bfloat16), TEXT.astype(jnp.bfloat16)
    loss = partial(info_nce, scale=100.0)
    assert loss(*half).dtype == jnp.float32
    np.testing.assert_allclose(loss(*half), loss(*(x.astype(jnp.float32) for x in half)), rtol=1e-6)


def test_a_chunk_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(ValueError, match="chunk size 10 does not divide the batch of 48"):
        info_nce(VIDEO, TEXT, SCALE, chunk=10)
    with pytest.raises(ValueError, match="chunk size 0 does not divide"):
        sigmoid(VIDEO, TEXT, SCALE, BIAS, chunk=0)


def test_the_scale_is_bounded_and_can_decrease_again():
    for value in (0.0, np.log(1 / 0.07), 4.6):
        np.testing.assert_allclose(clamp_scale(jnp.float32(value)), np.exp(value), rtol=1e-6)
        np.testing.assert_allclose(jax.grad(clamp_scale)(jnp.float32(value)), np.exp(value), rtol=1e-6)
    above = jnp.float32(5.0)
    np.testing.assert_allclose(clamp_scale(above), 100, rtol=1e-5)
    np.testing.assert_allclose(clamp_scale(above, 30.0), 30, rtol=1e-5)
    # Above the bound, gradient descent can lower the scale but not raise it.
    assert jax.grad(lambda x: -clamp_scale(x))(above) == 0
    np.testing.assert_allclose(jax.grad(clamp_scale)(above), 100, rtol=1e-5)


def test_the_temperature_is_bounded_on_both_sides_and_can_leave_both():
    for value, bound, back in ((0.8, 0.5, 1.0), (1e-4, 1e-3, -1.0)):
        value = jnp.float32(value)
        np.testing.assert_allclose(clamp_temperature(value), bound)
        assert jax.grad(lambda x, back=back: back * clamp_temperature(x))(value) == back
        assert jax.grad(lambda x, back=back: -back * clamp_temperature(x))(value) == 0
    assert jax.grad(clamp_temperature)(jnp.float32(0.07)) == 1


def test_momentum_contrast_has_soft_targets_over_valid_keys_and_the_queue():
    query, momentum, keys, queue = (VIDEO[i : i + 12] for i in (0, 12, 24, 36))
    valid = VALID[:12]
    args, settings = (query, momentum, keys, queue), (0.1, 0.3, valid)
    loss, logits = momentum_info_nce(*args, *settings)
    kept = np.asarray(valid)
    columns = np.concatenate([np.asarray(keys)[kept], queue]).astype(np.float64).T
    own, soft = (np.asarray(each, np.float64)[kept] @ columns / 0.1 for each in (query, momentum))
    target = 0.3 * np.exp(log_softmax(soft)) + 0.7 * np.eye(*own.shape)
    np.testing.assert_allclose(loss, -(target * log_softmax(own)).sum(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(logits, np.asarray(query) @ np.asarray(keys).T / 0.1, rtol=1e-4, atol=1e-5)
    gradients = jax.grad(lambda *args: momentum_info_nce(*args, *settings)[0], argnums=(0, 1, 2, 3))(*args)
    assert [bool(gradient.any()) for gradient in gradients] == [True, False, False, False]
    assert not gradients[0][~kept].any() and jnp.isfinite(gradients[0]).all()


def test_new_keys_replace_the_oldest_ones():
    step = jax.jit(enqueue, donate_argnums=0)
    queue = jnp.zeros((6, 1))
    for start in (0, 2, 4, 0):
        rows = jnp.array([[start + 1.0], [start + 2.0]])
        queue = step(queue, jnp.int32(start), rows, jnp.array([True, start != 4]))
    np.testing.assert_array_equal(queue[:, 0], [1, 2, 3, 4, 5, 0])  # the last clip was not valid
    with pytest.raises(ValueError, match="a queue of 6 is not divided by a batch of 4: choose a multiple"):
        enqueue(queue, jnp.int32(0), jnp.zeros((4, 1)), jnp.ones(4, bool))


def test_the_query_nearest_to_the_text_counts_and_targets_are_smoothed():
    draw = np.random.default_rng(5)
    queries, text = draw.normal(size=(4, 3, 6)).astype(np.float32), draw.normal(size=(4, 6)).astype(np.float32)
    valid = np.array([True, True, False, True])
    logits = np.stack([[max(query @ words for query in image) for words in text] for image in queries]) / 0.5
    kept, losses = logits[valid][:, valid], []
    for rows in (kept, kept.T):
        likelihood = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        losses.append(-(0.9 * np.diag(likelihood) + 0.1 * likelihood.mean(axis=1)).mean())
    loss, returned = jax.jit(query_info_nce)(*map(jnp.asarray, (queries, text)), 0.5, jnp.asarray(valid))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(returned, logits, rtol=1e-5)
