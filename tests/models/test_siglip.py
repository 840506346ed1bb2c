"""SigLIP 2 against recorded outputs of transformers, and live peers."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, load_pretrained
from vidjax.convert.export import entries
from vidjax.convert.recognition import named
from vidjax.layers.patches import patchify
from vidjax.models.siglip import SigLip, flexible_positions

# Parameters of each row: image towers from SYSTEMS-2.md (2.7), pairs with a text tower of 256,000 words counted from
# the modules' definition.
COUNTS = {
    "siglip2_tiny": (94_896, None),
    "siglip2_base_16": (92_884_224, None),
    "siglip2_base_16_naflex": (92_930_304, None),
    "siglip2_large_16": (315_956_224, None),
    "siglip2_so400m_14": (427_680_704, None),
    "siglip2_so400m_16_naflex": (427_888_064, None),
    "siglip2_giant_16": (1_163_168_256, None),
    "siglip2_tiny_pair": (167_090, None),
    "siglip2_base_16_pair": (375_187_970, None),
    "siglip2_base_16_naflex_pair": (375_234_050, None),
    "siglip2_large_16_pair": (881_526_786, None),
    "siglip2_so400m_14_pair": (1_135_463_602, None),
    "siglip2_so400m_16_naflex_pair": (1_135_670_962, None),
    "siglip2_giant_16_pair": (1_871_393_906, None),
}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_tower_of_fixed_size_equals_transformers():
    golden = recipe.load("siglip_vision")
    c, (image,) = golden.config, golden.inputs
    model = SigLip(c["D"], c["L"], c["H"], c["F"] / c["D"], (1, c["P"], c["P"]), image_size=c["S"])
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None]
    tokens, pooled = jax.jit(lambda v: (model.apply(variables, v, method="encode"), model.apply(variables, v)))(video)
    close(tokens.reshape(2, -1, c["D"]), golden.outputs["output0"])
    close(pooled, golden.outputs["output1"])


def test_images_of_any_shape_equal_transformers():
    golden = recipe.load("siglip2_vision")
    c, (patches, mask, shapes) = golden.config, golden.inputs
    side = round(c["N"] ** 0.5) * c["P"]
    model = SigLip(c["D"], c["L"], c["H"], c["F"] / c["D"], (1, c["P"], c["P"]), flexible=True, image_size=side)
    variables = from_state_dict(model, golden.weights, strict=True)
    run = jax.jit(lambda *inputs: model.apply(variables, *inputs, method="naflex"))
    tokens, pooled = run(jnp.asarray(patches), jnp.asarray(mask, bool), jnp.asarray(shapes))
    close(tokens * mask[..., None], golden.outputs["output0"])
    close(pooled, golden.outputs["output1"])


def test_a_sequence_of_patches_equals_the_image_whatever_its_padding():
    model = vidjax.create_model("siglip2_tiny", flexible=True)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    image = jnp.asarray(recipe.floats("image", (1, 1, 24, 40, 3)))
    patches = jnp.pad(patchify(image, model.patch_size), ((0, 0), (0, 5), (0, 0)), constant_values=7.0)
    mask, shapes = jnp.arange(20)[None] < 15, jnp.asarray([[3, 5]])
    tokens, pooled = jax.jit(lambda *x: model.apply(variables, *x, method="naflex"))(patches, mask, shapes)
    whole, feature = jax.jit(lambda v: (model.apply(variables, v, method="encode"), model.apply(variables, v)))(image)
    np.testing.assert_allclose(tokens[0, :15], whole.reshape(15, -1), atol=1e-5)
    np.testing.assert_allclose(pooled, feature, atol=1e-5)
    table = jnp.asarray(recipe.floats("table", (4, 4, 3)))
    np.testing.assert_allclose(flexible_positions(table, jnp.asarray([[4, 4]]), 16)[0], table.reshape(16, 3), atol=1e-6)


@pytest.mark.parametrize("kind", ["Siglip", "Siglip2"])
def test_directories_of_transformers_load(kind, tmp_path):
    transformers = peers.transformers()
    import torch

    shared = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 112}
    size = {"image_size": 32} if kind == "Siglip" else {"num_patches": 16}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=shared | size | {"patch_size": 8},
        text_config=shared | {"vocab_size": 50, "max_position_embeddings": 8},
    )
    peer = getattr(transformers, f"{kind}Model")(config).eval()
    peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True, verbose=False)
    image, ids = recipe.floats("image", (2, 32, 32, 3)), np.array([[5, 7, 9, 1, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]])
    inputs = {"input_ids": torch.from_numpy(ids)}
    if kind == "Siglip":
        inputs["pixel_values"] = torch.from_numpy(image).permute(0, 3, 1, 2)
    else:
        inputs["pixel_values"] = torch.from_numpy(np.asarray(patchify(image[:, None], (1, 8, 8))))
        inputs["pixel_attention_mask"], inputs["spatial_shapes"] = torch.ones(2, 16), torch.tensor([[4, 4], [4, 4]])
    with torch.no_grad():
        expected = peer(**inputs)
    videos, texts = jax.jit(model.apply)(variables, jnp.asarray(image)[:, None], jnp.asarray(ids[:, :5]))
    close(videos, expected.image_embeds.numpy())
    close(texts, expected.text_embeds.numpy())
    close(model.apply(variables, videos, texts, method="logits"), expected.logits_per_image.numpy())
    fields = {"width": 48, "depth": 1, "heads": 3, "mlp_ratio": 112 / 48, "image_size": 32}
    tower, loaded = load_pretrained(  # the image tower of a pair
        tmp_path, "siglip2_tiny", strict=True, verbose=False, flexible=kind == "Siglip2", **fields
    )
    features = jax.jit(tower.apply)(loaded, jnp.asarray(image)[:, None])
    close(features / np.linalg.norm(features, axis=1, keepdims=True), expected.image_embeds.numpy())


def test_names_and_shapes_are_those_of_big_vision():
    model = vidjax.create_model("siglip2_tiny_pair")
    weights = entries(named(model, "original")[0], model, perturbed(model))
    shapes = {name.removeprefix("params/"): value.shape for name, value in weights.items()}
    block = "img/Transformer/encoderblock"
    assert shapes["img/embedding/kernel"] == (8, 8, 3, 48) and shapes["img/pos_embedding"] == (1, 16, 48)
    assert shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"] == (2, 48, 4, 12)
    assert shapes[f"{block}/MultiHeadDotProductAttention_0/out/kernel"] == (2, 4, 12, 48)
    assert shapes["img/MAPHead_0/probe"] == (1, 1, 48) and shapes["t"] == shapes["b"] == (1,)
    assert shapes["txt/Encoder_0/encoderblock/MlpBlock_0/Dense_0/kernel"] == (2, 48, 192)
    flexible = vidjax.create_model("siglip2_tiny", flexible=True)
    weights = entries(named(flexible, "original")[0], flexible, perturbed(flexible))
    assert weights["params/img/embedding/kernel"].shape == (192, 48)


def test_texts_are_padded_to_the_context():
    model = vidjax.create_model("siglip2_tiny_pair")
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    ids = jnp.asarray([[5, 7, 9]])
    embed = jax.jit(lambda ids: model.apply(variables, ids, method="embed_text"))
    np.testing.assert_array_equal(embed(ids), embed(jnp.pad(ids, ((0, 0), (0, 13)))))
