"""Mixed clips keep their labels' shares, valid clips are never mixed with invalid ones, and cross-entropy is Optax'."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidjax.objectives.classification import cross_entropy, cutmix_box, mix_clips, soft_labels

CLASSES = 5
LABELS = jnp.array([0, 1, 2, 3, 4, 0])
VALID = jnp.array([True, True, True, True, False, True])
# Each clip is of one value, so that a mixed pixel tells the share of the clip's own.
VIDEO = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None, None], (6, 2, 16, 12, 3))
mix = jax.jit(mix_clips, static_argnums=(4, 5, 6, 7))


def test_smoothing_spreads_its_share_over_all_classes():
    soft = soft_labels(LABELS, CLASSES, 0.1)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(soft[0], [0.92, 0.02, 0.02, 0.02, 0.02], atol=1e-6)
    np.testing.assert_allclose(soft, optax.smooth_labels(jax.nn.one_hot(LABELS, CLASSES), 0.1), atol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_are_mixed_by_the_share_of_the_pixels(mixup, cutmix):
    targets, seen = soft_labels(LABELS, CLASSES), []
    for seed in range(20):
        video, mixed = mix(jax.random.key(seed), VIDEO, targets, VALID, mixup, cutmix, 1.0, 0.5)
        assert (video == video[:, :1]).all()  # alike in every frame
        partner = np.arange(6)[::-1]
        own = (np.asarray(video).mean(axis=(1, 2, 3, 4)) - partner) / (np.arange(6) - partner)
        expected = targets * own[:, None] + targets[::-1] * (1 - own[:, None])
        np.testing.assert_allclose(mixed, expected, atol=1e-5)
        np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-5)
        # Clip 4 is not valid, so its partner, clip 1, stays; clip 4 itself counts nowhere.
        np.testing.assert_array_equal(video[1], VIDEO[1])
        np.testing.assert_array_equal(mixed[1], targets[1])
        values = np.unique(np.asarray(video)[0])
        seen.append("box" if set(values) <= {0.0, 5.0} else "blend")
    expected_kinds = {name for name, alpha in (("blend", mixup), ("box", cutmix)) if alpha}
    assert set(seen) == expected_kinds


def test_nothing_is_mixed_when_both_are_off_or_the_coin_says_no():
    targets = soft_labels(LABELS, CLASSES)
    for settings in ((0.0, 0.0, 1.0, 0.5), (0.8, 1.0, 0.0, 0.5)):
        video, mixed = mix(jax.random.key(0), VIDEO, targets, VALID, *settings)
        np.testing.assert_array_equal(video, VIDEO)
        np.testing.assert_array_equal(mixed, targets)


def test_a_cutmix_box_has_its_area_on_average_unless_the_border_cuts_it():
    boxes = jax.vmap(lambda key: cutmix_box(key, jnp.asarray(0.25), 32, 32))(jax.random.split(jax.random.key(0), 200))
    areas = np.asarray(boxes).mean(axis=(1, 2))
    assert areas.max() == 0.25 and 0.0 < areas.min() < 0.25
    rows, columns = np.asarray(boxes).any(axis=2), np.asarray(boxes).any(axis=1)
    for box, row, column in zip(np.asarray(boxes), rows, columns, strict=True):
        np.testing.assert_array_equal(box, row[:, None] & column[None, :])  # a rectangle
    assert 0.4 < np.asarray(boxes).mean(axis=0)[16, 16] / 0.25 < 2.5


def test_cross_entropy_is_of_soft_labels_and_computed_in_float32():
    logits = jnp.array([[2.0, -1.0, 0.5, 0.0, 3.0]] * 6, jnp.bfloat16)
    targets = soft_labels(LABELS, CLASSES, 0.2)
    loss = cross_entropy(logits, targets)
    assert loss.dtype == jnp.float32
    expected = optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    np.testing.assert_allclose(loss, expected, atol=1e-6)
