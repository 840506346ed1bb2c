"""ViViT against transformers (model 1), and against a NumPy reference of Scenic's four models."""

import json
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from vidjax.convert import from_state_dict, load_pretrained, load_weights
from vidjax.layers.embedding import resize_table
from vidjax.models.vivit import FactorizedEncoder, ViViT, kinetics, uniform_frames

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "vivit_base_16x2_joint": (88_954_000, 451.5),
    "vivit_base_16x2_factorized_encoder": (115_062_928, 283.3),
    "vivit_base_16x2_factorized_self_attention": (117_319_312, 371.1),
    "vivit_base_16x2_factorized_dot_product": (88_952_464, 276.2),
    "vivit_large_16x2_joint": (307_508_624, 1436),
    "vivit_large_16x2_factorized_encoder": (354_903_440, 988.2),
    "vivit_large_16x2_factorized_encoder_24": (606_827_920, 992.5),
    # Counted here, because no exact numbers are published.
    "vivit_large_16x2_factorized_dot_product": (307_506_576, None),
    "vivit_large_16x2_factorized_self_attention": (408_317_328, None),
    "vivit_tiny_factorized_dot_product": (490_656, None),
    "vivit_tiny_factorized_encoder": (710_688, None),
    "vivit_tiny_factorized_self_attention": (640_416, None),
    "vivit_tiny_joint": (490_848, None),
}

CLOSE = {"rtol": 0, "atol": 1e-4}
SIZES = {"width": 24, "depth": 2, "heads": 4, "patch_size": (2, 4, 4), "num_frames": 6, "image_size": 8}
GRID = (3, 2, 2)
MODELS = {
    "joint": partial(ViViT, **SIZES),
    "factorized_encoder": partial(FactorizedEncoder, **SIZES, temporal_depth=1),
    "factorized_self_attention": partial(ViViT, **SIZES, attention="factorized_self_attention", pooling="mean"),
    "factorized_dot_product": partial(ViViT, **SIZES, attention="factorized_dot_product", pooling="mean"),
}


def scenic_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Scenic's parameters."""

    def pair(name: str, first: str, *shape: int) -> dict:
        return {f"{name}/{first}": shape, f"{name}/bias": shape[-1:]}

    def attention(name: str) -> dict:
        parts = {f"{name}/{part}/kernel": (24, 4, 6) for part in ("query", "key", "value")}
        parts |= {f"{name}/{part}/bias": (4, 6) for part in ("query", "key", "value")}
        return parts | {f"{name}/out/kernel": (4, 6, 24), f"{name}/out/bias": (24,)}

    def encoder(name: str, depth: int, tokens: int) -> dict:
        shapes = {f"{name}/posembed_input/pos_embedding": (1, tokens, 24)} | pair(f"{name}/encoder_norm", "scale", 24)
        for i in range(depth):
            block = f"{name}/encoderblock_{i}"
            if kind == "factorized_self_attention":
                for axis in ("time", "space"):
                    shapes |= pair(f"{block}/LayerNorm_{axis}", "scale", 24)
                    shapes |= attention(f"{block}/MultiHeadDotProductAttention_{axis}")
                shapes |= pair(f"{block}/LayerNorm_mlp", "scale", 24)
            else:
                shapes |= pair(f"{block}/LayerNorm_0", "scale", 24) | pair(f"{block}/LayerNorm_1", "scale", 24)
                shapes |= attention(f"{block}/MultiHeadDotProductAttention_0")
            mlp = f"{block}/MlpBlock" + ("" if kind == "factorized_self_attention" else "_0")
            shapes |= pair(f"{mlp}/Dense_0", "kernel", 24, 96) | pair(f"{mlp}/Dense_1", "kernel", 96, 24)
        return shapes

    shapes = pair("embedding", "kernel", 2, 4, 4, 3, 24) | pair("output_projection", "kernel", 24, 5)
    if kind == "factorized_encoder":
        shapes |= {"cls_SpatialTransformer": (1, 1, 24), "cls_TemporalTransformer": (1, 1, 24)}
        return shapes | encoder("SpatialTransformer", 2, 5) | encoder("TemporalTransformer", 1, 4)
    token = {"cls": (1, 1, 24)} if kind == "joint" else {}
    return shapes | token | encoder("Transformer", 2, 12 + (kind == "joint"))


def scenic_weights(kind: str) -> dict[str, np.ndarray]:
    """Random parameters, scales near one."""
    weights = {}
    for name, shape in scenic_shapes(kind).items():
        noise = recipe.floats(name, shape).astype(np.float64)
        scale = 0.1 if name.endswith("bias") else 0.2 if len(shape) == 3 and shape[0] == 1 else 24**-0.5
        weights[name] = 1 + 0.1 * noise if name.endswith("scale") else scale * noise
    return weights


def reference(kind: str, weights: dict, video: np.ndarray) -> np.ndarray:
    """Logits in float64, implemented from the paper with Scenic's names, without our layers."""

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    def dense(name, x):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def mlp(name, x):
        x = dense(f"{name}/Dense_0", x)
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return dense(f"{name}/Dense_1", x)

    def attention(name, x, visible):
        """`visible(head)` returns the attention mask of a head."""
        q, k, v = (
            np.einsum("nd,dhe->hne", x, weights[f"{name}/{part}/kernel"]) + weights[f"{name}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        scores = np.einsum("hne,hme->hnm", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.stack([visible(head) for head in range(4)]), scores, -np.inf)
        probabilities = np.exp(scores - scores.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        out = np.einsum("hnm,hme->nhe", probabilities, v)
        return np.einsum("nhe,hed->nd", out, weights[f"{name}/out/kernel"]) + weights[f"{name}/out/bias"]

    t, h, w = (index.reshape(-1) for index in np.indices(GRID))
    same_time = t[:, None] == t
    same_place = (h[:, None] == h) & (w[:, None] == w)

    def encoder(name, x, depth):
        everything = np.ones((len(x), len(x)), bool)
        x = x + weights[f"{name}/posembed_input/pos_embedding"][0]
        for i in range(depth):
            block = f"{name}/encoderblock_{i}"
            if kind == "factorized_self_attention":
                for axis, visible in (("time", same_place), ("space", same_time)):
                    seen = norm(f"{block}/LayerNorm_{axis}", x)
                    x = x + attention(f"{block}/MultiHeadDotProductAttention_{axis}", seen, lambda _, v=visible: v)
                x = x + mlp(f"{block}/MlpBlock", norm(f"{block}/LayerNorm_mlp", x))
                continue
            halves = kind == "factorized_dot_product"
            seen = norm(f"{block}/LayerNorm_0", x)
            x = x + attention(
                f"{block}/MultiHeadDotProductAttention_0", seen,
                lambda head, halves=halves: (same_place if head < 2 else same_time) if halves else everything,
            )  # fmt: skip
            x = x + mlp(f"{block}/MlpBlock_0", norm(f"{block}/LayerNorm_1", x))
        return norm(f"{name}/encoder_norm", x)

    logits = []
    for clip in video.astype(np.float64):
        patches = clip.reshape(3, 2, 2, 4, 2, 4, 3).transpose(0, 2, 4, 1, 3, 5, 6).reshape(12, -1)
        x = patches @ weights["embedding/kernel"].reshape(-1, 24) + weights["embedding/bias"]
        if kind == "factorized_encoder":
            frames = [np.concatenate([weights["cls_SpatialTransformer"][0], x[4 * i : 4 * i + 4]]) for i in range(3)]
            x = np.stack([encoder("SpatialTransformer", frame, 2)[0] for frame in frames])
            x = np.concatenate([weights["cls_TemporalTransformer"][0], x])
            feature = encoder("TemporalTransformer", x, 1)[0]
        elif kind == "joint":
            feature = encoder("Transformer", np.concatenate([weights["cls"][0], x]), 2)[0]
        else:
            feature = encoder("Transformer", x, 2).mean(axis=0)
        logits.append(dense("output_projection", feature))
    return np.stack(logits)


@pytest.fixture(scope="module")
def video():
    return recipe.floats("video", (2, 6, 8, 8, 3))


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


def test_equals_scenics_models(kind, video):
    weights = scenic_weights(kind)
    model = MODELS[kind](num_classes=5)
    variables = from_state_dict(model, {k: v.astype(np.float32) for k, v in weights.items()}, strict=True)
    logits = jax.jit(model.apply)(variables, jnp.asarray(video))
    np.testing.assert_allclose(logits, reference(kind, weights, video), **CLOSE)


def test_a_scenic_checkpoint_file_is_read(tmp_path):
    weights = {k: v.astype(np.float32) for k, v in scenic_weights("factorized_encoder").items()}
    state = {"optimizer": {"target": unflatten_dict(weights, sep="/"), "state": {"step": 7}}, "global_step": 30}
    (tmp_path / "checkpoint_30").write_bytes(msgpack_serialize(state))
    model, variables = load_pretrained(
        tmp_path / "checkpoint_30", "vivit_tiny_factorized_encoder", **SIZES | {"temporal_depth": 1}, strict=True
    )
    expected = from_state_dict(model, weights, strict=True)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    (tmp_path / "checkpoint_31").write_bytes(msgpack_serialize(state)[:-50])
    with pytest.raises(ValueError, match="checkpoint_31 cannot be read as a Flax checkpoint"):
        load_pretrained(tmp_path / "checkpoint_31", "vivit_tiny_factorized_encoder")


def transformers_peer():
    transformers = peers.transformers()
    config = transformers.VivitConfig(
        image_size=8, num_frames=6, tubelet_size=[2, 4, 4], hidden_size=24, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=96, num_labels=5,
    )  # fmt: skip
    return transformers.VivitForVideoClassification(config).eval()


def test_equals_transformers_from_its_directory(video, tmp_path):
    peer = transformers_peer()
    import torch

    weights = peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True)
    assert model == ViViT(**SIZES, num_classes=5, card=kinetics())
    with torch.no_grad():
        expected = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits.numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(variables, jnp.asarray(video)), expected, rtol=0, atol=1e-5)

    # In transformers 5, the names in `state_dict()` differ from those in its files.
    assert "vivit.layers.0.attention.q_proj.weight" in weights
    torch.save(peer.state_dict(), tmp_path / "memory.pth")
    _, again = load_pretrained(tmp_path / "memory.pth", "vivit_tiny_joint", strict=True, **SIZES)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    encoder = {name.removeprefix("vivit."): value for name, value in weights.items() if "classifier" not in name}
    again = from_state_dict(model.clone(num_classes=None), encoder, strict=True)["params"]
    jax.tree.map(np.testing.assert_array_equal, again, {k: v for k, v in variables["params"].items() if k != "head"})


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


CLIPS = [(8, 224), (16, 224), (64, 224), (128, 224), (32, 112), (32, 320), (16, 112), (128, 112), (8, 448), (20, 64)]


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


def test_gradients_equal_pytorchs(video, tmp_path):
    peer = transformers_peer()
    import torch

    peers.perturb(peer)
    peer.save_pretrained(tmp_path / "weights")
    target = recipe.floats("target", (2, 5))
    ((peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits - torch.from_numpy(target)) ** 2).sum().backward()
    for value in peer.parameters():
        value.data = value.grad
    peer.save_pretrained(tmp_path / "gradients")  # with the published names, which differ from those in memory
    model, variables = load_pretrained(tmp_path / "weights", strict=True)
    _, peer_gradients = load_pretrained(tmp_path / "gradients", strict=True)

    @jax.jit
    def gradient(variables):
        return jax.grad(lambda v: ((model.apply(v, jnp.asarray(video), train=True) - target) ** 2).sum())(variables)

    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(gradient(variables)), jax.tree.leaves(peer_gradients), strict=True
    ):
        if path[-2].key == "key" and path[-1].key == "bias":  # cancels in the softmax: only rounding errors
            continue
        assert np.abs(leaf - other).max() <= 1e-3 * np.abs(other).max(), path


def test_parameters_fit_other_clips(kind):
    model = MODELS[kind](num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6, 8, 8, 3)))
    assert jax.eval_shape(model.apply, shapes, jnp.zeros((1, 10, 12, 16, 3))).shape == (1, 5)
    tokens = jax.eval_shape(partial(model.apply, method="encode"), shapes, jnp.zeros((1, 6, 8, 8, 3)))
    assert tokens.shape == ((1, 3, 1, 1, 24) if kind == "factorized_encoder" else (1, 3, 2, 2, 24))


@pytest.mark.parametrize("kind", ["joint", "factorized_encoder"])
def test_mean_pooling_has_no_class_token(kind, video):
    model = MODELS[kind](num_classes=None, pooling="mean")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(video))
    assert not [path for path in variables["params"] if "class" in path]
    tokens = jax.jit(partial(model.apply, method="encode"))(variables, jnp.asarray(video))
    np.testing.assert_allclose(jax.jit(model.apply)(variables, jnp.asarray(video)), tokens.mean((1, 2, 3)), atol=1e-5)


def test_uniform_frames_are_evenly_spaced_one_per_tubelet():
    frames = jnp.arange(32.0).reshape(1, 32, 1, 1, 1)
    np.testing.assert_array_equal(uniform_frames(frames, 3).ravel(), [8, 16, 24])
    assert uniform_frames(frames, 32) is frames
    model = ViViT(**SIZES, embedding="uniform_frames", num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6, 8, 8, 3)))
    assert shapes["params"]["patch_embedding"]["kernel"].shape == (1, 4, 4, 3, 24)
    assert shapes["params"]["position"]["table"].shape == (3, 2, 2, 24)


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


@pytest.mark.parametrize("inflation", ["average", "central"])
def test_initialisation_from_an_image_vit(kind, inflation):
    weights, model = image_weights(), MODELS[kind](num_classes=5)
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


def test_layer_scale_of_an_image_vit_is_folded(kind):
    weights, model = image_weights(), MODELS[kind](num_classes=5)
    scale = np.linspace(-2, 2, 24, dtype=np.float32)
    scaled = from_state_dict(model, weights | {f"blocks.{i}.ls1.gamma": scale for i in range(2)})["params"]
    plain = from_state_dict(model, weights)["params"]
    encoder = "spatial_transformer" if kind == "factorized_encoder" else "transformer"
    attention = "spatial_attention" if "self" in kind else "attention"
    ours, original = (params[encoder]["block_1"][attention]["out"]["kernel"] for params in (scaled, plain))
    np.testing.assert_allclose(ours, original * scale, rtol=1e-6)


def test_initialisation_follows_the_original():
    model = ViViT(**SIZES | {"width": 96}, num_classes=5)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 6, 8, 8, 3)))["params"]
    assert not params["head"]["kernel"].any() and not params["class_token"].any()
    kernel = params["transformer"]["block_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.std() == pytest.approx((2 / (96 + 384)) ** 0.5, rel=0.03)  # xavier
    assert params["position"]["table"].std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "factorized_dot_product"}, "has no class token: set pooling to mean"),
        ({"attention": "factorized_dot_product", "pooling": "mean", "heads": 3}, "3 heads cannot be halved"),
    ],
)
def test_incompatible_settings_are_rejected(fields, message):
    model = ViViT(**SIZES | fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6, 8, 8, 3)))
