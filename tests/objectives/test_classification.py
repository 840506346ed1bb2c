"""Labels are mixed in the proportion of the pixels, and valid clips never with invalid ones; the evidential loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.objectives.classification import cutmix_box, evidential, mix_clips, targets_of

CLASSES = 5
LABELS = jnp.array([0, 1, 2, 3, 4, 0])
VALID = jnp.array([True, True, True, True, False, True])
# Each clip has one constant value, from which the mixing weight of a pixel can be read.
VIDEO = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None, None], (6, 2, 16, 12, 3))
mix = jax.jit(mix_clips, static_argnums=(4, 5))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_are_mixed_in_proportion_to_the_pixels(mixup, cutmix):
    targets, seen = jax.nn.one_hot(LABELS, CLASSES), []
    for seed in range(20):
        video, mixed = mix(jax.random.key(seed), VIDEO, targets, VALID, mixup, cutmix)
        assert (video == video[:, :1]).all()  # the same in every frame
        partner = np.arange(6)[::-1]
        own = (np.asarray(video).mean(axis=(1, 2, 3, 4)) - partner) / (np.arange(6) - partner)
        expected = targets * own[:, None] + targets[::-1] * (1 - own[:, None])
        np.testing.assert_allclose(mixed, expected, atol=1e-5)
        np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-5)
        # Clip 4 is not valid, so its partner, clip 1, is not mixed; clip 4 itself does not count.
        np.testing.assert_array_equal(video[1], VIDEO[1])
        np.testing.assert_array_equal(mixed[1], targets[1])
        values = set(np.unique(np.asarray(video)[0]).tolist())
        seen.append("nothing" if values == {0.0} else "box" if values <= {0.0, 5.0} else "blend")
    kinds = [name for name, alpha in (("blend", mixup), ("box", cutmix)) if alpha]
    assert set(seen) - {"nothing"} == set(kinds) and seen.count("nothing") < 4  # the smallest boxes are empty
    assert all(seen.count(kind) > 5 for kind in kinds)  # if both are enabled, each applies to half of the batches


def test_nothing_is_mixed_when_both_are_off():
    targets = jax.nn.one_hot(LABELS, CLASSES)
    video, mixed = mix(jax.random.key(0), VIDEO, targets, VALID, 0.0, 0.0)
    np.testing.assert_array_equal(video, VIDEO)
    np.testing.assert_array_equal(mixed, targets)


def test_a_cutmix_box_has_its_area_unless_the_border_clips_it():
    boxes = jax.vmap(lambda key: cutmix_box(key, jnp.asarray(0.25), 32, 32))(jax.random.split(jax.random.key(0), 200))
    areas = np.asarray(boxes).mean(axis=(1, 2))
    assert areas.max() == 0.25 and 0.0 < areas.min() < 0.25
    rows, columns = np.asarray(boxes).any(axis=2), np.asarray(boxes).any(axis=1)
    for box, row, column in zip(np.asarray(boxes), rows, columns, strict=True):
        np.testing.assert_array_equal(box, row[:, None] & column[None, :])  # a rectangle
    assert 0.4 < np.asarray(boxes).mean(axis=0)[16, 16] / 0.25 < 2.5


def test_the_target_is_shared_by_the_hashtags_of_a_clip():
    tags = jnp.array([[2, 0, 3], [1, -1, -1], [-1, -1, -1]])
    expected = np.array([[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(targets_of({"label": tags[:, 0], "hashtags": tags}, 4), expected, rtol=1e-6)
    np.testing.assert_array_equal(targets_of({"label": jnp.array([1, -1])}, 3), [[0, 1, 0], [0, 0, 0]])


def test_the_evidential_loss_equals_a_case_computed_by_hand():
    # Evidence 1, 3 and 0 (almost), so alpha is 2, 4 and 1 of 7; beyond the bound, evidence is exp(10) or exp(-10).
    logits = jnp.array([[0.0, np.log(3), -50.0], [50.0, 0.0, 0.0]])
    low, high = np.exp(-10), np.exp(10)
    expected = [0.25 * np.log((7 + low) / 2) + 0.75 * np.log((7 + low) / 4), np.log((high + 5) / 2)]
    targets = jnp.array([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(evidential(logits, targets), expected, rtol=1e-6)
