"""ActionCLIP: temporal heads against plain PyTorch, the whole model against recorded outputs of the release."""

import einops
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import conversion, files, from_state_dict, load_pretrained, load_weights, rules, save_pretrained
from vidjax.convert.actionclip import HEADS as RULES
from vidjax.models import actionclip, create_model, example_inputs
from vidjax.models.actionclip import VideoTower
from vidjax.models.clip import ImageTower
from vidjax.models.text import TextTower
from vidjax.models.video_text import VideoText

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    # CLIP's towers with eight frames and the head transf
    "actionclip_base_16": (168_574_465, 8 * 17.563),
    "actionclip_base_32": (170_231_041, 8 * 4.409),
    # The same with 8 frame positions instead of 77.
    "actionclip_base_16_mmaction2": (168_574_465 - 69 * 512, 8 * 17.563),
    "actionclip_base_32_mmaction2": (170_231_041 - 69 * 512, 8 * 4.409),
    # Counted here, because no exact numbers are published.
    "actionclip_tiny": (1_268_673, None),
}
# Variants with other fields: row, parameters, GMACs, fields.
COUNTS_WITH_FIELDS = {
    "actionclip_base_16 with the mean": ("actionclip_base_16", 149_620_737, None, {"head": "mean"}),
    "actionclip_base_16 with Conv_1D": ("actionclip_base_16", 149_620_737 + 40_960, None, {"head": "conv1d"}),
    "actionclip_base_16 with LSTM": ("actionclip_base_16", 149_620_737 + 2_140_672, None, {"head": "lstm"}),
    "actionclip_base_16 with Transf": ("actionclip_base_16", 149_620_737 + 18_953_728, None, {"head": "transf"}),
    "actionclip_base_16 with Transf_cls": (
        "actionclip_base_16",
        149_620_737 + 18_959_872,
        None,
        {"head": "transf_cls"},
    ),
}

E, T, CONTEXT = 16, 5, 9  # of the recorded heads
HEADS = {
    "conv1d": actionclip.Conv1d(CONTEXT),
    "lstm": actionclip.Lstm(CONTEXT),
    "transf": actionclip.Transf(CONTEXT, 2, 2),
    "transf_cls": actionclip.TransfCls(T, CONTEXT, 2),
}
# The release's weights of this head are rejected; the peer here follows the paper.
CONV1D = rules.Rule("fusion.shift.weight", "video/temporal/kernel", lambda value: value.T[:, None, None])
LAYOUT = rules.Layout("heads", "", (*RULES, CONV1D))


def converted(name: str, weights: dict[str, np.ndarray]) -> dict:
    """The parameters of one head, selected from those of all heads."""
    weights = {
        entry.replace(f"{name}.", "fusion.", 1): w for entry, w in weights.items() if entry.startswith(f"{name}.")
    }
    shapes = jax.eval_shape(HEADS[name].init, jax.random.key(0), jnp.zeros((1, T, E)))["params"]
    return conversion.apply(LAYOUT, weights, {"video": {"temporal": shapes}}, strict=True)[0]["video"]["temporal"]


@pytest.mark.parametrize("name", HEADS)
def test_heads_equal_recorded_outputs(name):
    golden = recipe.load("actionclip_heads")
    params = converted(name, golden.weights)
    actual = jax.jit(HEADS[name].apply)({"params": params}, jnp.asarray(golden.inputs[0]))
    np.testing.assert_allclose(actual, golden.outputs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_heads_equal_pytorchs(name):
    """In training, for all inputs and parameters; unused tables of frame positions have no gradient."""
    torch = pytest.importorskip("torch")
    import torch_actionclip

    peer = torch_actionclip.heads(E, CONTEXT, T)
    weights = peers.perturb(peer)
    frames, target = recipe.floats("frames", (3, T, E)), recipe.floats("target", (3, E))
    seen = torch.from_numpy(frames).requires_grad_()
    (peer[name](seen) * torch.from_numpy(target)).sum().backward()
    gradients = {
        entry: np.zeros(value.shape, np.float32) if value.grad is None else value.grad.numpy()
        for entry, value in peer.named_parameters()
    }

    def loss(params, frames):
        return (HEADS[name].apply({"params": params}, frames, train=True) * target).sum()

    actual = jax.jit(jax.grad(loss, (0, 1)))(converted(name, weights), jnp.asarray(frames))
    expected = (converted(name, gradients), seen.grad.numpy())
    for (path, leaf), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-4 * max(1, np.abs(other).max()), err_msg=str(path))


# The configuration of the recorded outputs.
IMAGE = ImageTower(128, 2, 2, 64, patch_size=(1, 8, 8), num_frames=8, image_size=32)
TEXT = TextTower(60, 12, 128, 2, 2, 64)
RELEASED = {"mean": "meanP", "lstm": "LSTM", "transf": "Transf", "transf_cls": "Transf_cls"}


def pair(head: str, image: ImageTower = IMAGE) -> VideoText:
    return VideoText(VideoTower(image, head, head_heads=2, head_context=12), TEXT)


def outputs_of(model: VideoText, variables: dict, video: np.ndarray, ids: np.ndarray):
    """Embeddings and logits of videos `b t c h w`."""

    @jax.jit
    def call(variables, video, ids):
        seen, read = model.apply(variables, video, ids)
        return seen, model.apply(variables, seen, read, method="logits")

    return call(variables, jnp.asarray(np.moveaxis(video, 2, -1)), jnp.asarray(ids, jnp.int32))


@pytest.mark.parametrize("head", RELEASED)
def test_equals_recorded_outputs_of_the_release(head):
    golden = recipe.load(f"actionclip_{RELEASED[head]}")
    variables = from_state_dict(pair(head), golden.weights, strict=True)
    outputs = outputs_of(pair(head), variables, *golden.inputs)
    for ours, expected in zip(outputs, (golden.outputs["output0"], golden.outputs["output1"]), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_shift_equals_recorded_outputs_of_the_release():
    """Recorded per frame from the image tower; our tower returns the mean over the frames."""
    golden = recipe.load("actionclip_visual_shift")
    text = recipe.load("actionclip_meanP").weights
    weights = {name: value for name, value in text.items() if not name.startswith("model.visual.")}
    weights |= {f"model.visual.{name}": value for name, value in golden.weights.items()}
    model = pair("mean", IMAGE.clone(shift=True))
    variables = from_state_dict(model, weights, strict=True)
    video = einops.rearrange(golden.inputs[0], "(b t) c h w -> b t h w c", t=8)
    frames = golden.outputs["output0"].reshape(2, 8, 64)
    inside = {"params": variables["params"]["video"]}
    actual = jax.jit(model.video.apply)(inside, jnp.asarray(video))
    np.testing.assert_allclose(actual, frames.mean(axis=1), rtol=0, atol=1e-5 * np.abs(frames).max())
    with pytest.raises(ValueError, match=r"the weights are of an image tower with shift=True, the model's has shift=F"):
        from_state_dict(pair("mean"), weights)
    with pytest.raises(
        ValueError, match=r"the weights are of an image tower with shift=False, the model's has shift=T"
    ):
        from_state_dict(model, text)


def test_a_file_of_the_release_loads(tmp_path):
    """The file contains two state dicts; the head's has the prefix of the wrapper used in training."""
    torch = pytest.importorskip("torch")
    weights = recipe.load("actionclip_Transf").weights
    parts = {"model": {}, "fusion": {}}
    for name, value in weights.items():
        part, name = name.split(".", 1)
        name = name if part == "model" else f"module.{name}"
        parts[part][name] = torch.from_numpy(np.asarray(value))
    saved = {"epoch": 3, "model_state_dict": parts["model"], "fusion_model_state_dict": parts["fusion"]}
    torch.save(saved | {"optimizer_state_dict": {"state": {}}}, tmp_path / "model_best.pt")
    save_pretrained(tmp_path / "ours", pair("transf"), from_state_dict(pair("transf"), weights, strict=True))
    model, expected = load_pretrained(tmp_path / "ours", verbose=False)
    assert model == pair("transf")
    loaded = load_pretrained(tmp_path / "model_best.pt", "actionclip_tiny", verbose=False, **FIELDS)[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_a_file_of_the_release_without_a_head_loads(tmp_path):
    """The mean has no parameters, so that the second state dict is empty."""
    torch = pytest.importorskip("torch")
    weights = recipe.load("actionclip_meanP").weights
    saved = {name.removeprefix("model."): torch.from_numpy(np.asarray(value)) for name, value in weights.items()}
    torch.save({"model_state_dict": saved, "fusion_model_state_dict": {}}, tmp_path / "model_best.pt")
    assert files.read(tmp_path / "model_best.pt").keys() == weights.keys()


def test_equals_mmaction2(tmp_path, capsys):
    """Its files have one position per frame of their clips, which `head_context` must match."""
    torch = pytest.importorskip("torch")
    golden = recipe.load("mm_actionclip")
    c = golden.config
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in golden.weights.items()}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "mmaction2.pth")
    tower = FIELDS["video"].clone(image=IMAGE.clone(num_frames=c["T"]), head_depth=c["layers"])
    with pytest.raises(
        ValueError, match="the weights' head has 4 frame positions and the model's 12: set head_context"
    ):
        load_pretrained(tmp_path / "mmaction2.pth", "actionclip_tiny", **FIELDS | {"video": tower})
    fields = FIELDS | {"video": tower.clone(head_context=c["T"])}
    model, variables = load_pretrained(tmp_path / "mmaction2.pth", "actionclip_tiny", strict=True, **fields)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 2, -1)
    actual = jax.jit(model.video.apply)({"params": variables["params"]["video"]}, video)
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    assert "(mmaction2's ActionCLIP) in actionclip_tiny" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["actionclip_Transf", "mm_actionclip"])
@pytest.mark.parametrize("part", ["head_heads", "the text tower", "the image tower"])
def test_a_number_of_heads_other_than_the_releases_is_rejected(layout, part):
    """The files do not contain it: the release computes `transformer_width // 64`, here 128 // 64."""
    golden = recipe.load(layout)
    model = pair("transf")
    tower = model.video.clone(head_context=4) if layout == "mm_actionclip" else model.video
    if part == "head_heads":
        model = model.clone(video=tower.clone(head_heads=4))
    elif part == "the text tower":
        model = model.clone(video=tower, text=model.text.clone(heads=4))
    else:
        model = model.clone(video=tower.clone(image=tower.image.clone(heads=4)))
    name = part if part == "head_heads" else f"heads of {part}"
    with pytest.raises(ValueError, match=f"{name} is 4, but the release has 128 // 64: set it to 2"):
        from_state_dict(model, golden.weights)


def test_fields_of_the_head_can_be_overridden():
    tower = create_model("actionclip_base_16", head_context=16, head_heads=4, head_depth=2).video
    assert (tower.head_context, tower.head_heads, tower.head_depth) == (16, 4, 2)


FIELDS = {field: getattr(pair("transf"), field) for field in ("video", "text")}


def test_the_releases_conv1d_is_rejected():
    weights = recipe.load("actionclip_meanP").weights | {"fusion.shift.weight": np.ones((64, 1, 3), np.float32)}
    with pytest.raises(ValueError, match="the release's Conv_1D head, whose reshape mixes up channels and frames"):
        from_state_dict(pair("conv1d"), weights)


@pytest.mark.parametrize(
    ("head", "joint", "expected"), [("transf", False, 97), ("conv1d", False, 2), ("mean", True, 1)]
)
def test_clip_weights_initialise_the_towers(head, joint, expected):
    """Only the head and the temporal positions, which CLIP does not have, are newly initialised."""
    golden = recipe.load("actionclip_meanP").weights
    weights = {name.removeprefix("model."): value for name, value in golden.items()}
    model = pair(head, IMAGE.clone(joint=joint))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    _, report = load_weights("clip.pt", model, shapes, weights=weights)
    new = {path for path in report.new if path.startswith(("video/temporal/", "video/image/time/"))}
    assert new == set(report.new) and not report.unused
    assert len(new) == expected


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def test_conv1d_is_initialised_as_a_shift():
    """A quarter of the channels from the previous frame, a quarter from the next, half unshifted, plus a residual."""
    frames = jnp.asarray(recipe.floats("frames", (2, T, E)))
    before, after = np.zeros_like(frames), np.zeros_like(frames)
    before[:, 1:], after[:, :-1] = frames[:, :-1], frames[:, 1:]
    moved = np.concatenate([before[..., :4], frames[..., 4:12], after[..., 12:]], axis=-1)
    model = actionclip.Conv1d(CONTEXT)
    actual = model.apply(model.init(jax.random.key(0), frames), frames)
    np.testing.assert_allclose(actual, (frames + moved).mean(axis=1), atol=1e-6)


SHALLOW = IMAGE.clone(width=32, depth=1)


def test_joint_returns_one_feature_of_all_frames():
    tower = VideoTower(SHALLOW.clone(joint=True), "mean")
    video = jnp.asarray(recipe.floats("video", (2, 8, 32, 32, 3)))
    variables = jax.jit(tower.init)(jax.random.key(0), video)
    frames = tower.image.apply({"params": variables["params"]["image"]}, video, method="frames")
    assert frames.shape == (2, 1, 64)
    actual = jax.jit(tower.apply)(variables, video)
    np.testing.assert_allclose(actual, frames[:, 0], rtol=0, atol=1e-5)
    # A mean of frame features would not depend on their order.
    assert np.abs(jax.jit(tower.apply)(variables, video[:, ::-1]) - actual).max() > 1e-3 * np.abs(actual).max()


def test_gradients_are_finite_and_reach_every_parameter():
    model = VideoText(VideoTower(SHALLOW.clone(shift=True), head_depth=1, head_context=12), TEXT.clone(depth=1))
    video = jnp.asarray(recipe.floats("video", (2, 8, 32, 32, 3)))
    ids = jnp.asarray([[57, 5, 6, 59, 0], [57, 9, 59, 0, 0]])
    params = jax.jit(model.init)(jax.random.key(0), video)["params"]

    @jax.jit
    @jax.grad
    def gradients(params):
        seen, read = model.apply({"params": params}, video, ids, train=True)
        logits = model.apply({"params": params}, seen, read, method="logits")
        return -jax.nn.log_softmax(logits).trace()

    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(gradients(params))}
    assert all(np.isfinite(leaf).all() for leaf in leaves.values())
    assert not [path for path, leaf in leaves.items() if not leaf.any() and "['key']['bias']" not in path]


def test_incompatible_settings_are_rejected():
    video = jnp.zeros((1, 8, 32, 32, 3))
    model = create_model("actionclip_tiny", joint=True)
    with pytest.raises(ValueError, match="head is 'transf' with a joint image tower, which returns one feature per"):
        jax.eval_shape(model.init, jax.random.key(0), video)
    with pytest.raises(ValueError, match="the clip has 13 frames: the head transf has 12 positions"):
        jax.eval_shape(pair("transf").init, jax.random.key(0), jnp.zeros((1, 13, 32, 32, 3)))
