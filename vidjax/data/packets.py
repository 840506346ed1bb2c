"""The packets of a video: which frame each packet decodes to, and where decoding can start."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
from jaxtyping import Int

from vidjax.data.container import as_fraction


@dataclass(frozen=True)
class Packets:
    """The packets of a video in decoding order.

    A packet is identified by its size and its byte offset, because after seeking FFmpeg may assign it other timestamps
    than when reading from the start. Before a packet is decoded, its timestamp is replaced by the position of its frame
    in presentation order, which the decoder passes on to the frame. Exactly one of `ranks`, `grid` and `delay` is set
    and determines that position.
    """

    sizes: Int[np.ndarray, "p"]
    offsets: Int[np.ndarray, "p"]
    """Byte offset in the file; -1 if unknown or shared with other packets."""
    order_by: Literal["pts", "dts"]
    order: Int[np.ndarray, "p"]
    """The dts or pts of each packet, used for seeking."""
    keys: Int[np.ndarray, "k"]
    """Numbers of the packets that can be sought to (keyframes)."""
    firsts: Int[np.ndarray, "k"]
    """Position of the first frame that decoding from each of `keys` can produce."""
    ranks: Int[np.ndarray, "p"] | None = None
    """Position of each packet's frame; -1 if it is not shown."""
    grid: tuple[int, int] | None = None
    """First timestamp and step of frames at a constant rate, for files whose index does not give presentation order."""
    delay: int | None = None
    """Number of packets by which the decoder outputs a frame later, for files without presentation timestamps."""

    def label(self, packet: av.Packet, number: int) -> int | None:
        """Replaces a packet's timestamp by the position of its frame and returns it; None if it is unknown."""
        if self.delay is not None:
            packet.dts = number - self.delay
            return None
        if self.ranks is not None:
            position = int(self.ranks[number]) if number < len(self.ranks) else -1
        else:
            position, remainder = divmod((packet.pts or 0) - self.grid[0], self.grid[1])
            position = -1 if remainder or packet.pts is None else position
        packet.pts = position
        return position if position >= 0 else None

    def position(self, frame: av.VideoFrame) -> int | None:
        """The position of a decoded frame; None if unknown, as for the last frames of a file with a delay."""
        position = frame.pts if self.delay is None else frame.dts
        return None if position is None or position < 0 else position

    def packets_from(self, stream: av.VideoStream, key: int) -> Iterator[tuple[int, av.Packet] | None]:
        """Numbered packets from the keyframe `keys[key]` on; None, as the last item, if they do not match."""
        first = number = int(self.keys[key])
        stamp = int(self.order[first])
        for seconds in (0, 1, 10, 100):  # MPEG streams have no index: a seek may land too late
            try:
                stream.container.seek(int(stamp - seconds / as_fraction(stream.time_base)), stream=stream)
            except av.FFmpegError:
                continue
            started = False
            for packet in stream.container.demux(stream):
                if not packet.size:
                    if started and packet.dts is None:  # the final empty packet, which flushes the decoder
                        yield number, packet
                    continue
                if not started:
                    time = packet.pts if self.order_by == "pts" else packet.dts
                    offset = self.offsets[first]
                    if packet.size != self.sizes[first] or (packet.pos != offset if offset >= 0 else time != stamp):
                        if time is not None and time > stamp and (offset < 0 or (packet.pos or 0) > offset):
                            break
                        continue
                    started = True
                elif number >= len(self.sizes) or packet.size != self.sizes[number]:
                    yield None
                    return
                yield number, packet
                number += 1
            if started:
                return
        yield None
