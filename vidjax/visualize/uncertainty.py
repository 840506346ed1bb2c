"""Plots of the uncertainty of a classifier on known and unknown videos."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from vidjax.visualize.lettering import plain

Histogram = tuple[Float[np.ndarray, "edges"], Int[np.ndarray, "bins"], Int[np.ndarray, "bins"]]


def save_uncertainty(path: Path, panels: Mapping[str, Histogram]) -> Path:
    """Writes a PNG with one panel for each uncertainty: the fractions of known and of unknown videos by its value.

    Args:
      panels: for each heading, the edges of the bins, and the numbers of known and of unknown videos in them.
    """
    figure = Figure(figsize=(9, 1 + 2.6 * -(-len(panels) // 2)), layout="constrained")
    all_axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
    for axes, (heading, (edges, known, unknown)) in zip(all_axes, panels.items(), strict=False):
        for label, counts, color in (("known", known, "tab:blue"), ("unknown", unknown, "tab:red")):
            axes.stairs(counts / max(counts.sum(), 1), edges, fill=True, alpha=0.5, color=color, label=label)
        axes.set_title(plain(heading), loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("fraction of videos")
    all_axes[0].legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=110, format="png")
    return Path(path)
