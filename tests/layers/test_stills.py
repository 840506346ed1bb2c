"""Images through a network of 3-D convolutions."""

import jax
import numpy as np
import pytest
from small_models import perturbed

import vidjax
from vidjax.errors import UserError
from vidjax.layers.stills import require_stills, sum_over_time


@pytest.fixture(scope="module")
def slow():
    """A tiny Slow network with classes, and variables without a zero or a one among them."""
    model = vidjax.create_model("slow_tiny", num_classes=5, num_frames=1)
    return model, perturbed(model)


def torch_network(variables, images):
    """The logits of images b c h w, in 2-D: kernels summed over time, batch norm by the batch."""
    import torch
    import torch.nn.functional as F

    params, images = variables["params"], torch.from_numpy(images)

    def conv(x, layer, stride=1):
        kernel = np.transpose(np.asarray(layer["kernel"]).sum(axis=0), (3, 2, 0, 1))
        return F.conv2d(x, torch.from_numpy(kernel.copy()), stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x, layer):
        scale, bias = (torch.from_numpy(np.array(layer[name])) for name in ("scale", "bias"))
        return F.batch_norm(x, None, None, scale, bias, training=True)

    stem = params["stem"]
    x = F.max_pool2d(torch.relu(norm(conv(images, stem["conv"], 2), stem["norm"])), 3, 2, 1)
    for number in range(4):
        block, stride = params[f"stage_{number}"]["block_0"], 1 if number == 0 else 2
        y = torch.relu(norm(conv(x, block["conv1"]), block["norm1"]))
        y = torch.relu(norm(conv(y, block["conv2"], stride), block["norm2"]))
        y = norm(conv(y, block["conv3"]), block["norm3"])
        x = torch.relu(norm(conv(x, block["shortcut"], stride), block["shortcut_norm"]) + y)
    head = [torch.from_numpy(np.array(params["head"][name])) for name in ("kernel", "bias")]
    return x.mean(dim=(2, 3)) @ head[0] + head[1]


def test_an_image_is_convolved_with_the_sums_of_the_kernels_in_2d(slow):
    pytest.importorskip("torch")
    model, variables = slow
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def see(params):
        return model.apply(
            {**variables, "params": sum_over_time(params)}, images[:, None], train=True, mutable=["batch_stats"]
        )[0]

    expected = torch_network(variables, images.transpose(0, 3, 1, 2).copy())
    np.testing.assert_allclose(see(variables["params"]), expected.numpy(), rtol=1e-3, atol=1e-3)
    # As the taps are summed, each of them has the same gradient.
    gradient = jax.grad(lambda params: (see(params) ** 2).sum())(variables["params"])
    taps = np.asarray(gradient["stage_3"]["block_0"]["conv1"]["kernel"])
    assert len(taps) == 3 and np.abs(taps).max() > 1e-3
    np.testing.assert_array_equal(taps[0], taps[2])
    np.testing.assert_array_equal(taps[0], taps[1])


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("slow_tiny", 5),
        pytest.param("r2plus1d_tiny", 64, marks=pytest.mark.long),  # which halves time, up to 8 maps
        pytest.param("ircsn_tiny", 64, marks=pytest.mark.long),  # depthwise
    ],
)
def test_an_image_is_seen_as_the_middle_of_a_clip_that_stands_still(name, frames):
    model = vidjax.create_model(name, num_classes=5)
    variables = perturbed(model)
    image = np.random.default_rng(1).normal(size=(1, 1, 32, 32, 3)).astype(np.float32)
    encode = jax.jit(lambda variables, clip: model.apply(variables, clip, method="encode"))
    clip = encode(variables, np.repeat(image, frames, axis=1))
    seen = encode({**variables, "params": jax.jit(sum_over_time)(variables["params"])}, image)
    np.testing.assert_allclose(clip[:, clip.shape[1] // 2], seen[:, 0], rtol=1e-4, atol=1e-5)
    assert np.abs(clip[:, 0] - seen[:, 0]).max() > 1e-3  # the padding in time


@pytest.mark.parametrize("name", ["r3d_tiny", "r2plus1d_tiny", "ircsn_tiny", "x3d_tiny", "i3d_tiny"])
def test_networks_that_keep_time_see_images(name):
    require_stills(name, vidjax.create_model(name), 32)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fr2d_tiny", "has no 3-D convolutions, whose sums"),
        ("videomae_tiny", "takes no clip of one frame, as stills are"),
        ("slow_tiny_pytorchvideo", "takes no clip of one frame, as stills are"),
    ],
)
def test_other_models_are_refused_in_one_line(name, reason):
    with pytest.raises(UserError, match=reason) as raised:
        require_stills(name, vidjax.create_model(name), 32)
    assert "\n" not in str(raised.value) and str(raised.value).endswith("such as slow_50_8x8 or r3d_18")


def test_only_kernels_over_time_change(slow):
    params = slow[1]["params"]
    same = jax.tree.map(np.array_equal, params, jax.jit(sum_over_time)(params))
    changed = {jax.tree_util.keystr(path) for path, equal in jax.tree_util.tree_leaves_with_path(same) if not equal}
    assert changed == {f"['stage_{i}']['block_0']['conv1']['kernel']" for i in (2, 3)}
