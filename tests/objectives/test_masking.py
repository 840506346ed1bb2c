import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.objectives.masking import MASKS, draw, frame, membership, random, running_cell, tube

GRID = (4, 6, 10)
TOKENS = 4 * 6 * 10
RATIOS = (0.1, 0.3, 0.5, 0.75, 0.9, 0.95)


def as_mask(masked) -> np.ndarray:
    """A boolean mask `t (h w)` of the masked tokens."""
    mask = np.zeros(TOKENS, bool)
    mask[np.asarray(masked)] = True
    return mask.reshape(GRID[0], -1)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_kept_and_masked_partition_the_tokens_in_order(name, ratio):
    kept, masked = MASKS[name](jax.random.key(0), GRID, ratio)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, masked])), np.arange(TOKENS))
    assert (np.diff(kept) > 0).all() and (np.diff(masked) > 0).all()


@pytest.mark.parametrize("ratio", RATIOS)
def test_tube_mask_is_equal_at_every_time(ratio):
    mask = as_mask(tube(jax.random.key(1), GRID, ratio)[1])
    assert (mask == mask[0]).all() and mask[0].sum() == int(ratio * 60)


@pytest.mark.parametrize("ratio", RATIOS)
def test_random_mask_counts_tokens_of_the_whole_clip(ratio):
    mask = as_mask(random(jax.random.key(1), GRID, ratio)[1])
    assert mask.sum() == int(ratio * TOKENS) and not (mask == mask[0]).all()


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 0.9])
def test_frame_mask_masks_whole_times(ratio):
    mask = as_mask(frame(jax.random.key(1), GRID, ratio)[1])
    assert (mask.all(axis=1) | ~mask.any(axis=1)).all() and mask[:, 0].sum() == int(ratio * 4)


def test_published_counts_of_tube_masking():
    kept, masked = jax.eval_shape(lambda key: tube(key, (8, 14, 14), 0.9), jax.random.key(0))
    assert (kept.shape, masked.shape) == ((160,), (1408,))
    assert jax.eval_shape(lambda key: tube(key, (8, 14, 14), 0.75), jax.random.key(0))[0].shape == (392,)


@pytest.mark.parametrize("draw", [lambda key: tube(key, GRID, 0.5), lambda key: random(key, GRID, 0.5)])
def test_mask_is_a_function_of_its_key(draw):
    np.testing.assert_array_equal(draw(jax.random.key(0))[1], draw(jax.random.key(0))[1])
    masks = jax.vmap(lambda key: draw(key)[1])(jax.random.split(jax.random.key(0), 8))
    assert len({tuple(mask) for mask in np.asarray(masks).tolist()}) == 8


def test_every_position_is_masked_as_often_as_others():
    masks = jax.vmap(lambda key: tube(key, (1, 6, 10), 0.5)[1])(jax.random.split(jax.random.key(0), 2000))
    frequency = np.bincount(np.asarray(masks).ravel(), minlength=60) / 2000
    assert np.abs(frequency - 0.5).max() < 0.06  # five standard deviations


@pytest.mark.parametrize(("ratio", "kind"), [(0.0, "masked"), (0.01, "masked"), (1.0, "visible"), (1.5, "visible")])
def test_mask_that_leaves_nothing_is_refused(ratio, kind):
    message = f"mask ratio {ratio} leaves no {kind} positions (of 60): choose another ratio or larger clips"
    with pytest.raises(ValueError, match=re.escape(message)):
        tube(jax.random.key(0), GRID, ratio)


@pytest.mark.usefixtures("unchecked")
def test_unknown_masks_are_refused():
    with pytest.raises(ValueError, match="unknown mask 'block': choose one of tube, random, frame"):
        draw(jax.random.key(0), 1, GRID, "block")
    with pytest.raises(ValueError, match="unknown decoder_mask 'cell': choose none or running_cell"):
        draw(jax.random.key(0), 1, GRID, decoder_mask="cell")


def original_running_cell(start: int) -> np.ndarray:
    """VideoMAE v2: a queue of two masked and two kept positions rotates in each 2x2 cell, a step before each time."""
    queue = np.array([True, True, False, False])
    times = [np.roll(queue, -(start + time + 1)).reshape(2, 2) for time in range(GRID[0])]
    return np.stack([np.tile(cell, (GRID[1] // 2, GRID[2] // 2)).ravel() for cell in times])


def test_running_cell_equals_the_original():
    masks = jax.jit(jax.vmap(lambda key: running_cell(key, GRID)))(jax.random.split(jax.random.key(0), 64))
    kept = {np.asarray(mask).tobytes() for mask in masks}
    originals = [np.flatnonzero(~original_running_cell(start)).astype(np.int32) for start in range(4)]
    assert kept == {original.tobytes() for original in originals}


def test_running_cell_keeps_half_of_each_time_and_moves():
    mask = as_mask(jax.jit(lambda key: running_cell(key, GRID))(jax.random.key(0)))
    assert (mask.sum(axis=1) == 30).all()
    assert (mask[1:] != mask[:-1]).any(axis=1).all()
    assert (mask.sum(axis=0) == 2).all()  # in four times each position is kept twice


def test_dual_masks_have_the_statistics_of_the_original():
    """Of 10,000 draws: what each token's masks share, and how often each start occurs, to five standard deviations."""
    count = 10_000
    kept, predicted, counted = jax.jit(lambda key: draw(key, count, GRID, "tube", 0.9, "running_cell"))(
        jax.random.key(0)
    )
    rng, masks = np.random.default_rng(0), np.ones((2, count, TOKENS), bool)
    np.put_along_axis(masks[0], np.asarray(kept), False, axis=1)
    np.put_along_axis(masks[1], np.asarray(predicted), False, axis=1)
    tubes = rng.permuted(np.tile(np.arange(60) < 54, (count, 1)), axis=1)
    cells = np.stack([original_running_cell(start).ravel() for start in range(4)])
    original = np.stack([np.tile(tubes, (1, GRID[0])), cells[rng.integers(0, 4, count)]])
    assert (masks.sum(axis=2) == original.sum(axis=2)).all()
    assert (counted.sum(axis=1) == (original[0] & ~original[1]).sum(axis=1)).all()  # equal in all clips
    for actual, expected in zip((*masks, masks[0] & ~masks[1]), (*original, original[0] & ~original[1]), strict=True):
        np.testing.assert_allclose(actual.mean(axis=0), expected.mean(axis=0), atol=5 * (0.5 / count) ** 0.5)
    starts = [(masks[1] == cell).all(axis=1).mean() for cell in cells]
    np.testing.assert_allclose(starts, 0.25, atol=5 * (0.1875 / count) ** 0.5)


def test_running_cell_needs_an_even_grid():
    with pytest.raises(ValueError, match="even grid of patches, not 5 by 10"):
        running_cell(jax.random.key(0), (4, 5, 10))


def test_membership_equals_isin():
    rng = np.random.default_rng(0)
    indices, of = rng.permutation(TOKENS)[:100], rng.permutation(TOKENS)[:50]
    members = membership(jnp.asarray(indices), jnp.asarray(of), TOKENS)
    np.testing.assert_array_equal(members, np.isin(indices, of).astype(int))


@pytest.mark.parametrize("mask", MASKS)
def test_every_clip_of_a_batch_draws_its_own_mask(mask):
    kept, predicted, counted = draw(jax.random.key(0), 3, (4, 4, 4), mask, 0.5)
    assert kept.shape == (3, 32) and counted.all()
    for clip in range(3):
        assert sorted([*kept[clip].tolist(), *predicted[clip].tolist()]) == list(range(64))
    assert len({tuple(row.tolist()) for row in kept}) == 3


def test_with_a_running_cell_only_tokens_hidden_from_the_encoder_count():
    kept, predicted, counted = draw(jax.random.key(0), 2, (4, 4, 4), "tube", 0.75, "running_cell")
    for clip in range(2):
        seen = np.isin(np.asarray(predicted[clip]), np.asarray(kept[clip]))
        np.testing.assert_array_equal(np.asarray(counted[clip]), ~seen)
        assert len(predicted[clip]) == 32 and seen.any()
