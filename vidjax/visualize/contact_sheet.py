"""Contact sheets: the frames of clips as a model receives them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from vidjax.visualize.lettering import draw_line


def save_contact_sheet(
    path: Path, clips: Sequence[UInt8[np.ndarray, "t h w 3"]], titles: Sequence[str], side: int = 112
) -> Path:
    """Writes a PNG with one row of frames per clip and its title above the row.

    Args:
      clips: may differ in length and size.
      titles: one per clip.
      side: height of a frame on the sheet, in pixels.
    """
    line, gap = 22, 3
    rows = []
    for clip in clips:
        width = max(round(side * clip.shape[2] / clip.shape[1]), 1)
        rows.append([Image.fromarray(frame).resize((width, side)) for frame in clip])
    widest = max([480, *(sum(frame.width + gap for frame in row) for row in rows)])
    sheet = Image.new("RGB", (widest, max(len(rows), 1) * (side + line + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, title) in enumerate(zip(rows, titles, strict=True)):
        y, x = number * (side + line + gap), 0
        draw_line(draw, (4, y + 3), title)
        for frame in row:
            sheet.paste(frame, (x, y + line))
            x += frame.width + gap
    sheet.save(path)
    return Path(path)
