"""Dense trajectories of a video, with descriptors along them, by OpenCV; with the camera's motion taken off on request.

Dense trajectories (Wang et al. 2011, "Action recognition by dense trajectories") begin at the points of a grid, in
several scales, and follow the optical flow for 15 frames; histograms of gradients (HOG), of flow (HOF) and of the
gradients of both directions of flow (MBH) describe the 32 x 32 pixels around each. Improved ones (iDT, Wang and Schmid
2013, "Action recognition with improved trajectories") estimate the camera's motion as a homography, warp each second
frame back by it, describe the flow that is left, and drop the tracks that only the camera moves.

Differences from the authors' code, which needs OpenCV 2: matches are of SIFT instead of SURF, which the packages of
OpenCV lack; their detector of persons, which keeps matches off them, is left out; flow is that of OpenCV's Farnebäck,
which blurs its input a little.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vidjax.errors import UserError

FARNEBACK = {"pyr_scale": 0.5, "levels": 0, "winsize": 10, "iterations": 2, "poly_n": 7, "poly_sigma": 1.5}
QUALITY = 0.001
"""Least smaller eigenvalue of a point's structure tensor, as a share of the frame's largest."""
LEAST_STD, MOST_STD = 3**0.5, 50.0
"""Tracks whose std, in pixels, is less in both directions, or more in one, are dropped: still, or drifting."""
LONGEST_STEP, LONGEST_SHARE = 20.0, 0.7
"""A track is dropped if a step is longer than both this many pixels and this share of the whole way."""
LEAST_MOTION = 1.0
"""iDT: tracks none of whose steps is longer, in pixels without the camera's motion, are dropped."""
STILL = 0.4
"""Flow of at most this many pixels is in a bin of its own."""
EPSILON = 0.05
CELLS = 2
"""Cells of a patch along each side."""
TIMES = 3
"""Cells of a track in time."""
BINS = {"hog": 8, "hof": 9, "mbhx": 8, "mbhy": 8}
SEARCH = 25.0
"""Most pixels, in each direction, between matched points of two frames."""


@dataclass(frozen=True)
class TrackConfig:
    """How points are followed; the defaults are the published ones."""

    length: int = 15
    """Steps of a track, a multiple of 3."""
    step: int = 5
    """Pixels between the points at which tracks begin."""
    patch: int = 32
    """Side of the described patch around each point, in pixels."""
    scales: int = 8
    """Most scales, each smaller than the last by the root of 2; frames stay as large as a patch."""

    def __post_init__(self) -> None:
        if self.length < TIMES or self.length % TIMES:
            raise UserError(f"length is {self.length}: it must be a multiple of {TIMES}")
        if self.patch < CELLS or self.patch % CELLS:
            raise UserError(f"patch is {self.patch}: it must be a multiple of {CELLS}")
        for name in ("step", "scales"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")

    def parts(self) -> dict[str, slice]:
        """Where in a descriptor each kind is: of 426 values 30 of shape, 96 HOG, 108 HOF, 96 MBHx and 96 MBHy."""
        sizes = {"shape": 2 * self.length} | {name: TIMES * CELLS**2 * bins for name, bins in BINS.items()}
        ends = list(itertools.accumulate(sizes.values()))
        return {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}


class Tracks(NamedTuple):
    """The tracks of a video."""

    points: Float[np.ndarray, "n s 2"]
    """Places (x, y) in the frames from `first` on, in pixels of the frames; one more than steps."""
    first: Int[np.ndarray, "n"]
    descriptors: Float[np.ndarray, "n d"]
    """See `TrackConfig.parts`; each but the shape as time, x, y and bin."""


class _Active(NamedTuple):
    """Tracks that are being followed in a scale, in its pixels; rows beyond the age are unused."""

    points: np.ndarray  # n s 2
    moved: np.ndarray  # n l 2: steps without the camera's motion
    cells: np.ndarray  # n 3 x y bins: sums over frames, the kinds one after the other
    age: np.ndarray  # n: steps so far

    def select(self, rows: np.ndarray) -> "_Active":
        return _Active(*(array[rows] for array in self))


def require_opencv() -> None:
    """Raises UserError if OpenCV is missing."""
    try:
        import cv2
    except ImportError:
        raise UserError("trajectories need OpenCV: pip install 'vidjax[flow]'") from None
    cv2.setNumThreads(1)  # parallelism is over videos


def follow(frames: Iterable[UInt8[np.ndarray, "h w 3"]], config: TrackConfig, camera: bool = True) -> Tracks:
    """The trajectories of a video that are kept, in the order in which they end.

    Frames are used as they come: memory grows only with the number of tracks.

    Args:
      camera: take the camera's motion off (iDT).

    Raises:
      UserError: OpenCV is missing, or the frames are smaller than a patch.
    """
    require_opencv()
    import cv2

    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    before = next(grey)
    if min(before.shape) < config.patch:
        size = f"{before.shape[1]}x{before.shape[0]}"
        raise UserError(f"frames of {size} are smaller than a patch of {config.patch}: give --track.patch")
    pyramid = _pyramid(before, config)
    ratios = [before.shape[1] / level.shape[1] for level in pyramid]
    active = [_begin(level, np.zeros((0, 2), np.float32), config) for level in pyramid]
    kept = []
    for number, frame in enumerate(grey, start=1):
        following = _pyramid(frame, config)
        flow = _flows(pyramid, following)
        left = flow
        if camera:
            homography = camera_motion(before, frame, flow[0])
            left = _flows(pyramid, _pyramid(_warp_back(before, frame, homography), config))
        for i, ratio in enumerate(ratios):
            active[i] = _step(active[i], pyramid[i], flow[i], left[i], config)
            ended = active[i].age == config.length
            done = active[i].select(ended)
            valid = valid_tracks(done.points * ratio, done.moved * ratio, camera)
            kept.append(_finish(done.select(valid), ratio, number - config.length, config))
            active[i] = active[i].select(~ended)
            here = active[i].points[np.arange(len(active[i].age)), active[i].age]
            new = _begin(following[i], here, config)
            active[i] = _Active(*(np.concatenate(pair) for pair in zip(active[i], new, strict=True)))
        before, pyramid = frame, following
    if not kept:
        return _finish(active[0].select(np.zeros(len(active[0].age), bool)), 1.0, 0, config)
    return Tracks(*(np.concatenate(part) for part in zip(*kept, strict=True)))


def _pyramid(grey: UInt8[np.ndarray, "h w"], config: TrackConfig) -> list[np.ndarray]:
    import cv2

    levels, (height, width) = [grey], grey.shape
    while len(levels) < config.scales:
        height, width = (round(side / 2**0.5) for side in (height, width))
        if min(height, width) < config.patch:
            break
        levels.append(cv2.resize(levels[-1], (width, height), interpolation=cv2.INTER_LINEAR))
    return levels


def _flows(first: list[np.ndarray], second: list[np.ndarray]) -> list[np.ndarray]:
    """Farnebäck's flow in each scale; that of a coarser one is where it begins."""
    import cv2

    flows: list[np.ndarray] = []
    for one, other in zip(reversed(first), reversed(second), strict=True):
        start, flags = None, cv2.OPTFLOW_FARNEBACK_GAUSSIAN
        if flows:
            ratio = one.shape[1] / flows[-1].shape[1]
            start = cv2.resize(flows[-1], one.shape[::-1], interpolation=cv2.INTER_LINEAR) * np.float32(ratio)
            flags |= cv2.OPTFLOW_USE_INITIAL_FLOW
        flows.append(cv2.calcOpticalFlowFarneback(one, other, start, **FARNEBACK, flags=flags))
    return flows[::-1]


def camera_motion(
    first: UInt8[np.ndarray, "h w"], second: UInt8[np.ndarray, "h w"], flow: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "3 3"]:
    """The homography from places in the first frame to those in the second that most of the frame follows.

    By RANSAC within a pixel from matches of SIFT and from corners that the flow moves. It is the identity unless there
    are more than 50 of these pairs, of which more than 25 agree.
    """
    import cv2

    corners = cv2.goodFeaturesToTrack(first, 1000, QUALITY, 3)
    corners = np.zeros((0, 2), np.float32) if corners is None else corners[:, 0]
    x, y = corners.astype(int).T
    matched = _match(first, second)
    start, end = np.concatenate([matched[0], corners]), np.concatenate([matched[1], corners + flow[y, x]])
    if len(start) <= 50:
        return np.eye(3)
    cv2.setRNGSeed(0)  # of RANSAC: the same video has the same tracks
    homography, agree = cv2.findHomography(start, end, cv2.RANSAC, 1.0)
    return homography if homography is not None and agree.sum() > 25 else np.eye(3)


def _match(first: np.ndarray, second: np.ndarray) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Places of points in the first frame, and of the most similar ones nearby in the second."""
    import cv2

    finder, none = cv2.SIFT_create(1000), np.zeros((0, 2), np.float32)
    (points, values), (others, other_values) = (finder.detectAndCompute(frame, None) for frame in (first, second))
    if not len(points) or not len(others):  # the values are None up to OpenCV 5.0, then empty
        return none, none
    start, end = (np.array([point.pt for point in found], np.float32) for found in (points, others))
    distance = np.square(other_values).sum(axis=1) - 2 * values @ other_values.T
    distance[(np.abs(start[:, None] - end) > SEARCH).any(axis=-1)] = np.inf
    best = distance.argmin(axis=1)
    near = np.isfinite(distance[np.arange(len(best)), best])
    return start[near], end[best[near]]


def _warp_back(first: np.ndarray, second: np.ndarray, homography: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """The second frame as it would be without the camera's motion; what it does not show is that of the first."""
    import cv2

    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped, size = first.copy(), first.shape[::-1]
    return cv2.warpPerspective(second, homography, size, warped, flags, cv2.BORDER_TRANSPARENT)


def _begin(grey: UInt8[np.ndarray, "h w"], points: Float[np.ndarray, "n 2"], config: TrackConfig) -> _Active:
    """New tracks in the cells of the grid without a point of `points`, where the frame has structure."""
    import cv2

    height, width = (side // config.step for side in grey.shape)
    taken = np.zeros((height, width), bool)
    column, row = (points // config.step).astype(int).T
    inside = (column < width) & (row < height)
    taken[row[inside], column[inside]] = True
    eigenvalues = cv2.cornerMinEigenVal(grey, 3, ksize=3)
    y, x = (np.arange(count) * config.step + config.step // 2 for count in (height, width))
    rows, columns = np.nonzero(~taken & (eigenvalues[np.ix_(y, x)] > QUALITY * eigenvalues.max()))
    count = len(rows)
    places = np.zeros((count, config.length + 1, 2), np.float32)
    places[:, 0] = np.stack([x[columns], y[rows]], axis=1)
    cells = np.zeros((count, TIMES, CELLS, CELLS, sum(BINS.values())), np.float32)
    return _Active(places, np.zeros((count, config.length, 2), np.float32), cells, np.zeros(count, np.int64))


def _step(
    active: _Active,
    grey: UInt8[np.ndarray, "h w"],
    flow: Float[np.ndarray, "h w 2"],
    left: Float[np.ndarray, "h w 2"],
    config: TrackConfig,
) -> _Active:
    """Describes the tracks in a frame and moves them to the next; those that leave the frame are dropped.

    Args:
      left: the flow without the camera's motion.
    """
    rows, (height, width) = np.arange(len(active.age)), grey.shape
    here = active.points[rows, active.age]
    x, y = np.rint(here).astype(int).clip(0, [width - 1, height - 1]).T
    there = here + _median(flow)[y, x]
    active.moved[rows, active.age] = _median(left)[y, x]
    active.points[rows, active.age + 1] = there
    values = describe(grey, left, np.stack([x, y], axis=1), config.patch)
    active.cells[rows, active.age * TIMES // config.length] += values
    inside = ((there > 0) & (there < [width, height])).all(axis=1)
    return active._replace(age=active.age + 1).select(inside)


def _median(flow: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w 2"]:
    import cv2

    return np.stack([cv2.medianBlur(np.ascontiguousarray(flow[..., c]), 5) for c in range(2)], axis=-1)


def describe(
    grey: UInt8[np.ndarray, "h w"], flow: Float[np.ndarray, "h w 2"], points: Int[np.ndarray, "n 2"], patch: int
) -> Float[np.ndarray, "n x y d"]:
    """HOG, HOF, MBHx and MBHy of the cells of a patch around each point: square roots of shares, by kind.

    A patch that would go beyond the border is moved into the frame.
    """
    import cv2

    side = patch // CELLS
    height, width = grey.shape
    corner = np.clip(points - patch // 2, 0, [width - patch, height - patch])
    x, y = (corner[:, i, None] + side * np.arange(CELLS) for i in range(2))
    x, y = x[:, :, None], y[:, None, :]
    gradients = {
        "hog": _gradient(grey),
        "hof": flow,
        "mbhx": _gradient(flow[..., 0]),
        "mbhy": _gradient(flow[..., 1]),
    }
    kinds = []
    for name, vectors in gradients.items():
        votes = histograms(vectors, BINS[name], still=name == "hof")
        planes = [
            cv2.boxFilter(plane, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
            for plane in np.moveaxis(votes, -1, 0)
        ]
        sums = np.stack([plane[y, x] for plane in planes], axis=-1) + np.float32(EPSILON)
        kinds.append(np.sqrt(sums / sums.sum(axis=(1, 2, 3), keepdims=True)))
    return np.concatenate(kinds, axis=-1)


def _gradient(image: np.ndarray) -> Float[np.ndarray, "h w 2"]:
    import cv2

    image = image.astype(np.float32)
    return np.stack([cv2.Sobel(image, cv2.CV_32F, *order, ksize=1) for order in ((1, 0), (0, 1))], axis=-1)


def histograms(vectors: Float[np.ndarray, "h w 2"], bins: int, still: bool) -> Float[np.ndarray, "h w k"]:
    """The votes of each pixel for directions: its length, shared by the two nearest bins of 360 degrees.

    Args:
      still: the last bin is one for short vectors (`STILL`), with a vote of 1 each.
    """
    directions = bins - still
    length, angle = np.hypot(*np.moveaxis(vectors, -1, 0)), np.arctan2(vectors[..., 1], vectors[..., 0])
    place = (angle % (2 * np.pi)) * (directions / (2 * np.pi))
    low = np.floor(place)
    share = (place - low).astype(np.float32)
    low = low.astype(np.int64) % directions
    quiet = length <= STILL if still else np.zeros(length.shape, bool)
    length = np.where(quiet, 0, length)
    votes = np.zeros((*length.shape, bins), np.float32)
    np.put_along_axis(votes, low[..., None], (length * (1 - share))[..., None], axis=-1)
    np.put_along_axis(votes, ((low + 1) % directions)[..., None], (length * share)[..., None], axis=-1)
    if still:
        votes[..., -1] = quiet
    return votes


def valid_tracks(
    points: Float[np.ndarray, "n s 2"], moved: Float[np.ndarray, "n l 2"], camera: bool
) -> Bool[np.ndarray, "n"]:
    """Which tracks are kept: those that move, but neither drift nor jump, and that not only the camera moves.

    Args:
      points: in pixels of the frame.
      moved: steps without the camera's motion.
      camera: drop the tracks whose steps are at most `LEAST_MOTION` without it.
    """
    std = points.std(axis=1)
    steps = np.linalg.norm(np.diff(points, axis=1), axis=-1)
    longest = steps.max(axis=1)
    still, drifts = (std < LEAST_STD).all(axis=1), (std > MOST_STD).any(axis=1)
    jumps = (longest > LONGEST_STEP) & (longest > LONGEST_SHARE * steps.sum(axis=1))
    valid = ~(still | drifts | jumps)
    return valid & (np.linalg.norm(moved, axis=-1) > LEAST_MOTION).any(axis=1) if camera else valid


def _finish(done: _Active, ratio: float, first: int, config: TrackConfig) -> Tracks:
    """Tracks in pixels of the frame, with the descriptors of their cells and their shape of unit length."""
    count, parts = len(done.age), config.parts()
    way = np.linalg.norm(done.moved, axis=-1).sum(axis=1)[:, None, None]
    values = np.zeros((count, parts["mbhy"].stop), np.float32)
    values[:, parts["shape"]] = (done.moved / np.where(way > 0, way, 1)).reshape(count, 2 * config.length)
    means = np.split(done.cells / (config.length // TIMES), np.cumsum(list(BINS.values()))[:-1], axis=-1)
    for name, mean in zip(BINS, means, strict=True):
        values[:, parts[name]] = mean.reshape(count, TIMES * CELLS**2 * BINS[name])
    return Tracks(done.points * np.float32(ratio), np.full(count, first, np.int64), values)
