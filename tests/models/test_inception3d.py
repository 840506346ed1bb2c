import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.models import inception3d

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "i3d_flow": (12_668_032, 102.341),
    "i3d_rgb": (12_689_984, 111.153),
    "s3d": (8_320_048, 17.979, {"num_frames": 16}),
    "s3dg": (9_508_000, 71.92, {"num_frames": 64}),
    # Counted here, because no exact numbers are published.
    "i3d_tiny": (199_874, None),
    "i3d_tiny_flow": (199_874 - 7**3 * 8, None),
    "s3d_tiny": (126_944, None),
}
# Variants with other fields: row, parameters, GMACs, fields.
COUNTS_WITH_FIELDS = {
    "i3d_rgb with scales": ("i3d_rgb", 12_697_264, 111.153, {"norm_scale": True}),
    "i3d_flow with scales": ("i3d_flow", 12_675_312, 102.341, {"norm_scale": True}),
    "s3d of 64 frames": ("s3d", 8_320_048, 71.916, {"num_frames": 64}),
    "s3dg gated after the branches": ("s3dg", 12_119_712, 71.92, {"gating": "concat"}),
}


def assert_close(actual, expected, within: float = 1e-4) -> None:
    """Compares relative to the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=within * np.abs(expected).max())


def load(name: str) -> recipe.Golden:
    """A golden with scaled kernels."""
    golden = recipe.load(name)
    gain = golden.config["gain"]
    return golden._replace(
        weights={name: gain * value if value.ndim == 5 else value for name, value in golden.weights.items()}
    )


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def noise(model, video) -> dict:
    """Random variables: statistics near one, scaled kernels."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)

    def fill(path, leaf):
        if leaf.ndim > 1:
            return jnp.asarray(1.4 * draw(leaf.size, *leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5)
        return jnp.asarray(float(path[-1].key in ("scale", "var")) + 0.1 * np.tanh(draw(leaf.size, *leaf.shape)))

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module")
def i3d():
    """I3D: golden, model, converted variables, and logits of both clips."""
    golden = load("inception3d_i3d")
    model = vidjax.create_model("i3d_rgb", num_classes=5, width_multiplier=1 / 8, norm_scale=True)
    variables = from_state_dict(model, golden.weights, strict=True)
    return golden, model, variables, jnp.asarray(golden.inputs[0])


# Parity


def test_i3d_equals_its_description_as_recorded(i3d):
    golden, model, variables, video = i3d
    assert_close(jax.jit(model.apply)(variables, video), golden.outputs["logits"])


def test_s3d_equals_torchvision_as_recorded():
    golden = load("inception3d_s3d")
    model = vidjax.create_model("s3d", num_classes=5)
    variables = from_state_dict(model, golden.weights, strict=True)
    assert_close(jax.jit(model.apply)(variables, jnp.asarray(golden.inputs[0])), golden.outputs["logits"])


@pytest.fixture(scope="module")
def s3d_step():
    """A training step of torchvision's model and ours, on clips that leave a 2x1x2 feature map.

    In float64: in float32, rounding errors of many norms over few samples reach 2 % of the stem's gradients.
    """
    torch = pytest.importorskip("torch")
    peers.torchvision()
    import record_inception3d as recorder

    peer = recorder.build_s3d((1, 2)).train()
    peer.classifier[0].p = 0.0
    weights = recorder.perturb_s3d(peer)
    peer = peer.double()
    model = vidjax.create_model("s3d", num_classes=5, dropout=0.0)
    variables = from_state_dict(model, weights, strict=True)
    video, direction = draw(3, 3, 13, 17, 49, 3).astype(np.float64), draw(4, 3, 5).astype(np.float64)

    logits = peer(torch.from_numpy(np.moveaxis(video, -1, 1).copy()))
    (logits * torch.from_numpy(direction)).sum().backward()
    reference = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    reference |= {name: value.numpy() for name, value in peer.state_dict().items() if "running" in name}
    reference = flatten_dict(from_state_dict(model, reference, strict=True), sep="/")

    def loss(params, rest, video):
        logits, stats = model.apply(rest | {"params": params}, video, train=True, mutable=["batch_stats"])
        return (logits * direction).sum(), (logits, stats["batch_stats"])

    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), variables)
        params, rest = variables.pop("params"), variables
        fast_to_compile = {"xla_backend_optimization_level": 0}
        step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=fast_to_compile)
        gradients, (ours, stats) = step(params, rest, jnp.asarray(video))
        assert ours.dtype == np.float64
        gradients, stats, before = (
            {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}
            for tree in (gradients, stats, rest["batch_stats"])
        )
    logits = np.asarray(ours), logits.detach().numpy()
    return SimpleNamespace(logits=logits, gradients=gradients, stats=stats, before=before, reference=reference)


def test_s3d_equals_torchvision_in_training(s3d_step):
    assert_close(*s3d_step.logits, 1e-6)


def test_gradients_of_s3d_equal_torchvision(s3d_step):
    for path, gradient in s3d_step.gradients.items():
        expected = np.asarray(s3d_step.reference[f"params/{path}"])
        assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected), path


def test_running_statistics_of_s3d_equal_torchvision(s3d_step):
    sides = {"conv_1a/spatial": (13, 9, 25), "conv_1a/temporal": (7, 9, 25), "mixed_5c/branch0": (2, 1, 2)}
    for path, (t, h, w) in sides.items():
        samples = 3 * t * h * w  # PyTorch's running variance is unbiased
        for name, unbiased in (("mean", 1.0), ("var", samples / (samples - 1))):
            place = f"{path}/norm/{name}"
            before = 0.999 * s3d_step.before[place]
            moved = (s3d_step.stats[place] - before) * unbiased
            assert_close(moved, np.asarray(s3d_step.reference[f"batch_stats/{place}"]) - before, 1e-3)
    assert not any(np.array_equal(value, s3d_step.before[path]) for path, value in s3d_step.stats.items())


def test_i3d_equals_its_description_live():
    torch = pytest.importorskip("torch")
    import record_inception3d as recorder

    shapes = recorder.i3d_shapes(8, 3, channels=2)
    weights = recorder.gained({name: recipe.parameter(name, shape) for name, shape in shapes.items()})
    model = vidjax.create_model("i3d_flow", num_classes=3, width_multiplier=1 / 8, norm_scale=True)
    variables = from_state_dict(model, weights, strict=True)
    video = draw(5, 1, 10, 33, 47, 2)
    reference = recorder.i3d(
        {name: torch.from_numpy(value) for name, value in weights.items()},
        torch.from_numpy(np.moveaxis(video, -1, 1).copy()),
    )
    assert_close(jax.jit(model.apply)(variables, jnp.asarray(video)), reference.numpy())


# Published names


def same(one: dict, other: dict) -> bool:
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other))
    )


def as_tensorflow(port: dict) -> dict:
    """The port's entries, without scales, with the names in DeepMind's RGB checkpoint."""
    parts = {
        "b0": "Branch_0/Conv3d_0a_1x1", "b1a": "Branch_1/Conv3d_0a_1x1", "b1b": "Branch_1/Conv3d_0b_3x3",
        "b2a": "Branch_2/Conv3d_0a_1x1", "b2b": "Branch_2/Conv3d_0b_3x3", "b3b": "Branch_3/Conv3d_0b_1x1",
        "logits": "Logits/Conv3d_0c_1x1", "bn": "batch_norm", "conv3d": "conv_3d", "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }  # fmt: skip
    entries = {}
    for name, value in port.items():
        *path, last = (parts.get(part, part) for part in name.split("."))
        if path[-1] == "conv_3d":
            last, value = ("w", value.transpose(2, 3, 4, 1, 0)) if last == "weight" else ("b", value)
        elif last == "weight":
            continue
        else:
            last, value = "beta" if last == "bias" else last, value.reshape(1, 1, 1, 1, -1)
        name = "/".join(("RGB/inception_i3d", *path, last))
        entries[name.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")] = value
    return entries


def test_checkpoints_of_deepmind_and_of_the_port_are_equivalent(i3d):
    golden, with_scales, _, _ = i3d
    model = with_scales.clone(norm_scale=False)
    port = {name: value for name, value in golden.weights.items() if not name.endswith("bn.weight")}
    ones = {name: np.ones_like(value) for name, value in golden.weights.items() if name.endswith("bn.weight")}
    variables = from_state_dict(model, port | ones, strict=True)
    original = as_tensorflow(port)
    assert same(from_state_dict(model, original, strict=True), variables)
    slots = {f"{name}/Momentum": value for name, value in original.items() if "moving" not in name}
    newer = {name.removeprefix("RGB/inception_i3d/"): value for name, value in (original | slots).items()}
    assert same(from_state_dict(model, newer, strict=True), variables)
    # in a model with scales they become one, and only such a model takes other scales
    scaled = flatten_dict(from_state_dict(with_scales, original), sep="/")
    assert all((value == 1).all() for path, value in scaled.items() if path.endswith("scale"))
    with pytest.raises(ValueError, match=r"not in the model: .*bn\.weight"):
        from_state_dict(model, golden.weights)


def as_port(weights: dict, ends: tuple[str, str]) -> dict:
    """torchvision's entries with the names of convolutions and norms in kylemin/S3D and CoCLR."""
    kind = ("conv", "bn")

    def half(match: re.Match) -> str:
        return f".{kind[int(match[2])]}{ends[int(match[1])]}."

    def whole(match: re.Match) -> str:
        return f".{kind[int(match[1])]}."

    entries = {}
    for name, value in weights.items():
        name = name.replace("branch0.", "branch0.0.")
        separable = re.search(r"(branch[12]\.1|features\.[03])\.[01]\.[01]\.", name)
        pattern, rename = (r"\.([01])\.([01])\.(?=\w+$)", half) if separable else (r"\.([01])\.(?=\w+$)", whole)
        entries[re.sub(pattern, rename, name) if name.startswith("features") else name] = value
    return entries


def test_s3d_of_kylemin_loads():
    weights = load("inception3d_s3d").weights
    model = vidjax.create_model("s3d", num_classes=5)
    renamed = {
        "module." + name.replace("features", "base").replace("classifier.1", "fc.0"): value
        for name, value in as_port(weights, ("_s", "_t")).items()
    }
    loaded = from_state_dict(model, renamed, strict=True)
    assert same(loaded, from_state_dict(model, weights, strict=True))


def test_s3dg_of_coclr_loads():
    weights = {name: v for name, v in load("inception3d_s3d").weights.items() if name.startswith("features")}
    gated = vidjax.create_model("s3dg", num_classes=None)
    plain = gated.clone(gating=None)
    places = dict(
        zip((5, 6, 8, 9, 10, 11, 12, 14, 15), (f"Mixed_{name}" for name in inception3d.INCEPTION_V1), strict=True)
    )
    places |= {0: "Conv_1a", 2: "Conv_2b", 3: "Conv_2c"}
    backbone = {
        re.sub(r"features\.(\d+)", lambda match: places[int(match[1])], name): value
        for name, value in as_port(weights, ("1", "2")).items()
    }
    gates = {
        f"Mixed_{name}.gating_b{i}.fc.{kind}": draw(i, *((width, width) if kind == "weight" else (width,)))
        for name, widths in inception3d.INCEPTION_V1.items()
        for i, width in enumerate((widths[0], widths[2], widths[4], widths[5]))
        for kind in ("weight", "bias")
    }
    again = {f"block1.0.{name.removeprefix('Conv_1a.')}": v for name, v in backbone.items() if "Conv_1a" in name}
    encoder = {f"encoder_q.0.{name}": value for name, value in (backbone | gates | again).items()}
    others = {"encoder_q.2.weight": draw(0, 3, 3), "encoder_k.0.Conv_1a.bn1.bias": draw(0, 64), "queue": draw(0, 9)}
    loaded = flatten_dict(from_state_dict(gated, encoder | others, strict=True), sep="/")
    for path, value in flatten_dict(from_state_dict(plain, weights, strict=True), sep="/").items():
        np.testing.assert_array_equal(loaded[path], value)
    np.testing.assert_array_equal(loaded["params/mixed_4e/gate1/linear/kernel"], draw(1, 288, 288).T)
    with pytest.raises(ValueError, match="gating_b0"):
        from_state_dict(plain, encoder)
    with pytest.raises(ValueError, match="not in the weights: mixed_3b/gate0/linear/bias"):
        from_state_dict(gated, backbone)
    for path, value in flatten_dict(from_state_dict(plain, backbone, strict=True), sep="/").items():
        np.testing.assert_array_equal(loaded[path], value)  # the released weights are for "s3d", without gates


def test_only_matching_layouts_are_listed():
    ports = {"piergiaj/pytorch-i3d", "kinetics-i3d"}
    named = {
        "i3d_rgb": ports,
        "i3d_flow": ports,
        "s3d": {"torchvision's s3d", "kylemin/S3D", "TengdaHan/CoCLR"},
        "s3dg": {"TengdaHan/CoCLR with gates"},
    }
    for name, expected in named.items():
        assert {layout.name for layout in layouts(vidjax.create_model(name))} == expected
    scaled = layouts(vidjax.create_model("i3d_rgb", norm_scale=True))
    assert {layout.name for layout in scaled} == ports | {f"{port} with scales" for port in ports}
    assert not layouts(vidjax.create_model("s3dg", gating="concat"))
    weights = load("inception3d_s3d").weights
    with pytest.raises(
        ValueError, match=r"layout of Inception3D fits the weights: expected an entry .*piergiaj/pytorch-i3d"
    ):
        from_state_dict(vidjax.create_model("i3d_rgb"), weights)
    with pytest.raises(
        ValueError, match=r"layout of Inception3D fits the weights: expected an entry .*CoCLR with gates"
    ):
        from_state_dict(vidjax.create_model("s3dg"), weights)


# Initialisation


@pytest.mark.parametrize(
    ("name", "std"),
    [("i3d_rgb", 0.8796 * 1728**-0.5), ("s3d", (3 * 576) ** -0.5), pytest.param("s3dg", 0.01, marks=pytest.mark.long)],
)
def test_kernels_are_initialised_as_in_the_original(name, std):
    model = vidjax.create_model(name, num_frames=5, image_size=17)

    def init(key, video):
        return model.init(key, video)["params"]

    params = jax.jit(lambda key: {k: init(key, jnp.zeros((1, 5, 17, 17, 3)))[k] for k in ("conv_2c", "head")})(
        jax.random.key(0)
    )
    kernels = flatten_dict(params, sep="/")
    kernel = kernels["conv_2c/conv/kernel" if name == "i3d_rgb" else "conv_2c/spatial/conv/kernel"]
    assert np.std(kernel) == pytest.approx(std, rel=0.02) and abs(np.mean(kernel)) < 0.02 * std
    shape = {"i3d_rgb": 2 / 0.8796, "s3d": 3**0.5, "s3dg": 4.5}[name]  # truncated normal, uniform, normal
    assert np.abs(kernel).max() / std == pytest.approx(shape, rel=0.15 if name == "s3dg" else 0.02)
    head_std = {"i3d_rgb": 0.8796 / 32, "s3d": 3**-0.5 / 32, "s3dg": 0.01}[name]
    assert np.std(kernels["head/kernel"]) == pytest.approx(head_std, rel=0.02)
    assert (np.abs(kernels["head/bias"]).max() > 0.9 / 32) == (name == "s3d")


# Properties


@pytest.mark.parametrize("gating", ["concat", "branch"])
def test_gates_scale_channels_by_a_function_of_their_means(gating):
    make = {"unit": inception3d.Unit, "convolution": inception3d.Separable, "gate": inception3d.Gate}
    gated = inception3d.Inception((2, 3, 4, 2, 3, 2), **make, gating=gating)
    x = jnp.asarray(draw(0, 2, 3, 4, 4, 3))
    variables = noise(gated, x)
    params = {name: value for name, value in variables["params"].items() if not name.startswith("gate")}
    plain = gated.clone(gating=None).apply(variables | {"params": params}, x)
    parts = [plain] if gating == "concat" else np.split(plain, np.cumsum((2, 4, 3)), axis=-1)
    names = ["gate"] if gating == "concat" else [f"gate{i}" for i in range(4)]
    expected = []
    for part, name in zip(parts, names, strict=True):
        linear = variables["params"][name]["linear"]
        logit = part.mean(axis=(1, 2, 3)) @ linear["kernel"] + linear["bias"]
        expected.append(part / (1 + np.exp(-logit))[:, None, None, None])
    assert_close(gated.apply(variables, x), np.concatenate(expected, axis=-1), 1e-6)


@pytest.mark.parametrize(("name", "least"), [("i3d_tiny", (1, 17, 17)), ("s3d_tiny", (5, 17, 17))])
def test_the_smallest_clip_works_and_smaller_ones_are_rejected(name, least):
    model = vidjax.create_model(name, num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *least, 3)))
    features = jax.eval_shape(lambda *args: model.apply(*args, method="encode"), shapes, jnp.zeros((1, *least, 3)))
    assert features.shape == (1, 1, 1, 1, 128)
    for axis in range(3):
        fewer = [side - (i == axis) for i, side in enumerate(least)]
        with pytest.raises(ValueError, match=f"are too few: .* needs at least {least[axis]}"):
            jax.eval_shape(model.apply, shapes, jnp.zeros((1, *fewer, 3)))


def test_two_streams_add_their_logits():
    rgb, flow = jnp.asarray(draw(0, 2, 5)), jnp.asarray(draw(1, 2, 5))
    np.testing.assert_array_equal(inception3d.two_stream(rgb, flow), np.asarray(rgb) + np.asarray(flow))


class Head(inception3d.Inception3D):
    """The layers after the feature map, which is the input."""

    def encode(self, video, train=False):
        return video


@pytest.mark.parametrize("sides", [(2, 7, 7), (8, 7, 7), (3, 8, 10), (1, 1, 3)])
def test_head_averages_windows_of_2x7x7(sides):
    x = draw(0, 2, *sides, 6)
    window = np.minimum(sides, (2, 7, 7))
    windows = [
        x[:, t : t + window[0], i : i + window[1], j : j + window[2]].mean((1, 2, 3))
        for t, i, j in np.ndindex(*(np.array(sides) - window + 1))
    ]
    features = Head().apply({}, jnp.asarray(x))
    assert_close(features, np.mean(windows, axis=0), 1e-5)
    head = {"kernel": jnp.asarray(draw(1, 6, 4)), "bias": jnp.asarray(draw(2, 4))}
    logits = Head(num_classes=4).apply({"params": {"head": head}}, jnp.asarray(x))
    assert_close(logits, features @ head["kernel"] + head["bias"], 1e-5)


def test_dropout_drops_channels_of_windows_only_in_training():
    model = Head(num_classes=4000, dropout=0.9)
    x = jnp.ones((1, 3, 1, 1, 4000))  # two windows
    variables = {"params": {"head": {"kernel": jnp.eye(4000), "bias": jnp.zeros(4000)}}}
    logits = model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    # A kept window contributes 1 / 0.1, halved by the mean over two windows.
    counts = np.asarray([(np.round(logits) == 5 * kept).mean() for kept in range(3)])
    np.testing.assert_allclose(counts, (0.81, 0.18, 0.01), atol=0.02)
    np.testing.assert_array_equal(model.apply(variables, x), np.ones((1, 4000)))
