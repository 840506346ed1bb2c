"""ViViT against transformers (model 1), and against a NumPy reference of Scenic's four models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from small_runs import draw_variables

from vidjax.convert import from_state_dict, load_pretrained
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
    variables = draw_variables(model)
    assert not [path for path in variables["params"] if "class" in path]

    @jax.jit
    def both(variables, video):
        return model.apply(variables, video), model.apply(variables, video, method="encode")

    features, tokens = both(variables, jnp.asarray(video))
    np.testing.assert_allclose(features, tokens.mean((1, 2, 3)), atol=1e-5)


def test_uniform_frames_are_evenly_spaced_one_per_tubelet():
    frames = jnp.arange(32.0).reshape(1, 32, 1, 1, 1)
    np.testing.assert_array_equal(uniform_frames(frames, 3).ravel(), [8, 16, 24])
    assert uniform_frames(frames, 32) is frames
    model = ViViT(**SIZES, embedding="uniform_frames", num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6, 8, 8, 3)))
    assert shapes["params"]["patch_embedding"]["kernel"].shape == (1, 4, 4, 3, 24)
    assert shapes["params"]["position"]["table"].shape == (3, 2, 2, 24)


def test_initialisation_follows_the_original():
    model = ViViT(**SIZES | {"width": 96, "depth": 1}, num_classes=5)

    @jax.jit
    def initial(key):  # only what is compared is compiled
        params = model.init(key, jnp.zeros((1, 6, 8, 8, 3)))["params"]
        kernel = params["transformer"]["block_0"]["mlp"]["fc1"]["kernel"]
        return params["head"]["kernel"], params["class_token"], kernel, params["position"]["table"]

    head, token, kernel, table = initial(jax.random.key(0))
    assert not head.any() and not token.any()
    assert kernel.std() == pytest.approx((2 / (96 + 384)) ** 0.5, rel=0.03)  # xavier
    assert table.std() == pytest.approx(0.02, rel=0.1)


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
