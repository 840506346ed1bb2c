"""Images and animations of masked-autoencoder reconstructions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from vidjax.visualize.lettering import draw_line, line_width

ROWS = ("input", "masked input", "reconstruction")


def save_reconstructions(
    path: Path,
    videos: Sequence[Float[np.ndarray, "b t h w c"]],
    caption: str = "",
    rows: Sequence[str] = ROWS,
    frame_milliseconds: int = 160,
) -> tuple[Path, Path]:
    """Writes `path.png`, all frames of each clip side by side, and `path.gif`, the clips side by side and animated.

    Args:
      path: without suffix.
      videos: one per row, pixels in [0, 1] (clipped).
      caption: a line above the image.
      rows: names of the rows.
      frame_milliseconds: duration of a frame in the GIF.

    Returns:
      The paths of the two files.
    """
    pixels = np.stack([np.clip(np.asarray(v, np.float32), 0, 1) for v in videos])  # row b t h w c
    pixels = np.kron(np.round(pixels * 255).astype(np.uint8), np.ones((1, 1, 1, *_zoom(pixels.shape[3]), 1), np.uint8))
    png, gif = Path(f"{path}.png"), Path(f"{path}.gif")
    png.parent.mkdir(parents=True, exist_ok=True)
    _sheet(pixels, caption, rows).save(png)
    frames = [_sheet(pixels[:, None, :, t], caption, rows) for t in range(pixels.shape[2])]
    frames[0].save(gif, save_all=True, append_images=frames[1:], duration=frame_milliseconds, loop=0)
    return png, gif


def _zoom(side: int) -> tuple[int, int]:
    """Integer factors that enlarge small frames to about 64 pixels or more."""
    factor = max(1, round(96 / side))
    return factor, factor


def _sheet(pixels: np.ndarray, caption: str, rows: Sequence[str]) -> Image.Image:
    """Lays out `row b t h w c`: one block of rows per clip from top to bottom, frames from left to right."""
    _, clips, frames, height, width, _ = pixels.shape
    gap, label, top = 2, 8 + max(line_width(row) for row in rows), 24 if caption else 0
    block = len(rows) * (height + gap) + 10
    size = max(label + frames * (width + gap), 8 + line_width(caption)), top + clips * block
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw_line(draw, (4, 4), caption)
    for clip in range(clips):
        for row, name in enumerate(rows):
            y = top + clip * block + row * (height + gap)
            draw_line(draw, (4, y + height // 2 - 8), name)
            for t in range(frames):
                sheet.paste(Image.fromarray(pixels[row, clip, t]), (label + t * (width + gap), y))
    return sheet
