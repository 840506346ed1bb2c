"""vidjax's own checkpoint format: exact round trips, and errors for damaged or contradictory checkpoints."""

import dataclasses
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.convert import save_pretrained
from vidjax.errors import UserError
from vidjax.models import example_inputs, variable_shapes

SIZES = {"width": 24, "depth": 1, "heads": 3, "num_frames": 4, "image_size": 32}


@pytest.fixture(scope="module")
def model():
    model = vidjax.create_model("videomae_tiny", **SIZES, num_classes=2, dtype=jnp.bfloat16)
    return model.clone(card=dataclasses.replace(model.card, class_names=("jump", "wave"), mean=(0.1, 0.2, 0.3)))


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(model.init)(jax.random.key(1), jnp.zeros(example_inputs(model)[0].shape))


@pytest.fixture
def saved(model, variables, tmp_path):
    save_pretrained(tmp_path / "saved", model, variables)
    return tmp_path / "saved"


def test_a_round_trip_preserves_model_and_variables(model, variables, saved, tmp_path, capsys):
    again, loaded = vidjax.load_pretrained(saved, strict=True)
    assert again == model.clone(dtype=None)  # dtype is not saved
    expected, restored = flatten_dict(variables), flatten_dict(loaded)
    assert expected.keys() == restored.keys()
    for path, leaf in expected.items():
        assert leaf.dtype == restored[path].dtype
        np.testing.assert_array_equal(leaf, restored[path])
    save_pretrained(tmp_path / "twice", again, loaded)
    for name in ("model.safetensors", "vidjax.json"):
        assert (saved / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert "(vidjax's own) in VideoMAE: loaded" in capsys.readouterr().out


def test_a_checkpoint_of_an_earlier_version_keeps_its_test_clips(saved):
    """Its card says nothing of the published test, whose rules the model's card may have today."""
    description = json.loads((saved / "vidjax.json").read_text())
    card = description["fields"]["card"]
    assert card.pop("protocol") == "videomae"
    for field in ("rate", "test_size", "test_frames", "sampling", "views", "average"):
        del card[field]
    (saved / "vidjax.json").write_text(json.dumps(description))
    card = vidjax.load_pretrained(saved)[0].card
    assert (card.mean, card.class_names, card.protocol, card.views) == ((0.1, 0.2, 0.3), ("jump", "wave"), "vidjax", "")
    assert (card.sampling, card.average, card.rate, card.test_size) == ("dense", "softmax", None, None)


def test_other_classes_get_a_new_head_and_no_class_names(variables, saved):
    model, loaded = vidjax.load_pretrained(saved, num_classes=7)
    assert loaded["params"]["head"]["kernel"].shape == (24, 7) and model.card.class_names == ()
    assert model.card.mean == (0.1, 0.2, 0.3)
    kernel = ("params", "patch_embedding", "kernel")
    np.testing.assert_array_equal(flatten_dict(loaded)[kernel], flatten_dict(variables)[kernel])


def test_existing_files_are_never_overwritten(model, variables, saved):
    with pytest.raises(UserError, match="is not an empty directory: give another one, nothing is overwritten"):
        save_pretrained(saved, model, variables)
    with pytest.raises(UserError, match=r"model\.safetensors is not an empty directory"):
        save_pretrained(saved / "model.safetensors", model, variables)


def test_variables_that_do_not_fit_the_model_are_not_saved(model, variables, tmp_path):
    with pytest.raises(ValueError, match=r"the variables are not those of the VideoMAE: \S+ is missing, of another"):
        save_pretrained(tmp_path / "saved", model, variables["params"])
    with pytest.raises(
        ValueError, match=r"VideoMAE: params/head/bias is missing, of another shape or unexpected; pass"
    ):
        save_pretrained(tmp_path / "saved", model.clone(num_classes=3), variables)
    assert not (tmp_path / "saved").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make \S+saved \(Not a directory\): give another directory"):
        save_pretrained(tmp_path / "file" / "saved", model, variables)


def test_missing_safetensors_is_an_error(model, variables, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(UserError, match="writing a checkpoint needs safetensors: pip install safetensors"):
        save_pretrained(tmp_path / "saved", model, variables)


@pytest.mark.usefixtures("unchecked")
def test_which_must_be_best_or_last(saved):
    with pytest.raises(ValueError, match="which is 'latest': choose one of best, last"):
        vidjax.load_pretrained(saved, which="latest")


def test_a_truncated_file_is_an_error(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        vidjax.load_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda description: description | {"module": "videomae.Other"}, "videomae.Other"),
        (lambda description: description | {"fields": description["fields"] | {"colour": 1}}, "colour"),
        (lambda description: {}, "module"),
    ],
)
def test_an_invalid_description_is_an_error(saved, change, message):
    file = saved / "vidjax.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=rf"vidjax\.json does not describe a model of this version .*{message}"):
        vidjax.load_pretrained(saved)


def test_a_checkpoint_of_another_family_is_an_error(saved):
    with pytest.raises(ValueError, match="this is a checkpoint of VideoMAE, not of Pretraining"):
        vidjax.load_pretrained(saved, "videomae_tiny_pretrain")


def test_an_unknown_field_is_the_same_error_as_in_create_model(saved):
    with pytest.raises(ValueError, match="model 'VideoMAE' has no field 'num_class': its fields are width, depth"):
        vidjax.load_pretrained(saved, num_class=3)


def save(directory, name: str, **fields):
    """A checkpoint of a new model."""
    model = vidjax.create_model(name, **fields)
    shapes = variable_shapes(model)
    save_pretrained(directory, model, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes))
    return model


def test_a_name_that_contradicts_the_checkpoint_is_an_error(tmp_path):
    saved = save(tmp_path / "s", "s3d_tiny", num_classes=3, padding="tensorflow")
    message = "s3d_tiny has padding 'symmetric', the weights are of a model with 'tensorflow': omit the name, or give"
    with pytest.raises(ValueError, match=message):
        vidjax.load_pretrained(tmp_path / "s", "s3d_tiny")
    assert vidjax.load_pretrained(tmp_path / "s", "s3d_tiny", padding="tensorflow")[0] == saved
    assert vidjax.load_pretrained(tmp_path / "s", "s3d_tiny", padding="symmetric")[0].padding == "symmetric"
    save(tmp_path / "t", "timesformer_tiny_divided", width=24, depth=1, heads=2, num_classes=3)
    with pytest.raises(ValueError, match="timesformer_tiny_divided has heads 6, the weights are of a model with 2"):
        vidjax.load_pretrained(tmp_path / "t", "timesformer_tiny_divided", width=24, depth=1)
    with pytest.raises(ValueError, match=r"timesformer_tiny_joint has attention 'joint', .* with 'divided'"):
        vidjax.load_pretrained(tmp_path / "t", "timesformer_tiny_joint", width=24, depth=1, heads=2)


def test_a_named_model_keeps_the_clip_size_of_the_checkpoint(tmp_path):
    fields = {"width": 24, "depth": 1, "heads": 2}
    save(
        tmp_path / "t", "timesformer_tiny_divided", **fields, num_classes=3, num_frames=4, image_size=16, drop_path=0.3
    )
    model, _ = vidjax.load_pretrained(tmp_path / "t", "timesformer_tiny_divided", **fields, image_size=24)
    assert (model.num_frames, model.image_size, model.drop_path, model.num_classes) == (4, 24, 0.3, 3)


def test_half_precision_is_loaded_as_float32_with_the_same_values(model, variables, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    save_pretrained(tmp_path / "half", model, half)
    _, loaded = vidjax.load_pretrained(tmp_path / "half", strict=True)
    for path, leaf in flatten_dict(loaded).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, flatten_dict(half)[path].astype(jnp.float32))


def test_tables_are_resized_to_other_clips(tmp_path, capsys):
    model = vidjax.create_model("timesformer_tiny_joint", width=24, depth=1, heads=3, num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(example_inputs(model)[0].shape))
    variables["params"]["time"]["table"] = jnp.arange(8.0)[:, None] * jnp.ones(24)
    save_pretrained(tmp_path / "clips", model, variables)
    longer, loaded = vidjax.load_pretrained(tmp_path / "clips", num_frames=16, image_size=64)
    assert "resized: position/table (4, 4, 24) -> (8, 8, 24), time/table (8, 24) -> (16, 24)" in capsys.readouterr().out
    np.testing.assert_array_equal(loaded["params"]["time"]["table"][:, 0], np.arange(16) // 2)
    video = jnp.ones((1, 16, 64, 64, 3))  # resizing when loading and in every call are the same
    one, other = jax.jit(longer.apply)(loaded, video), jax.jit(model.apply)(variables, video)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_classifier_is_initialised_from_our_own_pretraining(tmp_path, capsys):
    fields = SIZES | {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2}
    pretraining = vidjax.create_model("videomae_tiny_pretrain", **fields)
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(pretraining)]
    variables = jax.jit(pretraining.init)(jax.random.key(0), *inputs)
    save_pretrained(tmp_path / "mae", pretraining, variables)
    _, loaded = vidjax.load_pretrained(tmp_path / "mae", "videomae_tiny", **SIZES, num_classes=3)
    output = capsys.readouterr().out
    assert "newly initialised: head/" in output and "unused: params/decoder" in output
    for part in ("patch_embedding", "transformer"):
        jax.tree.map(np.testing.assert_array_equal, loaded["params"][part], variables["params"]["encoder"][part])


def test_batch_statistics_are_saved(tmp_path):
    model = vidjax.create_model("r3d_tiny", num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(example_inputs(model)[0].shape))
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)
    save_pretrained(tmp_path / "conv", model, variables)
    again, loaded = vidjax.load_pretrained(tmp_path / "conv", strict=True)
    assert again == model and loaded["batch_stats"]["stem_norm"]["mean"][0] == 0.5
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(ValueError, match="this is a checkpoint of ResNet3D, not of UniFormer"):
        vidjax.load_pretrained(tmp_path / "conv", "uniformer_tiny")


def test_a_run_must_be_converted_first(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"is a run: convert it with experiments/convert_weights\.py"):
        vidjax.load_pretrained(tmp_path, "videomae_tiny")


def test_a_module_of_another_library_is_an_error_before_anything_is_written(tmp_path):
    class Mine(nn.Module):
        pass

    with pytest.raises(
        ValueError, match="Mine is not one of vidjax's modules, so it could not be rebuilt when loading"
    ):
        save_pretrained(tmp_path, Mine(), {"params": {}})
    assert not any(tmp_path.iterdir())
