"""The R(2+1)D family against torchvision, VMZ and mmaction2, in evaluation and in training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import from_state_dict, layouts, recognize
from vidjax.models import VARIANTS
from vidjax.models.resnet3d import FACTORIZED, FLAT, FULL, MC, ResNet3D, planes_between

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "fr2d_18": (11_381_712, None),
    "mc2_18": (11_400_528, None),
    "mc3_18": (11_695_440, 43.343),
    "mc4_18": (12_727_632, None),
    "mc5_18": (16_856_400, None),
    "r2d_18": (11_522_832, None),
    "r2plus1d_18": (31_505_325, 40.519),
    "r2plus1d_18_paper": (33_370_839, 41.496),
    "r2plus1d_34": (63_697_175, 152.356, {"num_frames": 32}),
    "r2plus1d_34_mmaction2": (63_759_281, 40.5),  # 63.8 M published
    "r3d_18": (33_371_472, 40.697),
    "rmc2_18": (33_352_656, None),
    "rmc3_18": (33_057_744, None),
    "rmc4_18": (32_025_552, None),
    "rmc5_18": (27_896_784, None),
    # Counted here, because no exact numbers are published.
    "fr2d_34": (21_489_872, None),
    "mc2_34": (21_508_688, None),
    "mc3_34": (21_951_056, None),
    "mc4_34": (24_162_896, None),
    "mc5_34": (37_728_848, None),
    "r2d_34": (21_630_992, None),
    "r3d_34": (63_681_104, None),
    "rmc2_34": (63_662_288, None),
    "rmc3_34": (63_219_920, None),
    "rmc4_34": (61_008_080, None),
    "rmc5_34": (47_442_128, None),
    "fr2d_tiny": (69_696, None),
    "r2d_tiny": (86_160, None),
    "r2plus1d_tiny": (204_969, None),
    "r3d_tiny": (202_272, None),
}
# Variants with other fields: row, parameters, GMACs, fields.
COUNTS_WITH_FIELDS = {
    "r2d_18 of 8 frames": ("r2d_18", 11_447_568, None, {"num_frames": 8}),
    "r2plus1d_34 of 8 frames": ("r2plus1d_34", 63_697_175, 38.089, {"num_frames": 8}),
    # Pre-trained on IG-65M: moabitcoin/ig65m-pytorch, README.md.
    "r2plus1d_34 of 359 hashtags": ("r2plus1d_34", 63_676_142, 38.089, {"num_frames": 8, "num_classes": 359}),
    "r2plus1d_34 of 487 hashtags": ("r2plus1d_34", 63_741_806, 152.356, {"num_frames": 32, "num_classes": 487}),
}

SHORT = {"depths": (1, 1, 1, 1), "num_classes": 5, "num_frames": 5, "image_size": 32}
MODELS = {
    "r3d": ResNet3D(FULL, **SHORT),
    "mc3": ResNet3D(MC[3], **SHORT),
    "r2plus1d": ResNet3D(FACTORIZED, **SHORT, midplanes="per_block"),
    "vmz": VARIANTS["r2plus1d_34"](**SHORT),
}


def assert_close(actual, expected, within: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=within * max(1.0, np.abs(expected).max()))


def channels_last(video: np.ndarray) -> jax.Array:
    return jnp.moveaxis(jnp.asarray(video), 1, -1)


def test_equals_torchvision_as_recorded():
    golden = recipe.load("resnet3d_r2plus1d")
    variables = from_state_dict(MODELS["r2plus1d"], golden.weights, strict=True)
    logits = jax.jit(MODELS["r2plus1d"].apply)(variables, channels_last(golden.inputs[0]))
    assert_close(logits, golden.outputs["output0"])


def test_equals_mmaction2():
    golden = recipe.load("mm_r2plus1d_r34")
    width, video = golden.config["W"], golden.inputs[0]
    model = VARIANTS["r2plus1d_34_mmaction2"](
        widths=tuple(width * n for n in (1, 2, 4, 8)), num_classes=None, num_frames=8, image_size=64
    )
    variables = from_state_dict(model, golden.weights, strict=True)
    features = jax.jit(partial(model.apply, method="encode"))(variables, channels_last(video))
    assert_close(features, np.moveaxis(golden.outputs["output0"], 1, -1))


@pytest.fixture(scope="module", params=["r3d", "mc3", "r2plus1d", "vmz"])
def pair(request):
    """A PyTorch model with perturbed weights, our model, and its converted variables."""
    peers.torchvision()
    import record_resnet3d as recorder

    peer, model = recorder.build(request.param), MODELS[request.param]
    return request.param, peer, model, from_state_dict(model, peers.perturb(peer), strict=True)


def test_equals_torchvision_and_vmz(pair):
    import torch

    _, peer, model, variables = pair
    video = recipe.floats("video", (2, 3, 6, 40, 24))
    with torch.no_grad():
        expected = peer.eval()(torch.from_numpy(video)).numpy()
    assert_close(jax.jit(model.apply)(variables, channels_last(video)), expected)


@pytest.mark.long
def test_winograd_convolution_on_one_cpu_gives_the_same_logits(monkeypatch):
    model, video = MODELS["r3d"], channels_last(recipe.floats("video", (2, 3, 5, 32, 32)))
    variables = jax.jit(model.init)(jax.random.key(0), video)
    expected = jax.jit(model.apply)(variables, video)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    program = jax.jit(lambda variables, video: model.apply(variables, video)).trace(variables, video)
    # Both of the first block: later ones have few tiles.
    assert str(program.jaxpr).count("name=winograd_convolution") == 2
    assert_close(program.lower().compile()(variables, video), expected)


@pytest.mark.parametrize(("name", "norm"), [("r3d", "stem.1"), ("r2plus1d", "stem.4")])
def test_a_training_step_equals_torchvisions(name, norm):
    """Gradients and running statistics; Flax stores the biased variance, PyTorch the unbiased one.

    In float64, because batch norm over few values amplifies rounding in float32.
    """
    peers.torchvision()
    import record_resnet3d as recorder
    import torch

    peer, model = recorder.build(name), MODELS[name]
    weights = peers.perturb(peer)
    peer = peer.double().train()
    video, target = recipe.floats("video", (2, 3, 4, 24, 24)), recipe.floats("target", (2, 5))
    ((peer(torch.from_numpy(video).double()) - torch.from_numpy(target)) ** 2).sum().backward()
    after = {key: value.numpy() for key, value in peer.state_dict().items()}
    peer_gradients = weights | {key: value.grad.float().numpy() for key, value in peer.named_parameters()}
    expected = from_state_dict(model, peer_gradients, strict=True)["params"]
    variables = from_state_dict(model, weights, strict=True)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        clip = jnp.asarray(np.moveaxis(video, 1, -1), jnp.float64)

        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def step(params, state):
            def loss(params):
                logits, state_after = model.apply(
                    {"params": params, **state}, clip, train=True, mutable=["batch_stats"]
                )
                return ((logits - target) ** 2).sum(), state_after

            return jax.grad(loss, has_aux=True)(params)

        gradients, stats = jax.device_get(step(double["params"], {"batch_stats": double["batch_stats"]}))
    for (path, ours), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        assert np.abs(ours - other).max() <= 1e-5 * np.abs(other).max(), path

    cells, was = 2 * 4 * 12 * 12, weights[f"{norm}.running_var"]  # values per channel in the norm after the stem
    ours = stats["batch_stats"]["stem_norm"]
    unbiased = 0.9 * was + (ours["var"] - 0.9 * was) * cells / (cells - 1)
    np.testing.assert_allclose(unbiased, after[f"{norm}.running_var"], rtol=1e-5)
    np.testing.assert_allclose(ours["mean"], after[f"{norm}.running_mean"], atol=1e-6)


def test_an_inflated_2d_resnet_gives_the_image_logits_for_a_static_clip():
    torchvision = peers.torchvision()
    import torch

    image = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7).eval()
    image.maxpool = torch.nn.Identity()  # this family has no max pool
    weights = peers.perturb(image)
    image.fc = torch.nn.Identity()
    frame = recipe.floats("frame", (1, 3, 32, 32))
    with torch.no_grad():
        expected = image(torch.from_numpy(frame)).numpy()
    model = ResNet3D(FLAT, depths=(1, 1, 1, 1), num_frames=4, image_size=32)
    variables = from_state_dict(model, weights)
    video = jnp.moveaxis(jnp.asarray(frame), 1, -1)[:, None].repeat(4, axis=1)
    assert_close(jax.jit(model.apply)(variables, video), expected)
    full = from_state_dict(ResNet3D(FULL, depths=(1, 1, 1, 1), num_frames=4, image_size=32), weights)
    for group in ("stem", "group_2_0"):
        flat, deep = variables["params"][group], full["params"][group]
        flat, deep = (flat, deep) if group == "stem" else (flat["conv1"], deep["conv1"])
        np.testing.assert_allclose(deep["full"]["kernel"].sum(0), flat["full"]["kernel"][0], atol=1e-6)
        assert len(deep["full"]["kernel"]) == 3


def test_weights_of_another_layout_are_rejected():
    golden = recipe.load("resnet3d_r2plus1d")
    shapes = r"stem/full/kernel is \(3, 7, 7, 3, 64\) in the model and \(1, 7, 7, 3, 45\) in the weights"
    with pytest.raises(ValueError, match=f"the weights do not fit: {shapes}"):  # both begin with stem.0.weight
        from_state_dict(MODELS["r3d"], golden.weights)
    shapes = r"group_1_0/conv2/spatial/kernel is \(1, 3, 3, 128, 288\) in the model and \(1, 3, 3, 128, 230\) in the"
    with pytest.raises(ValueError, match=f"the weights do not fit: {shapes} weights"):
        from_state_dict(MODELS["r2plus1d"].clone(midplanes="per_convolution"), golden.weights)
    marker = r"entry conv1\.conv\.conv_s\.weight \(mmaction2's R\(2\+1\)D\)"
    with pytest.raises(ValueError, match=f"no known layout of ResNet3D fits the weights: expected an {marker}"):
        from_state_dict(MODELS["r2plus1d"].clone(factorized_shortcut=True), golden.weights)


def peer_of(layout: str, model: ResNet3D):
    """The PyTorch network of this layout, without allocating memory."""
    models = peers.torchvision().models
    import record_resnet3d
    import torch

    with torch.device("meta"):
        if layout == "torchvision's 2-D ResNet":
            return models.ResNet(models.resnet.BasicBlock, list(model.depths))
        if layout != "torchvision":
            return record_resnet3d.build("vmz" if layout[:3] == "VMZ" else "r2plus1d", model.depths, 400)
        parts = models.video.resnet
        kinds = {"2d": parts.Conv3DNoTemporal, "3d": parts.Conv3DSimple}
        conv = [kinds[kind] for kind in model.groups[1:]]
        return parts.VideoResNet(parts.BasicBlock, conv, list(model.depths), parts.BasicStem)


@pytest.mark.parametrize(
    "name", ["r2d_18", "fr2d_18", "r3d_18", "mc2_18", "mc5_18", "rmc2_18", "r2plus1d_18", "r2plus1d_18_paper"]
)
def test_the_listed_layouts_load_from_their_networks(name):
    model = VARIANTS[name]()
    for layout in layouts(model):
        state = peer_of(layout.name, model).state_dict()
        weights = {name: np.broadcast_to(np.float32(0), tuple(value.shape)) for name, value in state.items()}
        assert recognize(model, weights)[0].name == layout.name
        from_state_dict(model, weights, strict="2-D" not in layout.name)  # an image model has other classes
    assert bool(layouts(model)) == (not model.fold_frames)


def test_planes_match_the_parameters_of_a_3d_convolution():
    pairs = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert [planes_between(*pair, (3, 3, 3)) for pair in pairs] == [144, 230, 288, 460, 576, 921, 1152]
    assert planes_between(3, 64, (3, 7, 7)) == 83


@pytest.mark.parametrize(
    ("name", "sees_order"),
    [
        pytest.param("r2d", True, marks=pytest.mark.long),
        ("fr2d", False),
        pytest.param("r3d", True, marks=pytest.mark.long),
        ("r2plus1d", True),
    ],
)
def test_which_models_depend_on_the_order_of_frames(name, sees_order):
    model = VARIANTS[f"{name}_tiny"](num_classes=5)
    video = jnp.asarray(recipe.floats("clip", (1, 8, 32, 32, 3)))
    variables = jax.jit(model.init)(jax.random.key(0), video)
    apply = jax.jit(model.apply)
    assert np.allclose(apply(variables, video), apply(variables, video[:, ::-1]), atol=1e-5) != sees_order


def test_parameters_fit_other_clips_except_with_folded_frames():
    for name in ("fr2d", "r3d", "r2plus1d"):
        model = VARIANTS[f"{name}_tiny"](num_classes=5)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))
        assert jax.eval_shape(model.apply, shapes, jnp.zeros((1, 3, 50, 41, 3))).shape == (1, 5)
    with pytest.raises(ValueError, match="the clip has 3 frames, but the model's first convolution takes 8"):
        jax.eval_shape(VARIANTS["r2d_tiny"]().init, jax.random.key(0), jnp.zeros((1, 3, 32, 32, 3)))


def test_initialisation_follows_torchvision():
    model = ResNet3D(FULL, depths=(1, 1, 1, 1), num_classes=100, num_frames=4, image_size=32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)))
    params = variables["params"]
    assert params["stem"]["full"]["kernel"].std() == pytest.approx((2 / (64 * 3 * 49)) ** 0.5, rel=0.03)
    assert params["group_1_0"]["conv1"]["full"]["kernel"].std() == pytest.approx((2 / (128 * 27)) ** 0.5, rel=0.03)
    assert params["head"]["kernel"].std() == pytest.approx(0.01, rel=0.03) and not params["head"]["bias"].any()
    assert (params["stem_norm"]["scale"] == 1).all()
