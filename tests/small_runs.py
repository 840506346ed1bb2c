"""What the tests of training scripts share."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from vidjax.data import pipeline


def changed(config: Any, **fields: Any) -> Any:
    """The config with some fields changed, those of its parts as `data__size`."""
    for name, value in fields.items():
        head, _, rest = name.partition("__")
        part = changed(getattr(config, head), **{rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: part})
    return config


def interrupt_after(batches: int, train: Callable[..., Any], *args: Any) -> None:
    """Trains until so many batches are read, when Ctrl-C is pressed."""
    read = pipeline.train_batches

    def train_batches(*args, **kwargs):
        yield from itertools.islice(read(*args, **kwargs), batches)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train_batches", train_batches)
        with pytest.raises(KeyboardInterrupt):
            train(*args)
