"""A confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from vidjax.visualize.lettering import letter, plain

NAMED = 60
"""Up to so many classes are named on the axes."""
COUNTED = 20
"""Up to so many classes have their counts written in."""


def save_confusion(path: Path, confusion: Int[np.ndarray, "c c"], class_names: Sequence[str], title: str = "") -> Path:
    """Writes a PNG: a row a true class, a column a predicted one, darkness the share of the true class's videos.

    Where no installed font has a name's characters, its number stands in its place, and the title says so.

    Args:
      confusion: counts.
      class_names: of the rows and columns.
    """
    classes = len(class_names)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    side = float(np.clip(2.5 + 0.32 * classes, 5, 14))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    lines = [plain(title)]
    if classes <= NAMED:
        names, families, note = letter([name if len(name) <= 24 else name[:23] + "…" for name in class_names])
        axes.set_xticks(range(classes), names, rotation=90, fontsize=8, fontfamily=families)
        axes.set_yticks(range(classes), names, fontsize=8, fontfamily=families)
        lines.append(note)
    axes.set_title("\n".join(filter(None, lines)), fontsize=10)
    if classes <= COUNTED:
        for row, column in np.argwhere(confusion > 0):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=8, color=color)
    figure.savefig(path, dpi=110)
    return Path(path)
