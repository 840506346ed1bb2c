"""Zero-shot recognition: classification by the text embeddings of class names."""

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
    """Class probabilities of each video, averaged over its views; input to `recognition.recognition`.

    To evaluate a single template, pass `text[i : i + 1]`.

    Args:
      video: embeddings of whole videos or of their views.
      text: embeddings of every class name in every template.
      combine: what is averaged over templates: unit embeddings, which are normalised again (CLIP; Radford et al. 2021,
        arXiv:2103.00020, section 3.1.4), or the probabilities of each template, as in ActionCLIP's released code.
      scale: factor on the cosines before the softmax over classes. With one view and one template it changes the
        confidence but not the predicted class. ActionCLIP's released code uses 100, the final value of CLIP's learnt
        scale.

    Raises:
      UserError: no class or no template, or embeddings that differ in width.
    """
    templates, classes, width = text.shape
    if templates == 0 or classes == 0:
        raise UserError(f"got {classes} classes and {templates} templates: give at least one of each")
    if video.shape[-1] != width:
        raise UserError(f"videos have width {video.shape[-1]}, class names {width}: compute both with the same model")
    views, text = unit(video if video.ndim == 3 else video[:, None]), unit(text)
    classifiers = unit(text.mean(axis=0, keepdims=True)) if combine == "embeddings" else text
    probabilities = np.zeros((len(views), classes))
    for start in range(0, len(views), BLOCK):
        for classifier in classifiers:
            logits = scale * (views[start : start + BLOCK] @ classifier.T)  # n v c
            softmax = np.exp(logits - logits.max(axis=-1, keepdims=True))
            softmax /= softmax.sum(axis=-1, keepdims=True)
            probabilities[start : start + BLOCK] += softmax.mean(axis=1) / len(classifiers)
    return probabilities
