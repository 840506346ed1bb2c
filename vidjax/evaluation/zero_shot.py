"""Recognition without training: a clip's class is the one whose name in words lies nearest."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from vidjax.errors import UserError
from vidjax.evaluation.knn import unit

BLOCK = 1024
"""Videos compared at a time, to bound memory."""


def zero_shot(
    video: Float[np.ndarray, "n v e"] | Float[np.ndarray, "n e"],
    text: Float[np.ndarray, "p c _"],
    combine: Literal["embeddings", "probabilities"] = "embeddings",
    scale: float = 100.0,
) -> Float[np.ndarray, "n c"]:
    """Probabilities of each class for each video, averaged over its views; for `recognition.recognition`.

    With the text of one template (`text[i : i + 1]`) they are what this template says alone.

    Args:
      video: embeddings of whole videos, or of their views.
      text: embeddings of every class name in every template.
      combine: what is averaged over templates: unit embeddings, brought to unit length again (CLIP; Radford et al.
        2021, arXiv:2103.00020, section 3.1.4), or the probabilities that each template gives, as ActionCLIP's release
        does.
      scale: what cosines are multiplied by before the softmax over classes. Of one view and one embedding a class it
        decides how sure the probabilities are and not which is the highest. ActionCLIP's release has 100, where CLIP's
        ends.

    Raises:
      UserError: no class or no template, or embeddings that differ in width.
    """
    templates, classes, width = text.shape
    if templates == 0 or classes == 0:
        raise UserError(f"{classes} classes in {templates} templates: there must be one or more of each")
    if video.shape[-1] != width:
        raise UserError(f"videos have {video.shape[-1]} values, class names {width}: use one model for both")
    views, text = unit(video if video.ndim == 3 else video[:, None]), unit(text)
    classifiers = unit(text.mean(axis=0, keepdims=True)) if combine == "embeddings" else text
    probabilities = np.zeros((len(views), classes))
    for start in range(0, len(views), BLOCK):
        for classifier in classifiers:
            logits = scale * (views[start : start + BLOCK] @ classifier.T)  # n v c
            shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
            shares /= shares.sum(axis=-1, keepdims=True)
            probabilities[start : start + BLOCK] += shares.mean(axis=1) / len(classifiers)
    return probabilities
