"""DALL-E's transformer: beside a forward pass in NumPy, and written token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import perturbed

import vidjax
from vidjax.errors import UserError
from vidjax.evaluation.generation import beam_search
from vidjax.objectives.tokens import text_to_image_loss
from vidjax.runs.generation import begin

SMALL = {"vocabulary": 11, "context": 6, "tokens": 7, "side": 3, "width": 16, "depth": 2, "heads": 2}
IDS = np.array([[1, 5, 9, 2, 0, 0], [1, 3, 0, 8, 0, 2]])  # zeros are padding at the end, and words within a text


@pytest.fixture(scope="module")
def network():
    model = vidjax.create_model("dalle_gpt_tiny", **SMALL)
    return model, perturbed(model), np.random.default_rng(0).integers(0, 7, (2, 9))


def in_numpy(params, ids, tokens):
    """The logits of all places."""

    def norm(x, layer):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * layer["scale"] + layer["bias"]

    def linear(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    words = params["word_embedding"]["embedding"][ids]
    words[0, 4:] = params["padding"][4:]
    places = params["row"][:, None] + params["column"][None]
    image = params["token_embedding"]["embedding"][tokens] + places.reshape(-1, places.shape[-1])
    x = np.concatenate([words + params["position"], image], axis=1)
    for number in range(SMALL["depth"]):
        block = params["transformer"][f"block_{number}"]
        y, attention = norm(x, block["norm1"]), block["attention"]
        query, key, value = (
            linear(y, attention[name]).reshape(*y.shape[:2], 2, 8).swapaxes(1, 2) for name in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(8)
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ value
        x = x + linear(mixed.swapaxes(1, 2).reshape(y.shape), attention["out"])
        hidden = linear(norm(x, block["norm2"]), block["mlp"]["fc1"])
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(hidden, block["mlp"]["fc2"])
    x = norm(x, params["norm"])
    return linear(x, params["word_head"]), linear(x, params["token_head"])


def test_logits_are_those_of_the_word_or_token_after_each(network):
    model, variables, tokens = network
    words, image = jax.jit(model.apply)(variables, IDS, tokens)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    all_words, all_tokens = in_numpy(params, IDS, tokens)
    np.testing.assert_allclose(words, all_words[:, :5], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(image, all_tokens[:, 5:-1], rtol=1e-4, atol=1e-4)


def test_the_likeliest_pictures_are_those_of_a_search_without_a_cache(network):
    model, variables, _ = network
    variables = jax.tree.map(jnp.asarray, variables)
    drawn, _ = jax.jit(lambda ids: beam_search(*begin(model, variables, ids), length=9, end=7))(IDS)
    forward, tokens = jax.jit(model.apply), np.zeros((2, 9), int)
    for place in range(9):
        tokens[:, place] = forward(variables, IDS, tokens)[1][:, place].argmax(axis=-1)
    np.testing.assert_array_equal(drawn, tokens)
    assert len(np.unique(tokens)) > 1


def test_the_loss_weighs_real_words_and_all_tokens():
    draw = np.random.default_rng(1)
    words, image, tokens = draw.normal(size=(2, 5, 11)), draw.normal(size=(2, 9, 7)), draw.integers(0, 7, (2, 9))
    loss, of_words, of_image = text_to_image_loss(*map(jnp.asarray, (words, image, IDS, tokens)))
    for row, count in enumerate((3, 5)):
        likelihoods = words[row] - np.log(np.exp(words[row]).sum(-1, keepdims=True))
        expected = -np.mean([likelihoods[i, IDS[row, i + 1]] for i in range(count)])
        drawn = image[row] - np.log(np.exp(image[row]).sum(-1, keepdims=True))
        other = -np.mean([drawn[i, tokens[row, i]] for i in range(9)])
        np.testing.assert_allclose([of_words[row], of_image[row]], [expected, other], rtol=1e-5)
        np.testing.assert_allclose(loss[row], expected / 8 + other * 7 / 8, rtol=1e-5)


def test_texts_and_images_of_another_size_are_one_line(network):
    model, variables, tokens = network
    with pytest.raises(UserError, match="the texts have 4 tokens, padding included: the model takes 6"):
        jax.eval_shape(model.apply, variables, IDS[:, :4], tokens)
    with pytest.raises(UserError, match="the images have 8 tokens: the model takes 3x3"):
        jax.eval_shape(model.apply, variables, IDS, tokens[:, :8])
