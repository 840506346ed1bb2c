"""ALBEF's training step against the recording of the original's, and what the script refuses."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipe
from small_runs import changed

from vidjax.convert import from_state_dict
from vidjax.data.text import open_tokenizer
from vidjax.layers.card import Card
from vidjax.models.albef import Albef
from vidjax.models.text import FusionBert
from vidjax.models.vit import ViT
from vidjax.objectives import language_modeling
from vidjax.training.state import create_state
from vidjax.training.step import make_train_step

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import albef_pretrain


def test_a_training_step_equals_the_original(monkeypatch):
    golden = recipe.load("albef_pretrain")
    c = golden.config
    video = ViT(c["D"], c["L"], c["H"], patch_size=(1, c["P"], c["P"]), image_size=c["S"])
    text = FusionBert(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], c["fusion"])
    model = Albef(video, text, c["E"], c["queue"])
    weights = golden.weights | {"queue_ptr": np.array([0])}
    variables = from_state_dict(model, weights)
    copy = from_state_dict(model, weights, layout="momentum")["params"]
    images, ids, _, masked, labels = golden.inputs
    # As recorded: scaled pixels and masked words are given, and negatives are the likeliest ones.
    ids, masked = jnp.asarray(ids, jnp.int32), jnp.asarray(masked, jnp.int32)
    video = np.moveaxis(images, 1, -1)[:, None]  # normalised
    pixels = jnp.asarray(video * model.card.std + model.card.mean, jnp.float32)
    monkeypatch.setattr(Card, "scale", lambda self, video: pixels)
    monkeypatch.setattr(language_modeling, "mask_words", lambda *_: (masked, jnp.asarray(labels != -100)))
    monkeypatch.setattr(jax.random, "categorical", lambda key, logits: logits.argmax(axis=1))

    config, tx = albef_pretrain.Config(alpha=c["alpha"], batch_size=3), optax.sgd(1.0)
    step = jax.jit(make_train_step(albef_pretrain.make_loss(config, model, 1.0), tx, ema_decay=c["momentum"]))
    state = create_state(variables, tx, jax.random.key(0), ema=True)
    # The original updates the copy before a step, the state after it, which is the same but for the very first one.
    ema = optax.incremental_update(variables["params"], copy, 1 - c["momentum"])
    state = state.replace(ema=ema, step=jnp.int32(2))
    after, metrics = step(state, {"video": jnp.zeros(pixels.shape, jnp.uint8), "ids": ids})

    losses = [metrics[name] for name in ("itc_loss", "itm_loss", "mlm_loss")]
    np.testing.assert_allclose(losses, golden.outputs["output0"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], golden.outputs["output0"].sum(), rtol=1e-5)
    queue = after.model_state["queue"]
    np.testing.assert_allclose(queue["video_keys"].T, golden.outputs["output5"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(queue["text_keys"].T, golden.outputs["output6"], rtol=0, atol=1e-5)
    assert queue["position"] == 3
    # The recorded temperature is above its bound, where it cannot grow.
    pairs = {"params": (after.params, state.params), "ema": (after.ema, state.ema)}
    for name, (new, old) in pairs.items():
        same = jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.array_equal, new, old))
        assert [jax.tree_util.keystr(path) for path, equal in same if equal] == ["['temperature']"], name


def test_the_card_is_that_of_the_clips():
    config = changed(albef_pretrain.RECIPES["demo"], data__stride=3, data__short_side=64)
    card = albef_pretrain.make_model(config, open_tokenizer("bytes")).card
    assert (card.stride, card.crop_ratio) == (3, 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 24}, "a batch of 24 does not divide the queue of 1024: change one"),
        ({"mask_token": 259}, "mask_token is 259, the tokenizer has 259 ids: omit it"),
        ({"model": "clip_tiny"}, "model clip_tiny is not an ALBEF: choose albef_tiny or albef_base"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    config = albef_pretrain.Config(**{"model": "albef_tiny", "batch_size": 32} | fields)
    with pytest.raises(ValueError, match=message):
        albef_pretrain.make_model(config, open_tokenizer("bytes"))
