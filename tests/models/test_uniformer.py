from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict, unflatten_dict

import vidjax
from vidjax.convert import from_state_dict
from vidjax.layers.transformer import DropPath
from vidjax.models.uniformer import GlobalBlock, LocalBlock, SplitBlock, UniFormer

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "uniformer_base": (49_813_200, 96.554),
    "uniformer_base_16": (49_813_200, 96.554),
    "uniformer_base_8": (49_813_200, 40.134),
    "uniformer_base_32": (49_813_200, 258.251),
    "uniformer_base_split": (65_405_136, 83.959),
    "uniformer_small": (21_400_400, 41.663),
    "uniformer_small_16": (21_400_400, 41.663),
    "uniformer_small_8": (21_400_400, 17.566),
    "uniformer_small_32": (21_400_400, 109.445),
    "uniformer_small_split": (27_847_504, 36.680),
    # Counted here, because no exact numbers are published.
    "uniformer_tiny": (155_120, None),
    "uniformer_tiny_split": (190_896, None),
}
# Variants with other fields: row, parameters, GMACs, fields.
COUNTS_WITH_FIELDS = {
    "uniformer_small of 174 classes": ("uniformer_small", 21_284_462, None, {"num_classes": 174}),
}

FIELDS = {"widths": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "head_width": 8, "num_classes": 5, "image_size": 64}
VIDEO = (2, 4, 64, 64, 3)


def flat(tree: dict) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def perturbed(module: nn.Module, x: jax.Array) -> dict:
    """Random variables: scales and variances near one, no zero kernels."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    values = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        value = recipe.parameter(path, leaf.shape[::-1]).T  # the recipe is for PyTorch's shapes, last axis first
        values[path] = jnp.asarray(value + path.endswith(("scale", "var")))
    return unflatten_dict(values, sep="/")


def clip(*shape: int) -> jax.Array:
    return jnp.asarray(recipe.floats("clip", shape))


@pytest.fixture(scope="module")
def peer():
    """Our PyTorch implementation with perturbed weights, and its outputs."""
    torch = pytest.importorskip("torch")
    import peers

    from benchmark import torch_uniformer

    def make(**fields) -> SimpleNamespace:
        module = torch_uniformer.UniFormer(**{name: FIELDS[name] for name in FIELDS if name != "image_size"} | fields)
        weights = peers.perturb(module)

        def run(video: jax.Array) -> "torch.Tensor":
            return module(torch.from_numpy(np.moveaxis(np.asarray(video), -1, 1).copy()))

        return SimpleNamespace(module=module, weights=weights, run=run)

    return make


# Parity


@pytest.mark.parametrize(
    "name",
    [
        "uniformer_small",  # outputs of the original
        "uniformer_small_split",
        pytest.param("uniformer_base", marks=pytest.mark.long),
        pytest.param("uniformer_small_full", marks=pytest.mark.long),
        "uniformer_overlap",  # outputs of experiments/benchmark/torch_uniformer.py, which also equals the original
        pytest.param("uniformer_split", marks=pytest.mark.long),
    ],
)
def test_logits_equal_the_recorded_ones(name):
    golden = recipe.load(name)
    c, clips = golden.config, 1 if name.endswith("full") else 2
    model = UniFormer(
        tuple(c["D"]), tuple(c["L"]), c["hd"], split=c["split"], temporal_overlap=c["std"], num_classes=c["classes"],
        num_frames=c["T"], image_size=c["S"],
    )  # fmt: skip
    variables = from_state_dict(model, golden.weights, strict=True)
    logits = jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(golden.inputs[0][:clips]), 1, -1))
    np.testing.assert_allclose(logits, golden.outputs["output0"][:clips], rtol=0, atol=1e-4)


def test_mmaction2s_weights_are_equivalent():
    golden = recipe.load("uniformer_overlap")
    model = UniFormer(**FIELDS, temporal_overlap=True)
    renamed = {
        name.replace("head.", "cls_head.fc_cls.") if name.startswith("head.") else f"backbone.{name}": value
        for name, value in golden.weights.items()
    }
    ours = flat(from_state_dict(model, renamed, strict=True))
    for path, value in flat(from_state_dict(model, golden.weights, strict=True)).items():
        np.testing.assert_array_equal(ours[path], value)


def test_odd_numbers_of_frames_and_sizes_equal_pytorch(peer):
    import torch

    other = peer()
    other.module.eval()
    model = UniFormer(**FIELDS)
    variables = from_state_dict(model, other.weights, strict=True)
    video = clip(1, 5, 70, 100, 3)  # not divisible by the strides: the remainder is cut off
    with torch.no_grad():
        expected = other.run(video).numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(variables, video), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module", params=["joint", "split"])
def step(request, peer):
    """Gradients and batch statistics after one training step, ours and PyTorch's."""
    import torch

    other = peer(split=request.param == "split")
    model = UniFormer(**FIELDS, split=request.param == "split")
    variables = from_state_dict(model, other.weights, strict=True)
    video, labels = clip(*VIDEO), np.array([3, 1])

    def gradients(model):
        def loss(params):
            logits, updates = model.apply(variables | {"params": params}, video, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[np.arange(2), labels].mean(), updates["batch_stats"]

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    torch.nn.functional.cross_entropy(other.run(video), torch.from_numpy(labels)).backward()
    entries = {name: value.numpy() for name, value in other.module.state_dict().items()}  # statistics after the step
    entries |= {name: value.grad.numpy() for name, value in other.module.named_parameters()}
    expected = from_state_dict(model, entries, strict=True)
    return SimpleNamespace(model=model, before=variables, gradients=gradients, ours=gradients(model), expected=expected)


def test_gradients_equal_pytorchs(step):
    ours, expected = flat(step.ours[0]), flat(step.expected["params"])
    largest = max(np.abs(value).max() for value in expected.values())
    for path, value in expected.items():
        # Gradients that cancel in a softmax (key biases) or a batch norm (biases before it) are only rounding errors.
        scale = max(np.abs(value).max(), 1e-3 * largest)
        np.testing.assert_allclose(ours[path], value, rtol=0, atol=1e-3 * scale, err_msg=path)


def test_batch_statistics_equal_pytorchs(step):
    before, ours, expected = flat(step.before["batch_stats"]), flat(step.ours[1]), flat(step.expected["batch_stats"])
    for path, value in expected.items():
        stage = int(path[len("stage_")]) if path.startswith("stage_") else 3
        cells = VIDEO[0] * VIDEO[1] // 2 * (VIDEO[2] // 4 // 2**stage) ** 2
        if path.endswith("var"):  # PyTorch stores the unbiased variance of the batch, Flax the biased one
            value = 0.9 * before[path] + (value - 0.9 * before[path]) * (cells - 1) / cells
        assert not np.allclose(value, before[path], atol=1e-3)
        np.testing.assert_allclose(ours[path], value, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("step", ["joint"], indirect=True)
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.long)])
def test_rematerialisation_and_scan_do_not_change_results(step, scan):
    again = step.gradients(step.model.clone(remat="blocks", scan=scan))
    for ours, expected in zip(again, step.ours, strict=True):  # gradients and batch statistics
        ours, expected = flat(ours), flat(expected)
        for path, value in expected.items():
            atol = 1e-4 * max(1.0, np.abs(value).max())
            np.testing.assert_allclose(ours[path], value, rtol=0, atol=atol, err_msg=path)


# Initialisation, and weights of image models


def test_initialisation_follows_the_original():
    model = UniFormer((32, 64, 64, 64), (1, 1, 1, 1), 8, num_classes=30, split=True, temporal_overlap=True)
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2, 32, 32, 3)))
    params = flat(variables["params"])
    for path, value in params.items():
        fan_in = np.prod(value.shape[:-1]) if path.endswith("kernel") else None
        if "temporal_attention" in path:
            assert np.all(value == float(path.endswith("out/kernel"))), path
        elif path.endswith("scale"):
            assert np.all(value == 1.0), path
        elif path.startswith(("stage_2", "stage_3", "head")) and "position" not in path and path.endswith("kernel"):
            np.testing.assert_allclose(value.std(), 0.02, rtol=0.1, err_msg=path)
        elif fan_in:  # convolutions, including pointwise ones, and their biases: PyTorch's default
            bias = params[path.replace("kernel", "bias")]
            assert np.abs(value).max() <= fan_in**-0.5 and 0 < np.abs(bias).max() <= fan_in**-0.5, path
            np.testing.assert_allclose(value.std(), (3 * fan_in) ** -0.5, rtol=0.1, err_msg=path)


def image_weights() -> dict[str, np.ndarray]:
    """Entries of an image UniFormer of this size with 1000 classes and layer scale, with published names."""
    golden = recipe.load("uniformer_split")  # entries and shapes of a video model
    weights = {}
    for name, value in golden.weights.items():
        shape = value.shape if value.ndim < 5 else (*value.shape[:2], *value.shape[3:])
        if not ("t_attn" in name or "t_norm" in name):
            weights[name] = recipe.parameter(name, (1000, *shape[1:]) if name.startswith("head.") else shape)
    return weights | {"blocks3.0.gamma_2": np.full(24, 0.5, np.float32)}


@pytest.mark.parametrize("split", [False, True])
def test_image_weights_are_inflated(split):
    model = UniFormer(**FIELDS, split=split)
    image = image_weights()
    params = flat(from_state_dict(model, image)["params"])
    for source, target in (
        ("patch_embed1.proj", "patch_embedding_0"),
        ("blocks1.0.pos_embed", "stage_0/block_0/position"),
        ("blocks2.1.attn", "stage_1/block_1/affinity"),
    ):
        kernel = params[f"{target}/kernel"]
        frames = kernel.shape[0]
        expected = np.broadcast_to(np.moveaxis(image[f"{source}.weight"], (0, 1), (-1, -2)) / frames, kernel.shape)
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    assert params["patch_embedding_2/kernel"].shape == (1, 2, 2, 16, 24)
    np.testing.assert_array_equal(params["stage_1/block_0/fc1/kernel"], image["blocks2.0.mlp.fc1.weight"][..., 0, 0].T)
    mlp = params[f"stage_2/block_0/{'' if split else 'joint/'}mlp/fc2/kernel"]
    np.testing.assert_allclose(mlp, 0.5 * image["blocks3.0.mlp.fc2.weight"].T)
    assert params["head/kernel"].shape == (32, 5)
    if split:  # parameters that image models do not have are initialised to zero
        assert np.all(params["stage_2/block_0/temporal_attention/value/kernel"] == 0)


# Properties


@pytest.mark.parametrize(("name", "overlap"), [("uniformer_tiny", True), ("uniformer_tiny_split", False)])
def test_parameters_fit_any_number_of_frames_and_size(name, overlap):
    model = vidjax.create_model(name, temporal_overlap=overlap)
    variables = jax.eval_shape(model.init, jax.random.key(0), clip(1, 8, 64, 64, 3))
    for frames, height, width in ((16, 64, 64), (32, 64, 64), (3, 96, 32)):
        video = jax.ShapeDtypeStruct((2, frames, height, width, 3), jnp.float32)
        features = jax.eval_shape(lambda *inputs: model.apply(*inputs, method="encode"), variables, video)
        assert features.shape == (2, (frames + 1) // 2, height // 32, width // 32, 64)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 0, 64, 64, 3), "0 frames"), ((1, 8, 64, 16, 3), "16 pixels of width"), ((1, 8, 64, 64, 4), "takes")],
)
def test_too_small_clips_are_rejected(shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UniFormer(**FIELDS).init, jax.random.key(0), jnp.zeros(shape))


def reach(block: nn.Module, change: dict[str, float] | None = None) -> np.ndarray:
    """The cells of a 7 x 9 x 9 map whose output depends on the cell in the centre."""
    x = clip(1, 7, 9, 9, 8)
    values = flat(perturbed(block, x))
    values |= {path: np.full_like(values[path], value) for path, value in (change or {}).items()}
    run = jax.jit(block.apply)
    variables = unflatten_dict(values, sep="/")
    difference = run(variables, x) - run(variables, x.at[0, 3, 4, 4, 0].add(3.0))
    return np.abs(difference[0]).max(axis=-1) > 1e-5


POINT = {"params/position/kernel": 0.0}  # disables the position encoding, which mixes neighbouring cells


def test_a_local_block_has_a_radius_of_three_cells():
    cells = np.zeros((7, 9, 9), bool)
    cells[:, 1:8, 1:8] = True  # 3x3x3 and then 5x5x5 cells
    changed = reach(LocalBlock())
    assert not changed[~cells].any()
    assert changed[0, 1, 1] and changed[6, 7, 7] and changed[3, 4, 4]


def test_a_global_block_mixes_all_cells():
    assert reach(GlobalBlock(4), POINT).all()


def test_a_split_block_mixes_cells_over_space_and_time():
    assert reach(SplitBlock(4), POINT).all()
    changed = reach(SplitBlock(4), POINT | {"params/temporal_attention/out/kernel": 0.0})
    assert changed[3].all() and not changed[[0, 1, 2, 4, 5, 6]].any()


@pytest.mark.parametrize("split", [False, pytest.param(True, marks=pytest.mark.long)])
def test_drop_path_drops_and_rescales_each_branch(split):
    model = UniFormer(**FIELDS, split=split, drop_path=0.8)
    video = clip(2, 4, 32, 32, 3)
    rates, branches = [], []

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, DropPath) and context.method_name == "__call__":
            rates.append(args[1])
            branches.append((args[0], out))
        return out

    @jax.jit
    def train(variables):
        with nn.intercept_methods(record):
            model.apply(variables, video, train=True, mutable=["batch_stats"], rngs={"drop_path": jax.random.key(3)})
        return branches

    branches = train(perturbed(model, video))
    times = (2, 2, 2, 3, 3) if split else (2,) * 5  # branches in each block
    np.testing.assert_allclose(rates, np.repeat(np.linspace(0.0, 0.8, 5), times), rtol=1e-6)
    fates = set()
    for rate, (x, out) in zip(rates, branches, strict=True):
        for before, after in zip(np.asarray(x), np.asarray(out), strict=True):
            kept = bool(np.any(after != 0))
            np.testing.assert_allclose(after, before / (1 - rate) if kept else 0 * before, rtol=1e-5)
            fates.add(kept)
    assert fates == {True, False}
    in_stage_2 = [x.shape[0] for x, _ in branches[6:9]]  # a map of 2 frames of 2 x 2
    assert in_stage_2[: 3 if split else 2] == ([2 * 2 * 2, 2 * 2, 2] if split else [2, 2])


def test_features_are_the_mean_of_the_encoded_map():
    model = UniFormer(**FIELDS)
    video = clip(1, 2, 32, 64, 3)
    variables = perturbed(model, video)
    bare = model.clone(num_classes=None)
    features = jax.jit(lambda variables: bare.apply(variables, video, method="encode"))(variables)
    pooled = features.mean(axis=(1, 2, 3))
    head = variables["params"]["head"]
    logits = jax.jit(model.apply)(variables, video)
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], atol=1e-5)
    half = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, video)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), logits, atol=0.05 * np.abs(logits).max())
