"""DALL-E's discrete VAE against the original's recorded encoder, and its decoder in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import export_pretrained, from_state_dict
from vidjax.models.dalle import CARD, Decoder, Encoder, pixels

# Parameters of the encoder and the decoder (SYSTEMS-2.md, 2.5); the others are counted here. No cost is published.
COUNTS = {
    "dalle_encoder": (53_786_240, None),
    "dalle_decoder": (43_829_766, None),
    "dalle": (97_616_006, None),
    "dalle_small": (3_190_630, None),
    "dalle_tiny": (167_950, None),
}


def test_the_encoder_equals_the_original():
    golden = recipe.load("dalle_encoder")
    c, (image,) = golden.config, golden.inputs
    model = Encoder(c["n_hid"], c["blocks"], c["V"])
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None]
    logits, tokens = jax.jit(lambda v: (model.apply(v, video), model.apply(v, video, method="tokens")))(variables)
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(jnp.moveaxis(logits[:, 0], -1, 1), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(tokens[:, 0], golden.outputs["output1"])


def decoder_of_torch(weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """The decoder as SYSTEMS-2.md describes it, of four groups of one block, for weights with the original's names."""
    torch = pytest.importorskip("torch")
    conv2d, relu = torch.nn.functional.conv2d, torch.relu

    def convolve(x, name):
        kernel = torch.from_numpy(weights[f"{name}.w"])
        return conv2d(x, kernel, torch.from_numpy(weights[f"{name}.b"]), padding=kernel.shape[-1] // 2)

    x = convolve(torch.from_numpy(tokens).permute(0, 3, 1, 2), "blocks.input")
    for group in range(1, 5):
        name = f"blocks.group_{group}.block_1"
        branch = x
        for number in range(1, 5):
            branch = convolve(relu(branch), f"{name}.res_path.conv_{number}")
        x = convolve(x, f"{name}.id_path") + branch / 16
        if group < 4:
            x = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    return convolve(relu(x), "blocks.output.conv").permute(0, 2, 3, 1).numpy()


def test_the_decoder_equals_torch_and_its_pixels_are_scaled_back(tmp_path):
    torch = pytest.importorskip("torch")
    model = Decoder(width=8, table_width=12, depth=1, vocabulary=10, image_size=16)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    weights = torch.load(export_pretrained(model, variables, tmp_path, layout="original"), weights_only=True)
    tokens = np.array(jax.nn.one_hot(recipe.floats("tokens", (3, 2, 2)).argsort(axis=0) * 3, 10))
    expected = decoder_of_torch({name: value.numpy() for name, value in weights.items()}, tokens)
    ours = jax.jit(model.apply)(variables, jnp.asarray(tokens)[:, None])[:, 0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    means = 1 / (1 + np.exp(-expected[..., :3]))
    np.testing.assert_allclose(pixels(ours), np.clip((means - 0.1) / 0.8, 0, 1), atol=1e-5)


def test_pixels_are_scaled_as_in_the_original():
    image = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(CARD.preprocess(image), [[0.1, 0.26, 0.9]], rtol=1e-6)


def test_the_encoder_of_the_autoencoder_is_that_of_the_published_file():
    model = vidjax.create_model("dalle_tiny")
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video = jnp.asarray(recipe.floats("video", (2, 3, 16, 24, 3)))
    tokens, map_, decoded = jax.jit(
        lambda v: (*(model.apply(v, video, method=m) for m in ("tokens", "encode")), model.apply(v, video))
    )(variables)
    assert tokens.shape == (2, 3, 2, 3) and map_.shape == (2, 3, 2, 3, 128) and decoded.shape == (2, 3, 16, 24, 6)
    encoder = Encoder(model.width, model.depth, model.vocabulary)
    params = {"params": variables["params"]["encoder"]}
    np.testing.assert_array_equal(jax.jit(lambda v: encoder.apply(v, video, method="tokens"))(params), tokens)


@pytest.mark.parametrize("shape", [(1, 1, 20, 16, 3), (1, 1, 16, 16, 4)])
def test_bad_input_is_one_line(shape):
    model = vidjax.create_model("dalle_tiny")
    with pytest.raises(ValueError, match=r"use a multiple of 8, such as 16 or 24|the model takes"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
