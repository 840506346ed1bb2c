"""Training curves, and plots that compare runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vidjax.visualize.lettering import plain


def save_curves(
    path: Path, entries: Sequence[Mapping[str, float]], names: Sequence[str] = ("loss",), title: str = ""
) -> Path:
    """Writes a PNG with one panel for each metric in `names`, plotted over the step.

    Args:
      entries: logged steps, as in metrics.jsonl. A panel skips entries that lack its metric or have null there.
    """
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(e["step"], e[name]) for e in entries if e.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "") if points else None
        axes.set(xlabel="step", title=plain(name.replace("_", " ")))
        axes.grid(alpha=0.3)
    figure.suptitle(plain(title))
    figure.savefig(path, dpi=110)
    return Path(path)


def save_points(
    path: Path, points: Mapping[str, tuple[float, float]], xlabel: str, ylabel: str, lines: Mapping[str, float]
) -> Path:
    """Writes a PNG of named points with a logarithmic x axis.

    Args:
      points: x and y by name.
      lines: y of horizontal dashed lines, by name.
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, (x, y)) in enumerate(points.items()):  # points may coincide: draw the larger ones first
        size = 13 - 7 * number / max(len(points) - 1, 1)
        axes.plot(x, y, "osD^vP"[number % 6], markersize=size, alpha=0.8, label=plain(name))
    _lines(axes, lines)
    axes.set(xscale="log", xlabel=plain(xlabel), ylabel=plain(ylabel), ylim=(0, 1.05))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=110)
    return Path(path)


def save_bands(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    xlabel: str,
    ylabel: str,
    lines: Mapping[str, float],
) -> Path:
    """Writes a PNG of named curves: the mean over repetitions, within a band from minimum to maximum.

    Args:
      curves: by name, x (n,) and y (repetitions, n).
      lines: y of horizontal dashed lines, by name.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (x, repetitions) in curves.items():
        y = np.asarray(repetitions)
        (line,) = axes.plot(x, y.mean(axis=0), marker=".", label=f"{plain(name)} (mean of {len(y)})")
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), alpha=0.2, color=line.get_color())
    _lines(axes, lines)
    axes.set(xlabel=plain(xlabel), ylabel=plain(ylabel), ylim=(0, 1.05))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return Path(path)


def _lines(axes: Axes, lines: Mapping[str, float]) -> None:
    for name, height in lines.items():
        axes.axhline(height, color="grey", linestyle="--", linewidth=1)
        axes.annotate(
            plain(name), (0.01, height), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="grey"
        )
