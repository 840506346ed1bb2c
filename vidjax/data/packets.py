"""Which packet of a video becomes which frame, and where decoding may begin."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
from jaxtyping import Int

from vidjax.data.container import as_fraction


@dataclass(frozen=True)
class Packets:
    """The packets of a video in the order of decoding.

    A packet is known by its size and its place in the file, for after a jump FFmpeg may give it other times than when
    it reads from the start. So each is given the position of its frame for a time before it is decoded, and the frame
    brings that along. One of `ranks`, `grid` and `delay` says the position.
    """

    sizes: Int[np.ndarray, "p"]
    places: Int[np.ndarray, "p"]
    """Bytes from the start of the file; -1 if unknown, or shared with other packets."""
    order_by: Literal["pts", "dts"]
    order: Int[np.ndarray, "p"]
    """The dts or pts of each packet, by which to seek."""
    keys: Int[np.ndarray, "k"]
    """Numbers of the packets that can be jumped to."""
    firsts: Int[np.ndarray, "k"]
    """The earliest frame that decoding from each of them may give."""
    ranks: Int[np.ndarray, "p"] | None = None
    """The position of each packet's frame, -1 if it is not shown."""
    grid: tuple[int, int] | None = None
    """First timestamp and step of frames at a constant rate, of which the index of the file tells no more."""
    delay: int | None = None
    """Packets after its own that a frame leaves the decoder, where nothing tells how frames are reordered."""

    def label(self, packet: av.Packet, number: int) -> int | None:
        """Gives a packet the position of its frame, which is returned too; None if it has none that is known."""
        if self.delay is not None:
            packet.dts = number - self.delay
            return None
        if self.ranks is not None:
            position = int(self.ranks[number]) if number < len(self.ranks) else -1
        else:
            position, off = divmod((packet.pts or 0) - self.grid[0], self.grid[1])
            position = -1 if off or packet.pts is None else position
        packet.pts = position
        return position if position >= 0 else None

    def position(self, frame: av.VideoFrame) -> int | None:
        """The position that a frame brings along; None if it does not, as the last ones after a delay."""
        position = frame.pts if self.delay is None else frame.dts
        return None if position is None or position < 0 else position

    def packets_from(self, stream: av.VideoStream, key: int) -> Iterator[tuple[int, av.Packet] | None]:
        """The packets from a keyframe on, with their numbers; a None, and no more, where they are others than known."""
        first = number = int(self.keys[key])
        stamp = int(self.order[first])
        for seconds in (0, 1, 10, 100):  # an MPEG stream is entered anywhere, also too late
            try:
                stream.container.seek(int(stamp - seconds / as_fraction(stream.time_base)), stream=stream)
            except av.FFmpegError:
                continue
            begun = False
            for packet in stream.container.demux(stream):
                if not packet.size:
                    if begun and packet.dts is None:  # the last one, which empties the decoder
                        yield number, packet
                    continue
                if not begun:
                    found = packet.pts if self.order_by == "pts" else packet.dts
                    place = self.places[first]
                    if packet.size != self.sizes[first] or (packet.pos != place if place >= 0 else found != stamp):
                        if found is not None and found > stamp and (place < 0 or (packet.pos or 0) > place):
                            break
                        continue
                    begun = True
                elif number >= len(self.sizes) or packet.size != self.sizes[number]:
                    yield None
                    return
                yield number, packet
                number += 1
            if begun:
                return
        yield None
