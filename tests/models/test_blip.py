"""BLIP against goldens and transformers; names both ways; captions word by word."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import blip, from_state_dict
from vidjax.convert.export import entries
from vidjax.models.blip import Answerer, Blip, Captioner, Text
from vidjax.models.vit import ViT
from vidjax.objectives import language_modeling
from vidjax.runs.generation import begin

# Parameters of each row, and GMACs per clip; see test_published.py.
COUNTS = {
    # From SYSTEMS-2.md; transformers' model for retrieval has no temperature.
    "blip_base_retrieval": (223_744_258 + 1, None),
    "blip_large_retrieval": (446_128_642 + 1, None),
    "blip_base_caption": (223_971_644, None),
    "blip_large_caption": (446_290_492, None),
    "blip_base_vqa": (361_230_140, None),
    # Our own counts.
    "blip_base": (252_441_919, None),
    "blip_large": (474_729_023, None),
    "blip_tiny": (898_088, None),
    "blip_tiny_retrieval": (813_443, None),
    "blip_tiny_caption": (810_597, None),
    "blip_tiny_vqa": (1_143_621, None),
}


def towers(c: dict, epsilon: float) -> tuple[ViT, Text]:
    video = ViT(c["D"], c["L"], c["H"], patch_size=(1, c["P"], c["P"]), image_size=c["S"], epsilon=epsilon)
    return video, Text(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"])


def video_of(images: np.ndarray) -> jax.Array:
    return jnp.moveaxis(jnp.asarray(images), 1, -1)[:, None]


def assert_converts_back(layout, model, variables, weights, repeated=frozenset()):
    written = entries(layout, model, variables)
    assert written.keys() - repeated == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value)


def test_equals_the_original():
    """Its losses are compared in tests/experiments/test_vision_language_pretrain.py."""
    golden = recipe.load("blip_pretrain")
    c = golden.config
    model = Blip(*towers(c, 1e-6), c["E"], c["queue"])
    weights = golden.weights | {"queue_ptr": np.array([0])}
    variables = from_state_dict(model, weights, strict=True)
    ids, images = jnp.asarray(golden.inputs[1], jnp.int32), video_of(golden.inputs[0])

    @jax.jit
    def run(variables, images, ids):
        video, seen, text = model.apply(variables, images, ids, method="align")
        return model.apply(variables, ids, seen, method="words"), video, text

    for number, actual in enumerate(run(variables, images, ids), 2):
        expected, counted = golden.outputs[f"output{number}"], golden.inputs[2] == 1 if number == 2 else slice(None)
        np.testing.assert_allclose(actual[counted], expected[counted], rtol=0, atol=1e-5, err_msg=str(number))

    written = {}
    for layout in (blip.MOMENTUM, blip.ORIGINAL):
        written |= entries(layout, model, from_state_dict(model, weights, layout=layout.key))
    assert written.keys() >= weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value)
    repeated = written.keys() - weights.keys()
    assert len(repeated) == 38 and all(name.startswith("text_decoder.") for name in repeated)
    assert not any(".attention." in name for name in repeated)


@pytest.mark.long
def test_retrieval_equals_the_golden():
    golden = recipe.load("blip_retrieval")
    model = Blip(*towers(golden.config, 1e-5), golden.config["E"], 4, writes=False)
    variables = from_state_dict(model, golden.weights, strict=True)
    ids = jnp.asarray(golden.inputs[1], jnp.int32)

    @jax.jit
    def run(variables, images, ids):
        def all_of(model, images, ids):  # transformers leaves the first token as it is in both uses
            video, seen, text = model.align(images, ids)
            return model.match_head(model.text.tokens(ids, seen)[:, 0]), video @ text.T, seen

        return model.apply(variables, images, ids, method=all_of)

    for number, actual in enumerate(run(variables, video_of(golden.inputs[0]), ids)):
        np.testing.assert_allclose(actual, golden.outputs[f"output{number}"], rtol=0, atol=1e-5)
    assert_converts_back(blip.HUGGING_FACE, model, variables, golden.weights)


@pytest.mark.long
def test_captions_equal_the_golden_and_are_written_word_by_word():
    golden = recipe.load("blip_caption")
    model = Captioner(*towers(golden.config, 1e-5))
    variables = from_state_dict(model, golden.weights, strict=True)
    ids = jnp.asarray(golden.inputs[1], jnp.int32)
    assert (ids[:, 0] == model.text.vocabulary - 2).all()  # [DEC]

    @jax.jit
    def run(variables, images, ids):
        logits, seen = model.apply(variables, images, ids), model.apply(variables, images, method="seen")
        step, first, cache = begin(model, variables, seen, ids[:, :3], 4)
        second, cache = step(ids[:, 3], jnp.int32(0), cache)
        return logits, jnp.stack([first, second], axis=1)

    logits, parts = run(variables, video_of(golden.inputs[0]), ids)
    valid = golden.inputs[2] == 1
    np.testing.assert_allclose(logits[valid], golden.outputs["output0"][valid], rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts, logits[:, 2:4], atol=1e-5)
    loss = language_modeling.caption_loss(logits, ids, jnp.ones(2, bool))
    np.testing.assert_allclose(loss, golden.outputs["output1"][0], rtol=1e-5)
    assert_converts_back(blip.HUGGING_FACE_CAPTIONS, model, variables, golden.weights)


@pytest.mark.long
def test_answers_equal_transformers():
    transformers = peers.transformers()
    import torch

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 9, "encoder_hidden_size": 24, "bos_token_id": 58}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    peer = transformers.BlipForQuestionAnswering(config).eval()
    peers.perturb(peer)
    weights = {name: value.numpy() for name, value in peer.state_dict().items()}  # tied ones are equal
    video = ViT(24, 2, 3, 2.0, (1, 8, 8), image_size=16, epsilon=1e-5)
    model = Answerer(video, *(Text(60, 9, 24, 2, 3, 2.0) for _ in range(2)))
    variables = from_state_dict(model, weights, layout="transformers")
    images = recipe.floats("images", (2, 3, 16, 16))
    ids, answers = np.array([[59, 3, 4, 5], [59, 6, 7, 5]]), np.array([[58, 8, 9], [58, 10, 5]])  # [ENC], [DEC]
    with torch.no_grad():
        seen = peer.vision_model(torch.tensor(images)).last_hidden_state
        read = peer.text_encoder(torch.tensor(ids), encoder_hidden_states=seen).last_hidden_state
        expected = peer.text_decoder(torch.tensor(answers), encoder_hidden_states=read).logits
    logits = jax.jit(model.apply)(variables, video_of(images), jnp.asarray(ids), jnp.asarray(answers))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
