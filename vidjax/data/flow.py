"""Optical flow between grey frames by OpenCV, and flow as it is stored.

OpenCV is not a dependency: the extra `flow` installs it. Its versions differ. In OpenCV 5 the warps of TV-L1 are
interpolated exactly; 4.14 rounds them to 1/32 pixel, which moves the flow by 0.02 pixels on average and by up to 1.3.
Farnebäck's method is the same in both, and DIS up to 0.06 pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Num, UInt8

from vidjax.errors import UserError

Method = Literal["tvl1", "farneback", "dis"]
Store = Literal["uint8", "float16"]
Flow = Callable[[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]], Float[np.ndarray, "h w 2"]]

FLOW_BOUND = 20.0
"""Largest motion, in pixels per frame, that stored flow can represent."""
FARNEBACK = {
    "pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0,
}  # fmt: skip
"""Parameters of Farnebäck's method, which OpenCV has no defaults for: those of its tutorial."""


def to_bytes(flow: Float[np.ndarray, "*b c"]) -> UInt8[np.ndarray, "*b c"]:
    """Flow in pixels as bytes: -20 to 20 become 0 to 255 (128 for none), what is beyond is cut (Wang et al. 2016)."""
    return np.floor((np.clip(flow / FLOW_BOUND, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8)


def to_stored(flow: Float[np.ndarray, "*b c"], store: Store) -> Num[np.ndarray, "*b c"]:
    """Flow in pixels as it is stored: `to_bytes`, or float16, which is within 0.05 % and cuts nothing."""
    return to_bytes(flow) if store == "uint8" else flow.astype(np.float16)


def from_stored(stored: Num[np.ndarray, "*b c"]) -> Float[np.ndarray, "*b c"]:
    """The inverse of `to_stored`: flow in pixels."""
    return from_bytes(stored) if stored.dtype == np.uint8 else stored.astype(np.float32)


def from_bytes(stored: UInt8[np.ndarray, "*b c"]) -> Float[np.ndarray, "*b c"]:
    """Stored flow in pixels, to within 0.08 pixels; where nothing moves, 0.08 instead of 0."""
    return (stored.astype(np.float32) / 127.5 - 1) * np.float32(FLOW_BOUND)


def opencv_flow(method: Method, **parameters: float | int | bool) -> Flow:
    """A function of two grey frames to the flow (x, y) from the first to the second, in pixels.

    Args:
      method: TV-L1 (Zach et al. 2007), which two-stream networks use; Farnebäck (2003); or DIS (Kroeger et al. 2016).
      parameters: other than OpenCV's; for DIS `preset`, 0 (ultrafast) to 2 (medium, the default), and names of its
        setters such as `FinestScale`.

    Raises:
      UserError: OpenCV or a part of it is missing, or it does not know the method.
    """
    if method not in get_args(Method):
        raise UserError(f"method is '{method}': choose one of {', '.join(get_args(Method))}")
    try:
        import cv2
    except ImportError:
        raise UserError(f"method {method} needs OpenCV: pip install 'vidjax[flow]'") from None
    cv2.setNumThreads(1)  # parallelism is over videos
    if method == "farneback":
        known = FARNEBACK | parameters
        return lambda first, second: cv2.calcOpticalFlowFarneback(first, second, None, **known)
    if method == "dis":
        computes = cv2.DISOpticalFlow_create(parameters.pop("preset", cv2.DISOPTICAL_FLOW_PRESET_MEDIUM))
        for name, value in parameters.items():
            getattr(computes, f"set{name}")(value)
    elif hasattr(cv2, "optflow"):
        computes = cv2.optflow.DualTVL1OpticalFlow_create(**parameters)
    else:
        raise UserError("method tvl1 needs OpenCV with its contributed modules: pip install 'vidjax[flow]'")
    return lambda first, second: computes.calc(first, second, None)


def flows(flow: Flow, frames: Iterator[UInt8[np.ndarray, "h w 3"]]) -> Iterator[Float[np.ndarray, "h w 2"]]:
    """The flow from each frame to the next, as the frames come; for n frames there are n - 1."""
    import cv2

    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    return (flow(first, second) for first, second in pairwise(grey))


def follow_points(
    frames: Iterable[UInt8[np.ndarray, "h w 3"]], most: int = 200, within: float = 1.0
) -> Float[np.ndarray, "t n 2"]:
    """Places (x, y) in all frames of corners of the first one, in pixels; NaN from where a point is lost.

    Corners are those of Shi and Tomasi (1994), followed by the method of Lucas and Kanade in pyramids (Bouguet 2000). A
    point is lost if it is not recognised, leaves the frame, or does not return when it is followed back.

    Args:
      most: number of points, fewer if the frame has fewer corners.
      within: pixels to which a point must return.
    """
    import cv2

    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    before = next(grey)
    found = cv2.goodFeaturesToTrack(before, most, qualityLevel=0.01, minDistance=7)
    points = np.zeros((0, 1, 2), np.float32) if found is None else found
    tracks, here = [points[:, 0]], np.ones(len(points), bool)
    for frame in grey:
        places = np.full_like(tracks[-1], np.nan)
        if here.any():
            start = tracks[-1][here][:, None]
            moved, ahead, _ = cv2.calcOpticalFlowPyrLK(before, frame, start, None)
            back, behind, _ = cv2.calcOpticalFlowPyrLK(frame, before, moved, None)
            inside = ((moved >= 0) & (moved <= np.array(frame.shape[::-1]) - 1)).all(axis=(1, 2))
            returned = np.linalg.norm(back - start, axis=(1, 2)) < within
            kept = (ahead[:, 0] == 1) & (behind[:, 0] == 1) & inside & returned
            here[here] = kept
            places[here] = moved[kept, 0]
        tracks.append(places)
        before = frame
    return np.stack(tracks)
