"""Few-shot episodes: what they draw, their accuracies and the coverage of the interval."""

import jax
import numpy as np
import pytest

from vidjax.evaluation.few_shot import draw, few_shot, few_shot_from_support, nearest_mean
from vidjax.evaluation.knn import knn_accuracy
from vidjax.evaluation.linear_probe import linear_probe

KEY = jax.random.key(3)
LABELS = np.array([4] * 7 + [9] * 12 + [2] * 30 + [7] * 9)


def make_clusters(per_class=40, classes=8, width=16, spread=1.0, seed=0):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    random.shuffle(labels)
    centres = np.random.default_rng(100).normal(size=(classes, width))
    return centres[labels] + spread * random.normal(size=(len(labels), width)), labels


def test_an_episode_has_different_clips_of_different_classes():
    drawn = draw(KEY, LABELS, ways=3, clips=6, episodes=400)
    assert drawn.shape == (400, 3, 6)
    for episode in drawn:
        assert len(np.unique(episode)) == 18
        labels = LABELS[episode]
        assert (labels == labels[:, :1]).all() and len(np.unique(labels[:, 0])) == 3
    # Classes, and clips of a class, are drawn equally often.
    classes, counts = np.unique(LABELS[drawn[:, :, 0]], return_counts=True)
    assert classes.tolist() == [2, 4, 7, 9] and np.abs(counts - 300).max() < 45
    for label in classes:
        clips = np.bincount(drawn.ravel(), minlength=len(LABELS))[label == LABELS]
        np.testing.assert_allclose(clips, clips.mean(), rtol=0.4)
    np.testing.assert_array_equal(draw(KEY, LABELS, 3, 6, 10), drawn[:10])
    assert (draw(jax.random.key(4), LABELS, 3, 6, 10) != drawn[:10]).any()


def test_nearest_mean_averages_unit_vectors():
    train = np.array([[1.0, 0], [0, 9], [0, 2], [1, 1]])
    # The mean of the first two unit vectors points to (1, 1), that of the others to (0.38, 0.92).
    test = np.array([[3.0, 2.5], [0.1, 0.3]])
    assert nearest_mean(train, np.array([0, 0, 1, 1]), test, np.array([0, 1]), 2) == 1.0
    assert nearest_mean(train, np.array([0, 0, 1, 1]), test, np.array([1, 1]), 2) == 0.5


def test_more_shots_separate_clusters_better_and_noise_stays_at_chance():
    features, labels = make_clusters(spread=1.5)
    one, five = (few_shot(KEY, features, labels, 5, shots, 200) for shots in (1, 5))
    assert 0.4 < one.accuracy < 0.8 and five.accuracy > one.accuracy + 0.1
    noise = few_shot(KEY, np.random.default_rng(0).normal(size=features.shape), labels, 5, 1, 200)
    assert noise.interval[0] < 0.2 < noise.interval[1]
    assert one.accuracies.shape == (200,) and one.accuracy == pytest.approx(one.accuracies.mean())


def test_train_and_test_clips_of_an_episode_are_disjoint():
    seen = []

    def classifier(train, train_labels, test, test_labels, classes):
        assert train_labels.tolist() == [0, 0, 1, 1, 2, 2] and test_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert classes == 3 and not set(train[:, 0]) & set(test[:, 0])
        classes_of = [LABELS[features[:, 0].astype(int)].tolist() for features in (train, test)]
        assert classes_of[0][::2] == classes_of[0][1::2] == classes_of[1][::4] and len(set(classes_of[0])) == 3
        seen.append(len(test))
        return 1.0

    clips = np.arange(len(LABELS))[:, None].astype(float)
    few_shot(KEY, clips, LABELS, 3, 2, 20, queries=4, classifier=classifier)
    assert seen == [4 * 3] * 20


def test_small_classes_limit_the_number_of_queries():
    sizes = []

    def classifier(train, train_labels, test, test_labels, classes):
        sizes.append(len(test))
        return 0.0

    few_shot(KEY, np.zeros((len(LABELS), 2)), LABELS, 2, 3, 2, classifier=classifier)
    assert sizes == [2 * 4, 2 * 4]  # the smallest class has seven clips, three of them shots


@pytest.mark.parametrize("classifier", [linear_probe, knn_accuracy])
def test_other_classifiers_can_be_passed(classifier):
    features, labels = make_clusters(spread=0.5)
    assert few_shot(KEY, features, labels, 3, 5, 3, classifier=classifier).accuracy > 0.9


def test_the_interval_has_its_nominal_coverage():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        result = few_shot(KEY, np.zeros((58, 1)), LABELS, 2, 1, 40, classifier=lambda *_: random.uniform())
        covered += result.interval[0] < 0.5 < result.interval[1]
    assert 180 <= covered < 200
    assert sum(result.interval) / 2 == pytest.approx(result.accuracy)


def test_a_support_set_covers_all_classes():
    (support, support_labels), (features, labels) = make_clusters(spread=0.8), make_clusters(spread=0.8, seed=1)
    labels, support_labels = 3 * labels + 5, 3 * support_labels + 5  # labels need not be 0, 1, 2, ...
    one, many = (few_shot_from_support(KEY, support, support_labels, features, labels, k) for k in (1, 20))
    assert 0.5 < one.accuracy < many.accuracy - 0.1 and many.accuracy > 0.9
    assert one.accuracies.shape == (10,) and one.accuracies.std() > 0
    # With all clips as shots, the draw does not matter.
    everything = few_shot_from_support(KEY, support, support_labels, features, labels, 40, 2)
    expected = nearest_mean(support, (support_labels - 5) // 3, features, (labels - 5) // 3, 8)
    np.testing.assert_allclose(everything.accuracies, expected)


def test_impossible_draws_are_refused():
    features = np.ones((len(LABELS), 2))
    with pytest.raises(ValueError, match="class 4 has 7 clips, but an episode needs 8 per class"):
        few_shot(KEY, features, LABELS, 2, 7)
    with pytest.raises(ValueError, match="cannot draw 5 of 4 classes"):
        few_shot(KEY, features, LABELS, 5)
    with pytest.raises(ValueError, match="got 0 shots and 15 queries: an episode needs at least one of each"):
        few_shot(KEY, features, LABELS, 2, 0)
    with pytest.raises(ValueError, match="needs at least 2 episodes, got 1"):
        few_shot(KEY, features, LABELS, 2, 1, 1)
    with pytest.raises(ValueError, match="class 4 has 7 clips"):
        few_shot_from_support(KEY, features, LABELS, features, LABELS, 8)
    with pytest.raises(ValueError, match="class 3 has no clip in the support set"):
        few_shot_from_support(KEY, features, LABELS, features[:1], np.array([3]))


def test_an_empty_test_set_is_refused():
    with pytest.raises(ValueError, match="the test set is empty: give at least one clip"):
        few_shot_from_support(KEY, np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.zeros((0, 2)), np.zeros(0, int))
