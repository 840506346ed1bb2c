"""TimeSformer against recorded and live outputs of other implementations, and the scope of each attention scheme."""

from functools import partial
from math import isqrt

import einops
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import from_state_dict, load_pretrained
from vidjax.layers.embedding import resize_table
from vidjax.models.timesformer import SCHEMES, GroupedAttention, TimeSformer

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "timesformer_base_divided": (121_566_352, 195.83),
    "timesformer_base_joint": (86_112_400, 179.56),
    "timesformer_base_space": (86_106_256, 140.51),
    "timesformer_hr_divided": (122_024_080, 1702.7),
    "timesformer_large_divided": (121_633_936, 2379.9),
    # Counted here, because no exact numbers are published.
    "timesformer_base_axial": (149_933_200, None),
    "timesformer_base_local_global": (114_479_248, None),
    "timesformer_tiny_axial": (805_344, None),
    "timesformer_tiny_divided": (655_584, None),
    "timesformer_tiny_joint": (468_576, None),
    "timesformer_tiny_local_global": (618_336, None),
    "timesformer_tiny_space": (467_808, None),
}

CLOSE = {"rtol": 0, "atol": 1e-4}
SMALL = {"width": 24, "depth": 2, "heads": 3, "patch_size": (1, 4, 4), "num_frames": 4, "image_size": 16}
ATTENTION = ("divided", "joint", "space", "local_global", "axial")


@pytest.mark.parametrize("name", ["divided", "joint", "space", pytest.param("divided_full", marks=pytest.mark.long)])
def test_equals_the_original(name):
    golden = recipe.load(f"timesformer_{name}")
    c, video = golden.config, jnp.moveaxis(jnp.asarray(golden.inputs[0][:1]), 1, -1)
    model = TimeSformer(
        c["D"], c["L"], c["H"], name.removesuffix("_full"), patch_size=(1, c["P"], c["P"]), num_classes=c["classes"],
        num_frames=c["T"], image_size=c["S"],
    )  # fmt: skip
    variables = from_state_dict(model, golden.weights, strict=True)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, video), golden.outputs["output0"][:1], **CLOSE)


@pytest.mark.parametrize("attention", ["divided", "joint", "space"])
def test_equals_mmaction2(attention, tmp_path, capsys):
    """Its files contain `backbone.` and `cls_head.` in `state_dict`; its configurations scale pixels to [-1, 1]."""
    torch = pytest.importorskip("torch")
    golden = recipe.load(f"mm_timesformer_{attention}")
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in golden.weights.items()}
    torch.save({"meta": {"epoch": 15}, "state_dict": state}, tmp_path / "mmaction2.pth")
    name = f"timesformer_tiny_{attention}"
    model, variables = load_pretrained(tmp_path / "mmaction2.pth", name, strict=True, **SMALL)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, video), expected, rtol=0, atol=1e-5)
    assert (model.card.mean, model.card.std) == ((0.5,) * 3, (0.5,) * 3)
    assert "the card's mean is that of mmaction2's TimeSformer" in capsys.readouterr().out


KINDS = {"divided": "divided_space_time", "joint": "joint_space_time", "space": "space_only"}


def transformers_peer(attention: str):
    transformers = peers.transformers()
    config = transformers.TimesformerConfig(
        image_size=16, patch_size=4, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, attention_type=KINDS[attention], num_labels=5, drop_path_rate=0,
    )  # fmt: skip
    return transformers.TimesformerForVideoClassification(config).eval()


@pytest.mark.parametrize(
    ("attention", "shape"),
    [
        ("divided", (2, 4, 16, 16, 3)),
        ("joint", (1, 6, 24, 24, 3)),  # with divided attention, the peer takes only clips of its configured size
    ],
)
def test_equals_transformers_also_at_other_sizes(attention, shape, tmp_path):
    import_peer = transformers_peer(attention)
    import torch

    weights = peers.perturb(import_peer)
    import_peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True)
    assert model.attention == attention and len(weights) > 30
    video = recipe.floats("video", shape)
    with torch.no_grad():
        expected = import_peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits.numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(variables, jnp.asarray(video)), expected, **CLOSE)


def test_space_only_attention_averages_transformers_outputs_over_frames(tmp_path):
    """The peer returns logits per frame; the original averages the last block's tokens before the norm (the golden)."""
    peer = transformers_peer("space")
    import torch

    peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True)
    assert model.card.mean == (0.45,) * 3
    video = recipe.floats("video", (2, 4, 16, 16, 3))
    with torch.no_grad():
        tokens = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3), output_hidden_states=True).hidden_states[-1]
        tokens = tokens[:, 0].unflatten(0, (2, 4)).mean(1)
        expected = peer.classifier(peer.timesformer.layernorm(tokens)).numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(variables, jnp.asarray(video)), expected, **CLOSE)


def test_gradients_equal_pytorchs():
    peer = transformers_peer("divided")
    import torch

    weights = peers.perturb(peer)
    model = TimeSformer(**SMALL, num_classes=5, drop_path=0.0)
    variables = from_state_dict(model, weights, strict=True)
    video, target = recipe.floats("video", (2, 4, 16, 16, 3)), recipe.floats("target", (2, 5))
    logits = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits
    ((logits - torch.from_numpy(target)) ** 2).sum().backward()
    peer_gradients = {name: value.grad.numpy() for name, value in peer.named_parameters()}

    @jax.jit
    def gradient(variables):
        return jax.grad(lambda v: ((model.apply(v, jnp.asarray(video), train=True) - target) ** 2).sum())(variables)

    expected = jax.tree.leaves_with_path(from_state_dict(model, peer_gradients, strict=True))
    for (path, ours), (_, other) in zip(jax.tree.leaves_with_path(gradient(variables)), expected, strict=True):
        if path[-2].key == "key" and path[-1].key == "bias":  # cancels in the softmax: only rounding errors
            continue
        assert np.abs(ours - other).max() <= 1e-3 * np.abs(other).max(), path


@pytest.fixture(scope="module")
def branches():
    """The attention branch of each grouping, compiled once, and its variables."""
    x = jnp.asarray(recipe.floats("tokens", (1, 1 + 4 * 4 * 6, 24)))
    made = {}
    for name, grouping in {k: v for scheme in SCHEMES.values() for k, v in scheme.items()}.items():
        module = GroupedAttention(3, grouping)
        run = partial(module.apply, drop_path=0.0, train=False, grid=(4, 4, 6))
        variables = jax.jit(module.init, static_argnums=(2, 3, 4))(jax.random.key(0), x, 0.0, False, (4, 4, 6))
        leaves, structure = jax.tree.flatten(variables)  # a projection of zeros would hide everything
        draw = np.random.default_rng(0).standard_normal
        variables = jax.tree.unflatten(structure, [leaf + 0.1 * draw(leaf.shape, np.float32) for leaf in leaves])
        made[name] = jax.jit(lambda x, run=run, variables=variables: run(variables, x))
    return x, made


def seen_by(name: str, place: tuple[int, int, int]) -> np.ndarray:
    """By definition, the tokens `(t h w)` of a (4, 4, 6) grid that depend on the one at `place`."""
    t, h, w = np.indices((4, 4, 6))
    pt, ph, pw = place
    return {
        "time": (h == ph) & (w == pw),
        "space": t == pt,
        "width": (t == pt) & (h == ph),
        "height": (t == pt) & (w == pw),
        "local": (h // 2 == ph // 2) & (w // 3 == pw // 3),
        "global": ((t - pt) % 2 == 0) & ((h - ph) % 2 == 0) & ((w - pw) % 2 == 0),
    }[name]


@pytest.mark.parametrize("name", ["time", "space", "width", "height", "local", "global"])
@pytest.mark.parametrize("place", [(2, 1, 4), pytest.param((0, 0, 0), marks=pytest.mark.long)])
def test_attention_mixes_only_the_tokens_of_a_group(branches, name, place):
    x, made = branches
    index = 1 + np.ravel_multi_index(place, (4, 4, 6))
    changed = np.abs(made[name](x.at[:, index, :5].add(1.0)) - made[name](x))[0].max(axis=-1) > 1e-6
    np.testing.assert_array_equal(changed[1:].reshape(4, 4, 6), seen_by(name, place))
    assert changed[0] == (name != "time")  # the class token attends to every group except over time


@pytest.mark.parametrize("attention", ATTENTION)
def test_parameters_fit_other_clips(attention):
    model = TimeSformer(**SMALL, attention=attention, num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))
    assert jax.eval_shape(model.apply, shapes, jnp.zeros((1, 6, 24, 32, 3))).shape == (1, 5)
    encoded = jax.eval_shape(partial(model.apply, method="encode"), shapes, jnp.zeros((1, 4, 16, 16, 3)))
    assert encoded.shape == (1, 1 if attention == "space" else 4, 4, 4, 24)


def test_a_grid_that_cannot_be_halved_is_rejected():
    model = TimeSformer(**SMALL | {"num_frames": 3}, attention="local_global")
    with pytest.raises(ValueError, match="local-global attention needs even sides"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3, 16, 16, 3)))


def test_a_new_divided_block_ignores_time():
    model = TimeSformer(**SMALL, num_classes=5, drop_path=0.0)
    video = jnp.asarray(recipe.floats("video", (1, 4, 16, 16, 3)))
    apply = jax.jit(model.apply)
    variables = jax.jit(model.init)(jax.random.key(0), video)
    block = variables["params"]["transformer"]["block_1"]
    assert not block["time"]["projection"]["kernel"].any() and not variables["params"]["time"]["table"].any()
    assert block["space"]["attention"]["query"]["kernel"].std() == pytest.approx(0.02, rel=0.1)
    np.testing.assert_allclose(apply(variables, video[:, ::-1]), apply(variables, video), atol=1e-5)


def image_weights() -> dict[str, np.ndarray]:
    """Weights of a timm image ViT with 1000 classes and another size."""
    shapes = {name: value.shape for name, value in recipe.load("timesformer_space").weights.items()}
    shapes |= {"head.weight": (1000, 48), "head.bias": (1000,)}
    return {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("attention", ATTENTION)
def test_initialisation_from_an_image_vit(attention, tmp_path, capsys):
    from safetensors.numpy import save_file

    weights = image_weights()
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, tmp_path / "vit.safetensors")
    fields = {"width": 48, "depth": 2, "heads": 3, "patch_size": (1, 8, 8), "num_frames": 4, "image_size": 48}
    model, variables = load_pretrained(tmp_path / "vit.safetensors", f"timesformer_base_{attention}", **fields)
    assert model.num_classes == 400  # instead of the image model's 1000
    printed = capsys.readouterr().out
    assert "timm's image ViT" in printed and "resized: position/table" in printed and "unused: head" in printed
    params, block = variables["params"], variables["params"]["transformer"]["block_1"]
    names = list(SCHEMES.get(attention, {})) or [None]
    query = weights["blocks.1.attn.qkv.weight"][:48].T
    for name in names:
        attending = block[name]["attention"] if name else block["attention"]
        np.testing.assert_array_equal(attending["query"]["kernel"], query)
    assert ("time" in params) == (attention != "space")
    assert not any(leaf.any() for leaf in jax.tree.leaves(params.get("time")))
    if attention in ("divided", "axial"):
        assert not block["time"]["projection"]["kernel"].any()


@pytest.mark.parametrize("attention", ATTENTION)
def test_layer_scale_of_an_image_vit_is_folded(attention):
    weights = image_weights()
    fields = {"width": 48, "depth": 2, "heads": 3, "patch_size": (1, 8, 8), "num_frames": 4, "image_size": 32}
    model, scale = TimeSformer(**fields, attention=attention), np.linspace(-2, 2, 48, dtype=np.float32)
    scaled = from_state_dict(model, weights | {f"blocks.{i}.ls1.gamma": scale for i in range(2)})["params"]
    plain = from_state_dict(model, weights)["params"]
    for name in list(SCHEMES.get(attention, {})) or [None]:
        blocks = (params["transformer"]["block_1"] for params in (scaled, plain))
        ours, expected = ((block[name] if name else block)["attention"]["out"]["kernel"] for block in blocks)
        np.testing.assert_allclose(ours, expected * scale, rtol=1e-6)


@pytest.mark.parametrize(("frames", "size"), [(8, 32), (2, 64), (16, 16)])
def test_published_tables_are_resized_by_the_models_interpolation(frames, size):
    weights = dict(recipe.load("timesformer_divided").weights)
    fields = {"width": 48, "depth": 2, "heads": 3, "patch_size": (1, 8, 8), "num_classes": 11}
    model = TimeSformer(**fields, num_frames=frames, image_size=size)
    assert weights["time_embed"].shape[1] != frames or weights["pos_embed"].shape[1] != 1 + (size // 8) ** 2
    params = from_state_dict(model, weights)["params"]
    side = isqrt(weights["pos_embed"].shape[1] - 1)
    table = jnp.asarray(weights["pos_embed"][0, 1:].reshape(side, side, 48))
    np.testing.assert_array_equal(params["position"]["table"], resize_table(table, (size // 8,) * 2, "nearest"))
    time = jnp.asarray(weights["time_embed"][0])
    np.testing.assert_array_equal(params["time"]["table"], resize_table(time, (frames,), "nearest"))


@pytest.mark.parametrize("attention", ["divided", "space"])
def test_the_originals_file_loads_with_its_head(attention, tmp_path):
    torch = pytest.importorskip("torch")
    weights = recipe.load(f"timesformer_{attention}").weights
    weights |= {"head.weight": image_weights()["head.weight"], "head.bias": image_weights()["head.bias"]}
    copies = {k.replace("temporal_attn", "temporal_temporal_attn"): v for k, v in weights.items()}
    named = {f"model.{name}": torch.from_numpy(np.array(value)) for name, value in (copies | weights).items()}
    torch.save({"epoch": 15, "model_state": named}, tmp_path / "k400.pyth")
    fields = {"width": 48, "depth": 2, "heads": 3, "patch_size": (1, 8, 8), "num_frames": 4, "image_size": 32}
    path, name = tmp_path / "k400.pyth", f"timesformer_tiny_{attention}"
    model, variables = load_pretrained(path, name, strict=True, **fields)
    assert model.num_classes == 1000  # recognised by the prefix, not by the number of classes
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], weights["head.weight"].T)


def test_drop_path_acts_on_time_by_position_and_on_space_by_frame():
    x = jnp.asarray(recipe.floats("tokens", (1, 1 + 4 * 4 * 6, 24)))
    for name, groups in (("time", 24), ("space", 4)):
        module = GroupedAttention(3, SCHEMES["divided"][name])
        variables = jax.jit(module.init, static_argnums=(2, 3, 4))(jax.random.key(0), x, 0.0, False, (4, 4, 6))
        variables["params"] |= {"projection": {"kernel": jnp.eye(24), "bias": jnp.zeros(24)}} if name == "time" else {}
        kept = module.apply(variables, x, 0.0, False, (4, 4, 6))[0, 1:]
        rngs = {"drop_path": jax.random.key(1)}
        dropped = module.apply(variables, x, 0.5, True, (4, 4, 6), rngs=rngs)[0, 1:]
        pattern = "(t n) d -> n (t d)" if name == "time" else "(t n) d -> t (n d)"
        ratio = einops.rearrange(dropped / kept, pattern, t=4)
        rows = np.asarray(ratio).mean(axis=1)
        assert len(rows) == groups and set(np.round(rows, 3)) == {0.0, 2.0}
        np.testing.assert_allclose(ratio, np.broadcast_to(rows[:, None], ratio.shape), atol=1e-3)
