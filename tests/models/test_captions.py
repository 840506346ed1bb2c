"""A video-text model with a decoder: what its words depend on, and that each tower runs once."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_runs import draw_variables

from vidjax.models.text import Bert, CaptionDecoder, TextTower
from vidjax.models.video_text import Projected, VideoText, once
from vidjax.models.vit import ViT
from vidjax.runs.generation import begin
from vidjax.runs.pairs import with_decoder
from vidjax.training.cost import count_macs

SMALL = {"width": 16, "depth": 1, "heads": 2}
MODEL = VideoText(
    Projected(ViT(**SMALL, patch_size=(1, 8, 8), num_frames=2, image_size=16, drop_path=0.5), 8),
    TextTower(vocabulary=20, context=7, **SMALL, features=8),
    decoder=CaptionDecoder(depth=2, heads=2),
)
VIDEO = jnp.asarray(recipe.floats("video", (2, 2, 16, 16, 3)))
IDS = jnp.array([[18, 3, 4, 5, 19, 0, 0], [18, 6, 19, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def variables():
    return draw_variables(MODEL)


@jax.jit
def words_of(variables, video, ids):
    _, seen, _, read = MODEL.apply(variables, video, ids, method="align")
    return MODEL.apply(variables, read, seen, method="words")


def test_words_depend_on_the_video_and_on_earlier_tokens_only(variables):
    words = words_of(variables, VIDEO, IDS)
    moved = np.abs(words_of(variables, VIDEO, IDS.at[0, 3].set(9)) - words).max(axis=-1) > 1e-4
    np.testing.assert_array_equal(moved, [[False] * 3 + [True] * 4, [False] * 7])
    moved = np.abs(words_of(variables, VIDEO.at[0, 1].add(1.0), IDS) - words).max(axis=-1) > 1e-4
    np.testing.assert_array_equal(moved, [[True] * 7, [False] * 7])


def test_words_read_one_by_one_are_followed_by_those_of_the_whole_caption(variables):
    @jax.jit
    def next_words(variables, video, ids):
        seen = MODEL.apply(variables, video, method="seen")
        step, logits, cache = begin(MODEL, variables, seen, ids[:, :2], 5)
        after, cache = step(ids[:, 2], jnp.int32(0), cache)
        return jnp.stack([logits, after, step(ids[:, 3], jnp.int32(1), cache)[0]], axis=1)

    expected = words_of(variables, VIDEO, IDS)[:, 1:4]
    np.testing.assert_allclose(next_words(variables, VIDEO, IDS), expected, atol=1e-5)


def test_embedding_and_tokens_of_a_video_come_from_one_pass(variables):
    rngs = {"drop_path": jax.random.key(0)}

    def both(remembers, variables, video):
        def run(tower, video):
            return tower(video, train=True), tower.encode(video, train=True)

        with once(video) if remembers else nullcontext():
            return MODEL.video.apply({"params": variables["params"]["video"]}, video, method=run, rngs=rngs)

    one, two = (count_macs(partial(both, remembers), variables, VIDEO) for remembers in (True, False))
    assert 1.9 * one < two < 2 * one  # all but the projection


def test_a_pair_without_a_decoder_has_the_same_parameters_without_its_own(variables):
    shapes = jax.eval_shape(MODEL.clone(decoder=None).init, jax.random.key(0), VIDEO)
    assert variables["params"].keys() - shapes["params"].keys() == {"decoder"}


def test_bert_is_refused_as_its_tokens_contain_the_words_to_predict():
    pair = MODEL.clone(text=Bert(vocabulary=20, context=7, **SMALL, features=8), decoder=None)
    with pytest.raises(ValueError, match="the text tower is a Bert, whose tokens see the words that follow them"):
        with_decoder(pair, 2)
