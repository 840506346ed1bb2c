"""Timelines of annotated and found segments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from vidjax.visualize.lettering import plain

LEGIBLE = 0.06
"""Part of the width below which a segment is too short for its name."""


class Bar(NamedTuple):
    """A segment; the score of an annotated one is 1."""

    start: float
    end: float
    label: int
    score: float = 1.0


def save_timelines(
    path: str | Path, rows: Mapping[str, tuple[float, Sequence[Bar], Sequence[Bar]]], class_names: Sequence[str]
) -> Path:
    """Writes a PNG with the annotated segments of each video above those found, which are fainter with a lower score.

    Args:
      rows: for each video, its duration in seconds, and both.
    """
    figure = Figure(figsize=(11, 0.8 + 1.1 * len(rows)), layout="constrained")
    colors = matplotlib.colormaps["tab20"]
    for axes, (name, (duration, truth, found)) in zip(
        figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True
    ):
        for height, bars in ((1, truth), (0, found)):
            for bar in sorted(bars, key=lambda bar: bar.score):  # the best on top
                color, alpha = colors(bar.label % 20), 0.15 + 0.85 * min(max(bar.score, 0), 1)
                axes.barh(height, bar.end - bar.start, 0.8, bar.start, color=color, alpha=alpha, edgecolor="white")
                if bar.end - bar.start > LEGIBLE * duration and bar.score > 0.3:
                    text = plain(class_names[bar.label])
                    axes.text((bar.start + bar.end) / 2, height, text, ha="center", va="center", fontsize=8)
        axes.set(xlim=(0, duration), ylim=(-0.6, 1.6))
        axes.set_yticks((1, 0), ("annotated", "found"), fontsize=8)
        axes.set_title(plain(name), loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=110, format="png")
    return Path(path)
