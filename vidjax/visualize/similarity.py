"""Plots of video-text similarity matrices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vidjax.visualize.lettering import letter, plain

MAX_CAPTION_LENGTH = 44
"""Longer captions are cut to this many characters."""


def save_similarity(path: Path, similarity: Float[np.ndarray, "n n"], captions: Sequence[str], title: str = "") -> Path:
    """Writes a PNG of the cosine similarities, with a row per caption and a column per video.

    A dot marks each caption's most similar video: green on the diagonal, where it is the right one, else red.

    Args:
      similarity: cosine of caption i and video j; caption i belongs to video i.
      captions: one per row.
    """
    count = len(captions)
    side = float(np.clip(1.5 + 0.24 * count, 4, 12))
    figure = Figure(figsize=(side + 4, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="magma", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    best = similarity.argmax(axis=1)
    correct = best == np.arange(count)
    for rows, color in ((correct, "tab:green"), (~correct, "tab:red")):
        axes.scatter(best[rows], np.flatnonzero(rows), s=18, color=color, edgecolors="white", linewidths=0.6)
    short = [text if len(text) <= MAX_CAPTION_LENGTH else text[: MAX_CAPTION_LENGTH - 1] + "…" for text in captions]
    names, families, note = letter(short)
    axes.set_yticks(range(count), names, fontsize=8, fontfamily=families)
    axes.set_xticks([])
    axes.set(xlabel="video, in the order of the captions")
    heading = plain(title) or f"the nearest video is the right one for {correct.sum()} of {count} captions"
    axes.set_title("\n".join(filter(None, (heading, note))), fontsize=10)
    figure.savefig(path, dpi=110)
    return Path(path)
