"""SlowFast against SlowFast's recorded outputs, and live peers of PyTorchVideo and mmaction2 (`torch_slowfast.py`)."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

import vidjax
from vidjax.convert import from_state_dict
from vidjax.models.slowfast import Lateral, SlowFast

# Parameters, and GMACs of one clip where they are published (SYSTEMS-2.md); see test_published.py.
COUNTS = {
    "slowfast_50_4x16": (34_480_216, 27.639),
    "slowfast_50_8x8": (34_566_488, 50.309),
    "slowfast_50_16x8": (34_045_558, 100.616),
    "slowfast_101_8x8": (62_826_968, 96.397),
    "slowfast_101_8x8_50_50": (53_774_808, 81.548),
    "slowfast_101_8x8_50_101": (53_914_072, 82.421),
    "slowfast_101_16x8_50_50": (53_774_808, 163.095),
    "slowfast_50_4x16_mmaction2": (34_479_288, 36.098 * (224 / 256) ** 2),
    "slowfast_50_8x8_mmaction2": (34_565_560, 65.708 * (224 / 256) ** 2),
    # Counted here; mmaction2 lists 62.9 M and 126 G at 256 for its lateral kernels of 7.
    "slowfast_101_8x8_mmaction2": (62_912_312, 126 * (224 / 256) ** 2),
    "slowfast_50_4x16_time_to_channel": (37_842_488, None),
    "slowfast_50_4x16_sampling": (33_667_128, None),
    "slowfast_tiny": (687_802, None),
    "slowfast_tiny_pytorchvideo": (687_802, None),
    "slowfast_tiny_mmaction2": (687_570, None),
    "slowfast_tiny_nonlocal": (721_146, None),
    "slowfast_tiny_time_to_channel": (748_650, None),
    "slowfast_tiny_sampling": (636_810, None),
}
# SlowFast's networks of 8x8 for other data: 174 classes of Something-Something.
COUNTS_WITH_FIELDS = {
    "slowfast_50_8x8 of 174 classes": ("slowfast_50_8x8", 34_566_488 - 226 * 2305, 50.309, {"num_classes": 174})
}


def test_equals_slowfast():
    """The recording has another slow clip than that of the fast one's frames, and three windows in height and width."""
    golden = recipe.load("slowfast_r50")
    model = SlowFast(8, width=24, num_classes=7, num_frames=16, image_size=64)
    variables = from_state_dict(model, golden.weights, strict=True)
    slow, fast = (jnp.moveaxis(jnp.asarray(clip), 1, -1) for clip in golden.inputs)

    def outputs(model):
        last = model.run(slow, fast)[-1]
        return model.classify(*last), model.classifier(model.positions(*last))

    output, logits = jax.jit(lambda variables: model.apply(variables, method=outputs))(variables)
    expected = golden.outputs["output1"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(jax.nn.softmax(output), golden.outputs["output0"], atol=1e-5)


SLOW, FAST = ((1,), (1,), (1,), (3, 1), (3,)), ((5,), (3,), (3,), (3, 1), (3,))
SMALL = SlowFast(4, SLOW, FAST, (1, 1, 2, 1), 16, num_classes=5, num_frames=8, image_size=32, lateral_kernel=7)


def loaded(model: SlowFast, peer) -> dict:
    """The model's variables from a peer whose entries are all perturbed; none may be left over."""
    return from_state_dict(model, peers.perturb(peer.eval()), strict=True)


def test_equals_pytorchvideo():
    """Logits are averaged over the windows of a larger crop."""
    torch = pytest.importorskip("torch")
    from torch_slowfast import VideoSlowFast

    model = SMALL.clone(dialect="pytorchvideo")
    peer = VideoSlowFast(SLOW, FAST, model.depths, 16, 4, 7, 5, ((2, 1, 1), (8, 1, 1)))
    variables = loaded(model, peer)
    video = recipe.floats("video", (1, 3, 8, 64, 64))
    with torch.no_grad():
        fast = torch.from_numpy(video)
        frames = torch.linspace(0, 7, 2).long()  # as in SlowFast's pack_pathway_output
        expected = peer(fast[:, :, frames], fast).numpy()
    ours = jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(video), 1, -1))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_equals_mmaction2():
    """Other slow frames, neither norm nor ReLU after lateral convolutions, and the fast features first in the head."""
    torch = pytest.importorskip("torch")
    from torch_slowfast import MmClassifier, MmPathways

    model = SMALL.clone(dialect="mmaction2")
    peer = MmClassifier(MmPathways(SLOW, FAST, model.depths, 16, 4, 7), 32 * 16 + 4 * 16, 5)
    variables = loaded(model, peer)
    video = recipe.floats("video", (1, 3, 8, 64, 64))
    with torch.no_grad():
        expected = peer(torch.from_numpy(video)).numpy()
    ours = jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(video), 1, -1))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("dialect", "alpha", "frames", "expected"),
    [
        ("slowfast", 8, 32, [0, 10, 20, 31]),
        ("pytorchvideo", 4, 32, [0, 4, 8, 13, 17, 22, 26, 31]),
        ("mmaction2", 8, 32, [0, 8, 16, 24]),
        ("slowfast", 4, 4, [0]),
    ],
)
def test_slow_frames_are_those_of_the_publisher(dialect, alpha, frames, expected):
    video = jnp.arange(float(frames))[None, :, None, None, None] * jnp.ones(3)
    slow, fast = SlowFast(alpha, dialect=dialect).bind({}).split(video)
    assert slow[0, :, 0, 0, 0].tolist() == expected and fast is video


def test_lateral_connections_without_parameters_follow_the_paper():
    """Section 3.3: all alpha frames become channels, {alpha T, S^2, beta C} to {T, S^2, alpha beta C}; or one frame of
    alpha is taken."""
    fast = jnp.arange(4.0)[None, :, None, None, None] * 10 + jnp.arange(2.0)  # frame f has the channels 10 f, 10 f + 1
    packed = Lateral(2, "time_to_channel").apply({}, fast, False)
    np.testing.assert_array_equal(packed[0, :, 0, 0], [[0, 1, 10, 11], [20, 21, 30, 31]])
    sampled = Lateral(2, "time_strided_sampling").apply({}, fast, False)
    np.testing.assert_array_equal(sampled[0, :, 0, 0], [[0, 1], [20, 21]])


def test_lateral_parameters_are_those_of_the_channels_that_they_add():
    """Only the first blocks of the slow stages read them, in two convolutions each."""
    convolution, packed, sampled = (
        COUNTS[f"slowfast_50_4x16{end}"][0] for end in ("", "_time_to_channel", "_sampling")
    )
    fast, widths = (8, 32, 64, 128), (64, 128, 256, 512)  # channels before each stage; of a block's first convolution
    kernels = (1, 1, 3, 3)
    reading = [n * (k * w + 4 * w) for n, k, w in zip(fast, kernels, widths, strict=True)]
    own = [5 * n * 2 * n + 2 * 2 * n for n in fast]
    assert packed - sampled == (8 - 1) * sum(reading)
    assert convolution - sampled == sum(own) + sum(reading)


def test_pathways_and_stages_hold_both_rates():
    model = vidjax.create_model("slowfast_tiny")
    video = jax.ShapeDtypeStruct((2, 8, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    pairs = jax.eval_shape(lambda v, x: model.apply(v, x, method="pathways"), variables, video)
    assert [(slow.shape, fast.shape) for slow, fast in pairs] == [
        ((2, 2, 16 // n, 16 // n, 64 * n), (2, 8, 16 // n, 16 // n, 8 * n)) for n in (1, 2, 4, 8)
    ]
    stages = jax.eval_shape(lambda v, x: model.apply(v, x, method="stages"), variables, video)
    assert [stage.shape for stage in stages] == [(2, 2, 16 // n, 16 // n, 72 * n) for n in (1, 2, 4, 8)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slow_kernels": ((1,), (1,))}, "give kernels of the stem"),
        ({"nonlocal_after": ((), (0,))}, "and non-local blocks of each stage"),
        ({"fast_kernels": ((5,), (2,), (3,), (3,), (3,))}, "have one of 2 frames: it has no centre, use 1, 3 or 5"),
        ({"nonlocal_after": ((), (9,), (), ())}, "nonlocal_after has block 9 of stage 1: it has 1, counted from 0"),
    ],
)
def test_fields_that_do_not_fit_the_stages_are_one_line(fields, message):
    model = vidjax.create_model("slowfast_tiny", **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 64, 64, 3)))
