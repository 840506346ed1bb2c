"""Plots of confusion matrices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from vidjax.visualize.lettering import letter, plain

MAX_NAMED_CLASSES = 60
"""With more classes, the axes carry no class names."""
MAX_COUNTED_CLASSES = 20
"""With more classes, the cells carry no counts."""


def save_confusion(path: Path, confusion: Int[np.ndarray, "c c"], class_names: Sequence[str], title: str = "") -> Path:
    """Writes a PNG with a row per true class and a column per predicted class; rows are normalised to sum to one.

    A name that no installed font can draw is replaced by its class number, with a note in the title.

    Args:
      confusion: counts, true class by predicted class.
      class_names: names of the rows and columns.
    """
    classes = len(class_names)
    totals = confusion.sum(axis=1, keepdims=True)
    fractions = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    side = float(np.clip(2.5 + 0.32 * classes, 5, 14))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    lines = [plain(title)]
    if classes <= MAX_NAMED_CLASSES:
        names, families, note = letter([name if len(name) <= 24 else name[:23] + "…" for name in class_names])
        axes.set_xticks(range(classes), names, rotation=90, fontsize=8, fontfamily=families)
        axes.set_yticks(range(classes), names, fontsize=8, fontfamily=families)
        lines.append(note)
    axes.set_title("\n".join(filter(None, lines)), fontsize=10)
    if classes <= MAX_COUNTED_CLASSES:
        for row, column in np.argwhere(confusion > 0):
            color = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=8, color=color)
    figure.savefig(path, dpi=110)
    return Path(path)
