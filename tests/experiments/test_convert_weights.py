"""Published weights, and a run's, as a vidjax checkpoint that loads in one line."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from small_runs import changed

import vidjax
from vidjax.convert import files, from_state_dict
from vidjax.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import convert_weights
import mae_pretrain


@pytest.fixture
def published(tmp_path):
    """A narrow R(2+1)D in torchvision's names, and what it must become."""
    golden = recipe.load("resnet3d_r2plus1d")
    file = tmp_path / "r2plus1d.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in golden.weights.items()}, file)
    return file, golden


def test_published_weights_are_converted_to_a_checkpoint(published, tmp_path, capsys):
    file, golden = published
    # One block a group, which no variant has: the command line knows variants, a checkpoint of ours any fields.
    model = vidjax.create_model("r2plus1d_18", depths=(1, 1, 1, 1), num_classes=5)
    variables = from_state_dict(model, golden.weights, strict=True)
    vidjax.save_pretrained(tmp_path / "narrow", model, variables)
    convert_weights.main(convert_weights.Config(str(tmp_path / "narrow"), str(tmp_path / "out"), strict=True))
    assert "load it with vidjax.load_pretrained(" in capsys.readouterr().out
    again, loaded = vidjax.load_pretrained(tmp_path / "out", strict=True)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(ValueError, match="does not describe its model: give name="):
        convert_weights.main(convert_weights.Config(str(file), str(tmp_path / "new")))
    with pytest.raises(ValueError, match="weights do not fit"):
        convert_weights.main(convert_weights.Config(str(file), str(tmp_path / "new"), name="r2plus1d_18"))
    with pytest.raises(UserError, match="nothing is overwritten"):
        convert_weights.main(convert_weights.Config(str(tmp_path / "narrow"), str(tmp_path / "out")))
    assert not (tmp_path / "new").exists()


def test_the_head_is_reduced_to_the_classes_of_a_file(published, tmp_path):
    _, golden = published
    model = vidjax.create_model("r2plus1d_18", depths=(1, 1, 1, 1), num_classes=5)
    model = model.clone(card=dataclasses.replace(model.card, class_names=("a", "b", "c c", "d", "e")))
    variables = from_state_dict(model, golden.weights, strict=True)
    vidjax.save_pretrained(tmp_path / "merged", model, variables)
    (tmp_path / "classes.json").write_text('["E", "c_c"]')
    config = convert_weights.Config(
        str(tmp_path / "merged"), str(tmp_path / "out"), classes=str(tmp_path / "classes.json")
    )
    convert_weights.main(config)
    smaller, loaded = vidjax.load_pretrained(tmp_path / "out", strict=True)
    assert smaller.card.class_names == ("E", "c_c") and smaller.num_classes == 2
    whole = variables["params"]["head"]
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], whole["kernel"][:, [4, 2]])
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], whole["bias"][jnp.array([4, 2])])
    for classes, message in (('["E", "f"]', "lacks 1 of the 2 classes, 'f'"), (None, "classes .* cannot be read")):
        (tmp_path / "classes.json").write_text(classes) if classes else (tmp_path / "classes.json").unlink()
        with pytest.raises(UserError, match=message):
            convert_weights.main(dataclasses.replace(config, out=str(tmp_path / "new")))
    with pytest.raises(UserError, match="classes and num_classes exclude each other"):
        dataclasses.replace(config, num_classes=2)


def test_a_head_without_names_gets_those_of_a_file(published, tmp_path):
    """And can then be reduced to some of them, in the same command."""
    _, golden = published
    model = vidjax.create_model("r2plus1d_18", depths=(1, 1, 1, 1), num_classes=5)
    vidjax.save_pretrained(tmp_path / "unnamed", model, from_state_dict(model, golden.weights, strict=True))
    (tmp_path / "all.json").write_text('["a", "b", "c", "d", "e"]')
    (tmp_path / "some.json").write_text('["d", "a"]')
    config = convert_weights.Config(
        str(tmp_path / "unnamed"), str(tmp_path / "out"), classes=str(tmp_path / "some.json")
    )
    with pytest.raises(UserError, match="the model has no class names to choose from"):
        convert_weights.main(config)
    convert_weights.main(dataclasses.replace(config, class_names=str(tmp_path / "all.json")))
    smaller, loaded = vidjax.load_pretrained(tmp_path / "out", strict=True, verbose=False)
    assert smaller.card.class_names == ("d", "a")
    kernel = from_state_dict(model, golden.weights)["params"]["head"]["kernel"]
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], kernel[:, [3, 0]])
    with pytest.raises(UserError, match="class_names has 2 names, but the head has 5 classes"):
        convert_weights.main(
            dataclasses.replace(config, out=str(tmp_path / "new"), class_names=str(tmp_path / "some.json"))
        )


@pytest.mark.filterwarnings("error")  # such as of PyTorch, about arrays that are read-only
def test_weights_are_exported_for_other_libraries(published, tmp_path, capsys):
    _, golden = published
    model = vidjax.create_model("r2plus1d_18", depths=(1, 1, 1, 1), num_classes=5)
    vidjax.save_pretrained(tmp_path / "narrow", model, from_state_dict(model, golden.weights, strict=True))
    config = convert_weights.Config(str(tmp_path / "narrow"), str(tmp_path / "out"), layout="torchvision")
    convert_weights.main(config)
    assert "in the layout torchvision): load it with vidjax.load_pretrained(" in capsys.readouterr().out
    written = files.read(tmp_path / "out")
    assert written.keys() == golden.weights.keys()
    for name, value in golden.weights.items():
        np.testing.assert_array_equal(written[name], value)
    with pytest.raises(UserError, match=r"layout is 'caffe': ResNet3D has torchvision, vidjax$"):
        convert_weights.main(dataclasses.replace(config, out=str(tmp_path / "new"), layout="caffe"))
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_a_run_is_converted_to_a_checkpoint(tmp_path):
    small = {"data__frames": 4, "data__size": 32, "data__short_side": 32, "data__workers": 1, "picture_clips": 0}
    config = changed(mae_pretrain.RECIPES["demo"], **small, steps=1, batch_size=8, probe_clips=0)
    mae_pretrain.main(changed(config, workdir=str(tmp_path / "run")))
    convert_weights.main(convert_weights.Config(str(tmp_path / "run"), str(tmp_path / "out")))
    model, variables = vidjax.load_pretrained(tmp_path / "out", strict=True)
    assert model == vidjax.create_model(f"{config.model}_pretrain")
    kernel = flatten_dict(variables, sep="/")["params/encoder/patch_embedding/kernel"]
    assert jnp.isfinite(kernel).all() and kernel.any()
