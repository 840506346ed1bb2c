"""What FFmpeg's index of an MP4 does not contain: fragments, and the distance from decoding to presentation times."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from jaxtyping import Int


def composition_offsets(path: str, track: int, count: int) -> Int[np.ndarray, "n"] | None:
    """Presentation minus decoding time of each sample of a track, in ticks of the track, up to a constant.

    Source: ISO/IEC 14496-12, `ctts`. Its offsets are read as signed in all versions, as FFmpeg does.

    Args:
      path: path of the file.
      track: the track's number, `stream.id`.
      count: number of samples.

    Returns:
      The offsets; None for a fragmented file, whose header does not list all samples, and where they cannot be read.
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
    """The kind of each box between two positions, and the start and end of its content."""
    while position + 8 <= end:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        start = position + 8
        if length == 1:
            length, start = struct.unpack(">Q", file.read(8))[0], position + 16
        stop = position + length if length else end
        if not start <= stop <= end:  # cut off
            stop = end
        yield kind, start, stop
        position = stop


def _runs(file: BinaryIO, start: int, stop: int, track: int) -> Int[np.ndarray, "r 2"] | None:
    """Length and offset of each run in the `ctts` of a track; None if it has none.

    Raises:
      StopIteration: there is no such track.
    """
    for kind, begin, end in _boxes(file, start, stop):
        if kind != b"trak":
            continue
        inside = {kind: (begin, end) for kind, begin, end in _boxes(file, begin, end)}
        begin, end = inside.get(b"tkhd", (0, 0))
        file.seek(begin)
        header = file.read(24)
        if len(header) < 24 or int.from_bytes(header[20:24] if header[0] else header[12:16]) != track:
            continue
        place = inside.get(b"mdia")
        for name in (b"minf", b"stbl", b"ctts"):
            if place is None:
                return None
            place = next(((b, e) for kind, b, e in _boxes(file, *place) if kind == name), None)
        if place is None:
            return None
        file.seek(place[0])
        (entries,) = struct.unpack(">4xI", file.read(8))
        return np.frombuffer(file.read(8 * entries), ">i4").reshape(-1, 2).astype(np.int64)
    raise StopIteration
