"""Boxes with their actions, drawn on frames."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from vidjax.visualize.lettering import draw_line, line_width

LINE = 18
"""Height of a line of text in pixels."""
RIGHT, WRONG, NEUTRAL = "#7ddc7d", "#ff8f8f", "#ffd84d"
"""Colours of boxes: whose likeliest action is annotated, whose is not, and without annotation."""


def draw_boxes(
    frame: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "n 4"],
    texts: Sequence[Sequence[str]],
    colors: Sequence[str],
    short_side: int = 360,
) -> UInt8[np.ndarray, "y x 3"]:
    """The frame, enlarged if it is small, with each box and its lines of text: above it, or inside if there is no room.

    Args:
      boxes: left, top, right and bottom, as fractions of the frame.
      texts: lines of each box.
      colors: one per box.
      short_side: least pixels of the shorter side. Sides are even, as encoders need.
    """
    height, width = frame.shape[:2]
    scale = max(1.0, short_side / min(height, width))
    size = tuple(round(side * scale / 2) * 2 for side in (width, height))
    image = Image.fromarray(frame).resize(size)
    draw = ImageDraw.Draw(image)
    scaled = boxes * np.array([*size, *size])
    for box, color in zip(scaled.tolist(), colors, strict=True):
        draw.rectangle(box, outline=color, width=2)
    for (left, top, _, _), lines, color in zip(scaled.tolist(), texts, colors, strict=True):
        wide = max((line_width(line) for line in lines), default=0) + 6
        x = int(max(min(left, size[0] - wide), 0))
        y = int(top - LINE * len(lines) if top >= LINE * len(lines) else top)
        if lines:
            draw.rectangle((x, y, x + wide, y + LINE * len(lines)), fill=color)
        for number, line in enumerate(lines):
            draw_line(draw, (x + 3, y + LINE * number), line)
    return np.asarray(image)


def save_boxes(path: Path, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int = 4) -> Path:
    """Writes a PNG of pictures from `draw_boxes`, in rows."""
    width, height = (max(picture.shape[axis] for picture in pictures) + 4 for axis in (1, 0))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(pictures)), height * rows), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (number % columns * width, number // columns * height))
    sheet.save(path, format="PNG")
    return path
