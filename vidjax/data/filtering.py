"""Choosing videos from the web by a teacher's scores, as OmniSource does (Duan et al. 2020, arXiv:2003.13042, 3.2).

A search by the name of a class also finds other things. A network that was trained on clean labels says which videos
it agrees with; those that are nearly the same as a video of the test set are left out, whatever it says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Choice:
    """What becomes of a video.

    Attributes:
      label: the class it is kept with, -1 if it is dropped.
      score: the teacher's probability of the class that it is or would be kept with.
      reason: why it is dropped, empty if it is kept.
    """

    label: int
    score: float
    reason: str = ""


def choose(
    probabilities: Float[np.ndarray, "n c"],
    searched: Int[np.ndarray, "n"],
    class_names: Sequence[str],
    threshold: float,
    by: Literal["query", "teacher"] = "query",
    most: int | None = None,
    left_out: Mapping[int, str] = MappingProxyType({}),
) -> list[Choice]:
    """Chooses videos by the teacher's probability.

    Args:
      probabilities: of the teacher.
      searched: classes by which the videos were found.
      threshold: least probability of the class that a video is kept with.
      by: that class: the one searched by, or the teacher's most probable one.
      most: keep at most so many videos of a class, the most probable ones.
      left_out: reasons to drop videos whatever their scores, by row.
    """
    labels = searched if by == "query" else probabilities.argmax(axis=1)
    scores = probabilities[np.arange(len(labels)), labels]
    choices = []
    for row, (label, score) in enumerate(zip(labels, scores, strict=True)):
        if row in left_out:
            choices.append(Choice(-1, float(score), left_out[row]))
            continue
        if score >= threshold:
            choices.append(Choice(int(label), float(score)))
            continue
        likely = int(probabilities[row].argmax())
        instead = "" if likely == label else f"; {probabilities[row, likely]:.2f} for '{class_names[likely]}'"
        why = f"{score:.2f} for '{class_names[label]}', below {threshold:g}{instead}"
        choices.append(Choice(-1, float(score), why))
    if most is not None:
        for name, of_class in enumerate(class_names):
            kept = [row for row, choice in enumerate(choices) if choice.label == name]
            for row in sorted(kept, key=lambda row: -choices[row].score)[most:]:
                why = f"{choices[row].score:.2f}, not among the {most} most probable of '{of_class}'"
                choices[row] = Choice(-1, choices[row].score, why)
    return choices


def nearest(
    features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"], chunk: int = 4096
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Cosine similarity to the most similar of the others, and which one that is."""
    unit, other_unit = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, others))
    parts = [unit[start : start + chunk] @ other_unit.T for start in range(0, len(unit), chunk)]
    return np.concatenate([part.max(axis=1) for part in parts]), np.concatenate([part.argmax(axis=1) for part in parts])
