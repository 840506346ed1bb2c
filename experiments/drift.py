"""Why flow stacked along trajectories may be worse than at the same pixel: how far the trajectories drift.

    python experiments/drift.py --method farneback

A two-stream network reads some fields of flow in a row, all at the same pixel or along trajectories, which begin at the
pixel and follow the flow. On the embedded videos it is known where each point of a shape moves. For the points of the
shape in the first frame that stay inside the frame, by speed, with the exact flow and with that of a method, prints how
far from its point a trajectory reads the last field, and in what share of the fields after the first both stackings
read the motion of the shape, to a quarter of its length. Seconds. Results: docs/results.md.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vidjax import cli
from vidjax.data import moving_shapes
from vidjax.data.flow import Method, flows, from_bytes, opencv_flow
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.layers.flow import stack_trajectories

STACK = jax.jit(stack_trajectories, static_argnums=1)


@dataclass(frozen=True)
class Config:
    """Which flow of which videos."""

    method: Method = "farneback"
    """Whose flow is followed, beside the exact one."""
    videos: int = 256
    """Videos of the embedded set, from the first of validation."""
    size: int = 64
    """Height and width of the frames in pixels."""
    fields: int = 4
    """Fields of flow that are stacked."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "videos", "size")
        if self.fields < 2:
            raise UserError(f"fields is {self.fields}: give 2 or more, the first is read at the pixel itself")


def measure(flow: np.ndarray, rows: np.ndarray, columns: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """For each point: the drift in pixels, and the shares of fields with its motion, at the pixel and along its track.

    Args:
      flow: (k, h, w, 2), x and y in pixels.
      rows, columns: of the points in the first frame.
      motion: true x and y per frame.
    """
    along = np.asarray(STACK(flow[None], len(flow), 1.0))[0, 0]
    along = along.reshape(*along.shape[:2], len(flow), 2)[rows, columns]
    fixed = flow[:, rows, columns].swapaxes(0, 1)
    drift = np.linalg.norm(along[:, :-1].sum(axis=1) - (len(flow) - 1) * motion, axis=-1)
    right = [np.linalg.norm(read[:, 1:] - motion, axis=-1) < np.linalg.norm(motion) / 4 for read in (fixed, along)]
    return np.stack([drift, *(each.mean(axis=1) for each in right)], axis=1)


def main(config: Config) -> list[dict[str, Any]]:
    """Prints a table and returns its rows."""
    estimate, points = opencv_flow(config.method), []
    steps = np.arange(config.fields + 1)
    for index in range(1_000_000, 1_000_000 + config.videos):
        motion = moving_shapes.scene_of(index).velocity * config.size
        exact = from_bytes(moving_shapes.render_flow(index, steps[:-1], config.size))
        rows, columns = np.nonzero(np.linalg.norm(exact[0], axis=-1) > 0.2)  # 8 bits have 0.08 for none
        last = np.stack([columns, rows], axis=1) + config.fields * motion
        inside = ((last >= 0) & (last <= config.size - 1)).all(axis=1)
        if not inside.any():
            continue
        frames = moving_shapes.render(index, steps, config.size)
        estimated = np.stack(list(flows(estimate, iter(frames)))[: config.fields])
        pair = [measure(flow, rows[inside], columns[inside], motion).mean(axis=0) for flow in (exact, estimated)]
        points.append((np.linalg.norm(motion), *np.concatenate(pair)))
    table = np.array(points)[np.argsort([row[0] for row in points])]
    results = []
    print("| speed, pixels per frame | videos | drift, exact | pixel | track | drift, estimated | pixel | track |")
    print("|---|---|---|---|---|---|---|---|")
    for part in np.array_split(table, 3):
        low, high, (_, *means) = part[0, 0], part[-1, 0], part.mean(axis=0)
        names = [f"{kind}_{flow}" for flow in ("exact", "estimated") for kind in ("drift", "pixel", "track")]
        row = {"slowest": low, "fastest": high, "videos": len(part)} | dict(zip(names, means, strict=True))
        results.append({name: float(value) for name, value in row.items()})
        cells = [
            f"{value:.2f}" if name.startswith("drift") else f"{value:.0%}"
            for name, value in zip(names, means, strict=True)
        ]
        print(f"| {low:.2f} to {high:.2f} | {len(part)} | {' | '.join(cells)} |")
    return results


if __name__ == "__main__":
    cli.run(main, Config)
