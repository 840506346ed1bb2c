"""Ranks against sorting every row, in any blocks; ties are nobody's gain; whatever is asked, guessing is guessing."""

import itertools

import numpy as np
import pytest

from vidjax.evaluation.retrieval import retrieval


def made(videos=60, captions=None, width=16, seed=0):
    """Videos and captions that are somewhat alike, and whose each caption is; all of one video if none is given."""
    random = np.random.default_rng(seed)
    video = random.normal(size=(videos, width))
    owner = np.arange(videos) if captions is None else np.r_[np.arange(videos), random.integers(0, videos, captions)]
    random.shuffle(owner)
    return video, video[owner] + 1.5 * random.normal(size=(len(owner), width)), owner


def brute_force(video, text, owner):
    """Rank of each caption's video and of each video's best caption, by sorting."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text)]
    cosines = unit[0] @ unit[1].T
    of_text = [1 + list(np.argsort(-column)).index(owner[j]) for j, column in enumerate(cosines.T)]
    of_video = [
        1 + min(place for place, j in enumerate(np.argsort(-row)) if owner[j] == i) for i, row in enumerate(cosines)
    ]
    return np.array(of_text), np.array(of_video)


@pytest.mark.parametrize("block", [7, 16, 1024])
@pytest.mark.parametrize("captions", [None, 90])
def test_every_measure_is_that_of_sorting(captions, block):
    video, text, owner = made(captions=captions)
    found = retrieval(video, text, owner, block)
    for side, ranks in zip((found.text_to_video, found.video_to_text), brute_force(video, text, owner), strict=True):
        np.testing.assert_array_equal(side.ranks, ranks)
        assert (side.queries, side.median_rank) == (len(ranks), np.median(ranks))
        assert side.mean_rank == pytest.approx(ranks.mean()) and side.mean_rank > 1.5
        for k, share in ((1, side.r1), (5, side.r5), (10, side.r10)):
            assert share == pytest.approx((ranks <= k).mean())
    assert (found.text_to_video.candidates, found.video_to_text.candidates) == (len(video), len(text))


def test_without_owners_row_belongs_to_row():
    video, text, owner = made()
    text = text[np.argsort(owner)]
    np.testing.assert_array_equal(
        retrieval(video, text).text_to_video.ranks, retrieval(video, text, np.arange(60)).text_to_video.ranks
    )


def test_embeddings_that_are_all_equal_give_chance():
    owner = np.repeat(np.arange(20), 3)
    found = retrieval(np.ones((20, 8)), np.ones((60, 8)), owner, block=16)
    by_text, by_video = found.text_to_video, found.video_to_text
    np.testing.assert_allclose([by_text.r1, by_text.r5, by_text.r10], [1 / 20, 5 / 20, 10 / 20])
    assert by_text.median_rank == by_text.mean_rank == 10.5
    # A guesser of captions hits one of three in sixty; the first of them is expected at place 61 / 4.
    missed = np.cumprod([(57 - i) / (60 - i) for i in range(10)])
    np.testing.assert_allclose([by_video.r1, by_video.r5, by_video.r10], 1 - missed[[0, 4, 9]])
    assert by_video.mean_rank == pytest.approx(61 / 4)


def test_a_tie_counts_as_the_mean_over_its_orders():
    # One caption is nearer to the first video than its best two, beside which two others stand; its third is far.
    video = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    near, tie, far = [1, 0.1, 0], [1, 0.5, 0], [1, 0, 2]
    text, owner = np.array([near, tie, tie, tie, tie, far]), np.array([1, 0, 0, 1, 2, 0])
    places = np.array(
        [
            1 + min(p for p, right in enumerate([False, *order]) if right)
            for order in itertools.permutations([1, 1, 0, 0])
        ]
    )
    found = retrieval(video, text, owner)
    assert found.video_to_text.ranks[0] == pytest.approx(places.mean())
    # The second video finds its own among four that are alike; the third after `far`, among five at a right angle.
    for k, share, second, third in ((1, found.video_to_text.r1, 1 / 4, 0), (5, found.video_to_text.r5, 1, 4 / 5)):
        assert share == pytest.approx(((places <= k).mean() + second + third) / 3)
    np.testing.assert_array_equal(found.text_to_video.ranks, [2, 1, 1, 2, 3, 2])


def test_what_is_the_same_twice_is_a_tie_wherever_it_stands():
    """Duplicates lie in other blocks than their originals, and rounding must not decide between them."""
    video, text, _ = made(37, width=301)
    found = retrieval(np.r_[video, video], np.r_[text, text], block=16).text_to_video
    alone = retrieval(video, text).text_to_video
    np.testing.assert_allclose(found.ranks, np.tile(2 * alone.ranks - 0.5, 2))
    assert found.r1 == pytest.approx(alone.r1 / 2)


def test_what_cannot_be_measured_is_refused():
    video, text, owner = made(5)
    for arguments, message in (
        ((video[:0], text, owner), "nothing to retrieve: 0 videos and 5 captions"),
        ((video, text[:, :3], owner), "videos have 16 values, captions 3"),
        ((video, np.full_like(text, np.nan), owner), "embeddings that are not finite"),
        ((video, text[:4]), "4 captions of 5 videos: say which video"),
        ((video, text, owner + 1), "videos 0..4, but run from 1 to 5"),
        ((video, text, np.array([0, 1, 3, 4, 4])), "video 2 of 5 has no caption"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval(*arguments)
