"""What the layouts of VideoMAE's weights are made of; that the numbers are right is told in tests/models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from safetensors.numpy import save_file

import vidjax
from vidjax.convert import TARGETS, load_pretrained, load_weights
from vidjax.models import videomae

ENCODER = {"width": 24, "depth": 2, "heads": 3, "patch_size": (2, 2, 2)}
DECODER = {"decoder_width": 12, "decoder_depth": 2, "decoder_heads": 3}

# Names of transformers 5 and those of the original's files (MCG-NJU/VideoMAE), query, key and value aside.
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
    """Hugging Face's pre-training weights as the original writes them."""
    query, key, value = (f"attention.attention.{part}.weight" for part in ("query", "key", "value"))
    fused = dict(weights)
    for stem in [name.removesuffix(query) for name in weights if name.endswith(query)]:
        fused[f"{stem}attn.qkv.weight"] = np.concatenate([fused.pop(stem + part) for part in (query, key, value)])
    for theirs, ours in TO_ORIGINAL:
        fused = {name.replace(theirs, ours): array for name, array in fused.items()}
    return fused


@pytest.fixture(scope="module")
def hugging_face():
    return recipe.load("videomae_transformers").weights


@pytest.fixture(scope="module")
def pretraining():
    model = videomae.Pretraining(**ENCODER, **DECODER)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *TARGETS[videomae.Pretraining].example(model))
    return model, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), shapes["params"])


@pytest.fixture(scope="module")
def classifier():
    model = videomae.VideoMAE(**ENCODER, num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *TARGETS[videomae.VideoMAE].example(model))
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
    """The names of transformers before 5, in which all published files are written."""
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
    found, report = load_weights(saved(rewrite(hugging_face)), *pretraining)
    assert_same(found, expected)
    assert not report.missing and not report.unexpected


def test_pretrained_encoder_in_a_classifier_leaves_the_head_fresh_and_says_so(classifier, hugging_face, saved):
    params, report = load_weights(saved(hugging_face), *classifier)
    fresh = {"head/kernel", "head/bias", "head_norm/scale", "head_norm/bias"}
    left_out = {"decoder", "encoder_to_decoder", "mask_token", "layernorm"}
    assert set(report.missing) == fresh and {name.split(".")[0] for name in report.unexpected} == left_out
    assert (params["head"]["kernel"] == 7.0).all() and not (params["patch_embedding"]["kernel"] == 7.0).any()
    assert str(report).startswith("loaded 32 of 36 parameters; not in the weights and left as they were: head")


def encoder_alone(weights: dict) -> dict:
    """VideoMAEModel's."""
    return {name.removeprefix("videomae."): value for name, value in weights.items() if name.startswith("videomae.")}


def test_encoder_in_a_pretraining_model_leaves_the_decoder_as_initialised(pretraining, hugging_face, saved):
    params, report = load_weights(saved(encoder_alone(hugging_face)), *pretraining)
    assert {path.split("/")[0] for path in report.missing} == {"decoder"}
    expected, _ = load_weights(saved(hugging_face), *pretraining)
    assert_same(params["encoder"], expected["encoder"])
    assert all((leaf == 7.0).all() for leaf in jax.tree.leaves(params["decoder"]))


def test_an_encoder_without_its_norm_is_refused_for_pretraining(pretraining, hugging_face, saved):
    weights = {name: value for name, value in hugging_face.items() if "videomae.layernorm" not in name}
    with pytest.raises(ValueError, match=r"left as they were: encoder/norm/(scale|bias), encoder/norm"):
        load_weights(saved(weights), *pretraining)


def test_an_encoder_without_its_norm_is_refused_where_one_is_asked_for(hugging_face, saved):
    path = saved(fine_tuned(hugging_face, classes=5))
    with pytest.raises(ValueError, match="do not fit: not in the weights and left as they were: norm/"):
        load_pretrained("videomae_tiny", path, **ENCODER, final_norm=True)
    _, variables = load_pretrained("videomae_tiny", path, **ENCODER)
    assert variables["params"].keys() == {"patch_embedding", "transformer"}


def test_half_a_decoder_is_refused(pretraining, hugging_face, saved):
    weights = {name: value for name, value in hugging_face.items() if "decoder_layers.1" not in name}
    with pytest.raises(ValueError, match="decoder/transformer/block_1"):
        load_weights(saved(weights), *pretraining)


def fine_tuned(weights: dict, classes: int) -> dict:
    """The original's classifier."""
    encoder = {
        name.removeprefix("encoder."): value
        for name, value in original(weights).items()
        if name.startswith("encoder.") and not name.startswith("encoder.norm")
    }
    shapes = {"fc_norm.weight": (24,), "fc_norm.bias": (24,), "head.weight": (classes, 24), "head.bias": (classes,)}
    return encoder | {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


def test_a_head_of_other_classes_is_refused_until_it_is_to_be_fresh(classifier, hugging_face, saved):
    path = saved(fine_tuned(hugging_face, classes=11))
    with pytest.raises(ValueError, match=r"head/kernel is \(24, 5\) in the model and \(24, 11\) in the weights"):
        load_weights(path, *classifier)
    params, report = load_weights(path, *classifier, fresh=["head/"])
    assert set(report.missing) == {"head/kernel", "head/bias"} and (params["head"]["bias"] == 7.0).all()


def test_another_size_is_refused(hugging_face, saved):
    with pytest.raises(ValueError, match=r"x\.safetensors \(Hugging Face's VideoMAE\): .*and \d+ more"):
        load_pretrained("videomae_tiny_pretrain", saved(hugging_face))


def test_another_family_is_refused_with_the_nearest_names(classifier, saved):
    with pytest.raises(ValueError) as refused:
        load_weights(saved({"stem.patch.weight": np.ones(3, np.float32), "z": np.ones(1, np.float32)}), *classifier)
    assert "holds no weights of VideoMAE: it lacks patch_embed.proj.weight" in str(refused.value)
    assert "the nearest names in it are stem.patch.weight, z" in str(refused.value)


def test_two_prefixes_of_one_name_are_refused(classifier, hugging_face, saved):
    weights = fine_tuned(hugging_face, classes=5)
    with pytest.raises(ValueError, match=r"two entries of the weights are called head\.bias"):
        load_weights(saved(weights | {"module.head.bias": np.ones(5, np.float32)}), *classifier)


def test_load_pretrained_gives_a_model_that_runs(hugging_face, saved):
    path = saved(fine_tuned(hugging_face, classes=5))
    model, variables = vidjax.load_pretrained("videomae_tiny", path, **ENCODER, num_classes=5)
    logits = jax.jit(model.apply)(variables, jnp.ones((1, 2, 4, 4, 3)))
    assert logits.shape == (1, 5) and jnp.isfinite(logits).all()


def test_load_pretrained_leaves_nothing_to_chance(hugging_face, saved):
    path = saved(hugging_face)
    with pytest.raises(ValueError, match=r"fills only a part of 'videomae_tiny' .*num_classes=None"):
        load_pretrained("videomae_tiny", path, **ENCODER, num_classes=5)
    model, variables = load_pretrained("videomae_tiny", path, **ENCODER, final_norm=True)
    assert model.num_classes is None and "norm" in variables["params"]


def test_a_module_without_published_weights_is_refused(saved):
    from vidjax.layers.transformer import Mlp

    with pytest.raises(
        ValueError, match=r"no published weights are known for Mlp: there are some for videomae\.VideoMAE"
    ):
        load_weights(saved({"a": np.ones(1, np.float32)}), Mlp(3), {})


def test_what_transformers_saves_is_read(tmp_path, hugging_face):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=4, patch_size=2, num_frames=2, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, num_labels=5, use_mean_pooling=True, layer_norm_eps=1e-6,
    )  # fmt: skip
    peer = transformers.VideoMAEForVideoClassification(config).eval()
    peer.fc_norm.eps = 1e-6  # does not ask the configuration
    with torch.no_grad():
        for name, value in peer.named_parameters():
            value.copy_(torch.from_numpy(recipe.parameter(name, tuple(value.shape))))
    video = recipe.floats("video", (2, 2, 4, 4, 3))
    with torch.no_grad():
        expected = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits.numpy()
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained("videomae_tiny", tmp_path, **ENCODER, num_classes=5)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, jnp.asarray(video)), expected, atol=1e-4)
