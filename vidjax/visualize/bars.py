"""Bar charts that compare implementations of the same job."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from vidjax.visualize.lettering import plain

OURS, OTHERS = "#1b6ca8", ("#b8b8b8", "#8f8f8f", "#d0c3a5", "#a5b8a0")


class Bar(NamedTuple):
    """The measurement of one implementation.

    Attributes:
      least, most: range of the measurement, drawn as a line; equal to the value for no line.
      note: text next to the bar.
      ours: drawn in the highlight colour.
    """

    value: float
    least: float
    most: float
    note: str
    ours: bool


def save_bars(path: str | Path, panels: Mapping[str, Mapping[str, Bar]], xlabel: str, title: str = "") -> Path:
    """Writes a PNG with one panel of horizontal bars for each job, each panel with its own scale.

    Args:
      panels: for each job, bars by implementation.
      xlabel: quantity that the bars show, with its unit.
    """
    counts = [len(bars) for bars in panels.values()]
    height = 0.9 + sum(0.65 + 0.34 * count for count in counts)
    figure = Figure(figsize=(10, height), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[count + 0.6 for count in counts])[:, 0]
    for axes, (name, bars) in zip(all_axes, panels.items(), strict=True):
        greys = iter(OTHERS * len(bars))
        for row, bar in enumerate(bars.values()):
            axes.barh(row, bar.value, 0.72, color=OURS if bar.ours else next(greys))
            if bar.most > bar.least:
                axes.plot((bar.least, bar.most), (row, row), color="black", linewidth=1, marker="|", markersize=6)
            axes.annotate(
                f"  {plain(bar.note)}", (max(bar.value, bar.most), row), va="center", fontsize=9,
                color=OURS if bar.ours else "black",
            )  # fmt: skip
        axes.set_yticks(range(len(bars)), list(map(plain, bars)), fontsize=9)
        axes.invert_yaxis()
        longest = max(max(bar.value, bar.most) for bar in bars.values()) or 1.0
        axes.set_xlim(0, 1.75 * longest)  # room for the notes
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= longest])
        axes.set_title(plain(name), loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel(plain(xlabel))
    figure.suptitle(plain(title), fontsize=11)
    figure.savefig(path, dpi=110, format="png")
    return Path(path)
