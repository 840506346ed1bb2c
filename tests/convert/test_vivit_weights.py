"""ViViT from tables of other clips, and from image ViTs."""

import json
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from safetensors.numpy import save_file

from vidjax.convert import from_state_dict, load_pretrained, load_weights
from vidjax.layers.embedding import resize_table
from vidjax.models import create_model
from vidjax.models.vivit import kinetics

SIZES = {"width": 24, "depth": 2, "heads": 4, "patch_size": (2, 4, 4), "num_frames": 6, "image_size": 8}
KINDS = ("joint", "factorized_encoder", "factorized_self_attention", "factorized_dot_product")


def hugging_face_weights(tokens: int) -> dict[str, np.ndarray]:
    """Weights of VivitForVideoClassification with one block, 2x16x16 patches and this many patch positions."""
    layer = {
        "layernorm_before.weight": (4,), "layernorm_before.bias": (4,), "layernorm_after.weight": (4,),
        "layernorm_after.bias": (4,), "intermediate.dense.weight": (8, 4), "intermediate.dense.bias": (8,),
        "output.dense.weight": (4, 8), "output.dense.bias": (4,),
    }  # fmt: skip
    for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
        layer |= {f"attention.{part}.weight": (4, 4), f"attention.{part}.bias": (4,)}
    shapes = {
        "vivit.embeddings.cls_token": (1, 1, 4), "vivit.embeddings.position_embeddings": (1, 1 + tokens, 4),
        "vivit.embeddings.patch_embeddings.projection.weight": (4, 3, 2, 16, 16),
        "vivit.embeddings.patch_embeddings.projection.bias": (4,), "vivit.layernorm.weight": (4,),
        "vivit.layernorm.bias": (4,), "classifier.weight": (5, 4), "classifier.bias": (5,),
        **{f"vivit.encoder.layer.0.{name}": shape for name, shape in layer.items()},
    }  # fmt: skip
    return {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


def hugging_face_directory(path, frames: int, size: int) -> np.ndarray:
    """Writes a Hugging Face directory; returns its position table, reshaped to its grid."""
    grid = (frames // 2, size // 16, size // 16)
    weights = hugging_face_weights(prod(grid))
    save_file(weights, path / "model.safetensors")
    config = {
        "model_type": "vivit", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "tubelet_size": [2, 16, 16], "num_frames": frames, "image_size": size,
        "hidden_act": "gelu_fast", "layer_norm_eps": 1e-6, "qkv_bias": True,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return weights["vivit.embeddings.position_embeddings"][0, 1:].reshape(*grid, 4)


CLIPS = [(16, 224), (32, 320), (128, 112), (20, 64)]


@pytest.mark.parametrize(("frames", "size"), CLIPS)
def test_a_published_table_is_resized_over_its_grid(frames, size, tmp_path, capsys):
    table = hugging_face_directory(tmp_path, 32, 224)
    wanted = (frames // 2, size // 16, size // 16)
    expected = resize_table(jnp.asarray(table), wanted, "linear")
    clips = {"num_frames": frames, "image_size": size}
    model, variables = load_pretrained(tmp_path, strict=True, **clips)
    np.testing.assert_array_equal(variables["params"]["position"]["table"], expected)
    assert "resized: position/table" in capsys.readouterr().out
    assert model.card == kinetics()

    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, frames, size, size, 3)))["params"]
    params, _ = load_weights(tmp_path, model, shapes)
    np.testing.assert_array_equal(params["position"]["table"], expected)

    # Without a configuration, the family's published grid is assumed, unless the model's grid has as many entries.
    weights = hugging_face_weights(3136)
    if prod(wanted) == 3136:
        with pytest.raises(ValueError, match="a table of 3136 positions may be one of"):
            from_state_dict(model, weights)
    else:
        params = from_state_dict(model, weights, strict=True)["params"]
        np.testing.assert_array_equal(params["position"]["table"], expected)
        fields = {"width": 4, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
        _, named = load_pretrained(tmp_path / "model.safetensors", "vivit_base_16x2_joint", **fields, **clips)
        np.testing.assert_array_equal(named["params"]["position"]["table"], expected)


def test_the_grid_of_an_unusual_table_is_read_from_the_configuration(tmp_path):
    table = hugging_face_directory(tmp_path, 8, 448)  # as many positions as the usual 32 frames of 224
    _, variables = load_pretrained(tmp_path, strict=True)
    np.testing.assert_array_equal(variables["params"]["position"]["table"], table)
    _, variables = load_pretrained(tmp_path, strict=True, num_frames=32, image_size=224)
    expected = resize_table(jnp.asarray(table), (16, 14, 14), "linear")
    np.testing.assert_array_equal(variables["params"]["position"]["table"], expected)


def image_weights() -> dict[str, np.ndarray]:
    """Weights of a timm image ViT with another size, other classes and 4x4 patches."""
    block = {
        "norm1.weight": (24,), "norm1.bias": (24,), "attn.qkv.weight": (72, 24), "attn.qkv.bias": (72,),
        "attn.proj.weight": (24, 24), "attn.proj.bias": (24,), "norm2.weight": (24,), "norm2.bias": (24,),
        "mlp.fc1.weight": (96, 24), "mlp.fc1.bias": (96,), "mlp.fc2.weight": (24, 96), "mlp.fc2.bias": (24,),
    }  # fmt: skip
    shapes = {
        "cls_token": (1, 1, 24), "pos_embed": (1, 10, 24), "patch_embed.proj.weight": (24, 3, 4, 4),
        "patch_embed.proj.bias": (24,), "norm.weight": (24,), "norm.bias": (24,), "head.weight": (1000, 24),
        "head.bias": (1000,), **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
    }  # fmt: skip
    return {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("kind", "inflation"), [*((kind, "average") for kind in KINDS), ("joint", "central")])
def test_initialisation_from_an_image_vit(kind, inflation):
    weights, model = image_weights(), create_model(f"vivit_tiny_{kind}", num_classes=5, **SIZES)
    params = from_state_dict(model, weights, inflation=inflation)["params"]
    image = np.moveaxis(weights["patch_embed.proj.weight"], (0, 1), (-1, -2))
    kernel = params["patch_embedding"]["kernel"]
    np.testing.assert_allclose(kernel.sum(axis=0), image, rtol=1e-6)
    assert bool(kernel[0].any()) == (inflation == "average")
    table = params["position"]["table"]
    corners = weights["pos_embed"][0, 1:].reshape(3, 3, 24)[::2, ::2]  # resizing 3x3 to 2x2 keeps the corners
    np.testing.assert_allclose(table, np.broadcast_to(corners, table.shape), atol=1e-6)
    encoder = params["spatial_transformer" if kind == "factorized_encoder" else "transformer"]["block_1"]
    query = weights["blocks.1.attn.qkv.weight"][:24].T
    for name in ("spatial_attention", "temporal_attention") if "self" in kind else ("attention",):
        np.testing.assert_array_equal(encoder[name]["query"]["kernel"], query)
    assert not params["head"]["kernel"].any()
    if kind == "factorized_self_attention":
        assert (encoder["temporal_norm"]["scale"] == 1).all() and (encoder["spatial_norm"]["scale"] != 1).all()


@pytest.mark.parametrize("kind", ["factorized_encoder", "factorized_self_attention"])
def test_layer_scale_of_an_image_vit_is_folded(kind):
    weights, model = image_weights(), create_model(f"vivit_tiny_{kind}", num_classes=5, **SIZES)
    scale = np.linspace(-2, 2, 24, dtype=np.float32)
    scaled = from_state_dict(model, weights | {f"blocks.{i}.ls1.gamma": scale for i in range(2)})["params"]
    plain = from_state_dict(model, weights)["params"]
    encoder = "spatial_transformer" if kind == "factorized_encoder" else "transformer"
    attention = "spatial_attention" if "self" in kind else "attention"
    ours, original = (params[encoder]["block_1"][attention]["out"]["kernel"] for params in (scaled, plain))
    np.testing.assert_allclose(ours, original * scale, rtol=1e-6)
