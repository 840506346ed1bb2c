"""Layouts of VideoMAE's weights; tests/models checks the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from safetensors.numpy import save_file

import vidjax
from vidjax.convert import from_state_dict, load_pretrained, load_weights
from vidjax.models import variable_shapes, videomae

ENCODER = {"width": 24, "depth": 2, "heads": 3, "patch_size": (2, 2, 2), "num_frames": 4, "image_size": 4}
CLASSES = ["jumping", "waving", "eating", "drumming", "yoga"]
DECODER = {"decoder_width": 12, "decoder_depth": 2, "decoder_heads": 3}

# Names of transformers 5 and of the original's files (MCG-NJU/VideoMAE), except query, key and value.
TO_ORIGINAL = (
    ("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj"),
    ("videomae.encoder.layer.", "encoder.blocks."),
    ("videomae.layernorm", "encoder.norm"),
    ("decoder.decoder_layers.", "decoder.blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.attention.query.bias", "attn.q_bias"),
    ("attention.attention.value.bias", "attn.v_bias"),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def original(weights: dict) -> dict:
    """Converts Hugging Face's pre-training weights to the original layout."""
    query, key, value = (f"attention.attention.{part}.weight" for part in ("query", "key", "value"))
    fused = dict(weights)
    for stem in [name.removesuffix(query) for name in weights if name.endswith(query)]:
        fused[f"{stem}attn.qkv.weight"] = np.concatenate([fused.pop(stem + part) for part in (query, key, value)])
    for hugging_face_name, original_name in TO_ORIGINAL:
        fused = {name.replace(hugging_face_name, original_name): array for name, array in fused.items()}
    return fused


@pytest.fixture(scope="module")
def hugging_face():
    return recipe.load("videomae_transformers").weights


@pytest.fixture(scope="module")
def pretraining():
    model = videomae.Pretraining(**ENCODER, **DECODER)
    shapes = variable_shapes(model)
    return model, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), shapes["params"])


@pytest.fixture(scope="module")
def classifier():
    model = videomae.VideoMAE(**ENCODER, num_classes=5)
    shapes = variable_shapes(model)
    return model, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), shapes["params"])


@pytest.fixture
def saved(tmp_path):
    def save(weights: dict):
        save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, tmp_path / "x.safetensors")
        return tmp_path / "x.safetensors"

    return save


def assert_same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def published_biases(weights: dict) -> dict:
    """Converts to the names of transformers before 5, which all published files have."""
    query, value = "attention.attention.query.bias", "attention.attention.value.bias"
    return {
        name.replace(query, "attention.attention.q_bias").replace(value, "attention.attention.v_bias"): array
        for name, array in weights.items()
    }


@pytest.mark.parametrize(
    "rewrite",
    [
        published_biases,
        original,
        lambda weights: {f"module.{name}": value for name, value in original(weights).items()},
        lambda weights: {f"backbone.{name}": value for name, value in original(weights).items()},
    ],
)
def test_every_layout_gives_the_same_parameters(pretraining, hugging_face, saved, rewrite):
    expected, _ = load_weights(saved(hugging_face), *pretraining)
    actual, report = load_weights(saved(rewrite(hugging_face)), *pretraining)
    assert_same(actual, expected)
    assert not report.new and not report.unused


def test_pretrained_encoder_in_a_classifier_leaves_the_head_new_and_reports_it(classifier, hugging_face, saved):
    params, report = load_weights(saved(hugging_face), *classifier)
    new = {"head/kernel", "head/bias", "head_norm/scale", "head_norm/bias"}
    left_out = {"decoder", "encoder_to_decoder", "mask_token", "layernorm"}
    assert set(report.new) == new and {name.split(".")[0] for name in report.unused} == left_out
    assert (params["head"]["kernel"] == 7.0).all() and not (params["patch_embedding"]["kernel"] == 7.0).any()
    assert str(report).startswith("loaded 32 of 36 parameters; newly initialised: head")


def encoder_alone(weights: dict) -> dict:
    """The weights of VideoMAEModel."""
    return {name.removeprefix("videomae."): value for name, value in weights.items() if name.startswith("videomae.")}


def test_encoder_in_a_pretraining_model_leaves_the_decoder_as_initialised(pretraining, hugging_face, saved):
    params, report = load_weights(saved(encoder_alone(hugging_face)), *pretraining)
    assert {path.split("/")[0] for path in report.new} == {"decoder"}
    expected, _ = load_weights(saved(hugging_face), *pretraining)
    assert_same(params["encoder"], expected["encoder"])
    assert all((leaf == 7.0).all() for leaf in jax.tree.leaves(params["decoder"]))


def test_an_encoder_without_its_norm_is_an_error_for_pretraining(pretraining, hugging_face, saved):
    weights = {name: value for name, value in hugging_face.items() if "videomae.layernorm" not in name}
    with pytest.raises(ValueError, match=r"not in the weights: encoder/norm/(scale|bias), encoder/norm"):
        load_weights(saved(weights), *pretraining)


def test_an_encoder_without_its_norm_is_an_error_with_final_norm(hugging_face, saved):
    path = saved(fine_tuned(hugging_face, classes=5))
    with pytest.raises(ValueError, match="do not fit: not in the weights: norm/"):
        load_pretrained(path, "videomae_tiny", **ENCODER, final_norm=True)
    _, variables = load_pretrained(path, "videomae_tiny", **ENCODER, num_classes=None)
    assert variables["params"].keys() == {"patch_embedding", "transformer"}


def test_an_incomplete_decoder_is_an_error(pretraining, hugging_face, saved):
    weights = {name: value for name, value in hugging_face.items() if "decoder_layers.1" not in name}
    with pytest.raises(ValueError, match="decoder/transformer/block_1"):
        load_weights(saved(weights), *pretraining)


def fine_tuned(weights: dict, classes: int) -> dict:
    """The weights of the original's classifier."""
    encoder = {
        name.removeprefix("encoder."): value
        for name, value in original(weights).items()
        if name.startswith("encoder.") and not name.startswith("encoder.norm")
    }
    shapes = {"fc_norm.weight": (24,), "fc_norm.bias": (24,), "head.weight": (classes, 24), "head.bias": (classes,)}
    return encoder | {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


def test_a_head_of_other_classes_is_new(classifier, hugging_face, saved):
    path = saved(fine_tuned(hugging_face, classes=11))
    params, report = load_weights(path, *classifier)
    assert set(report.new) == {"head/kernel", "head/bias"} and (params["head"]["bias"] == 7.0).all()
    same, report = load_weights(saved(fine_tuned(hugging_face, classes=5)), *classifier, new=["head/"])
    assert set(report.new) == {"head/kernel", "head/bias"}
    assert_same(same, params)


def test_from_state_dict_makes_a_new_head_on_request(classifier, hugging_face):
    model, weights = classifier[0], fine_tuned(hugging_face, classes=11)
    with pytest.raises(ValueError, match=r"11 classes in the weights and 5 in the model: set num_classes, or pass new"):
        from_state_dict(model, weights)
    params = from_state_dict(model, weights, new=["head"])["params"]
    assert params["head"]["kernel"].shape == (24, 5)
    same = from_state_dict(model.clone(num_classes=11), weights, strict=True)["params"]
    assert_same(params["transformer"], same["transformer"])
    encoder = from_state_dict(model.clone(num_classes=None), weights)["params"]
    assert_same(encoder["transformer"], same["transformer"])


def test_another_size_is_an_error(hugging_face, saved):
    with pytest.raises(ValueError, match=r"x\.safetensors: the weights do not fit: .*and \d+ more"):
        load_pretrained(saved(hugging_face), "videomae_tiny_pretrain")


def test_the_error_for_another_family_lists_the_nearest_names(classifier, saved):
    with pytest.raises(ValueError) as error:
        load_weights(saved({"stem.patch.weight": np.ones(3, np.float32), "z": np.ones(1, np.float32)}), *classifier)
    assert (
        "no known layout of VideoMAE fits the weights: expected an entry patch_embed.proj.weight (MCG-NJU/VideoMAE)"
        in str(error.value)
    )
    assert "the nearest of 2 names are stem.patch.weight, z" in str(error.value)


def test_one_name_with_two_prefixes_is_an_error(classifier, hugging_face, saved):
    weights = fine_tuned(hugging_face, classes=5)
    with pytest.raises(ValueError, match=r"two entries of the weights are called head\.bias"):
        load_weights(saved(weights | {"module.head.bias": np.ones(5, np.float32)}), *classifier)


def test_the_classes_are_those_of_the_weights_unless_overridden(hugging_face, saved, capsys):
    path = saved(fine_tuned(hugging_face, classes=5))
    model, variables = vidjax.load_pretrained(path, "videomae_tiny", **ENCODER, strict=True)
    assert model.num_classes == 5
    logits = jax.jit(model.apply)(variables, jnp.ones((1, 2, 4, 4, 3)))
    assert logits.shape == (1, 5) and jnp.isfinite(logits).all()
    assert "loaded 36 of 36 parameters\n" in capsys.readouterr().out
    other, other_variables = vidjax.load_pretrained(path, "videomae_tiny", **ENCODER, num_classes=7)
    assert other.num_classes == 7 and "newly initialised: head/bias, head/kernel" in capsys.readouterr().out
    assert other_variables["params"]["head"]["kernel"].std() == pytest.approx(
        2e-5, rel=0.3
    )  # the original's initialisation
    assert_same(other_variables["params"]["transformer"], variables["params"]["transformer"])
    with pytest.raises(ValueError, match="the head has 5 classes in the weights and 7 in the model: set num_classes"):
        vidjax.load_pretrained(path, "videomae_tiny", **ENCODER, num_classes=7, strict=True)


def test_strict_allows_nothing_new_or_unused(hugging_face, saved):
    path = saved(hugging_face)
    with pytest.raises(ValueError, match=r"do not fit: not in the weights: head"):
        load_pretrained(path, "videomae_tiny", **ENCODER, num_classes=5, strict=True)
    with pytest.raises(ValueError, match=r"not in the model: decoder"):
        load_pretrained(path, "videomae_tiny", **ENCODER, final_norm=True, strict=True)
    model, variables = load_pretrained(path, "videomae_tiny", **ENCODER, final_norm=True)
    assert model.num_classes is None and "norm" in variables["params"]


def test_files_saved_by_transformers_are_loaded(tmp_path):
    transformers = peers.transformers()
    import torch

    config = transformers.VideoMAEConfig(
        image_size=4, patch_size=2, num_frames=2, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, id2label=dict(enumerate(CLASSES)), use_mean_pooling=True, layer_norm_eps=1e-6,
    )  # fmt: skip
    peer = transformers.VideoMAEForVideoClassification(config).eval()
    peer.fc_norm.eps = 1e-6  # ignores the configuration
    with torch.no_grad():
        for name, value in peer.named_parameters():
            value.copy_(torch.from_numpy(recipe.parameter(name, tuple(value.shape))))
    video = recipe.floats("video", (2, 2, 4, 4, 3))
    with torch.no_grad():
        expected = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits.numpy()
    peer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]}')
    model, variables = load_pretrained(tmp_path, strict=True)
    assert model.num_classes == 5 and model.card.std == (0.1, 0.2, 0.3) and model.card.class_names[1] == "waving"
    np.testing.assert_allclose(jax.jit(model.apply)(variables, jnp.asarray(video)), expected, atol=1e-4)
