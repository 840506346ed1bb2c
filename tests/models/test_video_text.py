"""Pairs of a video and a text tower: checkpoints, remat, bfloat16, temperature and bias."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_runs import draw_variables

import vidjax
from vidjax.convert import save_pretrained
from vidjax.layers.card import Card
from vidjax.models import create_text_model, override
from vidjax.models.clip import ImageTower
from vidjax.models.text import TextTower
from vidjax.models.video_text import Projected, VideoText, unit

IMAGE = {"width": 24, "depth": 1, "heads": 3, "features": 16, "patch_size": (1, 8, 8), "image_size": 32}
TEXT = {"vocabulary": 60, "context": 12, "width": 24, "depth": 1, "heads": 3, "features": 16}
BERT = {"width": 24, "depth": 1, "features": 16}
IDS = np.array([[58, 3, 4, 5, 59, 0, 0], [58, 20, 21, 22, 23, 24, 59]], np.int32)


def pairs() -> dict[str, VideoText]:
    """A pair with each kind of tower."""
    videomae = vidjax.create_model("videomae_tiny", width=24, depth=1, heads=2, image_size=32)
    bert = create_text_model("bert_tiny", **BERT)
    card = Card(mean=(0.1, 0.2, 0.3), class_names=("a",))
    return {
        "clip": VideoText(ImageTower(**IMAGE, shift=True, num_frames=3), TextTower(**TEXT, end_token=5), card),
        "any": VideoText(Projected(videomae, 16), bert, card, bias=-10.0),
    }


@pytest.mark.parametrize("kind", ["clip", "any"])
def test_towers_survive_a_round_trip(kind, tmp_path):
    model = pairs()[kind]
    variables = draw_variables(model)
    save_pretrained(tmp_path / "pair", model, variables)
    again, loaded = vidjax.load_pretrained(tmp_path / "pair", strict=True)
    assert again == model.clone(card=dataclasses.replace(model.card, class_names=()))  # saved only with a head
    ours, restored = flatten_dict(variables), flatten_dict(loaded)
    assert ours.keys() == restored.keys() and ("params", "logit_scale") in ours
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, restored[path], strict=True)
    fast, _ = vidjax.load_pretrained(tmp_path / "pair", dtype=jnp.bfloat16, remat="blocks", num_frames=4)
    assert fast.num_frames == 4 and fast.text.dtype == jnp.bfloat16 and fast.text.remat == "blocks"
    save_pretrained(tmp_path / "fast", fast, variables)  # settings of the computation are not saved
    assert "bfloat16" not in (tmp_path / "fast" / "vidjax.json").read_text()
    with pytest.raises(ValueError, match="model 'VideoText' has no field 'classes': its fields are video, text"):
        vidjax.load_pretrained(tmp_path / "pair", classes=3)


def test_a_name_must_not_contradict_the_towers_of_a_checkpoint(tmp_path):
    model = vidjax.create_model("clip_tiny", num_frames=4)
    variables = draw_variables(model)
    save_pretrained(tmp_path / "pair", model.clone(text=model.text.clone(heads=2)), variables)
    with pytest.raises(ValueError, match="clip_tiny's text has heads 4, the weights are of a model with 2"):
        vidjax.load_pretrained(tmp_path / "pair", "clip_tiny")
    save_pretrained(tmp_path / "same", model, variables)
    assert vidjax.load_pretrained(tmp_path / "same", "clip_tiny")[0].num_frames == 4


def test_remat_does_not_change_gradients_and_bfloat16_is_close():
    model = VideoText(ImageTower(**IMAGE, shift=True, num_frames=2), create_text_model("bert_tiny", **BERT))
    video, ids = jnp.asarray(recipe.floats("video", (2, 2, 32, 32, 3))), jnp.asarray(IDS)
    variables = draw_variables(model)

    def loss(variables, model):
        embedded = model.apply(variables, video, ids, train=True)
        return model.apply(variables, *embedded, method="logits")[0, 0], embedded

    @partial(jax.jit, static_argnums=1)
    def gradient(variables, remat):
        return jax.grad(loss, has_aux=True)(variables, override("", model, {"remat": remat}))

    (plain, exact), (saving, _) = gradient(variables, "none"), gradient(variables, "blocks")
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for (path, one), other in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(saving), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))
        assert one.any() and np.isfinite(one).all()
    half = override("", model, {"dtype": jnp.bfloat16})
    shapes = jax.eval_shape(half.init, jax.random.key(0), video, ids)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    for near, one in zip(jax.jit(half.apply)(variables, video, ids), exact, strict=True):
        assert near.dtype == jnp.float32
        np.testing.assert_allclose(near, one, atol=0.05)
        np.testing.assert_allclose(jnp.linalg.norm(near, axis=1), 1, rtol=1e-5)


def test_a_zero_feature_is_unchanged_and_has_a_zero_gradient():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert not jax.grad(lambda x: unit(x)[0].sum())(x).any()


def test_scale_and_bias_are_initialised_as_published():
    for bias, params in ((None, {"logit_scale"}), (-10.0, {"logit_scale", "logit_bias"})):
        model = VideoText(ImageTower(**IMAGE), TextTower(**TEXT), bias=bias)
        video = jnp.zeros((1, 1, 32, 32, 3))  # initialises both towers
        shapes = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
        assert set(shapes) == {"video", "text"} | params

        @jax.jit
        def initial(key, model=model, video=video, params=params):  # only these parameters are compiled
            return {"params": {name: model.init(key, video)["params"][name] for name in params}}

        scale = initial(jax.random.key(0))
        logits = model.apply(scale, jnp.eye(2, 16), jnp.eye(3, 16), method="logits")
        np.testing.assert_allclose(logits, np.eye(2, 3) / 0.07 + (bias or 0), rtol=1e-5)


def test_initialisation_follows_openai():
    d = 192
    image, text = (fields | {"width": d} for fields in (IMAGE, TEXT | {"vocabulary": 400}))
    model = VideoText(ImageTower(**image), TextTower(**text))
    block = "text/transformer/block_0"
    expected = {
        "text/token_embedding/embedding": 0.02,
        "text/position": 0.01,
        f"{block}/attention/query/kernel": d**-0.5,
        f"{block}/attention/out/kernel": (2 * d) ** -0.5,  # scaled down by the depth
        f"{block}/mlp/fc1/kernel": (2 * d) ** -0.5,
        f"{block}/mlp/fc2/kernel": (2 * d) ** -0.5,
        "text/projection/kernel": d**-0.5,
        "video/projection/kernel": d**-0.5,
    }

    @jax.jit
    def initial(key):  # only these parameters are compiled
        params = flatten_dict(model.init(key, jnp.zeros((1, 1, 32, 32, 3)))["params"], sep="/")
        return {name: params[name] for name in expected}

    for name, value in initial(jax.random.key(0)).items():
        assert value.std() == pytest.approx(expected[name], rel=0.05), name


def test_incompatible_towers_are_rejected():
    clips = jnp.zeros((1, 1, 32, 32, 3))
    pair = VideoText(ImageTower(**IMAGE), TextTower(**TEXT | {"features": 12}))
    with pytest.raises(ValueError, match="the video tower has 16 features and the text tower 12: give both the same"):
        jax.eval_shape(pair.init, jax.random.key(0), clips)
    classes = vidjax.create_model("vit_tiny", num_classes=3)
    with pytest.raises(ValueError, match="the video tower has 3 classes: create it with num_classes=None"):
        jax.eval_shape(VideoText(Projected(classes, 16), TextTower(**TEXT)).init, jax.random.key(0), clips)
