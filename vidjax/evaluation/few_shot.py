"""Few-shot recognition: accuracy from a few labelled clips per class, averaged over episodes."""

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
    """Accuracy over episodes, between 0 and 1.

    Attributes:
      accuracy: mean over the episodes.
      interval: 95 % confidence interval of `accuracy`, plus or minus 1.96 standard errors, clipped to [0, 1]. It covers
        the draw of clips and classes, not the choice of the data set.
      accuracies: accuracy of each episode.
      queries: test clips per episode.
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
    """Top-1 accuracy of classifying by the class mean of unit features with the highest cosine similarity.

    This is prototypical networks (Snell et al. 2017, arXiv:1703.05175) with cosine similarity, as suits contrastively
    trained features.
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
    """N-way k-shot accuracy: each episode draws classes, and from each class clips to train and clips to test on.

    Args:
      key: determines the classes and clips. Episode i depends only on the key and i, so a larger number of episodes
        begins with the same ones.
      features: one row per clip.
      labels: class of each clip; any integers.
      ways: classes per episode.
      shots: training clips per class.
      episodes: number of episodes.
      queries: test clips per class; fewer if the smallest class does not have that many left.
      classifier: `nearest_mean` or a function with the same signature, such as `linear_probe.linear_probe` or
        `knn.knn_accuracy`.

    Raises:
      UserError: fewer classes than `ways`, a class with fewer than `shots + 1` clips, or fewer than two episodes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if ways < 2 or ways > len(classes):
        raise UserError(f"cannot draw {ways} of {len(classes)} classes: choose between 2 and the number of classes")
    if shots < 1 or queries < 1:
        raise UserError(f"got {shots} shots and {queries} queries: an episode needs at least one of each")
    queries = max(1, min(queries, int(counts.min()) - shots))
    episode_clips = draw(key, labels, ways, shots + queries, episodes)
    train, test = np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), queries)
    return _summarize(
        [
            classifier(features[clips[:, :shots].ravel()], train, features[clips[:, shots:].ravel()], test, ways)
            for clips in episode_clips
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
    """k-shot accuracy over all classes: training clips are drawn from a support set, and the whole test set is tested.

    Args:
      key: determines which clips are drawn.
      support_features, support_labels: clips to draw from, such as a training split.
      features, labels: the test set; its classes must occur in the support set.
      shots: training clips per class.
      episodes: number of draws.
      classifier: `nearest_mean` or a function with the same signature, such as `linear_probe.linear_probe` or
        `knn.knn_accuracy`.

    Raises:
      UserError: a class with fewer than `shots` clips, a test class without support clips, an empty test set, or fewer
        than two episodes.
    """
    classes = np.unique(support_labels)
    if len(labels) == 0 or len(unknown := np.setdiff1d(labels, classes)):
        raise UserError(
            f"class {unknown[0]} has no clip in the support set: add one, or remove the class from the test set"
            if len(labels)
            else "the test set is empty: give at least one clip"
        )
    episode_clips = np.sort(draw(key, support_labels, len(classes), shots, episodes), axis=-1)
    train, test = np.repeat(np.arange(len(classes)), shots), np.searchsorted(classes, labels)
    accuracies = []
    for clips in episode_clips:
        chosen = clips[np.argsort(support_labels[clips[:, 0]])].ravel()  # by class: `draw` shuffles the classes
        accuracies.append(classifier(support_features[chosen], train, features, test, len(classes)))
    return _summarize(accuracies, len(labels))


def draw(
    key: Key[Array, ""], labels: Int[np.ndarray, "n"], ways: int, clips: int, episodes: int
) -> Int[np.ndarray, "episodes ways clips"]:
    """Draws for each episode distinct classes, in random order, and distinct clips of each, as indices into `labels`.

    Raises:
      UserError: a class has too few clips.
    """
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < clips:
        least = counts.argmin()
        raise UserError(
            f"class {classes[least]} has {counts[least]} clips, but an episode needs {clips} per class: use fewer shots"
        )
    order = np.argsort(members, kind="stable")  # clips of class 0, then of class 1, ...
    return order[np.asarray(_draw_positions(key, jnp.asarray(counts), int(counts.max()), ways, clips, episodes))]


@jax.jit(static_argnums=(2, 3, 4, 5))
def _draw_positions(
    key: Key[Array, ""], counts: Int[Array, "c"], max_count: int, ways: int, clips: int, episodes: int
) -> Int[Array, "episodes ways clips"]:
    """Positions of the drawn clips in a list of the clips ordered by class."""

    def episode(number: Int[Array, ""]) -> Int[Array, "ways clips"]:
        class_key, clip_key = jax.random.split(jax.random.fold_in(key, number))
        classes = jax.random.permutation(class_key, len(counts))[:ways, None]
        scores = jax.random.uniform(clip_key, (ways, max_count))
        scores = jnp.where(jnp.arange(max_count) < counts[classes], scores, 2)  # never draw beyond the last clip
        return (jnp.cumsum(counts) - counts)[classes] + jnp.argsort(scores, axis=1)[:, :clips]

    return jax.lax.map(episode, jnp.arange(episodes))


def _summarize(accuracies: list[float], queries: int) -> FewShot:
    values = np.array(accuracies)
    if len(values) < 2:
        raise UserError(f"a confidence interval needs at least 2 episodes, got {len(values)}: increase the number")
    mean, error = float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
    return FewShot(mean, (max(mean - error, 0.0), min(mean + error, 1.0)), values, queries)
