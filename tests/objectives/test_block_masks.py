"""Block-wise masks: the statistics are those of the originals' generators, written again here with NumPy."""

import math
from functools import partial

import jax
import numpy as np
import pytest

from vidjax.errors import UserError
from vidjax.objectives.block_masks import block_wise, count_masked, draw_frames, draw_images, draw_videos

SIDE, DRAWS = 14, 10_000


def place_block(random: np.random.Generator, mask: np.ndarray, most: int, least: int) -> bool:
    """One block of the original's generator, if one of ten fits."""
    for _ in range(10):
        area = random.uniform(*sorted((least, most)))
        aspect = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < mask.shape[0] and width < mask.shape[1]:
            top = random.integers(mask.shape[0] - height, endpoint=True)
            left = random.integers(mask.shape[1] - width, endpoint=True)
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - block.sum() <= most:
                block[:] = True
                return True
    return False


def original(random: np.random.Generator, count: int, least: int = 16) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    while mask.sum() < count and place_block(random, mask, count - mask.sum(), least):
        pass
    return mask


def statistics(masks: np.ndarray) -> dict[str, np.ndarray]:
    """Of masks `n h w`, one value or vector for each."""
    masks = masks.astype(float)
    overlap = (masks[:-1] * masks[1:]).sum((1, 2)) / np.maximum(masks[:-1], masks[1:]).sum((1, 2))
    edges = np.abs(np.diff(masks, axis=1)).sum((1, 2)) + np.abs(np.diff(masks, axis=2)).sum((1, 2))
    return {
        "share": masks.mean((1, 2)), "overlap": overlap, "edges": edges, "per row": masks.mean(2),
        "per column": masks.mean(1), "place": masks.reshape(len(masks), -1)[:, ::13],
    }  # fmt: skip


def assert_alike(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Means differ by less than five standard errors, and spreads by less than a few per cent."""
    for name, values in theirs.items():
        error = np.sqrt((values.var(0) + ours[name].var(0)) / len(values)) + 1e-6
        assert (np.abs(values.mean(0) - ours[name].mean(0)) < 5 * error).all(), name
        np.testing.assert_allclose(ours[name].std(0), values.std(0), rtol=0.06, atol=1e-3, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("count", [75, 98], ids=["BEiT", "BEVT"])
def test_statistics_of_10000_masks_of_images_equal_the_original_generators(count):
    masks = np.asarray(jax.jit(partial(draw_images, shape=(DRAWS, 1), grid=(SIDE, SIDE), count=count, least=16))(
        jax.random.key(1)
    ))[:, 0]  # fmt: skip
    random = np.random.default_rng(2)
    assert_alike(statistics(masks), statistics(np.stack([original(random, count) for _ in range(DRAWS)])))
    assert masks.sum((1, 2)).max() == count and 0 < (masks.sum((1, 2)) < count).mean() < 0.5


@pytest.mark.long
def test_statistics_of_10000_masks_of_videos_equal_the_original_generators():
    """Masks of neighbouring clips, and how long and where they are."""
    times = 8
    masks = np.asarray(jax.jit(partial(draw_videos, clips=DRAWS, grid=(times, SIDE, SIDE), count=98, least=16))(
        jax.random.key(3)
    ))  # fmt: skip
    random, expected = np.random.default_rng(4), np.zeros((DRAWS, times, SIDE, SIDE), bool)
    for clip in expected:
        mask = original(random, 98)
        start, length = random.integers(times), random.integers(times // 2, times, endpoint=True)
        clip[start : start + length] = mask
        clip[: max(start + length - times, 0)] = mask
    both = []
    for each in (masks, expected):
        seen = each.any((2, 3))
        frames = {"length": seen.sum(1), "per time": seen, "borders": (seen != np.roll(seen, 1, axis=1)).sum(1)}
        both.append(frames | {"share": each.mean((1, 2, 3)), "share of a frame": each.max(1).mean((1, 2))})
        assert ((each == each.max(1, keepdims=True)) | ~seen[:, :, None, None]).all()  # the same at all masked times
        assert set(frames["length"]) == set(range(4, 9)) and set(frames["borders"]) == {0, 2}
    assert_alike(*both)


def test_a_mask_is_made_of_blocks_and_the_step_is_compiled_once():
    traces = []

    @jax.jit
    def run(key):
        traces.append(key)
        return block_wise(key, 6, 9, 20, 4)

    masks = np.stack([run(jax.random.key(seed)) for seed in range(20)])
    assert len(traces) == 1 and len(np.unique(masks, axis=0)) > 15
    assert masks.shape == (20, 6, 9) and masks.sum((1, 2)).min() >= 4 and masks.sum((1, 2)).max() <= 20
    assert not masks.all((1, 2)).any()
    for mask in masks:  # a masked patch has a masked neighbour: blocks of four patches are more than one wide or high
        padded = np.pad(mask, 1)
        beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        assert (beside | ~mask).all()


def test_videos_have_the_mask_in_one_stretch():
    masks = np.asarray(draw_videos(jax.random.key(0), 30, (4, 6, 6), 12, 4))
    seen = masks.any((2, 3))
    assert set(seen.sum(1)) == {2, 3, 4}
    assert ((seen != np.roll(seen, 1, axis=1)).sum(1) <= 2).all()
    assert ((masks == masks.max(1, keepdims=True)) | ~seen[:, :, None, None]).all()


def test_frames_are_different_and_sorted():
    frames = np.asarray(draw_frames(jax.random.key(0), 50, 8, 3))
    assert (np.diff(frames, axis=1) > 0).all() and set(frames.ravel()) == set(range(8))


@pytest.mark.parametrize(
    ("ratio", "least", "message"),
    [
        (0.01, 1, "mask_ratio 0.01 of 6x6 patches leaves nothing to predict: 0 masked patches are fewer than one bl"),
        (0.4, 16, "leaves nothing to predict: 14 masked patches are fewer than one block of 16, raise the ratio"),
        (1.0, 4, "mask_ratio 1 of 6x6 patches leaves nothing visible: lower the ratio or use larger clips"),
    ],
)
def test_masks_that_leave_nothing_are_one_line(ratio, least, message):
    with pytest.raises(UserError, match=message):
        count_masked(6, 6, ratio, least)


def test_counts_are_those_of_the_papers():
    assert count_masked(14, 14, 75 / 196, 16) == 75 and count_masked(14, 14, 0.5, 16) == 98
