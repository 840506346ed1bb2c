"""Collecting features of a whole data set on the host."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError


def collect_features(
    encode: Callable[[dict[str, Array]], tuple[Float[Array, "b d"], Int[Array, "b"], Bool[Array, "b"]]],
    batches: Iterable[dict[str, Array]],
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """Features and labels of all valid, labelled clips.

    Args:
      encode: jitted function from a batch to features, labels and validity, replicated over all devices so that every
        process returns the same arrays.
      batches: global batches on the devices.
    """
    parts = [jax.device_get(encode(batch)) for batch in batches]
    features, labels, valid = (np.concatenate(column) for column in zip(*parts, strict=True))
    labelled = valid & (labels >= 0)
    return features[labelled], labels[labelled]


def check_labels(classes: int, **labels: Int[np.ndarray, "_"]) -> None:
    """Raises UserError unless there are labels and all are in `range(classes)`.

    Args:
      labels: by what the message calls them, such as `train`.
    """
    for name, each in labels.items():
        if len(each) == 0 or each.min() < 0 or each.max() >= classes:
            raise UserError(f"{name} labels must be non-empty and in 0..{classes - 1}: leave out unlabelled clips")
