"""Accuracy over what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vidjax.visualize.lettering import plain


def save_tradeoff(
    path: str | Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], ylabel: str, title: str = ""
) -> Path:
    """Writes a PNG with a panel for each cost, and in it a line for each name.

    Args:
      panels: points (cost, accuracy from 0 to 1) by name, by the label of the x axis.
    """
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (xlabel, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, (name, points) in enumerate(lines.items()):
            axes.plot(*zip(*sorted(points), strict=True), marker="osD^"[number % 4], label=plain(name))
        axes.set(xlabel=plain(xlabel), ylabel=plain(ylabel), xlim=(0, None), ylim=(0, 1.05))
        axes.legend()
        axes.grid(alpha=0.3)
    figure.suptitle(plain(title))
    figure.savefig(path, dpi=110)
    return Path(path)
