"""Probabilities against both definitions written out, for whole videos and for views."""

import numpy as np
import pytest

from vidjax.evaluation.recognition import recognition
from vidjax.evaluation.zero_shot import zero_shot


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def made(videos=1500, views=3, templates=4, classes=6, width=12, seed=0):
    """Embeddings of no certain length, of classes that are told apart but not always, by templates that differ."""
    random = np.random.default_rng(seed)
    centres, labels = random.normal(size=(classes, width)), random.integers(0, classes, videos)
    video = 3 * centres[labels][:, None] + 4 * random.normal(size=(videos, views, width))
    spread = np.linspace(0.3, 3, templates)[:, None, None]
    return video, (centres + spread * random.normal(size=(templates, classes, width))) * 2, labels


def test_both_ways_of_combining_templates_are_their_definitions():
    video, text, _ = made()
    for scale in (100.0, 7.0):
        logits = scale * np.einsum("nve,pce->nvpc", unit(video), unit(text))
        found = zero_shot(video, text, "probabilities", scale)
        np.testing.assert_allclose(found, softmax(logits).mean(axis=(1, 2)), atol=1e-12)
        logits = scale * np.einsum("nve,ce->nvc", unit(video), unit(unit(text).mean(axis=0)))
        np.testing.assert_allclose(zero_shot(video, text, scale=scale), softmax(logits).mean(axis=1), atol=1e-12)
    np.testing.assert_array_equal(zero_shot(video, text), zero_shot(video, text, "embeddings", 100.0))


def test_of_one_template_there_is_nothing_to_combine_and_one_view_is_the_video():
    video, text, _ = made()
    one = zero_shot(video, text[:1])
    np.testing.assert_allclose(one, zero_shot(video, text[:1], "probabilities"), atol=1e-12)
    np.testing.assert_array_equal(zero_shot(video[:, 0], text), zero_shot(video[:, :1], text))
    assert zero_shot(video[:0], text).shape == (0, 6)


def test_views_and_templates_together_are_better_than_most_alone():
    video, text, labels = made()
    together, one_view = (recognition(zero_shot(x, text), labels).top1 for x in (video, video[:, 0]))
    alone = [recognition(zero_shot(video, text[i : i + 1]), labels).top1 for i in range(len(text))]
    assert together > one_view + 0.05 > 0.3
    assert alone[0] > alone[-1] + 0.2 and together > np.mean(alone) + 0.1  # the last one's words say nearly nothing


def test_large_scales_in_single_precision_overflow_nowhere():
    video, text, _ = made(20)
    found = zero_shot(video.astype(np.float32), text.astype(np.float32), scale=1e4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_what_cannot_be_compared_is_refused():
    video, text, _ = made(5)
    with pytest.raises(ValueError, match="videos have 12 values, class names 7"):
        zero_shot(video, text[..., :7])
    with pytest.raises(ValueError, match="6 classes in 0 templates"):
        zero_shot(video, text[:0])
