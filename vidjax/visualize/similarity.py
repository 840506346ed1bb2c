"""Similarities of videos and captions as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vidjax.visualize.lettering import letter, plain

LETTERS = 44
"""Of a caption that is written beside its row."""


def save_similarity(path: Path, similarity: Float[np.ndarray, "n n"], captions: Sequence[str], title: str = "") -> Path:
    """Writes a PNG: a row a caption, a column the video it belongs to, brightness the cosine similarity.

    A dot marks each caption's most similar video: on the diagonal, that is the right one.

    Args:
      similarity: of caption i and video j.
      captions: of the rows.
    """
    count = len(captions)
    side = float(np.clip(1.5 + 0.24 * count, 4, 12))
    figure = Figure(figsize=(side + 4, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="magma", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    best = similarity.argmax(axis=1)
    right = best == np.arange(count)
    for found, color in ((right, "tab:green"), (~right, "tab:red")):
        axes.scatter(best[found], np.flatnonzero(found), s=18, color=color, edgecolors="white", linewidths=0.6)
    short = [text if len(text) <= LETTERS else text[: LETTERS - 1] + "…" for text in captions]
    names, families, note = letter(short)
    axes.set_yticks(range(count), names, fontsize=8, fontfamily=families)
    axes.set_xticks([])
    axes.set(xlabel="video, in the order of the captions")
    said = plain(title) or f"the nearest video is the right one for {right.sum()} of {count} captions"
    axes.set_title("\n".join(filter(None, (said, note))), fontsize=10)
    figure.savefig(path, dpi=110)
    return Path(path)
