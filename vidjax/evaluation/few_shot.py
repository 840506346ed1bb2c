"""Recognition from a few labelled clips a class, over many draws of them."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vidjax.errors import UserError
from vidjax.evaluation.knn import unit

Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], float]
"""Accuracy from train features and labels, test features and labels, and the number of classes."""


@dataclass(frozen=True)
class FewShot:
    """Accuracy over episodes; shares are between 0 and 1.

    Attributes:
      accuracy: mean over the episodes.
      interval: 95 % confidence interval of it: 1.96 standard errors each way; of the clips and classes drawn, not of
        the data set. It ends at 0 and 1.
      accuracies: of each episode.
      queries: clips that an episode asks about.
    """

    accuracy: float
    interval: tuple[float, float]
    accuracies: Float[np.ndarray, "episodes"]
    queries: int


def nearest_mean(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    classes: int,
) -> float:
    """Top-1 accuracy of the class whose mean of unit features has the highest cosine.

    Prototypical networks (Snell et al. 2017, arXiv:1703.05175) with cosines, as for features of contrastive training.
    """
    features = unit(train_features)
    means = unit(np.stack([features[train_labels == c].mean(axis=0) for c in range(classes)]))
    return float(((unit(test_features) @ means.T).argmax(axis=1) == test_labels).mean())


def few_shot(
    key: Key[Array, ""],
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    ways: int = 5,
    shots: int = 1,
    episodes: int = 600,
    queries: int = 15,
    classifier: Classifier = nearest_mean,
) -> FewShot:
    """Episodes of some classes: so many clips of each are learnt from, others of them are asked about.

    Args:
      key: decides which classes and clips are drawn; episodes are drawn one by one, so that more of them begin alike.
      features: of the clips.
      labels: classes; any whole numbers.
      ways: classes in an episode.
      shots: clips of each to learn from.
      episodes: how many.
      queries: other clips of each to ask about; fewer, where the smallest class has not so many more.
      classifier: `nearest_mean`, or a function alike: `linear_probe.linear_probe`, `knn.knn_accuracy`.

    Raises:
      UserError: fewer classes than `ways`, a class with fewer than `shots + 1` clips, or fewer than two episodes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if ways < 2 or ways > len(classes):
        raise UserError(f"cannot draw {ways} classes of {len(classes)}: an episode needs two or more that there are")
    if shots < 1 or queries < 1:
        raise UserError(f"{shots} shots and {queries} queries: an episode needs one or more of each")
    queries = max(1, min(queries, int(counts.min()) - shots))
    drawn = draw(key, labels, ways, shots + queries, episodes)
    train, test = np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), queries)
    return _summary(
        [
            classifier(features[clips[:, :shots].ravel()], train, features[clips[:, shots:].ravel()], test, ways)
            for clips in drawn
        ],
        len(test),
    )


def few_shot_from_support(
    key: Key[Array, ""],
    support_features: Float[np.ndarray, "n d"],
    support_labels: Int[np.ndarray, "n"],
    features: Float[np.ndarray, "m d"],
    labels: Int[np.ndarray, "m"],
    shots: int = 1,
    episodes: int = 10,
    classifier: Classifier = nearest_mean,
) -> FewShot:
    """All classes: so many clips of each are drawn from a support set, and all clips of a test set are asked about.

    Args:
      key: decides which clips are drawn.
      support_features, support_labels: of the clips to draw from, as of a training split.
      features, labels: of the test set, whose classes are among those of the support set.
      shots: clips of each class to learn from.
      episodes: how many draws.
      classifier: `nearest_mean`, or a function alike: `linear_probe.linear_probe`, `knn.knn_accuracy`.

    Raises:
      UserError: a class with fewer than `shots` clips, one of the test set alone, or fewer than two episodes.
    """
    classes = np.unique(support_labels)
    if len(labels) == 0 or len(unknown := np.setdiff1d(labels, classes)):
        raise UserError(
            f"class {unknown[0]} has no clip to learn from: leave its clips out"
            if len(labels)
            else "there is no clip to test: give one or more"
        )
    drawn = np.sort(draw(key, support_labels, len(classes), shots, episodes), axis=-1)
    train, test = np.repeat(np.arange(len(classes)), shots), np.searchsorted(classes, labels)
    accuracies = []
    for clips in drawn:
        chosen = clips[np.argsort(support_labels[clips[:, 0]])].ravel()  # classes come in random order
        accuracies.append(classifier(support_features[chosen], train, features, test, len(classes)))
    return _summary(accuracies, len(labels))


def draw(
    key: Key[Array, ""], labels: Int[np.ndarray, "n"], ways: int, clips: int, episodes: int
) -> Int[np.ndarray, "episodes ways clips"]:
    """For each episode, different clips of different classes, as indices; the classes in random order.

    Raises:
      UserError: a class with too few clips.
    """
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < clips:
        least = counts.argmin()
        raise UserError(
            f"class {classes[least]} has {counts[least]} clips, an episode needs {clips} of each: ask for fewer shots"
        )
    order = np.argsort(members, kind="stable")  # clips of class 0, then of class 1, ...
    return order[np.asarray(_places(key, jnp.asarray(counts), int(counts.max()), ways, clips, episodes))]


@jax.jit(static_argnums=(2, 3, 4, 5))
def _places(
    key: Key[Array, ""], counts: Int[Array, "c"], most: int, ways: int, clips: int, episodes: int
) -> Int[Array, "episodes ways clips"]:
    """Places of the clips drawn, where clips are ordered by class."""

    def episode(number: Int[Array, ""]) -> Int[Array, "ways clips"]:
        class_key, clip_key = jax.random.split(jax.random.fold_in(key, number))
        classes = jax.random.permutation(class_key, len(counts))[:ways, None]
        lots = jax.random.uniform(clip_key, (ways, most))
        lots = jnp.where(jnp.arange(most) < counts[classes], lots, 2)  # a place after the last clip is never drawn
        return (jnp.cumsum(counts) - counts)[classes] + jnp.argsort(lots, axis=1)[:, :clips]

    return jax.lax.map(episode, jnp.arange(episodes))


def _summary(accuracies: list[float], queries: int) -> FewShot:
    found = np.array(accuracies)
    if len(found) < 2:
        raise UserError(f"{len(found)} episodes have no confidence interval: ask for two or more")
    mean, error = float(found.mean()), float(1.96 * found.std(ddof=1) / np.sqrt(len(found)))
    return FewShot(mean, (max(mean - error, 0.0), min(mean + error, 1.0)), found, queries)
