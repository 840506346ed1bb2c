"""The head of a classifier: a part that is passed, a linear map where none is."""

from typing import Any

import flax.linen as nn


def linear_unless_passed(head: nn.Module | None, num_classes: int | None, **linear: Any) -> nn.Module | None:
    """The head that a task brings; without one a linear map to the classes; without classes none.

    For a model's `setup`, whose field `head` it is given. Either has its parameters under `head/`.

    Args:
      linear: fields of the linear map, such as `kernel_init` and `dtype`.
    """
    if head is not None or num_classes is None:
        return head
    return nn.Dense(num_classes, name="head", **linear)
