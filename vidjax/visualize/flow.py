"""Pictures of optical flow: arrows, tracks, and colours of Middlebury's wheel (Baker et al. 2011).

The hue of a colour is the direction, its saturation the speed.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

ARROW = (255, 255, 0)
TRANSITIONS = (  # steps from one colour to the next, the channel that changes, whether it rises
    (15, 1, True),  # red to yellow
    (6, 0, False),  # to green
    (4, 2, True),  # to cyan
    (11, 1, False),  # to blue
    (13, 0, True),  # to magenta
    (6, 2, False),  # to red
)


def color_wheel() -> UInt8[np.ndarray, "n 3"]:
    """The 55 colours of the wheel, as RGB: more of them where hues are easily told apart."""
    color, wheel = np.array([255, 0, 0]), []
    for steps, channel, rises in TRANSITIONS:
        change = 255 * np.arange(steps) // steps
        part = np.repeat(color[None], steps, axis=0)
        part[:, channel] = change if rises else 255 - change
        color = part[0].copy()
        color[channel] = 255 if rises else 0
        wheel.append(part)
    return np.concatenate(wheel).astype(np.uint8)


def color_flow(flow: Float[np.ndarray, "*b h w 2"], longest: float | None = None) -> UInt8[np.ndarray, "*b h w 3"]:
    """RGB pictures of a flow (x to the right, y down): white where nothing moves.

    Args:
      longest: length of the vectors with full colours, for pictures that can be compared; longer ones are darker. By
        default the longest vector of the array.
    """
    u, v = np.moveaxis(flow, -1, 0)
    length = np.hypot(u, v)
    longest = length.max() + 1e-5 if longest is None else longest
    wheel = color_wheel() / 255
    turn = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(turn).astype(int)
    between = (turn - low)[..., None]
    color = (1 - between) * wheel[low] + between * wheel[(low + 1) % len(wheel)]
    speed = (length / longest)[..., None]
    color = np.where(speed <= 1, 1 - speed * (1 - color), 0.75 * color)
    return np.floor(255 * color).astype(np.uint8)


def draw_arrows(
    frame: UInt8[np.ndarray, "h w 3"], flow: Float[np.ndarray, "h w 2"], step: int | None = None, least: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with an arrow at every `step` pixels: from a pixel to where the flow moves it.

    Args:
      step: distance of the arrows, by default a sixteenth of the shorter side.
      least: shorter vectors, in pixels, are not drawn; stored flow is 0.08 pixels where nothing moves.
    """
    image = Image.fromarray(frame)
    draw, (height, width) = ImageDraw.Draw(image), frame.shape[:2]
    step = max(min(height, width) // 16, 4) if step is None else step
    for y in range(step // 2, height, step):
        for x in range(step // 2, width, step):
            start, vector = np.array([x, y], float), flow[y, x].astype(float)
            if (length := np.hypot(*vector)) < least:
                continue
            end, along = start + vector, vector / length * min(length, step) / 3
            across = along[::-1] * [-0.6, 0.6]
            draw.line([*start, *end], fill=ARROW)
            draw.line([*(end - along + across), *end, *(end - along - across)], fill=ARROW)
    return np.asarray(image)


def draw_tracks(frame: UInt8[np.ndarray, "h w 3"], tracks: Float[np.ndarray, "t n 2"]) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with the ways of points so far, each in a colour of the wheel, and a dot where a point is now.

    Args:
      tracks: places (x, y) up to this frame, in pixels; NaN from where a point is lost. Lost points are not drawn.
    """
    image, wheel = Image.fromarray(frame), color_wheel()
    draw = ImageDraw.Draw(image)
    for number in np.flatnonzero(~np.isnan(tracks[-1]).any(axis=-1)):
        color = tuple(wheel[number * len(wheel) // tracks.shape[1]].tolist())
        x, y = tracks[-1, number]
        if len(tracks) > 1:
            draw.line(tracks[:, number].ravel().tolist(), fill=color)
        draw.ellipse([x - 1, y - 1, x + 1, y + 1], fill=color)
    return np.asarray(image)
