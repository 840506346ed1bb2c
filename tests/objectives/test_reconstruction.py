import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.layers.patches import patchify
from vidjax.objectives.reconstruction import paint, pixel_targets, reconstruction_loss

SHAPE, PATCH = (2, 4, 6, 8, 3), (2, 3, 2)


@pytest.fixture(scope="module")
def pair():
    """Predicted and true patches of three clips, and which of them count."""
    predicted, target = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 5, 7)), jnp.float32)
    return predicted, target, jnp.array([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(0).random(SHAPE, np.float32))


def naive_targets(video: np.ndarray, normalize: bool) -> np.ndarray:
    """Patch by patch, as the paper defines it."""
    targets = []
    for clip in video:
        for t in range(0, SHAPE[1], PATCH[0]):
            for y in range(0, SHAPE[2], PATCH[1]):
                for x in range(0, SHAPE[3], PATCH[2]):
                    patch = clip[t : t + PATCH[0], y : y + PATCH[1], x : x + PATCH[2]].reshape(-1, SHAPE[4])
                    if normalize:
                        patch = (patch - patch.mean(0)) / (np.sqrt(patch.var(0, ddof=1)) + 1e-6)
                    targets.append(patch.reshape(-1))
    return np.stack(targets).reshape(SHAPE[0], -1, int(np.prod(PATCH)) * SHAPE[4])


@pytest.mark.parametrize("normalize", [True, False])
def test_targets_equal_a_plain_loop(video, normalize):
    targets = jax.jit(pixel_targets, static_argnums=(1, 2))
    expected = naive_targets(np.asarray(video, np.float64), normalize)
    np.testing.assert_allclose(targets(video, PATCH, normalize), expected, atol=1e-5)


def test_a_patch_of_one_colour_has_target_zero():
    np.testing.assert_array_equal(pixel_targets(jnp.full(SHAPE, 0.5), PATCH), 0.0)


def test_targets_and_loss_are_float32(video):
    targets = pixel_targets(video.astype(jnp.bfloat16), PATCH)
    assert targets.dtype == jnp.float32
    assert reconstruction_loss(targets.astype(jnp.bfloat16), targets).dtype == jnp.float32


def test_loss_is_the_mean_square_of_each_clip(pair):
    predicted, target, _ = pair
    expected = np.square(np.asarray(predicted) - np.asarray(target)).mean(axis=(1, 2))
    np.testing.assert_allclose(reconstruction_loss(predicted, target), expected, rtol=1e-6)


def test_only_counted_tokens_count(pair):
    predicted, target, counted = pair
    rows = np.square(np.asarray(predicted) - np.asarray(target)).mean(axis=2)
    loss = reconstruction_loss(predicted, target, counted)
    np.testing.assert_allclose(loss, [rows[0, [0, 2]].mean(), rows[1].mean(), 0.0], rtol=1e-6)


def test_no_gradient_comes_from_tokens_that_do_not_count(pair):
    gradient = jax.jit(jax.grad(lambda *pair: reconstruction_loss(*pair).sum()))(*pair)
    counted = np.asarray(pair[2], bool)
    assert not np.asarray(gradient)[~counted].any() and np.asarray(gradient)[counted].all()


@pytest.mark.parametrize(("normalize", "epsilon"), [(True, 1e-6), (True, 0.2), (False, 1e-6)])
def test_painting_the_true_target_reproduces_the_video(video, normalize, epsilon):
    indices = jnp.array([[0, 5, 3], [7, 2, 11]])
    target = jnp.take_along_axis(pixel_targets(video, PATCH, normalize, epsilon), indices[..., None], axis=1)
    painted = jax.jit(paint, static_argnums=(3, 4, 5))(video, target, indices, PATCH, normalize, epsilon)
    np.testing.assert_allclose(painted, video, atol=1e-5)


def test_painting_touches_only_its_indices(video):
    indices = jnp.array([[0, 5, 3], [7, 2, 11]])
    patches = patchify(video, PATCH)
    painted = paint(video, jnp.full((2, 3, patches.shape[-1]), 9.0), indices, PATCH, normalized=False)
    changed = np.asarray((patchify(painted, PATCH) != patches).any(axis=-1))
    expected = np.zeros_like(changed)
    np.put_along_axis(expected, np.asarray(indices), True, axis=1)
    np.testing.assert_array_equal(changed, expected)
