"""TSN and TSM against mmaction2's recorded outputs, torchvision's ResNet, and the construction of MIT's release."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.models.tsn import SegmentNetwork, shift_channels, shift_from_past

# Parameters, and GMACs of one clip where they are published (SYSTEMS.md, mmaction2's READMEs); see test_published.py.
COUNTS = {
    "tsn_50": (24_327_632, 8 * 4.088),
    "tsn_101": (43_319_760, 8 * 195.8 / 25),
    "tsm_50_8": (24_327_632, 32.697),
    "tsm_50_16": (24_327_632, 2 * 32.697),
    "tsm_50_8_online": (24_327_632, 32.697),
    "tsm_50_8_ssv2": (23_864_558, 32.697),
    "tsm_50_16_ssv2": (23_864_558, 2 * 32.697),
    "tsm_101_8_ssv2": (42_856_686, 62.66),
    # The first convolution of RGB has 64 * 7 * 7 parameters a channel; flow has 10 channels, differences have 15.
    "tsn_50_flow": (24_327_632 + 7 * 3136, None),
    "tsn_50_difference": (24_327_632 + 12 * 3136, None),
    "tsm_50_8_flow": (24_327_632 + 7 * 3136, None),
    "tsm_50_16_pool": (24_327_632, None),
    # Counted here.
    "tsn_tiny": (128_392, None),
    "tsn_tiny_flow": (128_392 + 392, None),
    "tsn_tiny_difference": (128_392 + 6 * 392, None),
    "tsm_tiny": (128_392, None),
    "tsm_tiny_sparse": (129_576, None),
    "tsm_tiny_pool": (128_392, None),
    "tsm_tiny_online": (128_392, None),
}
COUNTS_WITH_FIELDS = {"tsm_50_8 of 174 classes": ("tsm_50_8", 23_864_558, 32.697, {"num_classes": 174})}
VIDEO = jnp.asarray(recipe.floats("video", (2, 4, 32, 32, 3)))


@pytest.mark.parametrize(("name", "frames"), [("tsn_r50", 3), ("tsm_r50", 4)])
def test_equals_mmaction2(name, frames):
    """Every eighth feature of the frames, and the classes, of the first recorded clip."""
    golden = recipe.load(name)
    model = SegmentNetwork(num_classes=7, shift="both" if name == "tsm_r50" else "none")
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0][:frames]), 1, -1)[None]

    @jax.jit
    def run(variables):
        watch = {"capture_intermediates": lambda module, method: method == "encode", "mutable": ["intermediates"]}
        logits, state = model.apply(variables, video, **watch)
        return logits, state["intermediates"]["encode"][0].mean(axis=(2, 3))[0, :, ::8]

    for ours, key in zip(run(variables), ("output0", "output1"), strict=True):
        expected = golden.outputs[key][: len(ours)]
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
    goes_out_as_it_came_in(model, variables, "mmaction2", golden.weights)


def goes_out_as_it_came_in(model: SegmentNetwork, variables: dict, key: str, weights: dict[str, np.ndarray]) -> None:
    """The exported entries have the published names and values."""
    layout = next(layout for layout in layouts(model) if layout.key == key)
    written = entries(layout, model, variables)
    assert written.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def mit_network(model: SegmentNetwork, frames: int):
    """torchvision's ResNet with MIT's wrappers, from the description of its release; `forward` returns the logits."""
    torch, resnet = pytest.importorskip("torch"), peers.torchvision().models.resnet
    F = torch.nn.functional

    class Wrapped(torch.nn.Module):
        def __init__(self, net, frames, before):
            super().__init__()
            self.net, self.frames, self.before = net, frames, before

        def forward(self, x):
            return self.net(self.before(x.unflatten(0, (-1, self.frames))).flatten(0, 1))

    def shift(x):
        fold = x.shape[2] // 8
        following, previous, rest = x[:, :, :fold], x[:, :, fold : 2 * fold], x[:, :, 2 * fold :]
        following, previous = F.pad(following, [0] * 7 + [1])[:, 1:], F.pad(previous, [0] * 6 + [1, 0])[:, :-1]
        return torch.cat([following, previous, rest], 2)

    def pool(x):
        return F.max_pool3d(x.transpose(1, 2), (3, 1, 1), (2, 1, 1), (1, 0, 0)).transpose(1, 2)

    network = torch.nn.Module()
    network.base_model = resnet.ResNet(resnet.Bottleneck, list(model.depths))
    network.base_model.fc, network.new_fc = torch.nn.Identity(), torch.nn.Linear(2048, model.num_classes)
    for group in range(4):
        layer = getattr(network.base_model, f"layer{group + 1}")
        halved = frames // 2 if model.temporal_pool and group else frames
        for i in range(0, len(layer), model.shift_every):
            layer[i].conv1 = Wrapped(layer[i].conv1, halved, shift)
        if model.temporal_pool and group == 1:
            network.base_model.layer2 = Wrapped(layer, frames, pool)
    network.forward = lambda x: network.new_fc(network.base_model(x.flatten(0, 1))).unflatten(0, (len(x), -1)).mean(1)
    return network.eval()


@pytest.fixture(scope="module")
def of_mit():
    """A network with a pool over time, shifted in every second block, its peer, and the peer's perturbed weights."""
    model = SegmentNetwork((2, 1, 1, 1), num_classes=5, shift="both", shift_every=2, temporal_pool=True)
    peer = mit_network(model, 4)
    return model, peer, {f"module.{name}": value for name, value in peers.perturb(peer).items()}


def test_equals_the_construction_of_mit(of_mit):
    """A live peer, with every parameter and statistic perturbed; names and values go out as they came in."""
    torch, (model, peer, weights) = pytest.importorskip("torch"), of_mit
    with torch.no_grad():
        expected = peer(torch.from_numpy(np.moveaxis(np.array(VIDEO), -1, 2))).numpy()
    variables = from_state_dict(model, weights, strict=True)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, VIDEO), expected, atol=1e-5 * np.abs(expected).max())
    goes_out_as_it_came_in(model, variables, "mit", weights)


def test_weights_of_torchvisions_images_are_those_of_mits_network(of_mit):
    """It is torchvision's ResNet with a shift, which has no parameters, and another head."""
    resnet, (model, _, weights) = peers.torchvision().models.resnet, of_mit
    names = {name: name.removeprefix("module.base_model.").replace(".net.", ".") for name in weights}
    images = {names[name]: value for name, value in weights.items() if "new_fc" not in name}
    torchvisions = resnet.ResNet(resnet.Bottleneck, list(model.depths)).state_dict()
    assert images.keys() == {name for name in torchvisions if not name.startswith("fc.")}
    ours = from_state_dict(model.clone(num_classes=None), images)
    params = from_state_dict(model, weights)["params"]
    jax.tree.map(np.testing.assert_array_equal, ours["params"], {n: p for n, p in params.items() if n != "head"})


def test_channels_move_by_one_frame_and_zeros_come_in():
    video = np.broadcast_to(
        np.arange(1.0, 4, dtype=np.float32)[:, None, None, None], (1, 3, 1, 1, 16)
    )  # frame t holds t
    both, past = jax.jit(lambda x: (shift_channels(x), shift_from_past(x, 0 * x[:, :1, ..., :2])))(video)
    shifted = both[0, :, 0, 0]
    np.testing.assert_array_equal(shifted[:, :2], [[2, 2], [3, 3], [0, 0]])
    np.testing.assert_array_equal(shifted[:, 2:4], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(shifted[:, 4:], np.broadcast_to([[1], [2], [3]], (3, 12)))
    # MIT's online demonstration: only the previous frame.
    shifted = past[0, :, 0, 0]
    np.testing.assert_array_equal(shifted[:, :2], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(shifted[:, 2:], np.broadcast_to([[1], [2], [3]], (3, 14)))


def test_order_matters_to_a_shifted_network_alone():
    """With one block: the others are alike."""
    models = [SegmentNetwork((1, 0, 0, 0), width=8, shift=shift) for shift in ("none", "both", "past")]
    features = jax.jit(lambda variables, video: [model.apply(variables, video) for model in models])
    video = jnp.stack([VIDEO[0], VIDEO[0, ::-1]])
    results = features(perturbed(models[0]), video)
    assert [np.allclose(*pair, atol=1e-5) for pair in results] == [True, False, False]


def test_a_stream_of_frames_equals_the_whole_clip():
    """At each frame, as the clip up to it; also two frames at a time, and for sizes that are not multiples of 32."""
    fields = {"shift_every": 2, "depths": (2, 1, 0, 0), "stack": 2}
    model = vidjax.create_model("tsm_tiny_online", num_classes=3, **fields)
    video = jnp.asarray(recipe.floats("frames", (2, 8, 29, 21, 3)))
    variables = perturbed(model)
    step = jax.jit(partial(model.apply, method="stream"))
    state, alone = model.init_stream(batch=2, size=(29, 21)), []
    for t in range(0, 8, 2):
        state, logits = step(variables, state, video[:, t : t + 2])
        alone.append(logits)
    encoded = jax.jit(partial(model.apply, method="encode"))(variables, video)  # of a frame, from those before it alone
    head = variables["params"]["head"]
    whole = encoded.mean(axis=(2, 3)) @ head["kernel"] + head["bias"]
    close = partial(np.testing.assert_allclose, atol=1e-5 * np.abs(whole).max())
    close(np.stack(alone, axis=1), whole)
    _, pair = step(variables, model.init_stream(2, (29, 21)), video[:, :4])
    close(pair, whole[:, :2].mean(axis=1))


@pytest.mark.parametrize(
    ("name", "fields", "state", "message"),
    [
        ("tsm_tiny_online", {}, lambda model: (), "the state is not that of 2 videos of 32 x 32 pixels: begin with"),
        ("tsm_tiny_online", {}, lambda model: model.init_stream(1), "the state is not that of 2 videos of 32 x 32"),
        ("tsm_tiny", {}, lambda model: (), "shift='both' and temporal_pool=False cannot see single frames"),
        ("tsm_tiny_online", {"temporal_pool": True}, lambda model: (), "temporal_pool=True cannot see single frames"),
    ],
)
def test_a_state_of_other_frames_is_one_line(name, fields, state, message):
    model, frames = vidjax.create_model(name, **fields), jnp.zeros((2, 1, 32, 32, 3))
    variables = jax.eval_shape(vidjax.create_model(name).init, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(model.apply, method="stream"), variables, state(model), frames)


def test_only_a_network_that_shifts_from_the_past_sees_streams():
    for name in ("tsn_tiny", "tsm_tiny", "tsm_tiny_pool"):
        with pytest.raises(ValueError, match=r"cannot see single frames: set shift='past' and temporal_pool=False"):
            vidjax.create_model(name).init_stream()


def test_the_temporal_pool_is_a_maximum_over_three_frames_with_stride_two():
    model = vidjax.create_model("tsm_tiny_pool")
    stages = jax.eval_shape(partial(model.init_with_output, method="stages"), jax.random.key(0), VIDEO)[0]
    assert [stage.shape[1] for stage in stages] == [4, 2, 2, 2]


def test_flow_is_stacked_frame_by_frame_and_differences_are_those_of_neighbours():
    """Equal at the stem to a network whose channels have been stacked by hand."""

    def stem(model, variables, video):
        return jax.jit(partial(model.apply, train=False, method="_stem"))(variables, video)

    flow = vidjax.create_model("tsn_tiny_flow", stack=2)
    variables, video = perturbed(flow), VIDEO[..., :2]
    by_hand = jnp.stack([jnp.concatenate([video[:, t], video[:, t + 1]], -1) for t in (0, 2)], axis=1)
    expected = stem(flow.clone(stack=1, channels=4), variables, by_hand)
    np.testing.assert_array_equal(stem(flow, variables, video), expected)

    difference = vidjax.create_model("tsn_tiny_difference")
    variables = perturbed(difference)
    by_hand = jnp.concatenate([VIDEO[:, t + 1] - VIDEO[:, t] for t in range(3)], axis=-1)[:, None]
    expected = stem(difference.clone(stack=1, difference=False, channels=9), variables, by_hand)
    np.testing.assert_allclose(stem(difference, variables, VIDEO), expected, atol=1e-6)


def test_networks_of_flow_start_from_images():
    """The first kernel is the mean over RGB, repeated (Wang et al. 2016, section 4.1); one of RGB stays as it is."""
    tree = partial(jax.eval_shape, vidjax.create_model("tsn_tiny").init, jax.random.key(0))(VIDEO)
    shapes = {"conv1.weight": (8, 3, 7, 7)}
    weights = image_weights(tree) | {name: recipe.parameter(name, shape) for name, shape in shapes.items()}
    for name, channels in (("tsn_tiny", 3), ("tsn_tiny_flow", 4), ("tsn_tiny_difference", 9)):
        kernel = from_state_dict(vidjax.create_model(name), weights)["params"]["stem"]["kernel"]
        expected = np.moveaxis(weights["conv1.weight"], (0, 1), (-1, -2))[None]
        if channels != 3:
            expected = np.repeat(expected.mean(axis=-2, keepdims=True), channels, axis=-2)
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def image_weights(shapes: dict) -> dict[str, np.ndarray]:
    """The tiny network's weights with torchvision's names."""
    model = vidjax.create_model("tsn_tiny")
    mit = next(layout for layout in layouts(model) if layout.key == "mit")
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    return {name.removeprefix("module.base_model."): value for name, value in entries(mit, model, variables).items()}
