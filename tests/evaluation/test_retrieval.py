"""Retrieval metrics against sorting every row, for any block size; ties count as expected values."""

import itertools

import numpy as np
import pytest

from vidjax.evaluation.retrieval import nearest_pairs, ranked, reranked, retrieval


def make_embeddings(videos=60, captions=None, width=16, seed=0):
    """Correlated video and caption embeddings, and the video of each caption: one each, plus `captions` more."""
    random = np.random.default_rng(seed)
    video = random.normal(size=(videos, width))
    owner = np.arange(videos) if captions is None else np.r_[np.arange(videos), random.integers(0, videos, captions)]
    random.shuffle(owner)
    return video, video[owner] + 1.5 * random.normal(size=(len(owner), width)), owner


def brute_force(video, text, owner, scale=0.0):
    """Rank of each caption's video and of each video's best caption, by sorting; with the dual softmax unless 0."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text)]
    cosines = unit[0] @ unit[1].T
    powers = np.exp(scale * cosines)
    over_text, over_video = (powers / powers.sum(axis=axis, keepdims=True) for axis in (1, 0))
    columns, rows = (cosines * over_text).T, cosines * over_video
    if not scale:
        columns, rows = cosines.T, cosines
    of_text = [1 + list(np.argsort(-column)).index(owner[j]) for j, column in enumerate(columns)]
    of_video = [1 + min(rank for rank, j in enumerate(np.argsort(-row)) if owner[j] == i) for i, row in enumerate(rows)]
    return np.array(of_text), np.array(of_video)


def check(result, expected):
    for side, ranks in zip((result.text_to_video, result.video_to_text), expected, strict=True):
        np.testing.assert_array_equal(side.ranks, ranks)
        assert (side.queries, side.median_rank) == (len(ranks), np.median(ranks))
        assert side.mean_rank == pytest.approx(ranks.mean()) and side.mean_rank > 1.2
        for k, recall in ((1, side.r1), (5, side.r5), (10, side.r10)):
            assert recall == pytest.approx((ranks <= k).mean())


@pytest.mark.parametrize("block", [7, 16, 1024])
@pytest.mark.parametrize("captions", [None, 90])
def test_every_metric_equals_sorting(captions, block):
    video, text, owner = make_embeddings(captions=captions)
    result = retrieval(video, text, owner, block)
    check(result, brute_force(video, text, owner))
    assert (result.text_to_video.candidates, result.video_to_text.candidates) == (len(video), len(text))


def test_the_dual_softmax_ranks_by_the_cosine_times_its_softmax_over_the_queries():
    video, text, owner = make_embeddings(captions=90)
    results = {scale: brute_force(video, text, owner, scale) for scale in (0.0, 5.0, 100.0)}
    for scale in (5.0, 100.0):  # at 100 the softmax of most pairs underflows
        check(retrieval(video, text, owner, 16, scale), results[scale])
        assert all((one != other).any() for one, other in zip(results[scale], results[0.0], strict=True))


def test_without_owners_captions_and_videos_match_by_row():
    video, text, owner = make_embeddings()
    text = text[np.argsort(owner)]
    np.testing.assert_array_equal(
        retrieval(video, text).text_to_video.ranks, retrieval(video, text, np.arange(60)).text_to_video.ranks
    )


def test_embeddings_that_are_all_equal_give_chance():
    owner = np.repeat(np.arange(20), 3)
    result = retrieval(np.ones((20, 8)), np.ones((60, 8)), owner, block=16)
    by_text, by_video = result.text_to_video, result.video_to_text
    np.testing.assert_allclose([by_text.r1, by_text.r5, by_text.r10], [1 / 20, 5 / 20, 10 / 20])
    assert by_text.median_rank == by_text.mean_rank == 10.5
    # Guessing finds one of three captions among sixty; the expected rank of the first one is 61 / 4.
    missed = np.cumprod([(57 - i) / (60 - i) for i in range(10)])
    np.testing.assert_allclose([by_video.r1, by_video.r5, by_video.r10], 1 - missed[[0, 4, 9]])
    assert by_video.mean_rank == pytest.approx(61 / 4)


def test_a_tie_counts_as_the_mean_over_its_orders():
    # For the first video a wrong caption ranks first, then its two best captions tie with two wrong ones.
    video = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    near, tie, far = [1, 0.1, 0], [1, 0.5, 0], [1, 0, 2]
    text, owner = np.array([near, tie, tie, tie, tie, far]), np.array([1, 0, 0, 1, 2, 0])
    ranks = np.array(
        [
            1 + min(position for position, match in enumerate([False, *order]) if match)
            for order in itertools.permutations([1, 1, 0, 0])
        ]
    )
    result = retrieval(video, text, owner)
    assert result.video_to_text.ranks[0] == pytest.approx(ranks.mean())
    # The second video's caption ties with three others; the third's ranks after `far`, in a tie of five.
    for k, recall, second, third in ((1, result.video_to_text.r1, 1 / 4, 0), (5, result.video_to_text.r5, 1, 4 / 5)):
        assert recall == pytest.approx(((ranks <= k).mean() + second + third) / 3)
    np.testing.assert_array_equal(result.text_to_video.ranks, [2, 1, 1, 2, 3, 2])


@pytest.mark.parametrize("scale", [None, 100.0])
def test_duplicates_tie_across_blocks(scale):
    """Duplicates are in other blocks than their originals, and rounding must not decide between them."""
    video, text, _ = make_embeddings(37, width=301)
    doubled = retrieval(np.r_[video, video], np.r_[text, text], block=16, dual_softmax=scale).text_to_video
    single = retrieval(video, text, dual_softmax=scale).text_to_video
    np.testing.assert_allclose(doubled.ranks, np.tile(2 * single.ranks - 0.5, 2))
    assert doubled.r1 == pytest.approx(single.r1 / 2)


def test_invalid_inputs_are_refused():
    video, text, owner = make_embeddings(5)
    for arguments, message in (
        ((video[:0], text, owner), "retrieval of 0 videos and 5 captions"),
        ((video, text[:, :3], owner), "videos have width 16, captions 3"),
        ((video, np.full_like(text, np.nan), owner), "embeddings are not finite"),
        ((video, text[:4]), "4 captions and 5 videos: pass `owner`"),
        ((video, text, owner + 1), "in 0..4, but range from 1 to 5"),
        ((video, text, np.array([0, 1, 3, 4, 4])), "video 2 of 5 has no caption"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval(*arguments)


def test_the_nearest_candidates_are_ordered_again_by_other_scores():
    video, text, owner = make_embeddings(captions=90)
    video, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text))
    wanted = nearest_pairs(video, text, 5)
    assert min(wanted.sum(axis=0).min(), wanted.sum(axis=1).min()) == 5 and not wanted.all()
    scores = np.where(wanted, 20 * np.random.default_rng(1).normal(size=wanted.shape), np.nan)

    def rank(cosines, scores, is_match):
        order = list(np.argsort(-cosines))
        order = sorted(order[:5], key=lambda candidate: -scores[candidate]) + order[5:]
        return 1 + min(place for place, candidate in enumerate(order) if is_match[candidate])

    expected = (
        np.array([rank(text[j] @ video.T, scores[:, j], np.arange(len(video)) == owner[j]) for j in range(len(text))]),
        np.array([rank(video[i] @ text.T, scores[i], owner == i) for i in range(len(video))]),
    )
    check(reranked(video, text, owner, scores, 5), expected)
    same = reranked(video, text, owner, np.where(wanted, 0.0, np.nan), 5).text_to_video
    assert same.ranks[same.ranks < 6].mean() == 3  # all of the nearest are tied


def test_videos_are_ranked_by_given_scores():
    video, text, owner = make_embeddings(captions=90)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text)]
    result, expected = ranked(np.exp(unit[0] @ unit[1].T), owner), retrieval(video, text, owner)
    for way in ("text_to_video", "video_to_text"):
        np.testing.assert_array_equal(getattr(result, way).ranks, getattr(expected, way).ranks)
