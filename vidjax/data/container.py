"""Opening video files: choice of the video stream, and one error class for everything that can go wrong."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from vidjax.errors import UserError

STILL_CODECS = {"mjpeg", "png", "bmp", "gif", "tiff", "webp"}
"""Codecs of cover images."""


class DecodeError(UserError):
    """A video cannot be read; the message is one line with path and reason."""


@contextmanager
def blame_file(path: str) -> Iterator[None]:
    """Converts every exception raised inside the block to a DecodeError of this file.

    For damaged files PyAV raises other errors than FFmpeg's too (AttributeError, IndexError, ... in PyAV 18.1), so no
    list of classes would be complete. Do not run the caller's code inside the block: its errors would be converted too.
    """
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DecodeError(f"{path}: {' '.join(reason.split()).rstrip('.')}") from error


# Metadata that is not UTF-8 must not keep a video from being read; PyAV 19 has no such option and always ignores it.
LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}


def as_fraction(ratio: Any) -> Fraction | None:
    """Converts a rate, time base or aspect ratio, which has its own class since PyAV 19; None if unknown (0/0)."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio is not None and ratio.denominator else None


@contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[av.VideoStream]:
    """Opens a file and yields its video stream; closes the file on exit. Raises DecodeError."""
    path = os.fspath(path)
    with blame_file(path):
        if Path(path).is_fifo():  # opening it would wait for a writer
            raise ValueError("it is a named pipe, not a file")
        # The prefix keeps FFmpeg from taking the part of a file name before a colon for a protocol.
        container = av.open(path if "://" in path else f"file:{path}", **LENIENT)
    with container:
        with blame_file(path):
            stream = _choose_stream(container)
            if stream.codec_context is None:
                raise ValueError("there is no decoder for its video codec")
            stream.codec_context.thread_count = 1  # parallelism is over clips, one thread each
        yield stream


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    """FFmpeg's choice among the video streams, excluding cover images, whether or not they are marked as such."""
    candidates = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    moving = [stream for stream in candidates if stream.frames != 1 or stream.name not in STILL_CODECS]
    candidates = moving or candidates
    if not candidates:
        raise ValueError("it contains no video" + (", only a cover image" if container.streams.video else ""))
    best = container.streams.best("video")
    return best if best in candidates else candidates[0]
