"""Opening video files: the stream that a person would watch, and one error for whatever a file does wrong."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
from av.stream import Disposition

from vidjax.errors import UserError


class DecodeError(UserError):
    """A video that cannot be read: one line with its path and the reason."""


@contextmanager
def blame_file(path: str) -> Iterator[None]:
    """Whatever is raised inside becomes a DecodeError of this file.

    PyAV raises more than FFmpeg's errors for damaged files (AttributeError, IndexError, ... seen in PyAV 18.1), so no
    list of classes is complete. Nothing of the caller's may run inside.
    """
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DecodeError(f"{path}: {' '.join(reason.split()).rstrip('.')}") from error


# Titles in another encoding than UTF-8 are no reason not to read a video; PyAV 19 always takes them so.
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}


def as_fraction(ratio: Any) -> Fraction | None:
    """A rate, time base or aspect of a stream, of a class of its own since PyAV 19; None where unknown, there 0/0."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio is not None and ratio.denominator else None


@contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[av.VideoStream]:
    """The video of a file, which is closed in the end whatever happens. Raises DecodeError."""
    path = os.fspath(path)
    with blame_file(path):
        # The protocol's name keeps FFmpeg from seeing one in a file name with a colon.
        container = av.open(path if "://" in path else f"file:{path}", **LENIENT)
    with container:
        with blame_file(path):
            stream = _watched(container)
            if stream.codec_context is None:
                raise ValueError("there is no decoder for its video")
            stream.codec_context.thread_count = 1  # clips are decoded side by side, a thread each
        yield stream


def _watched(container: av.container.InputContainer) -> av.VideoStream:
    """FFmpeg's choice among the video streams, but never the cover of a song or film."""
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise ValueError("it holds no video" + (", only a cover picture" if container.streams.video else ""))
    best = container.streams.best("video")
    return best if best in films else films[0]
