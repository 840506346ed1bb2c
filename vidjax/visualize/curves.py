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
    """Writes a PNG with one panel for each metric in `names`, plotted over the step, four in a row.

    Args:
      entries: logged steps, as in metrics.jsonl. A panel skips entries that lack its metric or have null there.
    """
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
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
      points: x and y, from 0 to 1, by name.
      lines: y of horizontal dashed lines, by name.
    """
    draw_points(points, xlabel, ylabel, lines).savefig(path, dpi=110)
    return Path(path)


def draw_points(
    points: Mapping[str, tuple[float, float]], xlabel: str, ylabel: str, lines: Mapping[str, float]
) -> Figure:
    """The figure of `save_points`: upright names above the upper points and below the lower ones, side by side."""
    upper = {name: y >= 0.5 for name, (_, y) in points.items()}
    most = max(sum(upper.values()), len(upper) - sum(upper.values()))
    figure = Figure(figsize=(max(7.0, 1.0 + 0.26 * most), 8), layout="constrained")
    axes = figure.subplots()
    logarithms = {name: np.log(x) for name, (x, _) in points.items()}
    low, high = min(logarithms.values()) - 0.3, max(logarithms.values()) + 0.3
    for top in (True, False):
        names = sorted((name for name in points if upper[name] is top), key=logarithms.get)
        wanted = [(logarithms[name] - low) / (high - low) for name in names]
        for number, (name, place) in enumerate(zip(names, _spread(wanted, 0.92 / most), strict=True)):
            color = f"C{number % 10}"
            axes.plot(*points[name], "osD^vP"[number % 6], color=color, alpha=0.8)
            axes.annotate(
                plain(name), points[name], (np.exp(low + place * (high - low)), 1.15 if top else -0.15), rotation=90,
                ha="center", va="bottom" if top else "top", color=color, fontsize=9,
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "relpos": (0.5, 0.0 if top else 1.0)},
            )  # fmt: skip
    _lines(axes, lines)
    axes.set(
        xscale="log", xlabel=plain(xlabel), ylabel=plain(ylabel), xlim=np.exp((low, high)), ylim=(-0.85, 1.95),
        yticks=np.linspace(0, 1, 6),
    )  # fmt: skip
    axes.grid(alpha=0.3)
    return figure


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places between 0 and 1, `gap` or more apart, in the order of the sorted wanted ones and near to them."""
    places, edge = [], gap / 2
    for place in wanted:
        places.append(max(place, edge))
        edge = places[-1] + gap
    edge = 1 - gap / 2
    for i in reversed(range(len(places))):
        places[i] = min(places[i], edge)
        edge = places[i] - gap
    return places


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
