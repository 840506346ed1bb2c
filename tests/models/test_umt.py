"""UMT's student, and CLIP as its teacher, each against the rule that the original's code follows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import IMAGE, TEXT, perturbed

from vidjax.errors import UserError
from vidjax.layers.embedding import sinusoid_table
from vidjax.models.umt import Pretraining
from vidjax.models.video_text import VideoText
from vidjax.models.videomae import VideoMAE
from vidjax.runs.unmasked import see

# Counted here, because no exact numbers are published.
COUNTS = {
    "umt_tiny": (465_504, None),
    "umt_base": (85_635_840, None),
    "umt_large": (303_072_256, None),
    "umt_tiny_pretrain": (491_040, None),
    "umt_base_pretrain": (88_005_888, None),
    "umt_large_pretrain": (307_806_720, None),
}

FIELDS = {"width": 24, "depth": 3, "heads": 3, "patch_size": (1, 4, 4), "num_frames": 2, "image_size": 8}
MODEL = Pretraining(**FIELDS, features=10, layers=2)
VIDEO = jnp.asarray(recipe.floats("video", (2, 2, 8, 8, 3)))
KEPT = jnp.array([[0, 3, 5], [2, 4, 7]])


def layer_norm(x: np.ndarray, parameters: dict) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * parameters["scale"] + parameters["bias"]


def test_each_of_the_last_layers_has_a_map_behind_the_shared_norm_and_the_positions():
    variables = perturbed(MODEL)
    params = variables["params"]
    outputs = np.asarray(jax.jit(MODEL.apply)(variables, VIDEO, KEPT))
    assert outputs.shape == (2, 2, 3, 10)
    positions = sinusoid_table(8, 24)[np.asarray(KEPT)]
    for number, depth in enumerate((2, 3)):
        shallow = VideoMAE(**FIELDS | {"depth": depth})  # without a final norm
        encoder = {name: value for name, value in params["encoder"].items() if name != "norm"}
        blocks = {f"block_{i}": params["encoder"]["transformer"][f"block_{i}"] for i in range(depth)}
        tokens = shallow.apply({"params": encoder | {"transformer": blocks}}, VIDEO, KEPT, method="tokens")
        x = layer_norm(np.asarray(tokens), params["encoder"]["norm"]) + positions
        x = x @ params[f"map_{number}"]["kernel"] + params[f"map_{number}"]["bias"]
        np.testing.assert_allclose(outputs[number], layer_norm(x, params[f"norm_{number}"]), atol=2e-4)


def test_hidden_tokens_are_not_seen_and_gradients_reach_everything():
    variables = jax.tree.map(jnp.asarray, perturbed(MODEL))
    run = jax.jit(MODEL.apply)
    seen = jnp.zeros((2, 8)).at[jnp.arange(2)[:, None], KEPT].set(1).reshape(2, 2, 2, 2).repeat(4, 2).repeat(4, 3)
    changed = jnp.where(seen[..., None] > 0, VIDEO, 5.0)
    np.testing.assert_array_equal(run(variables, changed, KEPT), run(variables, VIDEO, KEPT))
    scanned = MODEL.clone(remat="blocks", scan=True)
    gradients = jax.jit(jax.grad(lambda v, m=scanned: jnp.square(m.apply(v, VIDEO, KEPT) - 1).sum()))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_a_student_has_enough_layers():
    with pytest.raises(UserError, match="layers is 4: the encoder has 3 blocks, use 1 to 3"):
        jax.eval_shape(MODEL.clone(layers=4).init, jax.random.key(0), VIDEO, KEPT)


@pytest.fixture(scope="module")
def clip():
    teacher = VideoText(IMAGE.clone(depth=2, heads=2, num_frames=2), TEXT)
    return teacher, jax.tree.map(jnp.asarray, {"params": perturbed(teacher)["params"]["video"]})


def test_targets_are_the_last_layers_normalised_and_projected(clip):
    """The last one is what CLIP would project its class token from; the one before is that of a shallower tower."""
    teacher, variables = clip
    pixels = jax.random.randint(jax.random.key(0), (2, 2, 16, 16, 3), 0, 256).astype(jnp.uint8)
    features, attention = jax.jit(partial(see, teacher, layers=2))(variables, pixels=pixels)
    assert features.shape == (2, 2, 2 * 4, 16) and attention.shape == (2, 2, 4)
    video, tower = teacher.card.preprocess(pixels), teacher.video
    for number, depth in enumerate((1, 2)):
        shallow = tower.clone(depth=depth)
        tokens = shallow.apply(variables, video, method="tokens")[:, :, 1:]
        expected = tokens.reshape(2, 8, -1) @ variables["params"]["projection"]["kernel"]
        np.testing.assert_allclose(features[number], expected, atol=2e-5)


def test_masks_follow_the_class_tokens_mean_attention_in_the_last_layer(clip):
    teacher, variables = clip
    pixels = jax.random.randint(jax.random.key(1), (1, 2, 16, 16, 3), 0, 256).astype(jnp.uint8)
    _, attention = see(teacher, variables, pixels, 1)
    params = variables["params"]["transformer"]["block_1"]
    tower = teacher.video.clone(depth=1)
    bound = tower.bind(variables)
    inputs: list = []
    bound.tokens(teacher.card.preprocess(pixels), between=lambda _, x: inputs.append(x) or x)
    (x,) = inputs  # of the second block: frames by tokens
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = np.asarray(scaled * params["norm1"]["scale"] + params["norm1"]["bias"])
    query, key = (
        (x @ params["attention"][part]["kernel"] + params["attention"][part]["bias"]).reshape(2, 5, 2, 32)
        for part in ("query", "key")
    )
    scores = np.einsum("fkd,fnkd->fkn", query[:, 0], key) / np.sqrt(32)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(attention[0], shares.mean(1)[:, 1:], atol=1e-5)
