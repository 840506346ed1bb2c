"""Multi-block masks: the statistics are those of the original's generator, written again here with NumPy."""

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.errors import UserError
from vidjax.objectives.multi_block import (
    LONG_RANGE,
    SHORT_RANGE,
    Blocks,
    _counts,
    block_work,
    draw,
    largest_group,
    several_sizes,
    sizes,
    smallest_loss,
)

MODEL = SimpleNamespace(width=96, depth=4, predictor_width=48, predictor_depth=2)  # the sizes of vjepa2_tiny_pretrain
GRID, GROUP, GROUPS = (8, 16, 16), 24, 417  # 10,008 masks


def original_group(random: np.random.Generator, blocks: Blocks) -> tuple[list, list]:
    """What the original's generator makes for one batch: context and predicted indices."""
    times, rows, columns = GRID
    aspect_ratio = random.uniform(*blocks.aspect_ratio)
    area = int(rows * columns * blocks.scale)
    height = min(round(math.sqrt(area * aspect_ratio)), rows)
    width = min(round(math.sqrt(area / aspect_ratio)), columns)
    lasting = max(1, int(times * blocks.duration))
    contexts, targets = [], []
    while len(contexts) < GROUP:
        hidden = np.zeros((times, rows, columns), bool)
        for _ in range(blocks.count):
            top, left = random.integers(rows - height + 1), random.integers(columns - width + 1)
            start = random.integers(times - lasting + 1)
            hidden[start : start + lasting, top : top + height, left : left + width] = True
        if not hidden.all():
            contexts.append(np.flatnonzero(~hidden))
            targets.append(np.flatnonzero(hidden))
    fewest = [min(map(len, indices)) for indices in (contexts, targets)]
    return [each[: fewest[0]] for each in contexts], [each[: fewest[1]] for each in targets]


def statistics(contexts: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Of 0 and 1 for all tokens of a group, `b n`: one row of each statistic."""
    overlap = (targets[:-1] * targets[1:]).sum(1) / np.maximum(targets[:-1], targets[1:]).sum(1)
    return {
        "share": np.array([contexts.mean(), targets.mean(), (contexts + targets).mean()]),
        "overlap": np.array([overlap.mean(), overlap.std()]),
        "per time": np.concatenate([x.reshape(GROUP, GRID[0], -1).mean((0, 2)) for x in (contexts, targets)]),
        "per row": np.concatenate([x.reshape(GROUP, *GRID).mean((0, 1, 3)) for x in (contexts, targets)]),
        "per column": np.concatenate([x.reshape(GROUP, *GRID).mean((0, 1, 2)) for x in (contexts, targets)]),
    }


def gather(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


BRIEF = Blocks(3, 0.7, duration=0.45)  # three of eight times


@pytest.mark.long
@pytest.mark.parametrize("blocks", [SHORT_RANGE, LONG_RANGE, BRIEF], ids=["short", "long", "brief"])
def test_statistics_of_10000_masks_equal_the_original_generators(blocks):
    """Shares, overlap of neighbouring masks, and tokens per time, row and column: mean and spread over batches."""
    shape, tokens = sizes(GROUP, GRID, blocks), math.prod(GRID)

    # Optimised, unlike other tests: the program sorts and scatters 20 million tokens.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})
    def ours(keys):
        def member(key):
            mask = draw(key, GROUP, GRID, blocks, shape)
            rows = jnp.arange(GROUP)[:, None]
            halves = jnp.split(mask.valid, [shape[0]], axis=1)
            return tuple(
                jnp.zeros((GROUP, tokens)).at[rows, indices].add(valid)
                for indices, valid in zip((mask.kept, mask.predicted), halves, strict=True)
            )

        return jax.lax.map(member, keys)

    drawn = map(np.asarray, ours(jax.random.split(jax.random.key(1), GROUPS)))
    actual = gather([statistics(*pair) for pair in zip(*drawn, strict=True)])
    random, expected = np.random.default_rng(2), []
    for _ in range(GROUPS):
        contexts, targets = original_group(random, blocks)
        marked = [np.stack([np.bincount(each, minlength=tokens) for each in group]) for group in (contexts, targets)]
        expected.append(statistics(*(each.astype(float) for each in marked)))
    expected = gather(expected)
    for name, values in expected.items():
        error = np.sqrt((values.var(0) + actual[name].var(0)) / GROUPS) + 1e-4
        assert (np.abs(values.mean(0) - actual[name].mean(0)) < 5 * error).all(), name
        np.testing.assert_allclose(actual[name].std(0), values.std(0), rtol=0.25, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("blocks", [SHORT_RANGE, LONG_RANGE], ids=["short", "long"])
def test_context_and_predicted_tokens_are_sorted_and_disjoint(blocks):
    grid = (3, 8, 6)
    shape = sizes(4, grid, blocks)
    traces = []

    @jax.jit
    def run(key):
        traces.append(key)
        return draw(key, 8, grid, blocks, shape, group=4)

    masks = [run(jax.random.key(seed)) for seed in range(3)]
    assert len(traces) == 1 and not np.array_equal(masks[0].kept, masks[1].kept)
    for mask in masks:
        assert mask.kept.shape == (8, shape[0]) and mask.predicted.shape == (8, shape[1])
        seen, asked = np.split(np.asarray(mask.valid), shape[:1], axis=1)
        for valid in (seen, asked):
            counts = valid.sum(axis=1).reshape(2, 4)
            assert (counts == counts[:, :1]).all() and counts.min() > 0
        for clip in range(8):
            kept = np.asarray(mask.kept[clip])[seen[clip]]
            predicted = np.asarray(mask.predicted[clip])[asked[clip]]
            assert (np.diff(kept) > 0).all() and (np.diff(predicted) > 0).all()
            assert not set(kept) & set(predicted)
            hidden = np.unique(predicted % 48)  # the same at all times that are left
            everything = (48 * np.arange(3)[:, None] + hidden).ravel()
            np.testing.assert_array_equal(predicted, everything[everything <= predicted.max()])


def test_a_mask_of_one_clip_leaves_out_no_token():
    shape = sizes(1, (2, 6, 6), SHORT_RANGE)
    mask = draw(jax.random.key(3), 1, (2, 6, 6), SHORT_RANGE, shape)
    assert int(mask.valid.sum()) == 72


def test_masks_that_leave_nothing_are_an_error():
    with pytest.raises(UserError, match="8 blocks of 15% of a frame of 2x2 patches leave nothing to predict: use"):
        sizes(4, (4, 2, 2), SHORT_RANGE)
    with pytest.raises(UserError, match="2 blocks of 95% of a frame of 6x6 patches leave no context: use smaller bl"):
        sizes(4, (4, 6, 6), Blocks(2, 0.95))
    with pytest.raises(UserError, match="0 blocks of 15% of a frame of 6x6 patches leave nothing to predict"):
        sizes(4, (4, 6, 6), Blocks(0, 0.15))


def test_the_largest_group_divides_the_batch():
    assert [largest_group(clips) for clips in (1, 16, 24, 25, 64, 3072)] == [1, 16, 24, 5, 16, 24]


def test_a_loss_at_the_smallest_size_equals_that_at_the_largest():
    """Value and gradient, of masks that need different sizes."""
    grid, blocks = (2, 8, 8), SHORT_RANGE
    shapes = several_sizes(2, grid, blocks, MODEL, least=1)
    assert len(shapes) > 2 and shapes[-1] == sizes(2, grid, blocks)
    table = jax.random.normal(jax.random.key(0), (math.prod(grid), 4))

    def loss(scale, mask):
        shape = jnp.array([mask.kept.shape[1], mask.predicted.shape[1]])
        context = jnp.where(mask.valid[:, : mask.kept.shape[1], None], table[mask.kept], 0).sum(axis=1)
        asked = jnp.where(mask.valid[:, mask.kept.shape[1] :, None], table[mask.predicted], 0).sum(axis=1)
        return jnp.square(context * scale - asked).mean(), shape

    @jax.jit
    def both(scale, key):
        mask = draw(key, 4, grid, blocks, shapes[-1], group=2)
        grad = jax.value_and_grad(lambda scale, *shapes: smallest_loss(loss, scale, mask, shapes), has_aux=True)
        return grad(scale, *shapes), grad(scale, shapes[-1]), mask.valid

    used = set()
    for seed in range(12):
        ((value, shape), gradient), ((expected, _), slope), valid = both(jnp.arange(1.0, 5), jax.random.key(seed))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4)
        counts = [int(half.sum(axis=1).max()) for half in np.split(np.asarray(valid), [shapes[-1][0]], axis=1)]
        first = next(each for each in shapes if (np.array(each) >= counts).all())
        assert tuple(map(int, shape)) == first
        used.add(first)
    assert len(used) > 1


def test_several_sizes_are_worth_compiling():
    """Each size saves a fiftieth of the work or more when added; many groups, all of which have to fit, need larger."""
    grid, least = (4, 8, 8), {"draws": 200, "least": 1}
    one, many = (several_sizes(4, grid, SHORT_RANGE, MODEL, groups, **least) for groups in (1, 16))
    assert sum(one[0]) < sum(many[0]) and one[-1] == many[-1] == sizes(4, grid, SHORT_RANGE, 200)
    assert several_sizes(4, grid, SHORT_RANGE, MODEL, 1, 200, least=257) == one[-1:]
    counts = _counts(4, grid, SHORT_RANGE, 200)

    def mean_work(shapes):
        kept, predicted = (column[:, None] for column in np.array(shapes).T)
        fits = (counts[:, 0] <= kept) & (counts[:, 1] <= predicted)
        return np.where(fits, block_work(kept, 96, 4) + block_work(kept + predicted, 48, 2), np.inf).min(axis=0).mean()

    for left_out in one[:-1]:
        assert mean_work(one) < 0.99 * mean_work([shape for shape in one if shape != left_out])
