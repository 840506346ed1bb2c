"""Reads from MP4 boxes what FFmpeg's index does not contain: composition offsets, and whether there are fragments."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from jaxtyping import Int


def composition_offsets(path: str, track: int, count: int) -> Int[np.ndarray, "n"] | None:
    """Presentation minus decoding time of each sample of a track, in ticks of the track, up to a constant.

    Source: ISO/IEC 14496-12, `ctts` box. Its offsets are read as signed in all versions, as FFmpeg does.

    Args:
      path: path of the file.
      track: the track's number, `stream.id`.
      count: number of samples.

    Returns:
      The offsets; None if they cannot be read, or if the file is fragmented, so that its header does not list all
      samples.
    """
    try:
        with open(path, "rb") as file:
            top = list(_boxes(file, 0, file.seek(0, 2)))
            if any(kind == b"moof" for kind, _, _ in top):
                return None
            start, stop = next((start, stop) for kind, start, stop in top if kind == b"moov")
            runs = _runs(file, start, stop, track)
    except (OSError, StopIteration, struct.error):
        return None
    if runs is None:
        return np.zeros(count, np.int64)
    offsets = np.repeat(runs[:, 1], runs[:, 0])
    return offsets if len(offsets) == count else None


def _boxes(file: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the type of each box between two positions, and the start and end of its content."""
    while position + 8 <= end:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        start = position + 8
        if length == 1:
            length, start = struct.unpack(">Q", file.read(8))[0], position + 16
        stop = position + length if length else end
        if not start <= stop <= end:  # the file is truncated
            stop = end
        yield kind, start, stop
        position = stop


def _runs(file: BinaryIO, start: int, stop: int, track: int) -> Int[np.ndarray, "r 2"] | None:
    """Length and offset of each run in the `ctts` box of a track; None without such a box.

    Raises:
      StopIteration: there is no such track.
    """
    for kind, begin, end in _boxes(file, start, stop):
        if kind != b"trak":
            continue
        children = {kind: (begin, end) for kind, begin, end in _boxes(file, begin, end)}
        begin, end = children.get(b"tkhd", (0, 0))
        file.seek(begin)
        header = file.read(24)
        if len(header) < 24 or int.from_bytes(header[20:24] if header[0] else header[12:16]) != track:
            continue
        box = children.get(b"mdia")
        for name in (b"minf", b"stbl", b"ctts"):
            if box is None:
                return None
            box = next(((b, e) for kind, b, e in _boxes(file, *box) if kind == name), None)
        if box is None:
            return None
        file.seek(box[0])
        (entries,) = struct.unpack(">4xI", file.read(8))
        return np.frombuffer(file.read(8 * entries), ">i4").reshape(-1, 2).astype(np.int64)
    raise StopIteration
