"""CLIP against recorded outputs of OpenAI's code and against transformers, and its image tower on clips."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from small_runs import draw_variables

from vidjax.convert import from_state_dict, load_pretrained, load_weights, save_pretrained
from vidjax.layers.card import Card
from vidjax.models import example_inputs
from vidjax.models.clip import ImageTower
from vidjax.models.text import TextTower
from vidjax.models.video_text import VideoText
from vidjax.runs import usual_clips

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    # Both towers; the cost is that of the image tower for one frame.
    "clip_base_16": (149_620_737, 17.563),
    "clip_base_32": (151_277_313, 4.409),
    "clip_large_14": (427_616_513, 81.013),
    "clip_large_14_336": (427_944_193, 190.96),
    # Counts of the towers from SYSTEMS-2.md, with 32 text positions instead of 77 (width 512 and 768), and temperature.
    "viclip_base_16": (86_198_784 + 63_428_096 - 45 * 512 + 1, 179.563),
    "viclip_large_14": (303_974_400 + 123_650_304 - 45 * 768 + 1, 826.371),
    # Counted here, because no exact numbers are published.
    "clip_tiny": (862_273, None),
}

CLOSE = {"rtol": 0, "atol": 1e-4}
IMAGE = {"width": 24, "depth": 1, "heads": 3, "features": 16, "patch_size": (1, 8, 8), "image_size": 32}


def frames_first(images: np.ndarray, frames: int = 1) -> jax.Array:
    """Converts images `(b t) c h w` to videos."""
    return jnp.moveaxis(jnp.asarray(images), 1, -1).reshape(-1, frames, *images.shape[2:], images.shape[1])


def image_tower(c: dict, **more) -> ImageTower:
    """The image tower for the configuration of a golden."""
    return ImageTower(c["D"], c["L"], c["H"], c["E"], patch_size=(1, c["P"], c["P"]), image_size=c["S"], **more)


def text_tower(c: dict) -> TextTower:
    """The text tower for the configuration of a golden."""
    return TextTower(c["V"], c["ctx"], c["tD"], c["tL"], c["tH"], c["E"])


def test_equals_openais():
    golden = recipe.load("openai_clip")
    model = VideoText(image_tower(golden.config), text_tower(golden.config))
    sizes = {"input_resolution": np.asarray(32), "context_length": np.asarray(12), "vocab_size": np.asarray(60)}
    variables = from_state_dict(model, golden.weights | sizes, strict=True)
    images, ids = golden.inputs
    video, text = jax.jit(model.apply)(variables, frames_first(images), jnp.asarray(ids, jnp.int32))
    logits = model.apply(variables, video, text, method="logits")
    np.testing.assert_allclose(logits, golden.outputs["output0"], **CLOSE)
    np.testing.assert_allclose(logits.T, golden.outputs["output1"], **CLOSE)


@pytest.mark.parametrize("name", ["plain", "shift"])
def test_equals_actionclips_image_tower(name):
    golden = recipe.load(f"actionclip_visual_{name}")
    tower = image_tower(golden.config, shift=name == "shift")
    variables = from_state_dict(tower, golden.weights, strict=True)
    actual = jax.jit(partial(tower.apply, method="frames"))(variables, frames_first(golden.inputs[0], 8))
    np.testing.assert_allclose(actual.reshape(16, -1), golden.outputs["output0"], **CLOSE)


def test_equals_actionclips_text_tower():
    golden = recipe.load("actionclip_text")
    tower = text_tower(golden.config)
    variables = from_state_dict(tower, golden.weights)  # entries of the image tower are ignored
    actual = jax.jit(tower.apply)(variables, jnp.asarray(golden.inputs[0], jnp.int32))
    np.testing.assert_allclose(actual, golden.outputs["output0"], **CLOSE)


def viclip(tower: str) -> tuple:
    """One of ViCLIP's towers, and its golden."""
    golden = recipe.load(f"viclip_{tower}")
    c = golden.config
    if tower == "vision":
        return image_tower(c, joint=True, num_frames=c["T"]), golden
    return text_tower(c), golden


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_equals_viclips_towers(tower):
    """Each tower alone, as recorded, and with its names in the whole model."""
    model, golden = viclip(tower)
    variables = from_state_dict(model, golden.weights, strict=True)
    whole = {f"{tower}_encoder.{name}": value for name, value in golden.weights.items()}
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, whole, strict=True), variables)
    seen = frames_first(golden.inputs[0].swapaxes(1, 2).reshape(-1, 3, 42, 42), 5) if tower == "vision" else None
    seen = jnp.asarray(golden.inputs[0], jnp.int32) if seen is None else seen
    expected = golden.outputs["output0"]
    actual = jax.jit(model.apply)(variables, seen)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    with pytest.raises(ValueError, match="heads is 1, but the release has 192 // 64: set it to 3"):
        from_state_dict(model.clone(heads=1), whole)


def test_viclip_sees_an_image_at_the_mean_of_all_times():
    """As InternVideo 3965eef, viclip_vision.py, for one frame."""
    model, golden = viclip("vision")
    variables = from_state_dict(model, golden.weights)
    params = variables["params"]
    mean = params["time"]["table"].mean(axis=0, keepdims=True)
    alone = {"params": params | {"time": {"table": mean}}}
    image = jnp.asarray(golden.inputs[0][:1, :, :1].transpose(0, 2, 3, 4, 1))
    actual = [each.apply(v, image) for each, v in ((model, variables), (model.clone(num_frames=1), alone))]
    np.testing.assert_allclose(*actual, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("temperature", "scale"), [(0.02, 50.0), (0.004, 100.0)])
def test_viclip_consists_of_its_towers_and_a_temperature(temperature, scale, tmp_path):
    """Similarities are divided by the temperature, which is clipped at 0.01 (InternVideo 3965eef, viclip.py)."""
    torch = pytest.importorskip("torch")
    (image, vision), (text, texts) = viclip("vision"), viclip("text")
    weights = {f"vision_encoder.{name}": value for name, value in vision.weights.items()}
    weights |= {f"text_encoder.{name}": value for name, value in texts.weights.items()}
    weights |= {"temp": np.float32(temperature)}
    torch.save({"model": {k: torch.from_numpy(np.asarray(v)) for k, v in weights.items()}}, tmp_path / "viclip.pth")
    fields = {"video": image, "text": text}
    model, variables = load_pretrained(tmp_path / "viclip.pth", "viclip_base_16", strict=True, **fields)
    logits = model.apply(variables, jnp.eye(2, 40), jnp.eye(3, 40), method="logits")
    np.testing.assert_allclose(logits, scale * np.eye(2, 3), rtol=1e-5)
    for tower, name in ((image, "video"), (text, "text")):
        alone = from_state_dict(tower, (vision if name == "video" else texts).weights)["params"]
        jax.tree.map(np.testing.assert_array_equal, variables["params"][name], alone)
    clips = usual_clips(tmp_path / "viclip.pth", model)  # of zero_shot.py: 8 frames, squeezed
    assert (clips["sampling"], clips["protocol"], clips["short_side"]) == ("uniform", "viclip", clips["size"])
    assert model.card.mean == Card().mean  # ImageNet's, not CLIP's
    with pytest.raises(ValueError, match="heads of the text tower is 2, but the release has 192 // 64: set it to 3"):
        from_state_dict(model.clone(text=text.clone(heads=2)), weights)


def test_a_tower_for_shorter_texts_takes_the_first_positions():
    """As ViCLIP truncates CLIP's 77 positions to 32 (InternVideo 3965eef, viclip_text.py)."""
    golden = recipe.load("openai_clip")
    longer, shorter = text_tower(golden.config), text_tower(golden.config).clone(context=7)
    ids = jnp.asarray([[58, 5, 9, 59, 0, 0, 0]])
    actual = [jax.jit(tower.apply)(from_state_dict(tower, golden.weights), ids) for tower in (longer, shorter)]
    np.testing.assert_allclose(*actual, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"position is \(13, 128\) in the model and \(12, 128\) in the weights"):
        from_state_dict(longer.clone(context=13), golden.weights)


def clip_peer(activation: str = "quick_gelu", end: int = 2, epsilon: float = 1e-5):
    transformers = peers.transformers()
    blocks = {
        "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
        "hidden_act": activation, "layer_norm_eps": epsilon,
    }  # fmt: skip
    ids = {"bos_token_id": 58, "eos_token_id": end, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 60, "max_position_embeddings": 12, **ids, **blocks},
        vision_config={"image_size": 32, "patch_size": 8, **blocks},
        projection_dim=16,
    )
    return transformers.CLIPModel(config).eval()


def texts() -> np.ndarray:
    """Two texts that end in 59, one of them long, and one that contains 57 twice before its end."""
    return np.array([[58, 3, 4, 5, 59] + [0] * 7, [58, *range(20, 30), 59], [58, 57, 9, 57, 59] + [0] * 7], np.int32)


@pytest.mark.parametrize(
    ("activation", "end", "epsilon"), [("quick_gelu", 2, 1e-5), ("gelu", 57, 1e-2)], ids=["openai", "others"]
)
def test_equals_transformers_from_its_directory(activation, end, epsilon, tmp_path):
    peer = clip_peer(activation, end, epsilon)
    import torch
    from transformers import CLIPImageProcessor

    weights = peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True)
    assert (model.card.mean, model.card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model.text.end_token == (None if end == 2 else end)
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, weights, strict=True), variables)
    images, ids = recipe.floats("images", (2, 3, 32, 32)), texts()
    with torch.no_grad():
        output = peer(input_ids=torch.from_numpy(ids).long(), pixel_values=torch.from_numpy(images))
    video, text = jax.jit(model.apply)(variables, frames_first(images), jnp.asarray(ids))
    np.testing.assert_allclose(video, output.image_embeds, **CLOSE)
    np.testing.assert_allclose(text, output.text_embeds, **CLOSE)
    logits = model.apply(variables, video, text, method="logits")
    np.testing.assert_allclose(logits, output.logits_per_image, **CLOSE)

    # A single tower, from the directory of both.
    alone = jax.eval_shape(model.text.init, jax.random.key(0), jnp.asarray(ids))["params"]
    jax.tree.map(
        np.testing.assert_array_equal, load_weights(tmp_path, model.text, alone)[0], variables["params"]["text"]
    )
    alone = jax.eval_shape(model.video.init, jax.random.key(0), frames_first(images))["params"]
    loaded, report = load_weights(tmp_path, model.video, alone)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables["params"]["video"])
    assert not report.new


def test_text_tower_equals_transformers_from_its_directory(tmp_path):
    import_peer = clip_peer()
    import torch
    from transformers import CLIPTextModelWithProjection

    peer = CLIPTextModelWithProjection(import_peer.config.text_config).eval()
    peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    tower, variables = load_pretrained(tmp_path, strict=True)
    with torch.no_grad():
        output = peer(torch.from_numpy(texts()).long())
    np.testing.assert_allclose(jax.jit(tower.apply)(variables, jnp.asarray(texts())), output.text_embeds, **CLOSE)
    tokens = tower.apply(variables, jnp.asarray(texts()), method="tokens")
    np.testing.assert_allclose(tokens, output.last_hidden_state, **CLOSE)


@pytest.fixture(scope="module")
def clips():
    return jnp.asarray(recipe.floats("clips", (2, 3, 32, 32, 3)))


def test_a_clips_feature_is_the_mean_over_its_frames_in_any_order(clips):
    tower = ImageTower(**IMAGE)

    @jax.jit
    def features(variables, clips):
        mean, reversed_mean = (tower.apply(variables, frames) for frames in (clips, clips[:, ::-1]))
        tokens, one = (tower.apply(variables, x, method="encode") for x in (clips, clips[:, 1:2]))
        return tower.apply(variables, clips[0][:, None]), mean, reversed_mean, tokens, one

    each, mean, reversed_mean, tokens, one = features(draw_variables(tower), clips)
    np.testing.assert_allclose(mean[0], each.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(reversed_mean, mean, atol=1e-5)
    assert tokens.shape == (2, 3, 4, 4, 24)
    np.testing.assert_allclose(tokens[:, 1:2], one, atol=1e-5)


def test_joint_is_one_sequence_with_one_class_token_and_temporal_positions(clips):
    """As described in the paper, because the released code does not run."""
    plain, joint = ImageTower(**IMAGE), ImageTower(**IMAGE, joint=True, num_frames=3)
    variables = draw_variables(joint)
    variables["params"]["time"]["table"] *= 50  # else too small to see
    frames = jax.jit(partial(joint.apply, method="frames"))
    assert frames(variables, clips).shape == (2, 1, 16)
    assert jax.eval_shape(partial(joint.apply, method="encode"), variables, clips).shape == (2, 3, 4, 4, 24)
    assert np.abs(frames(variables, clips) - frames(variables, clips[:, ::-1])).max() > 0.01
    timeless = {"params": variables["params"] | {"time": {"table": jnp.zeros((3, 24))}}}
    np.testing.assert_allclose(frames(timeless, clips), frames(timeless, clips[:, ::-1]), atol=1e-5)
    alone = {"params": {name: part for name, part in timeless["params"].items() if name != "time"}}
    one = jax.jit(plain.apply)(alone, clips[:, :1])
    np.testing.assert_allclose(frames(timeless, clips[:, :1])[:, 0], one, atol=1e-5)


def test_a_joint_tower_can_be_initialised_from_an_image_tower():
    golden = recipe.load("actionclip_visual_plain")
    tower = image_tower(golden.config, joint=True, num_frames=8)
    params = from_state_dict(tower, golden.weights)["params"]
    assert params["time"]["table"].shape == (8, 128)
    released = golden.weights | {"time_embedding": np.ones((4, 128), np.float32)}  # for half as many frames
    np.testing.assert_allclose(from_state_dict(tower, released, strict=True)["params"]["time"]["table"], 1, rtol=1e-6)


def test_prompts_are_mutually_exclusive(clips):
    with pytest.raises(ValueError, match="joint and shift are both set"):
        jax.eval_shape(ImageTower(**IMAGE, joint=True, shift=True).init, jax.random.key(0), clips)


def test_positions_are_resized_in_the_same_way_at_loading_and_at_call_time(tmp_path):
    model = ImageTower(**IMAGE)
    variables = draw_variables(model)
    save_pretrained(tmp_path / "small", model, variables)
    larger, resized = load_pretrained(tmp_path / "small", image_size=48)
    assert larger == ImageTower(**IMAGE | {"image_size": 48})
    assert resized["params"]["position"]["table"].shape == (6, 6, 24)
    video = jnp.asarray(recipe.floats("video", (1, 1, 48, 48, 3)))
    expected = jax.jit(model.apply)(variables, video)
    np.testing.assert_allclose(jax.jit(larger.apply)(resized, video), expected, atol=1e-5)


def test_torchscript_archives_published_by_openai_load(tmp_path, monkeypatch):
    """With half precision, numbers besides the weights, and code that is not executed."""
    torch = pytest.importorskip("torch")
    golden = recipe.load("openai_clip")

    class Module(torch.nn.Module):
        def forward(self, x):
            return x

    whole = Module()
    for name, value in golden.weights.items():
        *path, last = name.split(".")
        module = whole
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(torch.from_numpy(value).half()))
    for name, value in (("input_resolution", 32), ("context_length", 12), ("vocab_size", 60)):
        whole.register_buffer(name, torch.tensor(value))
    torch.jit.save(torch.jit.trace(whole, torch.zeros(1)), tmp_path / "tiny.pt")
    monkeypatch.setitem(sys.modules, "torch", None)  # PyTorch is not needed
    model = VideoText(image_tower(golden.config), text_tower(golden.config))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))["params"]
    loaded, report = load_weights(tmp_path / "tiny.pt", model, shapes)
    assert not report.new and not report.unused
    expected = from_state_dict(model, {k: v.astype(np.float16).astype(np.float32) for k, v in golden.weights.items()})
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), loaded, expected["params"])
