"""Multi-block masks of latent prediction (V-JEPA, Bardes et al. 2024, arXiv:2404.08471, section 3.2).

A mask hides a union of blocks of patches, in all published configurations the same at all times. The encoder sees the
tokens outside of it (context), and the predictor predicts those inside. V-JEPA 2 predicts behind two masks: several
small blocks (short range) and two large ones (long range).

The numbers of tokens differ between masks, and as in the original's batches (src/masks/multiseq_multiblock3d.py) all
clips of a group are cut to the smallest number in it: the last tokens are dropped, which are those of the latest times.
Under jit the shapes are static, and indices beyond that number fill them up:

    mask = draw(key, 24, (8, 16, 16), SHORT_RANGE, sizes(24, (8, 16, 16), SHORT_RANGE))
    predicted = model.apply(variables, video, mask.kept, mask.predicted, mask.valid)

The largest numbers are far from the mean: `smallest_loss` computes a loss at the smallest of a few sizes that holds a
mask.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vidjax.errors import UserError

Grid = tuple[int, int, int]


class Blocks(NamedTuple):
    """The blocks of a mask.

    Attributes:
      count: number of blocks.
      scale: area of a block as a fraction of the frame.
      aspect_ratio: smallest and largest height divided by width.
      duration: of a block as a fraction of the clip (the original's `temporal_scale`).
    """

    count: int
    scale: float
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    duration: float = 1.0


SHORT_RANGE, LONG_RANGE = Blocks(8, 0.15), Blocks(2, 0.7)


class Mask(NamedTuple):
    """Masks of a batch.

    Attributes:
      kept: sorted indices of the context's tokens, in `(t h w)` order.
      predicted: sorted indices of the tokens to predict.
      valid: of `kept`, then of `predicted`: False for indices that only fill up the shape.
    """

    kept: Int[Array, "b m"]
    predicted: Int[Array, "b r"]
    valid: Bool[Array, "b n"]


def block_size(aspect_ratio: Float[Array, "*s"], grid: Grid, blocks: Blocks) -> tuple[Array, Array]:
    """Rows and columns of a block of this height divided by width, rounded and at most those of the frame."""
    _, rows, columns = grid
    area = int(rows * columns * blocks.scale)
    height, width = jnp.round(jnp.sqrt(area * aspect_ratio)), jnp.round(jnp.sqrt(area / aspect_ratio))
    return jnp.minimum(height, rows).astype(jnp.int32), jnp.minimum(width, columns).astype(jnp.int32)


def block_times(grid: Grid, blocks: Blocks) -> int:
    """Times that a block lasts, rounded down and at least one."""
    return max(1, int(grid[0] * blocks.duration))


def check_blocks(grid: Grid, blocks: Blocks) -> None:
    """Checks that every mask of these blocks leaves a context and something to predict.

    Raises:
      UserError: a block can cover the whole clip, or no patch at all.
    """
    _, rows, columns = grid
    what = f"{blocks.count} blocks of {blocks.scale:.0%} of a frame of {rows}x{columns} patches"
    with jax.ensure_compile_time_eval():
        aspect_ratios = jnp.linspace(*blocks.aspect_ratio, 1000)
        height, width = map(np.asarray, block_size(aspect_ratios, grid, blocks))
    if blocks.count < 1 or (height * width).min() < 1:
        raise UserError(f"{what} leave nothing to predict: use larger blocks, larger clips or smaller patches")
    if ((height == rows) & (width == columns)).any() and block_times(grid, blocks) == grid[0]:
        raise UserError(f"{what} leave no context: use smaller blocks, larger clips or smaller patches")


def _hide(key: Key[Array, ""], clips: int, grid: Grid, blocks: Blocks) -> Bool[Array, "b t h w"]:
    """Which patches of each clip a mask hides. The size of the blocks is the same for all clips."""
    (times, rows, columns), lasting = grid, block_times(grid, blocks)
    size_key, place_key = jax.random.split(key)
    aspect_ratio = jax.random.uniform(size_key, minval=blocks.aspect_ratio[0], maxval=blocks.aspect_ratio[1])
    height, width = block_size(aspect_ratio, grid, blocks)

    def place(key: Array) -> Array:
        top_key, left_key = jax.random.split(key)
        top = jax.random.randint(top_key, (blocks.count, 1), 0, rows - height + 1)
        left = jax.random.randint(left_key, (blocks.count, 1), 0, columns - width + 1)
        start = jax.random.randint(jax.random.fold_in(key, 0), (blocks.count, 1), 0, times - lasting + 1)
        time, row, column = jnp.arange(times), jnp.arange(rows), jnp.arange(columns)
        during = (time >= start) & (time < start + lasting)
        across = (row >= top) & (row < top + height)
        along = (column >= left) & (column < left + width)
        return (during[:, :, None, None] & across[:, None, :, None] & along[:, None, None]).any(axis=0)

    def draw(key: Array) -> tuple[Array, Array]:
        key, place_key = jax.random.split(key)
        return key, place(place_key)

    def one(key: Array) -> Array:  # drawn until there is a context; the loop begins without, so that it compiles once
        nothing_left = jnp.ones(grid, bool)
        return jax.lax.while_loop(lambda drawn: drawn[1].all(), lambda drawn: draw(drawn[0]), (key, nothing_left))[1]

    return jax.vmap(one)(jax.random.split(place_key, clips))


@cache
def _counts(clips: int, grid: Grid, blocks: Blocks, draws: int) -> np.ndarray:
    """Numbers of tokens kept and predicted in so many draws of a group, `draws 2`."""
    check_blocks(grid, blocks)

    def fewest(key: Key[Array, ""]) -> Int[Array, "2"]:
        hidden = _hide(key, clips, grid, blocks).sum(axis=(1, 2, 3))
        return jnp.stack([prod(grid) - hidden.max(), hidden.min()])

    return np.asarray(jax.lax.map(fewest, jax.random.split(jax.random.key(0), draws)))


def sizes(clips: int, grid: Grid, blocks: Blocks, draws: int = 1000) -> tuple[int, int]:
    """Sizes of `kept` and `predicted` that suffice for groups of this many clips: the largest in so many draws.

    A larger number, which one group in a thousand may have, is cut to it.

    Raises:
      UserError: see `check_blocks`.
    """
    kept, predicted = _counts(clips, grid, blocks, draws).max(axis=0)
    return int(kept), int(predicted)


GAIN = 0.02
"""Share of a step's mean work that each further size saves at least."""


def block_work(tokens: np.ndarray | np.integer, width: int, depth: int) -> np.ndarray | np.integer:
    """Multiply-accumulates of transformer blocks on so many tokens: of their products, and of attention."""
    return depth * width * tokens * (12 * width + 2 * tokens)


def several_sizes(
    clips: int,
    grid: Grid,
    blocks: Blocks,
    model: Any,
    groups: int = 1,
    draws: int = 1000,
    least: int = 256,
) -> tuple[tuple[int, int], ...]:
    """Sizes for `smallest_loss`, from the one of least work to that of `sizes`, which holds every mask.

    One after the other, the size is added that saves most of the mean work of a batch. As each has to be compiled, none
    is added that saves less than `GAIN`, and grids of fewer tokens than `least` have one.

    Args:
      clips: of a group.
      model: an encoder with a predictor, such as `vjepa.Pretraining`, whose widths and depths weigh the tokens.
      groups: of a batch, all of which have to fit.

    Raises:
      UserError: see `check_blocks`.
    """

    def work(kept: np.ndarray | np.integer, predicted: np.ndarray | np.integer) -> np.ndarray | np.integer:
        encoder = block_work(kept, model.width, model.depth)
        return encoder + block_work(kept + predicted, model.predictor_width, model.predictor_depth)

    counts = _counts(clips, grid, blocks, draws)
    shapes = [tuple(counts.max(axis=0).tolist())]
    batches = counts[np.random.default_rng(0).integers(draws, size=(draws, groups))].max(axis=1)
    steps = [np.unique(np.quantile(numbers, np.linspace(0, 1, 21), method="higher")) for numbers in batches.T]
    candidates = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 2)
    fits = (batches[:, None] <= candidates).all(axis=2)
    needed = np.full(draws, work(*np.array(shapes[0])))  # work of each batch at the best of the sizes
    while prod(grid) >= least:
        needed_with = np.where(fits, np.minimum(needed[:, None], work(*candidates.T)), needed[:, None])
        best = needed_with.mean(axis=0).argmin()
        if needed_with[:, best].mean() > (1 - GAIN) * needed.mean():
            break
        shapes.append(tuple(candidates[best].tolist()))
        needed = needed_with[:, best]
    return tuple(sorted(shapes, key=lambda shape: work(*np.array(shape))))


def draw(
    key: Key[Array, ""], clips: int, grid: Grid, blocks: Blocks, shape: tuple[int, int], group: int | None = None
) -> Mask:
    """Draws a mask for each clip of a batch.

    Args:
      grid: times, rows and columns of tokens.
      shape: sizes of `kept` and `predicted`, see `sizes`.
      group: number of clips with blocks of one size, and as many tokens each; it divides `clips`. None for all.
    """
    group = clips if group is None else group

    def draw_group(key: Array) -> Mask:
        hidden = _hide(key, group, grid, blocks).reshape(group, -1)
        halves = []
        for inside, size in zip((~hidden, hidden), shape, strict=True):
            indices = jax.vmap(lambda row, size=size: jnp.flatnonzero(row, size=size, fill_value=0))(inside)
            halves.append((indices, jnp.arange(size) < inside.sum(axis=1).min()))
        (kept, seen), (predicted, asked) = halves
        valid = jnp.broadcast_to(jnp.concatenate([seen, asked]), (group, sum(shape)))
        return Mask(kept, predicted, valid)

    masks = jax.vmap(draw_group)(jax.random.split(key, clips // group))
    return jax.tree.map(lambda leaf: leaf.reshape(clips, -1), masks)


def nearness(mask: Mask, grid: Grid) -> Float[Array, "b m"]:
    """One over the square root of the distance of each of the context's tokens from the nearest predicted one.

    V-JEPA 2.1 weights the loss at the context's tokens by it (arXiv:2603.14482). The distance is Euclidean, in tokens,
    along time, rows and columns. Above 496 pixels the original divides it, which is not done here.
    """

    def places(indices: Array) -> Float[Array, "b k 3"]:
        return jnp.stack(jnp.unravel_index(indices, grid), axis=-1).astype(jnp.float32)

    kept, predicted = places(mask.kept), places(mask.predicted)
    products = jnp.einsum("bmi,bri->bmr", kept, predicted, precision="highest")
    squares = jnp.square(kept).sum(axis=-1)[:, :, None] + jnp.square(predicted).sum(axis=-1)[:, None] - 2 * products
    asked = mask.valid[:, None, mask.kept.shape[1] :]
    nearest = jnp.where(asked, squares, jnp.inf).min(axis=-1)
    return jnp.maximum(nearest, 1) ** -0.25  # two tokens are 1 apart; indices that only fill up the shape may be less


def largest_group(clips: int, most: int = 24) -> int:
    """The largest divisor of `clips` up to `most`, the clips of a batch on one of the original's devices."""
    return next(size for size in range(min(clips, most), 0, -1) if clips % size == 0)


def cut(mask: Mask, shape: tuple[int, int]) -> Mask:
    """The first tokens of a mask, of which the others only fill up the shape."""
    kept, predicted = shape
    seen, asked = jnp.split(mask.valid, [mask.kept.shape[1]], axis=1)
    valid = jnp.concatenate([seen[:, :kept], asked[:, :predicted]], axis=1)
    return Mask(mask.kept[:, :kept], mask.predicted[:, :predicted], valid)


def smallest_loss(
    loss: Callable[[PyTree, Mask], tuple[Float[Array, ""], Any]],
    params: PyTree,
    mask: Mask,
    shapes: tuple[tuple[int, int], ...],
) -> tuple[Float[Array, ""], Any]:
    """`loss(params, mask)`, a loss and other values, with the mask cut to the first of the shapes that holds it.

    Only the loss can be differentiated, and only by the parameters. Its gradient is computed together with it, as
    `jax.grad` of a switch would save what the gradients of all branches need.

    Args:
      shapes: sizes of `kept` and `predicted`, the last of which are the mask's; see `several_sizes`.
    """
    branches = [lambda params, mask, shape=shape: loss(params, cut(mask, shape)) for shape in shapes]
    if len(branches) == 1:
        return branches[0](params, mask)
    seen, asked = jnp.split(mask.valid, [mask.kept.shape[1]], axis=1)
    counts = jnp.stack([seen.sum(axis=1).max(), asked.sum(axis=1).max()])
    holds = (counts <= jnp.array(shapes[:-1])).all(axis=1)
    which = jnp.where(holds.any(), holds.argmax(), len(shapes) - 1)  # a number beyond the largest has been cut

    @jax.custom_vjp
    def chosen(params: PyTree, mask: Mask, which: Int[Array, ""]) -> tuple[Float[Array, ""], Any]:
        return jax.lax.switch(which, branches, params, mask)

    def with_gradient(params: PyTree, mask: Mask, which: Int[Array, ""]) -> tuple[tuple, PyTree]:
        return jax.lax.switch(which, [jax.value_and_grad(each, has_aux=True) for each in branches], params, mask)

    def scaled(gradient: PyTree, cotangents: tuple) -> tuple[PyTree, None, None]:
        return jax.tree.map(lambda leaf: leaf * cotangents[0].astype(leaf.dtype), gradient), None, None

    chosen.defvjp(with_gradient, scaled)
    return chosen(params, mask, which)
