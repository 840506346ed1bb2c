"""Nearest neighbours of frozen features: search and kNN classification."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.features import check_labels


def nearest(
    features: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "q _"], k: int, chunk: int = 1024
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """The `k` features with the highest cosine similarity to each query.

    Args:
      features: the index to search.
      queries: vectors of the same width.
      k: neighbours per query; with fewer features, all of them are returned.
      chunk: queries compared at a time, to bound memory.

    Returns:
      Indices into `features`, most similar first, and the similarities.

    Raises:
      UserError: no features, `k` below 1, or different widths.
    """
    if len(features) == 0 or k < 1:
        raise UserError(
            f"cannot search for the {k} nearest of {len(features)} features: both numbers must be at least 1"
        )
    if features.shape[1] != queries.shape[1]:
        raise UserError(
            f"queries have width {queries.shape[1]}, features {features.shape[1]}: compute both with the same model"
        )
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


def knn_predict(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test_features: Float[np.ndarray, "m d"],
    classes: int,
    counts: Sequence[int],
    temperature: float = 0.07,
) -> Int[np.ndarray, "k m"]:
    """Classes by weighted kNN classification (Wu et al. 2018, arXiv:1805.01978), for several numbers of neighbours.

    Features are centred by the mean of the train features; a neighbour's vote has weight
    exp(cosine similarity / temperature). The neighbours are searched once.

    Args:
      counts: numbers of neighbours that vote.

    Raises:
      UserError: no features, or a label outside `range(classes)`.
    """
    check_labels(classes, train=train_labels)
    mean = train_features.mean(axis=0)
    indices, similarity = nearest(train_features - mean, test_features - mean, max(counts))
    labels, weights = train_labels[indices], np.exp(similarity / temperature)
    predicted = np.empty((len(counts), len(test_features)), np.int64)
    for row, count in enumerate(counts):
        votes = np.zeros((len(test_features), classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], labels[:, :count]), weights[:, :count])
        predicted[row] = votes.argmax(axis=1)
    return predicted


def knn_accuracy(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of `knn_predict` with `k` neighbours.

    Raises:
      UserError: no features, or a label outside `range(classes)`.
    """
    check_labels(classes, test=test_labels)
    (predicted,) = knn_predict(train_features, train_labels, test_features, classes, (k,), temperature)
    return float((predicted == test_labels).mean())


def unit(features: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Scales every vector to unit length; zero vectors stay zero."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
