"""Nearest neighbours against all similarities."""

import numpy as np
import pytest

from vidjax.evaluation.knn import knn_accuracy, knn_predict, nearest


def test_nearest_equals_sorting_all_cosines_for_any_chunk():
    random = np.random.default_rng(0)
    features, queries = random.normal(size=(50, 8)), random.normal(size=(7, 8))
    cosines = np.array([[q @ f / np.linalg.norm(q) / np.linalg.norm(f) for f in features] for q in queries])
    for chunk in (2, 1024):
        indices, similarities = nearest(features, queries, 3, chunk)
        np.testing.assert_array_equal(indices, np.argsort(-cosines, axis=1)[:, :3])
        np.testing.assert_allclose(similarities, -np.sort(-cosines, axis=1)[:, :3], atol=1e-12)
    assert nearest(features[:2], queries, 5)[0].shape == (7, 2)
    assert nearest(features, queries[:0], 5)[0].shape == (0, 5)


def test_votes_are_weighted_by_similarity():
    train = np.array([[1.0, 0.02], [-1.0, 0.9], [-1.0, 1.0], [1.0, -1.92]])
    labels = np.array([0, 1, 1, 0])
    assert knn_accuracy(train, labels, train, labels, classes=2, k=1) == 1.0
    # Two of the neighbours are of class 1, but the one of class 0 is far more similar.
    assert knn_accuracy(train, labels, np.array([[2.0, 0.05]]), np.array([0]), classes=2, k=4) == 1.0


def test_clusters_are_separated_and_noise_is_not():
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    centres = 4 * random.normal(size=(3, 16))
    features = centres[labels] + random.normal(size=(300, 16))
    assert knn_accuracy(features[:200], labels[:200], features[200:], labels[200:], 3) > 0.98
    noise = random.normal(size=(300, 16))
    assert knn_accuracy(noise[:200], labels[:200], noise[200:], labels[200:], 3) < 0.5


def test_predictions_equal_a_vote_by_vote_count_for_every_k():
    random = np.random.default_rng(1)
    train, test = random.normal(size=(30, 6)), random.normal(size=(20, 6))
    labels, wanted = random.integers(0, 4, 30), []
    for k in (1, 3, 30):
        for query in test - train.mean(0):
            cosines = [q @ query / np.linalg.norm(q) / np.linalg.norm(query) for q in train - train.mean(0)]
            votes = [0.0] * 4
            for neighbour in sorted(range(30), key=lambda n: -cosines[n])[:k]:
                votes[labels[neighbour]] += np.exp(cosines[neighbour] / 0.1)
            wanted.append(votes.index(max(votes)))
    predicted = knn_predict(train, labels, test, 4, (1, 3, 30), temperature=0.1)
    np.testing.assert_array_equal(predicted, np.reshape(wanted, (3, 20)))
    assert len({tuple(row) for row in predicted.tolist()}) == 3  # k matters


def test_impossible_searches_are_refused():
    with pytest.raises(ValueError, match="5 nearest of 0 features"):
        nearest(np.zeros((0, 4)), np.zeros((1, 4)), 5)
    with pytest.raises(ValueError, match="queries have width 3, features 4"):
        nearest(np.ones((2, 4)), np.ones((1, 3)), 1)
    with pytest.raises(ValueError, match="train labels must be non-empty and in"):
        knn_accuracy(np.ones((2, 4)), np.array([0, -1]), np.ones((1, 4)), np.array([0]), 2)
