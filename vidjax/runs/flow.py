"""Optical flow between the frames of a video as they come, by OpenCV or by RAFT."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from vidjax.errors import UserError
from vidjax.models.raft import LEVELS, RAFT, SIDE
from vidjax.runs.weights import load_pretrained, require_source
from vidjax.training.sharding import is_main_process

Method = Literal["tvl1", "farneback", "dis", "raft"]
Flows = Callable[[Iterator[UInt8[np.ndarray, "h w 3"]]], Iterator[Float[np.ndarray, "h w 2"]]]
PAIRS = 8
"""Pairs of frames that RAFT takes at once."""


def choose_flows(method: Method, weights: str | None) -> Flows:
    """A function of the frames of a video to the flow from each to the next, in pixels: one fewer than frames.

    Args:
      weights: RAFT's, a published checkpoint or a file; None for other methods.

    Raises:
      UserError: OpenCV is missing, or weights are missing, not needed or no RAFT's.
    """
    from vidjax.data.flow import flows, opencv_flow

    if method == "raft":
        if weights is None:
            raise UserError("method raft needs weights: give --weights, such as raft_small_c_t_v2")
        return raft_flows(weights)
    if weights is not None:
        raise UserError(f"weights are RAFT's, not those of method {method}: omit --weights, or give --method raft")
    opencv_flow(method)  # fails now if OpenCV is missing
    return lambda frames: flows(opencv_flow(method), frames)  # objects of OpenCV belong to one thread


def raft_flows(source: str) -> Flows:
    """The flow by a RAFT, `PAIRS` pairs at a time.

    Frames are padded at the right and the bottom by their borders, to sides that RAFT takes.

    Raises:
      UserError: there are no such weights, or they are no RAFT's.
    """
    require_source("weights", source)
    model, variables = load_pretrained(source, verbose=is_main_process())
    if not isinstance(model, RAFT):
        raise UserError(f"weights {source} are those of {type(model).__name__}, not of RAFT: give raft_small_c_t_v2")

    @jax.jit
    def apply(frames: UInt8[Array, "t h w 3"]) -> Float[Array, "n h w 2"]:
        return model.apply(variables, model.card.preprocess(frames[None]))[0]

    def flows(frames: Iterator[UInt8[np.ndarray, "h w 3"]]) -> Iterator[Float[np.ndarray, "h w 2"]]:
        window = list(islice(frames, 1))
        while more := list(islice(frames, PAIRS)):
            window = [*window[-1:], *more]
            height, width = window[0].shape[:2]
            # The last window has as many frames as the others, so that it is not compiled again.
            padding = (0, PAIRS + 1 - len(window)), (0, padded(height) - height), (0, padded(width) - width), (0, 0)
            flow = np.asarray(apply(np.pad(np.stack(window), padding, "edge")))
            yield from flow[: len(more), :height, :width]

    return flows


def padded(side: int) -> int:
    """The next side that RAFT takes: a multiple of 8, with a place in the coarsest map."""
    return max(-(-side // SIDE), 2 ** (LEVELS - 1)) * SIDE
