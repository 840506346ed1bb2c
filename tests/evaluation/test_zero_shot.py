"""Zero-shot probabilities against both definitions, for whole videos and for views."""

import numpy as np
import pytest

from vidjax.evaluation.recognition import recognition
from vidjax.evaluation.zero_shot import zero_shot


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def make_embeddings(videos=1500, views=3, templates=4, classes=6, width=12, seed=0):
    """Unnormalised embeddings of overlapping classes, with templates of increasing noise."""
    random = np.random.default_rng(seed)
    centres, labels = random.normal(size=(classes, width)), random.integers(0, classes, videos)
    video = 3 * centres[labels][:, None] + 4 * random.normal(size=(videos, views, width))
    spread = np.linspace(0.3, 3, templates)[:, None, None]
    return video, (centres + spread * random.normal(size=(templates, classes, width))) * 2, labels


def test_both_ways_of_combining_templates_equal_their_definitions():
    video, text, _ = make_embeddings()
    for scale in (100.0, 7.0):
        logits = scale * np.einsum("nve,pce->nvpc", unit(video), unit(text))
        actual = zero_shot(video, text, "probabilities", scale)
        np.testing.assert_allclose(actual, softmax(logits).mean(axis=(1, 2)), atol=1e-12)
        logits = scale * np.einsum("nve,ce->nvc", unit(video), unit(unit(text).mean(axis=0)))
        np.testing.assert_allclose(zero_shot(video, text, scale=scale), softmax(logits).mean(axis=1), atol=1e-12)
    np.testing.assert_array_equal(zero_shot(video, text), zero_shot(video, text, "embeddings", 100.0))


def test_with_one_template_both_ways_agree_and_one_view_equals_the_video():
    video, text, _ = make_embeddings()
    one = zero_shot(video, text[:1])
    np.testing.assert_allclose(one, zero_shot(video, text[:1], "probabilities"), atol=1e-12)
    np.testing.assert_array_equal(zero_shot(video[:, 0], text), zero_shot(video[:, :1], text))
    assert zero_shot(video[:0], text).shape == (0, 6)


def test_views_and_templates_together_are_better_than_most_alone():
    video, text, labels = make_embeddings()
    together, one_view = (recognition(zero_shot(x, text), labels).top1 for x in (video, video[:, 0]))
    alone = [recognition(zero_shot(video, text[i : i + 1]), labels).top1 for i in range(len(text))]
    assert together > one_view + 0.05 > 0.3
    assert alone[0] > alone[-1] + 0.2 and together > np.mean(alone) + 0.1  # the last template is nearly noise


def test_large_scales_do_not_overflow_in_float32():
    video, text, _ = make_embeddings(20)
    probabilities = zero_shot(video.astype(np.float32), text.astype(np.float32), scale=1e4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_invalid_inputs_are_refused():
    video, text, _ = make_embeddings(5)
    with pytest.raises(ValueError, match="videos have width 12, class names 7"):
        zero_shot(video, text[..., :7])
    with pytest.raises(ValueError, match="6 classes and 0 templates"):
        zero_shot(video, text[:0])
