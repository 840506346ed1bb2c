"""Time of optical flow: RAFT beside torchvision's, and `data.flow` beside OpenCV's own calls.

Frames are of a smooth random texture that moves by whole pixels. RAFT is timed on pairs of frames with random
parameters, in float32; the other methods, from RGB frames to flow, with one thread on both sides. Each side runs in
processes of its own, which alternate; a time is the median of the rounds' medians, of one pair.
"""

import dataclasses
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import vidjax
from benchmark.measure import in_process, set_environment
from benchmark.ours import describe_devices
from benchmark.peers import import_torchvision
from benchmark.process import keep_to, timed
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive

Method = Literal["tvl1", "farneback", "dis", "raft_small", "raft_large"]
MOTION = (3, -2)
"""Pixels per frame, down and right."""


@dataclasses.dataclass(frozen=True)
class OpticalFlow:
    """Optical flow of pairs of frames."""

    methods: tuple[Method, ...] = ("tvl1", "farneback", "dis", "raft_small", "raft_large")
    """Methods of extract_flow.py, with the size of RAFT."""
    size: int = 224
    """Height and width in pixels, a multiple of 8 and at least 128 for RAFT."""
    pairs: int = 2
    """Pairs of frames per call."""
    threads: int | None = None
    """CPU cores that each side may use for RAFT; None for all."""
    rounds: int = 2
    """Processes per side, which alternate."""
    steps: int = 3
    """Timed calls per process, after warm-up."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        """Rejects invalid values."""
        check_values(self)
        require_positive(self, "size", "pairs", "threads", "rounds", "steps")
        if any(method.startswith("raft") for method in self.methods) and (self.size % 8 or self.size < 128):
            raise UserError(f"size is {self.size}: RAFT takes multiples of 8 from 128 on")
        lacking = not importlib.util.find_spec("cv2")
        if lacking and (others := [method for method in self.methods if not method.startswith("raft")]):
            raise UserError(f"method {others[0]} needs OpenCV: pip install 'vidjax[flow]', or name only RAFT")
        check_files(json=self.json)


def draw(config: OpticalFlow) -> np.ndarray:
    """Frames `t h w 3`, one more than pairs."""
    cells = -(-config.size // 8)
    coarse = np.random.default_rng(0).uniform(0, 255, (cells, cells, 3))
    texture = np.kron(coarse, np.ones((8, 8, 1)))[: config.size, : config.size]
    for axis in (0, 1):
        texture = np.mean([np.roll(texture, shift, axis) for shift in range(-4, 5)], axis=0)
    moved = [np.roll(texture, (number * MOTION[0], number * MOTION[1]), (0, 1)) for number in range(config.pairs + 1)]
    return np.stack(moved).astype(np.uint8)


def ours(method: Method, config: OpticalFlow) -> float:
    """vidjax: seconds of a pair."""
    frames = draw(config)
    if not method.startswith("raft"):
        from vidjax.data.flow import flows, opencv_flow

        flow = opencv_flow(method)
        return _median(lambda: list(flows(flow, iter(frames))), lambda _: None, config)
    keep_to(config.threads)
    model = vidjax.create_model(method)
    video = model.card.preprocess(jnp.stack([frames[:-1], frames[1:]], axis=1))
    variables = jax.jit(lambda key: model.init(key, video[:1]))(jax.random.key(0))
    apply = jax.jit(model.apply)
    return _median(lambda: apply(variables, video), jax.block_until_ready, config)


def theirs(method: Method, config: OpticalFlow) -> float:
    """OpenCV's own calls, or torchvision's RAFT on the CPU: seconds of a pair."""
    frames = draw(config)
    if not method.startswith("raft"):
        import cv2

        from vidjax.data.flow import FARNEBACK

        cv2.setNumThreads(1)
        calls = {
            "tvl1": lambda: cv2.optflow.DualTVL1OpticalFlow_create().calc,
            "dis": lambda: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc,
            "farneback": lambda: lambda *pair: cv2.calcOpticalFlowFarneback(*pair, **FARNEBACK),
        }
        call = calls[method]()

        def run() -> list[np.ndarray]:
            grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
            return [call(*pair, None) for pair in itertools.pairwise(grey)]

        return _median(run, lambda _: None, config)
    import torch

    torch.set_num_threads(keep_to(config.threads))
    model = getattr(import_torchvision().models.optical_flow, method)().eval()
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1

    def apply() -> Any:
        with torch.inference_mode():
            return model(video[:-1].contiguous(), video[1:].contiguous())[-1]

    return _median(apply, lambda _: None, config)


def _median(run: Callable[[], Any], wait: Callable[[Any], Any], config: OpticalFlow) -> float:
    return statistics.median(timed(run, wait, config.steps)) / config.pairs


def measure_flow(config: OpticalFlow, report: Callable[[str], Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The devices, and a row for each method: the other library's seconds under `other_seconds`.

    Args:
      report: called with one line before each process.
    """
    set_environment()
    has_torchvision = importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision")
    rows = []
    for method in config.methods:
        sides = {"": ours} | ({"other_": theirs} if has_torchvision or not method.startswith("raft") else {})
        seconds: dict[str, list[float]] = {prefix: [] for prefix in sides}
        for number in range(config.rounds):
            for prefix, run in sides.items():
                report(f"{method}, {run.__name__}, round {number + 1} of {config.rounds}")
                seconds[prefix].append(in_process(run, method, config))
        rows.append({"method": method} | {f"{prefix}seconds": statistics.median(s) for prefix, s in seconds.items()})
    versions = {"jax": version("jax")}
    for name in ("torch", "torchvision", "opencv-contrib-python-headless"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return in_process(describe_devices) | {"versions": versions}, rows
