"""Writing videos: MP4 (H.264) or GIF, frame by frame."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

SUFFIXES = (".mp4", ".gif")


def write_video(path: str | Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], rate: float) -> None:
    """Writes frames of one size, with even sides, in constant memory.

    Args:
      path: its suffix determines the kind, see `SUFFIXES`.
      frames: RGB, at least one.
      rate: frames per second; a GIF counts hundredths of a second and can have 50 of them.
    """
    frames = iter(frames)
    first = next(frames)
    if Path(path).suffix.lower() == ".gif":
        images = map(Image.fromarray, frames)
        milliseconds = max(round(100 / rate), 2) * 10
        Image.fromarray(first).save(
            path, format="GIF", save_all=True, append_images=images, duration=milliseconds, loop=0
        )
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        (stream.height, stream.width), stream.pix_fmt = first.shape[:2], "yuv420p"
        for frame in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
