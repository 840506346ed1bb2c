"""An encoder behind a localiser equals the encoder on each window, in memory that hardly grows with their number."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vidjax
from vidjax.layers.normalization import BatchNorm, valid_clips
from vidjax.models.actionformer import ActionFormer
from vidjax.models.video_localizer import VideoLocalizer
from vidjax.models.videomae import VideoMAE


class Small(nn.Module):
    """An encoder with running statistics and a hidden layer that is large beside the frames."""

    width: int = 6
    hidden: int = 8
    card = VideoMAE.card

    def setup(self):
        self.first, self.norm, self.second = nn.Dense(self.hidden), BatchNorm(), nn.Dense(self.width)

    def encode(self, video, train=False):
        x = self.norm(self.first(video[:, ::2, ::4, ::4]), use_running_average=not train)
        return self.second(jnp.tanh(x))


def build(encoder, steps=8):
    localizer = ActionFormer(2, 6, 8, 8, 8, 2, steps, (1, 1, 1), 3, dropout=0, drop_path=0)
    return VideoLocalizer(encoder, localizer, frames=4, stride=2, size=8)


@pytest.fixture(scope="module")
def case():
    """A model, its variables, two videos of 8 and 5 windows, and the gradient of a function of the features."""
    model, draw = build(Small()), np.random.default_rng(0)
    video = jnp.asarray(draw.integers(0, 256, (2, *model.input_shape(8)), np.uint8))
    lengths = jnp.array([8, 5])
    variables = jax.jit(model.init)(jax.random.key(0), video, lengths)
    weights = draw.normal(size=(2, 8, 6)).astype(np.float32)
    return model, variables, video, lengths, weights


def test_features_are_the_means_of_the_encoder_on_each_window_and_zero_beyond_the_end(case):
    model, variables, video, lengths, _ = case
    assert video.shape == (2, 18, 8, 8, 3)
    features = jax.jit(partial(model.apply, method="features"))(variables, video, lengths)
    inside = {kind: tree["encoder"] for kind, tree in variables.items()}
    encode = jax.jit(partial(model.encoder.apply, method="encode"))
    for number in range(8):
        clip = model.encoder.card.preprocess(video[:, 2 * number : 2 * number + 4])
        wanted = np.array(encode(inside, clip)).mean(axis=(1, 2, 3))
        wanted[number >= lengths] = 0
        np.testing.assert_allclose(features[:, number], wanted, atol=1e-6)


def test_gradients_and_running_statistics_are_those_of_one_window_after_the_other(case):
    model, variables, video, lengths, weights = case
    encoder = model.encoder

    def scanned(params):
        features, changed = model.apply(
            variables | {"params": params}, video, lengths, True, method="features", mutable=["batch_stats"]
        )
        return (features * weights).sum(), changed["batch_stats"]["encoder"]

    def one_by_one(params):
        total, state = 0.0, variables["batch_stats"]["encoder"]
        for number in range(8):
            clip = encoder.card.preprocess(video[:, 2 * number : 2 * number + 4])
            with valid_clips(number < lengths):
                grid, changed = encoder.apply(
                    {"params": params["encoder"], "batch_stats": state}, clip, True, method="encode",
                    mutable=["batch_stats"],
                )  # fmt: skip
            state = changed["batch_stats"]
            total += (grid.mean(axis=(1, 2, 3)) * weights[:, number] * (number < lengths)[:, None]).sum()
        return total, state

    ours, theirs = (jax.jit(jax.grad(each, has_aux=True))(variables["params"]) for each in (scanned, one_by_one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
    assert not np.allclose(ours[1]["norm"]["mean"], 0)


def test_a_step_needs_hardly_more_memory_for_more_windows():
    """Beyond the frames themselves: eight times as many windows, each of which computes 32 KB."""

    def needed(steps):
        model = build(Small(hidden=1024), steps)
        inputs = [
            jax.ShapeDtypeStruct((1, *model.input_shape(steps)), jnp.uint8),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        ]
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

        def loss(params, state, video, lengths):
            features, _ = model.apply(
                {"params": params, **state}, video, lengths, True, method="features", mutable=["batch_stats"]
            )
            return features.sum()

        state = {"batch_stats": shapes["batch_stats"]}
        compiled = jax.jit(jax.grad(loss)).lower(shapes["params"], state, *inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = needed(8), needed(64)
    assert many - few < 56 * 4 * 1024  # an eighth of 56 windows' activations


def test_an_encoder_that_encodes_no_clips_is_refused():
    model = build(vidjax.create_model("dalle_decoder"))
    with pytest.raises(ValueError, match="Decoder encodes no clips: choose another encoder"):
        jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
