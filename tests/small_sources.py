"""Sources of a few videos, and the errors of those that cannot be opened."""

import re
from pathlib import Path
from typing import Any

import pytest

from vidjax.data.example import Source
from vidjax.data.sources import open_source


def open_(source: str | Path, **settings: Any) -> Source:
    """`open_source` for paths too."""
    return open_source(str(source), **settings)


def refused(source: str | Path, sentence: str, **settings: Any) -> None:
    """Opening the source raises a one-line error that matches `sentence`."""
    with pytest.raises(ValueError) as caught:
        open_(source, **settings)
    message = str(caught.value)
    assert re.search(sentence, message), message
    assert "\n" not in message


def place(video: Path, *paths: Path) -> None:
    """Makes each path a link to the video."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(video)
