"""Conversion of decoded frames to RGB as a player shows them: exact colours, square pixels, upright."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

# Without the last two flags, swscale rounds down (white becomes 253 at some widths) and halves the chroma resolution
# when shrinking: the mean error over real clips is 1.0 to 1.6 levels instead of 0.3 to 0.6 (FFmpeg 8.1, against float
# arithmetic and Pillow's filter). With these flags swscale has vector code for planar output only, so frames are
# converted to planes and then interleaved: 0.35 ms per frame of 341x256 instead of 1.1.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

ASPECT_TOLERANCE = 0.01
"""Pixel aspect ratios this close to 1 count as square: encoders write them when a side was rounded to be even."""

TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
"""Display matrices of 0, 90, 180 and 270 degrees, counter-clockwise."""

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""FFmpeg's numbers of the HDR transfer functions (ITU-T H.273)."""


class Screen:
    """Converts the frames of one video to RGB images of one size."""

    def __init__(
        self, first: av.VideoFrame, stored: tuple[int, int], pixel_aspect: Fraction | None, short_side: int | None
    ):
        """Chooses size and orientation from the first decoded frame.

        Args:
          first: a decoded frame, whose display matrix applies to all frames.
          stored: height and width of the video's first frame; 0 if unknown.
          pixel_aspect: width divided by height of a pixel; None for square.
          short_side: shrink the shorter side to this many pixels; smaller videos are not enlarged.
        """
        self._resizer = Resizer()
        self._turn = _display_matrix(first)
        aspect = pixel_aspect or 1
        if abs(aspect - 1) < ASPECT_TOLERANCE:
            aspect = 1
        height, width = stored if all(stored) else (first.height, first.width)
        full = height, max(round(width * aspect), 1)
        scale = min(1, (short_side or min(full)) / min(full))
        self._size = tuple(max(round(side * scale), 1) for side in full)
        self.size: tuple[int, int] = full[::-1] if _swaps_sides(self._turn) else full
        """(height, width) as displayed, before shrinking."""
        self.hdr: str = HDR_TRANSFERS.get(int(first.color_trc), "")
        """`PQ` or `HLG`; empty for standard dynamic range."""

    def show(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """The frame as displayed."""
        return upright(self._resizer(frame, *self._size), self._turn)


class Resizer:
    """Converts frames to RGB of a given size, reusing swscale's tables."""

    def __init__(self):
        self._resize, self._interleave = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """The frame, resized with an antialiased triangle filter."""
        planes = self._resize.reformat(frame, width, height, "gbrp", interpolation=EXACT, threads=1)
        return self._interleave.reformat(planes, format="rgb24", threads=1).to_ndarray()


def upright(image: UInt8[np.ndarray, "h w 3"], matrix: tuple[int, int, int, int]) -> UInt8[np.ndarray, "..."]:
    """Rotates and mirrors an image by whichever of the eight orientations is nearest to the display matrix.

    The matrix (a, b, c, d) maps the pixel at (x, y) to (a x + c y, b x + d y), as in ISO/IEC 14496-12.
    """
    a, b, c, d = matrix
    if _swaps_sides(matrix):
        image, mirror_x, mirror_y = image.swapaxes(0, 1), c < 0, b < 0
    else:
        mirror_x, mirror_y = a < 0, d < 0
    return image[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]


def _swaps_sides(matrix: tuple[int, int, int, int]) -> bool:
    return abs(matrix[1]) > abs(matrix[0])


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    # frame.rotation is an angle and cannot express mirroring.
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # raised by PyAV 18.1 if any side data is of a kind it does not know
        return TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return TURNS[0]
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d
