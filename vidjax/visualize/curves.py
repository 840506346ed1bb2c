"""A run's curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def save_curves(
    path: Path, entries: Sequence[Mapping[str, float]], names: Sequence[str] = ("loss",), title: str = ""
) -> Path:
    """Writes a PNG with one panel for each of `names` over the step.

    Args:
      entries: logged steps, as in metrics.jsonl; those without a name, or with null, are left out of its panel.
    """
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(e["step"], e[name]) for e in entries if e.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "") if points else None
        axes.set(xlabel="step", title=name.replace("_", " "))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    return Path(path)
