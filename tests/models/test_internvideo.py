"""InternVideo's towers start as CLIP, its cross-model as two classifiers apart; the retrieval transformer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import MODELS, perturbed, variables_of

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.convert.clip import HUGGING_FACE, OPENAI
from vidjax.convert.conversion import invert
from vidjax.convert.export import entries
from vidjax.errors import UserError
from vidjax.models.actionclip import VideoTower
from vidjax.models.clip import CARD, ImageTower
from vidjax.models.internvideo import CrossEncoder, CrossModel, GatedAttention, TowerClassifier, heads_of
from vidjax.models.text import TextTower
from vidjax.models.video_text import Projected, VideoText

# Parameters, and GMACs of one clip; see test_published.py. Those of UniFormerV2 without its classifier (SYSTEMS.md) and
# of CLIP's text tower, a projection without bias, and a temperature.
COUNTS = {
    "internvideo_base_16": (114_552_208 - 769 * 400 + 768 * 512 + 63_428_096 + 1, 148.105),
    "internvideo_large_14": (354_099_600 - 1025 * 400 + 1024 * 768 + 123_650_304 + 1, 665.629),
    # Counted here.
    "internvideo_tiny": (514_561, None),
}

SIZES = {"num_frames": 4, "image_size": 16}
MASKED = vidjax.create_model("videomae_tiny", width=16, depth=3, heads=2, patch_size=(2, 8, 8), num_classes=5, **SIZES)
VIVIT = vidjax.create_model("vivit_tiny_joint", width=24, depth=2, heads=3, num_classes=5, **SIZES)
IMAGE = ImageTower(32, 2, 2, 8, patch_size=(1, 8, 8), **SIZES)
CONTRASTIVE = {
    "vivit": VIVIT,
    "uniformerv2": vidjax.create_model(
        "uniformerv2_tiny", width=32, depth=2, heads=2, global_layers=(1,), num_classes=5, **SIZES
    ),
    "viclip": TowerClassifier(IMAGE.clone(joint=True), 5),
    "actionclip": TowerClassifier(VideoTower(IMAGE, "transf", head_depth=1, head_heads=2, head_context=4), 5, CARD),
}


def test_the_towers_start_as_clip():
    """From either kind of file; a still is embedded as CLIP embeds its frame."""
    clip = VideoText(ImageTower(16, 2, 2, 8, patch_size=(1, 8, 8), image_size=16), TextTower(40, 7, 16, 1, 2, 8))
    tower = vidjax.create_model("uniformerv2_tiny", width=16, heads=2, global_layers=(1,), **SIZES)
    pair, weights = VideoText(Projected(tower, 8), clip.text), jax.tree.map(jnp.asarray, perturbed(clip))
    started, other = (from_state_dict(pair, invert(layout, weights)) for layout in (OPENAI, HUGGING_FACE))
    jax.tree.map(np.testing.assert_array_equal, started, other)
    assert started["params"]["logit_scale"] == weights["params"]["logit_scale"]

    @jax.jit
    def both(frame, ids):
        return pair.apply(started, jnp.tile(frame, (1, 4, 1, 1, 1)), ids), clip.apply(weights, frame, ids)

    frames = jnp.asarray(recipe.floats("frames", (2, 1, 16, 16, 3)))
    actual, expected = both(frames, jnp.array([[1, 5, 39], [1, 7, 39]]))
    for pair in zip(actual, expected, strict=True):
        np.testing.assert_allclose(*pair, atol=1e-4)
    assert np.abs(expected[0][0] - expected[0][1]).max() > 1e-3


def test_the_released_file_is_read_without_its_decoder_of_captions():
    model = MODELS["internvideo's pair"]
    original = next(layout for layout in layouts(model) if layout.key == "internvideo1")
    file = {
        f"clip.{name}": value for name, value in entries(original, model, variables_of("internvideo's pair")).items()
    }
    file |= {name: np.ones(3, np.float32) for name in ("clip.text_mask_embedding", "caption_decoder.predictor.bias")}
    loaded = from_state_dict(model, file, strict=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables_of("internvideo's pair"))


def drawn(model: CrossModel, gate: float = 0.0) -> dict:
    """Random variables, with all gates at this value and the initial weights of the scores."""
    return jax.tree.map_with_path(
        lambda path, leaf: np.full_like(leaf, gate) if "gate" in path[-1].key
        else np.full_like(leaf, 0.5) if path[-1].key == "score_weights" else leaf,
        perturbed(model),
    )  # fmt: skip


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(2).standard_normal((2, 4, 16, 16, 3)), jnp.float32)


@pytest.mark.parametrize(
    "name",
    [name if name in ("uniformerv2", "viclip") else pytest.param(name, marks=pytest.mark.long) for name in CONTRASTIVE],
)
def test_starts_as_the_two_apart(name, video):
    """Whose scores are averaged, each with its own normalisation; with open gates, each depends on the other."""
    other = CONTRASTIVE[name]
    model = CrossModel(MASKED, other, (1, 3), MASKED.card)
    variables = drawn(model)

    @jax.jit
    def run(variables, video):
        pixels = video * jnp.asarray(MASKED.card.std) + jnp.asarray(MASKED.card.mean)
        seen = (pixels - jnp.asarray(other.card.mean)) / jnp.asarray(other.card.std)
        params = variables["params"]
        apart = MASKED.apply({"params": params["masked"]}, video), other.apply({"params": params["contrastive"]}, seen)
        grid = MASKED.apply({"params": params["masked"]}, video, method="encode")
        joint = model.apply(variables, video, method="scores")
        return apart, joint, model.apply(variables, video), grid, model.apply(variables, video, method="encode")

    apart, joint, logits, grid, encoded = run(variables, video)
    close = {"rtol": 0, "atol": 1e-5}
    for one, alone in zip(joint, apart, strict=True):
        np.testing.assert_allclose(one, alone, **close)
        assert not np.allclose(alone[0], alone[1], atol=1e-2)
    np.testing.assert_allclose(logits, (apart[0] + apart[1]) / 2, **close)
    np.testing.assert_allclose(encoded, grid, **close)
    for one, alone in zip(run(drawn(model, 1.0), video)[1], apart, strict=True):
        assert np.abs(one - alone).max() > 1e-2


def test_initial_gates_are_closed_and_scores_count_alike():
    attention = GatedAttention()
    x, context = (jnp.asarray(recipe.floats("tokens", shape)) for shape in ((1, 2, 8), (1, 3, 6)))
    np.testing.assert_array_equal(attention.apply(attention.init(jax.random.key(0), x, context), x, context), x)
    model = CrossModel(MASKED, VIVIT, (2,))
    weights = jax.jit(lambda key: model.init(key, jnp.zeros((1, 4, 16, 16, 3)))["params"]["score_weights"])
    np.testing.assert_array_equal(weights(jax.random.key(0)), [0.5, 0.5])
    assert [heads_of(width) for width in (24, 96, 512, 768, 1280)] == [1, 1, 8, 12, 20]


def kept(contrastive_depth: int, masked_depth: int, depths: tuple[int, ...], remat: str = "none") -> int:
    """Values that the backward pass keeps if only what is new is trained, without parameters."""
    masked, other = MASKED.clone(depth=masked_depth, remat=remat), VIVIT.clone(depth=contrastive_depth)
    model = CrossModel(masked, other, depths)
    video = jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    new = {name: part for name, part in params.items() if name not in ("masked", "contrastive")}
    frozen = {name: params[name] for name in ("masked", "contrastive")}

    def residuals(new, frozen, video):
        return jax.vjp(lambda new: model.apply({"params": frozen | new}, video), new)[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, new, frozen, video))
    return sum(leaf.size for leaf in leaves if leaf.ndim > 2)  # tokens; parameters have at most two axes


def test_the_backward_pass_keeps_nothing_of_the_contrastive_encoder_and_of_earlier_blocks():
    few = kept(1, 2, (2,))
    assert few == kept(3, 2, (2,)) == kept(1, 4, (4,))
    # Of two frozen blocks that the gradient passes through, only their inputs are kept: 8 tokens of width 16 a clip.
    assert kept(1, 4, (2,), "blocks") == few + 2 * (2 * 8 * 16) < kept(1, 4, (2,))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrastive": VIVIT.clone(num_frames=8)}, r"clips of 4 frames, the contrastive one of 8.*--data\.frames"),
        ({"contrastive": VIVIT.clone(image_size=24)}, r"clips of 16 pixels a side, .* of 24.*--data\.size"),
        ({"contrastive": VIVIT.clone(num_classes=4)}, "masked encoder has 5 classes, the contrastive one 4: fine-tune"),
        ({"masked": MASKED.clone(num_classes=None)}, "masked encoder has None classes"),
        ({"masked": VIVIT}, r"the masked encoder is a ViViT: give a classifier of videomae_\*"),
        ({"depths": (2, 4)}, "depths: there is no block 4 in the masked encoder, which has 3: choose from 1 to 3"),
        ({"depths": (0,)}, "depths: there is no block 0 in the masked encoder"),
        ({"depths": (2, 2)}, r"depths is \(2, 2\): give one block of the masked encoder or more, each once"),
        ({"depths": ()}, r"depths is \(\): give one block"),
        ({"contrastive": VIVIT.clone(remat="blocks")}, "read between its blocks: omit its remat and scan"),
        (
            {"contrastive": vidjax.create_model("fr2d_tiny", num_classes=5, **SIZES)},
            "the contrastive encoder is a ResNet3D, which has no blocks: use a transf",
        ),
    ],
)
def test_encoders_that_do_not_fit_are_refused(change, message):
    model = CrossModel(**{"masked": MASKED, "contrastive": VIVIT, "depths": (2,)} | change)
    with pytest.raises(UserError, match=message) as refused:
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))
    assert "\n" not in str(refused.value)


def test_a_saved_cross_model_is_loaded_with_both_encoders(tmp_path):
    card = replace(MASKED.card, class_names=tuple("abcde"))
    model = CrossModel(MASKED, CONTRASTIVE["viclip"], (1, 3), card)
    vidjax.save_pretrained(tmp_path / "saved", model, variables := drawn(model, 0.5))
    again, loaded = vidjax.load_pretrained(tmp_path / "saved", strict=True, verbose=False)
    assert again == model and again.num_classes == 5
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_the_retrieval_transformer_equals_the_original():
    golden = recipe.load("internvideo1_crossmodel")
    c = golden.config
    model = CrossEncoder(c["D"], c["L"], c["H"], c["maxpos"])
    variables = from_state_dict(
        model, {f"cross.{k}": v for k, v in golden.weights.items()} | {"clip.a": 1}, strict=True
    )
    tokens, mask = golden.inputs
    for name, ours in zip(
        ("output0", "output1"), jax.jit(model.apply)(variables, jnp.asarray(tokens), jnp.asarray(mask) > 0), strict=True
    ):
        expected = golden.outputs[name]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    written = entries(layouts(model)[0], model, variables)
    assert written.keys() == golden.weights.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(value, golden.weights[name], err_msg=name)
    with pytest.raises(UserError, match="25 tokens are more than the 24 positions"):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, 25, c["D"])))
