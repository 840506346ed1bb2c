"""VideoPrism against recorded outputs of transformers, and live peers."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, load_pretrained
from vidjax.convert.export import entries
from vidjax.convert.recognition import named
from vidjax.models.video_text import VideoText
from vidjax.models.videoprism import TextTower, VideoPrism, VideoTower, sinusoids

# Parameters of each row (SYSTEMS-2.md, 2.7, and the original's README). The video-text models have one more, our
# temperature. No cost is published.
COUNTS = {
    "videoprism_tiny": (95_232, None),
    "videoprism_base": (114_365_184, None),
    "videoprism_large": (353_965_056, None),
    "videoprism_tiny_lvt": (230_305, None),
    "videoprism_lvt_base": (247_623_425, None),
    "videoprism_lvt_large": (579_877_121, None),
}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def fields(c: dict) -> dict:
    return {
        "width": c["D"], "depth": c["L"], "heads": c["H"], "temporal_depth": c["tL"], "mlp_ratio": c["F"] / c["D"],
        "num_frames": c["T"], "image_size": c["S"],
    }  # fmt: skip


def test_encoder_equals_transformers():
    golden = recipe.load("videoprism")
    c, (video,) = golden.config, golden.inputs
    model = VideoPrism(**fields(c))
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(video), 2, -1)
    tokens = jax.jit(lambda v: model.apply(variables, v, method="encode"))(video)
    close(tokens.reshape(len(tokens), -1, c["D"]), golden.outputs["output0"])


def test_classifier_equals_transformers():
    golden = recipe.load("videoprism_classify")
    c, (video,) = golden.config, golden.inputs
    model = VideoPrism(**fields(c), num_classes=c["classes"])
    variables = from_state_dict(model, golden.weights, strict=True)
    logits = jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(video), 2, -1))
    close(logits, golden.outputs["output0"].reshape(logits.shape))


def test_embeddings_of_videos_and_texts_equal_transformers():
    golden = recipe.load("videoprism_clip")
    c, (video, ids, mask) = golden.config, golden.inputs
    text = TextTower(c["V"], c["ctx"], c["D"], c["xL"], c["H"], c["F"] / c["D"], frequencies="transformers")
    model = VideoText(VideoTower(**fields(c), joint_depth=c["aux"]), text)
    variables = from_state_dict(model, golden.weights, strict=True)
    videos, texts = jax.jit(model.apply)(
        variables, jnp.moveaxis(jnp.asarray(video), 2, -1), jnp.asarray(np.where(mask, ids, 0))
    )
    for ours, number in ((videos, 0), (texts, 1), (videos @ texts.T, 2)):
        close(ours, golden.outputs[f"output{number}"])


def test_a_directory_of_transformers_loads_and_its_other_sinusoids_are_refused(tmp_path):
    transformers = peers.transformers()
    import torch

    config = transformers.VideoPrismConfig(
        vision_config={
            "hidden_size": 48, "num_spatial_layers": 1, "num_temporal_layers": 1, "num_auxiliary_layers": 1,
            "num_attention_heads": 3, "intermediate_size": 96, "image_size": 36, "num_frames": 2,
        },
        text_config={
            "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 96,
            "vocab_size": 50, "max_position_embeddings": 8,
        },
    )  # fmt: skip
    peer = transformers.VideoPrismClipModel(config).eval()
    positions = peer.text_model.embeddings.position_embedding
    with torch.no_grad():
        for name, value in peer.named_parameters():
            value.copy_(torch.from_numpy(recipe.parameter(name, tuple(value.shape))))
    peer.save_pretrained(tmp_path / "a")
    model, variables = load_pretrained(tmp_path / "a", strict=True, verbose=False)
    assert model.text.frequencies == "transformers"
    # Another size and number of frames: positions are resized with antialiasing.
    video, ids = recipe.floats("video", (1, 3, 54, 36, 3)), np.array([[5, 7, 9, 0, 0]])
    with torch.no_grad():
        expected = peer(
            torch.from_numpy(video).permute(0, 1, 4, 2, 3), torch.from_numpy(ids), torch.from_numpy(1 * (ids > 0)),
            interpolate_pos_encoding=True,
        )  # fmt: skip
    videos, texts = jax.jit(model.apply)(variables, jnp.asarray(video), jnp.asarray(ids))
    close(videos, expected.video_embeds.numpy())
    close(texts, expected.text_embeds.numpy())
    positions.copy_(torch.from_numpy(sinusoids(8, 48, "original")))
    peer.save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="not those of frequencies='transformers': give text="):
        load_pretrained(tmp_path / "b", verbose=False)
    other, loaded = load_pretrained(tmp_path / "b", strict=True, verbose=False, text={"frequencies": "original"})
    with torch.no_grad():
        expected = peer.get_text_features(torch.from_numpy(ids), torch.from_numpy(1 * (ids > 0))).pooler_output
    close(jax.jit(lambda i: other.apply(loaded, i, method="embed_text"))(jnp.asarray(ids)), expected.numpy())


def test_names_and_shapes_are_those_of_the_original():
    """As its modules name them, with the layers of a stack in one array."""
    model = vidjax.create_model("videoprism_tiny_lvt")
    weights = entries(named(model, "original")[0], model, perturbed(model))
    assert all(name.startswith("params/") for name in weights)
    shapes = {name.removeprefix("params/"): value.shape for name, value in weights.items()}
    stack = "vision_encoder/spatial_encoder/transformers_stack/x_layers"
    assert shapes["vision_encoder/patch_projection/linear/kernel"] == (192, 48)
    assert shapes["vision_encoder/spatial_pos_emb/emb_var"] == (16, 48)
    assert shapes[f"{stack}/self_attention/query/w"] == shapes[f"{stack}/self_attention/post/w"] == (2, 48, 4, 12)
    assert shapes[f"{stack}/self_attention/key/b"] == (2, 4, 12)
    assert shapes[f"{stack}/ff_layer/ffn_layer1/linear/kernel"] == (2, 48, 192)
    assert shapes["contrastive_vision_pooler/pooling_attention_query"] == (1, 48)
    assert shapes["contrastive_vision_pooler/pooling_attention/value/w"] == (48, 4, 48)
    assert shapes["contrastive_vision_pooler/pooling_attention/per_dim_scale/per_dim_scale"] == (48,)
    assert shapes["text_encoder/cls_emb"] == (1, 1, 48) and "logit_scale" not in str(shapes)


def test_padding_does_not_change_a_text_and_other_words_do():
    model = vidjax.create_model("videoprism_tiny_lvt")
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    ids = jnp.asarray([[5, 7, 9, 0, 0, 0], [5, 7, 9, 11, 0, 0]])
    embed = jax.jit(lambda ids: model.apply(variables, ids, method="embed_text"))
    one, other = embed(ids)
    assert not np.allclose(one, other, atol=1e-3)
    np.testing.assert_allclose(embed(ids[:1, :3])[0], one, atol=1e-6)


def test_original_frequencies_include_both_ends():
    table = sinusoids(2, 8, "original")
    np.testing.assert_allclose(table[1, :4], np.sin([1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4]), rtol=1e-5)
    np.testing.assert_allclose(sinusoids(2, 8, "transformers")[1, :4], np.sin([1, 0.1, 0.01, 0.001]), rtol=1e-5)
