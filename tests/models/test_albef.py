"""ALBEF against the recorded training step of the original, its names, and clips as sequences of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import albef, from_state_dict, load_weights
from vidjax.convert.export import entries
from vidjax.models import example_inputs
from vidjax.models.albef import Albef
from vidjax.models.text import FusionBert
from vidjax.models.vit import ViT

# Parameters of each row, and GMACs per clip; see test_published.py.
COUNTS = {
    # The count is SYSTEMS-2.md's; the cost is that of ViT-B/16 for an image of 256 pixels, worked out by hand.
    "albef_base": (209_937_725, 23.2),
    "albef_tiny": (1_046_983, None),
}


def small_albef(c: dict) -> Albef:
    """The model for the configuration of the golden, without dropout."""
    video = ViT(c["D"], c["L"], c["H"], patch_size=(1, c["P"], c["P"]), image_size=c["S"])
    text = FusionBert(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], c["fusion"])
    return Albef(video, text, c["E"], c["queue"])


@pytest.fixture(scope="module")
def golden():
    """The golden, the model, and its weights with the queues' position as in a checkpoint."""
    golden = recipe.load("albef_pretrain")
    weights = golden.weights | {"queue_ptr": np.array([6])}
    return golden, small_albef(golden.config), weights


def test_equals_the_original(golden):
    recorded, model, weights = golden
    images, ids, _, masked, _ = recorded.inputs
    variables = from_state_dict(model, weights, strict=True)

    @jax.jit
    def run(variables, video, ids, masked):
        video, seen, text, _ = model.apply(variables, video, ids, method="align")
        return video, text, model.apply(variables, masked, seen, method="words")

    video = jnp.moveaxis(jnp.asarray(images), 1, -1)[:, None]
    outputs = run(variables, video, *(jnp.asarray(each, jnp.int32) for each in (ids, masked)))
    for actual, name in zip(outputs, ("output3", "output4", "output2"), strict=True):
        np.testing.assert_allclose(actual, recorded.outputs[name], rtol=0, atol=1e-5)


def test_names_of_the_model_and_its_momentum_copy_convert_both_ways(golden):
    _, model, weights = golden
    assert from_state_dict(model, weights)["queue"]["position"] == 6
    written = {}
    for layout in (albef.MOMENTUM, albef.ORIGINAL):
        written |= entries(layout, model, from_state_dict(model, weights, layout=layout.key))
    repeated = {f"text_encoder{copy}.{name}" for name in albef.TIED for copy in ("", "_m")}
    assert written.keys() - repeated == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value)
    from_state_dict(model, written, strict=True)  # the repeated entries are known


def test_a_text_encoder_starts_from_a_bert_without_cross_attention(golden):
    _, model, weights = golden
    bert = {
        name.removeprefix("text_encoder."): value
        for name, value in weights.items()
        if name.startswith("text_encoder.") and "crossattention" not in name
    }
    bert |= {"bert.pooler.dense.weight": np.zeros(3), "cls.predictions.decoder.weight": np.zeros(3)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]["text"]
    text, report = load_weights("bert", model.text, shapes, weights=bert)
    assert {path.split("/")[1] for path in report.new} == {"cross_attention", "cross_norm"} and not report.unused
    same = from_state_dict(model, weights)["params"]["text"]
    np.testing.assert_array_equal(text["block_3"]["mlp"]["fc1"]["kernel"], same["block_3"]["mlp"]["fc1"]["kernel"])


def test_a_clip_that_repeats_an_image_is_embedded_as_the_image(golden):
    _, model, weights = golden
    variables = from_state_dict(model, weights)
    embed = jax.jit(model.apply)
    image = jnp.asarray(recipe.floats("image", (1, 1, 32, 32, 3)))
    np.testing.assert_allclose(embed(variables, jnp.tile(image, (1, 3, 1, 1, 1))), embed(variables, image), atol=1e-5)


def test_a_zero_within_a_text_is_attended_to_and_padding_is_not_alone_and_in_view_of_a_video():
    """Of CLIP's tokens 0 is "!"."""
    text = FusionBert(12, 8, 16, 2, 2, fusion_depth=1)
    ids = jnp.asarray([[1, 5, 0, 7, 2, 0, 0]])
    x, seen = jax.random.normal(jax.random.key(1), (2, 1, 7, 16))
    variables = text.init(jax.random.key(0), x, ids, seen, method="fuse")
    fuse = jax.jit(lambda x: text.apply(variables, x, ids, seen, method="fuse")[0, 0])
    for place, attended in ((2, True), (6, False)):
        assert bool(jnp.any(fuse(x.at[:, place].multiply(-1)) != fuse(x))) == attended
    variables = text.init(jax.random.key(0), ids, method="tokens")
    read = jax.jit(lambda params: text.apply({"params": params}, ids, method="tokens")[0, 0])
    params = variables["params"]
    words = params["token_embedding"]["embedding"]
    changed = params | {"token_embedding": {"embedding": words.at[0].add(jnp.arange(16.0))}}
    assert jnp.any(read(changed) != read(params))
