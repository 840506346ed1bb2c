"""Moments that were found in videos for sentences, with the saliency over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vidjax.visualize.lettering import plain


class Answer(NamedTuple):
    """What was found in a video for a sentence.

    Attributes:
      title: video and sentence.
      duration: of the video in seconds.
      times: of the steps, in seconds.
      saliency: of the steps.
      windows: start and end of each moment that was found, in seconds.
      scores: of the moments, 0 to 1.
      truth: start and end of each annotated moment; None if they are unknown.
    """

    title: str
    duration: float
    times: Float[np.ndarray, "t"]
    saliency: Float[np.ndarray, "t"]
    windows: Float[np.ndarray, "n 2"]
    scores: Float[np.ndarray, "n"]
    truth: Float[np.ndarray, "m 2"] | None = None


def save_moments(path: str | Path, answers: Sequence[Answer]) -> Path:
    """Writes a PNG: for each answer the saliency as a curve, above found moments, fainter with a lower score."""
    figure = Figure(figsize=(11, 0.6 + 1.9 * len(answers)), layout="constrained")
    for axes, answer in zip(figure.subplots(len(answers), 1, squeeze=False)[:, 0], answers, strict=True):
        low, high = answer.saliency.min(), answer.saliency.max()
        axes.plot(answer.times, (answer.saliency - low) / max(high - low, 1e-9), color="tab:gray", linewidth=1.2)
        rows = [(-0.45, "found", "tab:blue", answer.windows, np.clip(answer.scores, 0, 1))]
        if answer.truth is not None:
            rows.append((-0.95, "annotated", "tab:green", answer.truth, np.ones(len(answer.truth))))
        for height, _, color, windows, scores in rows:
            for (start, end), score in sorted(zip(windows, scores, strict=True), key=lambda each: each[1]):
                alpha = 0.1 + 0.9 * float(score)
                axes.barh(height, end - start, 0.36, start, color=color, alpha=alpha, edgecolor="white")
                if color == "tab:blue" and score > 0.3:
                    axes.text((start + end) / 2, height, f"{score:.2f}", ha="center", va="center", fontsize=7)
        axes.set(xlim=(0, answer.duration), ylim=(rows[-1][0] - 0.3, 1.1))
        axes.set_yticks([0.5, *(height for height, *_ in rows)], ["saliency", *(name for _, name, *_ in rows)])
        axes.tick_params(labelsize=8)
        axes.set_title(plain(answer.title), loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=110, format="png")
    return Path(path)
