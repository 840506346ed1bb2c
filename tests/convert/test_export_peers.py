"""Exported weights, loaded by the target library or the original's modules, give the same outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from safetensors.numpy import load_file
from small_models import IMAGE, MODELS, TEXT, perturbed

import vidjax
from vidjax.convert import export_pretrained
from vidjax.models.video_text import VideoText

CLOSE = {"rtol": 0, "atol": 1e-4}


def clip(model) -> np.ndarray:
    size = model.image_size
    return recipe.floats("clip", (2, model.num_frames, size, size, model.channels))


def assert_equal(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


def loaded(transformers, kind: str, folder):
    """Loads a directory in transformers, and checks that it has all weights with the names that transformers writes."""
    peer, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    peer.save_pretrained(folder / "again")
    written_again, written = (load_file(file / "model.safetensors") for file in (folder / "again", folder))
    older = {"query.bias": "q_bias", "value.bias": "v_bias"} if "VideoMAE" in kind else {}  # names in published files
    for newer, name in older.items():
        written_again = {entry.replace(newer, name): value for entry, value in written_again.items()}
    assert {name: value.shape for name, value in written.items()} == {k: v.shape for k, v in written_again.items()}
    return peer.eval()


CLASSIFIERS = {
    "videomae": "VideoMAEForVideoClassification",
    "vivit": "VivitForVideoClassification",
    "timesformer": "TimesformerForVideoClassification",
    "timesformer joint": "TimesformerForVideoClassification",
    "vjepa": "VJEPA2ForVideoClassification",
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_transformers_classifies_the_same(name, tmp_path):
    transformers = peers.transformers()
    import torch

    model = MODELS[name]
    variables, video = perturbed(model), clip(model)
    export_pretrained(model, variables, tmp_path, layout="transformers")
    peer = loaded(transformers, CLASSIFIERS[name], tmp_path)
    if name == "videomae":
        peer.fc_norm.eps = 1e-6  # ignores the configuration
    with torch.no_grad():
        expected = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3)).logits.numpy()
    assert_equal(jax.jit(model.apply)(variables, jnp.asarray(video)), expected)


def test_transformers_classifies_an_image_the_same(tmp_path):
    transformers = peers.transformers()
    import torch

    model = MODELS["vit"].clone(num_frames=1)
    variables, video = perturbed(model), clip(model)
    export_pretrained(model, variables, tmp_path, layout="transformers")
    with torch.no_grad():
        peer = loaded(transformers, "ViTForImageClassification", tmp_path)
        expected = peer(torch.from_numpy(video[:, 0]).permute(0, 3, 1, 2)).logits.numpy()
    assert_equal(jax.jit(model.apply)(variables, jnp.asarray(video)), expected)


@pytest.mark.parametrize("encoder_norm", [True, False])
def test_transformers_reconstructs_the_same(encoder_norm, tmp_path):
    transformers = peers.transformers()
    import torch

    model = MODELS["videomae's pre-training"].clone(encoder_norm=encoder_norm)
    variables, video = perturbed(model), clip(model)
    export_pretrained(model, variables, tmp_path, layout="transformers")
    peer = loaded(transformers, "VideoMAEForPreTraining", tmp_path)
    peer.decoder.norm.eps = 1e-6  # ignores the configuration
    patches = model.num_frames // model.patch_size[0] * (model.image_size // model.patch_size[1]) ** 2
    masked = np.zeros((2, patches), bool)
    masked[0, ::2] = masked[1, patches // 2 :] = True
    with torch.no_grad():
        outputs = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3), torch.from_numpy(masked), return_dict=False)
    kept, dropped = (np.stack([np.flatnonzero(row == which) for row in masked]) for which in (False, True))
    predicted = jax.jit(model.apply)(variables, jnp.asarray(video), jnp.asarray(kept), jnp.asarray(dropped))
    expected = next(value for value in outputs if value.ndim == 3).numpy()
    assert_equal(predicted, expected)


def test_transformers_encodes_and_predicts_the_same(tmp_path):
    """VJEPA2Model: the encoder with its predictor, and the encoder alone."""
    transformers = peers.transformers()
    import torch

    model = MODELS["vjepa's pre-training"]
    variables, video = perturbed(model), clip(model)
    export_pretrained(model, variables, tmp_path / "both", layout="transformers")
    peer = loaded(transformers, "VJEPA2Model", tmp_path / "both")
    kept, predicted = np.arange(5).repeat(2).reshape(5, 2).T.copy(), np.array([[9, 7, 30], [8, 6, 31]])
    with torch.no_grad():
        outputs = peer(
            torch.from_numpy(video).permute(0, 1, 4, 2, 3),
            context_mask=[torch.from_numpy(kept)], target_mask=[torch.from_numpy(predicted)],
        )  # fmt: skip

    @jax.jit
    def run(variables, video):
        tokens = model.apply(variables, video, method="tokens")
        context = jnp.take_along_axis(tokens, jnp.asarray(kept)[..., None], axis=1)
        side = model.image_size // 8
        places = jnp.asarray(kept), jnp.asarray(predicted), (model.num_frames // 2, side, side)
        return tokens, model.apply(variables, context, *places, mask_index=1, method="predict")

    tokens, predictions = run(variables, jnp.asarray(video))
    assert_equal(tokens, outputs.last_hidden_state.numpy())
    assert_equal(predictions, outputs.predictor_output.last_hidden_state.numpy())
    encoder = vidjax.load_pretrained(tmp_path / "both", "vjepa2_tiny", strict=True, verbose=False,
        **{field: getattr(model, field) for field in ("width", "depth", "heads")})  # fmt: skip
    export_pretrained(*encoder, tmp_path / "encoder", layout="transformers")
    alone = loaded(transformers, "VJEPA2Model", tmp_path / "encoder")
    with torch.no_grad():
        features = alone.get_vision_features(torch.from_numpy(video).permute(0, 1, 4, 2, 3))
    assert_equal(tokens, features.numpy())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_embeds_images_and_texts_the_same(activation, tmp_path):
    transformers = peers.transformers()
    import torch

    model = VideoText(
        IMAGE.clone(heads=2, activation=activation, epsilon=1e-4), TEXT.clone(heads=2, activation=activation)
    )
    variables = perturbed(model)
    images = recipe.floats("images", (2, 1, 16, 16, 3))
    ids = np.array([[58, 3, 4, 5, 59, 0, 0], [58, 9, 59, 0, 0, 0, 0]], np.int32)
    export_pretrained(model, variables, tmp_path / "both", layout="transformers")
    peer = loaded(transformers, "CLIPModel", tmp_path / "both")
    with torch.no_grad():
        expected = peer(
            input_ids=torch.from_numpy(ids).long(), pixel_values=torch.from_numpy(images[:, 0]).permute(0, 3, 1, 2)
        )
    video, text = jax.jit(model.apply)(variables, jnp.asarray(images), jnp.asarray(ids))
    np.testing.assert_allclose(video, expected.image_embeds, **CLOSE)
    np.testing.assert_allclose(text, expected.text_embeds, **CLOSE)
    logits = model.apply(variables, video, text, method="logits")
    assert_equal(logits, expected.logits_per_image.numpy())
    for tower, kind, part in ((model.video, "Vision", "video"), (model.text, "Text", "text")):
        export_pretrained(tower, {"params": variables["params"][part]}, tmp_path / part, layout="transformers")
        alone = loaded(transformers, f"CLIP{kind}ModelWithProjection", tmp_path / part)
        assert alone.config.projection_dim == 16


@pytest.mark.parametrize("name", ["r2plus1d", "r3d", "vmz"])
def test_torchvision_gives_the_same_outputs(name, tmp_path):
    peers.torchvision()
    import record_resnet3d as recorder
    import torch

    row = {"r2plus1d": "r2plus1d_18", "r3d": "r3d_18", "vmz": "r2plus1d_34"}[name]
    model = vidjax.create_model(row, depths=(1, 1, 1, 1), num_classes=5, num_frames=4, image_size=32)
    variables, video = perturbed(model), clip(model)
    file = export_pretrained(model, variables, tmp_path, layout="vmz" if name == "vmz" else "torchvision")
    peer = recorder.build(name).eval()
    peer.load_state_dict(torch.load(file, weights_only=True), strict=True)
    with torch.no_grad():
        expected = peer(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).numpy()
    assert_equal(jax.jit(model.apply)(variables, jnp.asarray(video)), expected)


@pytest.mark.parametrize("name", ["uniformer", "uniformer split"])
def test_uniformers_module_gives_the_same_outputs(name, tmp_path):
    torch = pytest.importorskip("torch")
    from benchmark import torch_uniformer

    model = MODELS[name]
    variables, video = perturbed(model), clip(model)
    file = export_pretrained(model, variables, tmp_path, layout="original")
    peer = torch_uniformer.UniFormer(
        model.widths, model.depths, model.head_width, model.mlp_ratio, model.split, num_classes=5
    ).eval()
    peer.load_state_dict(torch.load(file, weights_only=True), strict=True)
    with torch.no_grad():
        expected = peer(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).numpy()
    assert_equal(jax.jit(model.apply)(variables, jnp.asarray(video)), expected)
