"""The head of a classifier: a module given by the user, or a linear layer by default."""

from typing import Any

import flax.linen as nn


def linear_unless_passed(head: nn.Module | None, num_classes: int | None, **linear: Any) -> nn.Module | None:
    """Returns `head` if given, otherwise a linear layer to `num_classes`, or None without classes.

    To be called in a model's `setup` with its field `head`. In both cases the parameters are under `head/`.

    Args:
      linear: fields of the linear layer, such as `kernel_init` and `dtype`.
    """
    if head is not None or num_classes is None:
        return head
    return nn.Dense(num_classes, name="head", **linear)
