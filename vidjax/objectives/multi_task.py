"""Several data sets with classes of their own, a softmax each, trained together (Simonyan and Zisserman 2014,
arXiv:1406.2199, section 3.3: multi-task learning).

The classes of all data sets lie side by side: `sizes` are their numbers in this order, and with a single data set all
of this is classification as usual. A clip has a class of one data set, so that the others' scores of it do not count.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int


def parts(sizes: Sequence[int]) -> list[slice]:
    """Where the classes of each data set are."""
    return [slice(*pair) for pair in pairwise(np.cumsum([0, *sizes]).tolist())]


def smooth_labels(targets: Float[Array, "b classes"], alpha: float, sizes: Sequence[int]) -> Float[Array, "b classes"]:
    """Label smoothing over the classes of a clip's own data set; with one data set, that of Optax."""
    rates = (alpha / np.repeat(sizes, sizes)).astype(np.float32)  # divided with Python's precision, as by Optax
    shares = jnp.stack([targets[:, part].sum(axis=1) for part in parts(sizes)], axis=1)
    return (1 - alpha) * targets + rates * jnp.repeat(shares, np.array(sizes), axis=1, total_repeat_length=sum(sizes))


def sum_of_tasks(
    logits: Float[Array, "b classes"],
    targets: Float[Array, "b classes"],
    valid: Bool[Array, "b"],
    sizes: Sequence[int],
) -> Float[Array, "b"]:
    """Softmax cross-entropy of each clip in its own data set, weighed so that the mean is the sum of the tasks' losses.

    The loss of a task is the mean over its clips. A clip that is mixed of two data sets counts in both, by its shares.

    Args:
      targets: labels, one-hot or soft.
      valid: false for clips that do not count.

    Returns:
      Losses whose mean over valid clips is the sum of the tasks' losses; a task without clips adds nothing.

    Example:
      >>> logits = jnp.array([[2.0, 0.0, 9.0], [9.0, 9.0, 1.0]])
      >>> targets = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
      >>> sum_of_tasks(logits, targets, jnp.array([True, True]), (2, 1)).mean()  # 0.127 of the first, 0 of the second
    """
    total = jnp.zeros(len(logits), logits.dtype)
    for part in parts(sizes):
        shares = jnp.where(valid, targets[:, part].sum(axis=1), 0)
        clips = jnp.maximum(shares.sum(), 1e-6)
        total += optax.losses.softmax_cross_entropy(logits[:, part], targets[:, part]) * valid.sum() / clips
    return total


def own_logits(
    logits: Float[Array, "b classes"], labels: Int[Array, "b"], sizes: Sequence[int]
) -> Float[Array, "b classes"]:
    """Logits in which the classes of other data sets than the label's are minus infinity."""
    task = np.repeat(np.arange(len(sizes)), sizes)
    return jnp.where(jnp.asarray(task)[None] == jnp.asarray(task)[labels][:, None], logits, -jnp.inf)


def softmax_of_tasks(logits: Float[Array, "*b classes"], sizes: Sequence[int]) -> Float[Array, "*b classes"]:
    """The probabilities of each data set's classes, which sum to one in each."""
    return jnp.concatenate([jax.nn.softmax(logits[..., part]) for part in parts(sizes)], axis=-1)
