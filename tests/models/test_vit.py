"""The image ViT against timm and transformers, and as a baseline for clips."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import from_state_dict, load_pretrained
from vidjax.models.vit import ViT

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    # 22.05, 86.57, 88.22 and 304.33 M in timm, with 1000 classes
    "vit_small_16": (22_050_664, None),
    "vit_base_16": (86_567_656, 17.564),
    "vit_base_32": (88_224_232, None),
    "vit_large_16": (304_326_632, None),
    # Counted here, because no exact numbers are published.
    "vit_tiny": (467_808, None),
}

SMALL = {"width": 48, "depth": 2, "heads": 3, "patch_size": (1, 8, 8), "num_classes": 7, "image_size": 32}
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def timm():
    return peers.timm()


def timm_peer(timm, **more):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=7,
        norm_layer=partial(__import__("torch").nn.LayerNorm, eps=1e-6), **more,
    ).eval()  # fmt: skip


def outputs_of(peer, frames: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return peer(torch.from_numpy(frames).permute(0, 3, 1, 2)).numpy()


@pytest.fixture(scope="module")
def model():
    return ViT(**SMALL)


@pytest.fixture(scope="module")
def weights():
    """A state dict with timm's names, without timm."""
    block = {
        "norm1.weight": (48,), "norm1.bias": (48,), "attn.qkv.weight": (144, 48), "attn.qkv.bias": (144,),
        "attn.proj.weight": (48, 48), "attn.proj.bias": (48,), "norm2.weight": (48,), "norm2.bias": (48,),
        "mlp.fc1.weight": (192, 48), "mlp.fc1.bias": (192,), "mlp.fc2.weight": (48, 192), "mlp.fc2.bias": (48,),
    }  # fmt: skip
    shapes = {
        "cls_token": (1, 1, 48), "pos_embed": (1, 17, 48), "patch_embed.proj.weight": (48, 3, 8, 8),
        "patch_embed.proj.bias": (48,), "norm.weight": (48,), "norm.bias": (48,), "head.weight": (7, 48),
        "head.bias": (7,), **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()},
    }  # fmt: skip
    return {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


def test_equals_timm(timm, model, weights):
    peer = timm_peer(timm)
    assert peers.perturb(peer).keys() == weights.keys()
    frames = recipe.floats("frames", (2, 32, 32, 3))
    logits = jax.jit(model.apply)(from_state_dict(model, weights, strict=True), jnp.asarray(frames[:, None]))
    np.testing.assert_allclose(logits, outputs_of(peer, frames), **CLOSE)


def test_equals_timm_for_another_image_size(timm, model, weights):
    peer = timm_peer(timm, dynamic_img_size=True)
    peers.perturb(peer)
    frames = recipe.floats("frames", (1, 48, 24, 3))
    logits = jax.jit(model.apply)(from_state_dict(model, weights, strict=True), jnp.asarray(frames[:, None]))
    np.testing.assert_allclose(logits, outputs_of(peer, frames), **CLOSE)


def test_equals_timm_with_layer_scale(timm, model):
    peer = timm_peer(timm, init_values=0.1)  # DINOv2, DeiT-III
    weights = peers.perturb(peer)
    assert "blocks.0.ls1.gamma" in weights
    frames = recipe.floats("frames", (2, 32, 32, 3))
    logits = jax.jit(model.apply)(from_state_dict(model, weights, strict=True), jnp.asarray(frames[:, None]))
    np.testing.assert_allclose(logits, outputs_of(peer, frames), **CLOSE)


@pytest.mark.parametrize("entry", ["attn.q_norm.weight", "mlp.norm.weight", "ls3.gamma"])
def test_parameters_that_our_blocks_lack_are_rejected(model, weights, entry):
    with pytest.raises(ValueError, match=rf"in the weights and not in the model: blocks\.1\.{entry}"):
        from_state_dict(model, weights | {f"blocks.1.{entry}": np.ones(48, np.float32)})


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_equals_transformers_from_its_directory(epsilon, tmp_path):
    transformers = peers.transformers()
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=32,
        patch_size=8, layer_norm_eps=epsilon, id2label={0: "cat", 1: "dog", 2: "owl"},
    )  # fmt: skip
    peer = transformers.ViTForImageClassification(config).eval()
    weights = peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True)
    in_memory = from_state_dict(model, weights, strict=True)  # transformers 5 uses other names in its files
    jax.tree.map(np.testing.assert_array_equal, in_memory, variables)
    assert model.card.class_names == ("cat", "dog", "owl")
    frames = recipe.floats("frames", (2, 32, 32, 3))
    expected = outputs_of(lambda x: peer(x).logits, frames)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, jnp.asarray(frames[:, None])), expected, **CLOSE)


def test_logits_of_a_clip_are_the_mean_over_its_frames(model, weights):
    variables = from_state_dict(model, weights, strict=True)
    video = jnp.asarray(recipe.floats("clip", (1, 4, 32, 32, 3)))
    apply = jax.jit(model.apply)
    each = apply(variables, video[0][:, None])
    np.testing.assert_allclose(apply(variables, video)[0], each.mean(axis=0), atol=1e-5)
    tokens = jax.jit(partial(model.apply, method="encode"))(variables, video)
    assert tokens.shape == (1, 4, 4, 4, 48)
    np.testing.assert_allclose(apply(variables, video[:, ::-1]), apply(variables, video), atol=1e-5)  # in any order


def test_initialisation_follows_timm(model):
    wide = model.clone(width=192, heads=3, num_classes=100)
    params = jax.jit(wide.init)(jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))["params"]
    block = params["transformer"]["block_0"]
    for kernel in (block["attention"]["query"]["kernel"], block["mlp"]["fc1"]["kernel"], params["head"]["kernel"]):
        assert kernel.std() == pytest.approx(0.02, rel=0.03)
    assert params["position"]["table"].std() == pytest.approx(0.02, rel=0.05)
    bound = (3 * 8 * 8) ** -0.5
    assert 0.95 * bound < np.abs(params["patch_embedding"]["kernel"]).max() <= bound
