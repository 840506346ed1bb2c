"""Nearest neighbours of frozen features: retrieval of clips, and a classifier that fits nothing."""

import numpy as np
from jaxtyping import Float, Int

from vidjax.errors import UserError


def nearest(
    features: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "q _"], k: int, chunk: int = 1024
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """The `k` features of highest cosine similarity to each query, best first, and the similarities.

    Args:
      features: searched; all of them are answers when there are fewer than `k`.
      queries: of the same width.
      chunk: queries compared at a time, to bound memory.

    Raises:
      UserError: nothing to search, or features of another width.
    """
    if len(features) == 0 or k < 1:
        raise UserError(f"cannot find the {k} nearest of {len(features)} features: both must be 1 or more")
    if features.shape[1] != queries.shape[1]:
        raise UserError(f"queries have {queries.shape[1]} values, features {features.shape[1]}: use one model for both")
    features, queries = (unit(x) for x in (features, queries))
    indices, similarities = [], []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ features.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        indices.append(order)
        similarities.append(np.take_along_axis(similarity, order, axis=1))
    width = min(k, len(features))
    empty = np.zeros((0, width), np.int64), np.zeros((0, width), features.dtype)
    return np.concatenate([empty[0], *indices]), np.concatenate([empty[1], *similarities])


def knn_accuracy(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of the weighted vote of the `k` nearest train features (Wu et al. 2018, arXiv:1805.01978).

    Features are centred by the train features' mean; a neighbour's vote weighs exp(cosine similarity / temperature).

    Raises:
      UserError: no features, or a label outside `range(classes)`.
    """
    for name, labels in (("train", train_labels), ("test", test_labels)):
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{name} labels must be in 0..{classes - 1}, and at least one; leave out unlabelled clips")
    mean = train_features.mean(axis=0)
    indices, similarity = nearest(train_features - mean, test_features - mean, k)
    votes = np.zeros((len(test_labels), classes))
    np.add.at(votes, (np.arange(len(votes))[:, None], train_labels[indices]), np.exp(similarity / temperature))
    return float((votes.argmax(axis=1) == test_labels).mean())


def unit(features: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Every vector at length one; zero stays zero."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
