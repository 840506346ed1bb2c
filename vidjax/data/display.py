"""From a decoded frame to the RGB picture that a player shows: exact colours, square pixels, upright."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

# Without the last two, swscale rounds down (white becomes 253 at some widths) and halves the chroma of what it shrinks:
# 1.0 to 1.6 levels off on average over real clips in place of 0.3 to 0.6 (FFmpeg 8.1, against float arithmetic and
# Pillow's filter). To planes it does so with vector instructions, to interleaved bytes without: 0.35 ms a frame of
# 341x256 in place of 1.1.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

ROUNDED = 0.01
"""Pixels nearer to squares than this are squares: encoders write such a ratio where a side was rounded to be even."""

TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
"""Display matrices of 0, 90, 180 and 270 degrees, counter-clockwise."""

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""FFmpeg's numbers of the transfer functions of high dynamic range (ITU-T H.273)."""


class Screen:
    """Converts the frames of one video, all to one size."""

    def __init__(
        self, first: av.VideoFrame, stored: tuple[int, int], pixel_aspect: Fraction | None, short_side: int | None
    ):
        """Takes the display matrix of the first frame that is given.

        Args:
          first: a decoded frame.
          stored: height and width of the video's first frame; 0 if unknown.
          pixel_aspect: width to height of a pixel; None for square.
          short_side: shrink to this many pixels on the shorter side; smaller videos stay as they are.
        """
        self._resizer = Resizer()
        self._turn = _display_matrix(first)
        aspect = pixel_aspect or 1
        if abs(aspect - 1) < ROUNDED:
            aspect = 1
        height, width = stored if all(stored) else (first.height, first.width)
        full = height, max(round(width * aspect), 1)
        scale = min(1, (short_side or min(full)) / min(full))
        self._size = tuple(max(round(side * scale), 1) for side in full)
        self.size: tuple[int, int] = full[::-1] if _swaps_sides(self._turn) else full
        """(height, width) as displayed, before shrinking."""
        self.hdr: str = HDR_TRANSFERS.get(int(first.color_trc), "")
        """PQ or HLG; empty for standard dynamic range."""

    def show(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """The frame as displayed."""
        return upright(self._resizer(frame, *self._size), self._turn)


class Resizer:
    """Frames as RGB of another size; keeps swscale's tables from frame to frame."""

    def __init__(self):
        self._resize, self._interleave = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """The frame, resized by a triangle filter that widens as it shrinks."""
        planes = self._resize.reformat(frame, width, height, "gbrp", interpolation=EXACT, threads=1)
        return self._interleave.reformat(planes, format="rgb24", threads=1).to_ndarray()


def upright(picture: UInt8[np.ndarray, "h w 3"], matrix: tuple[int, int, int, int]) -> UInt8[np.ndarray, "..."]:
    """The picture turned and mirrored, whichever of the eight ways is nearest to the display matrix.

    The matrix (a, b, c, d) takes the pixel at (x, y) to (a x + c y, b x + d y), as in ISO/IEC 14496-12.
    """
    a, b, c, d = matrix
    if _swaps_sides(matrix):
        picture, mirror_x, mirror_y = picture.swapaxes(0, 1), c < 0, b < 0
    else:
        mirror_x, mirror_y = a < 0, d < 0
    return picture[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]


def _swaps_sides(matrix: tuple[int, int, int, int]) -> bool:
    return abs(matrix[1]) > abs(matrix[0])


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    # frame.rotation is an angle, which a mirrored picture has none of.
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18.1 knows fewer kinds of side data than FFmpeg 8.1, and then gives none of them
        return TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return TURNS[0]
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d
