"""Layouts of V-JEPA 2's weights; tests/models checks the outputs."""

import json

import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_models import MODELS, variables_of

from vidjax.convert import export_pretrained, files, from_state_dict, layouts, load_pretrained
from vidjax.convert.export import entries
from vidjax.errors import UserError
from vidjax.models.vjepa import VJEPA, Pretraining

PREFIX = {"encoder": "encoder.module.backbone.", "target_encoder": "target_encoder.module.backbone."}


def models(golden) -> tuple[VJEPA, Pretraining]:
    c = golden.config
    fields = {"width": c["D"], "depth": c["L"], "heads": c["H"], "patch_size": (2, c["P"], c["P"])}
    fields |= {"num_frames": c["T"], "image_size": c["S"]}
    predictor = {"predictor_width": c["pD"], "predictor_depth": c["pL"], "predictor_heads": c["pH"]}
    return VJEPA(**fields), Pretraining(**fields, **predictor, mask_tokens=c["M"])


def as_published(weights: dict) -> dict:
    """A golden's entries as in the original's checkpoints, in which each part is wrapped."""
    return {f"{name.split('.')[0]}.module.backbone.{name.split('.', 1)[1]}": value for name, value in weights.items()}


def written(model, variables: dict, key: str) -> dict:
    return entries(next(layout for layout in layouts(model) if layout.key == key), model, variables)


def assert_same(actual: dict, expected: dict) -> None:
    assert {name: value.shape for name, value in actual.items()} == {k: v.shape for k, v in expected.items()}
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_names_and_values_are_those_of_the_original():
    """A checkpoint of pre-training, with and without what its wrappers add to the names."""
    golden = recipe.load("vjepa2_train")
    encoder, model = models(golden)
    published = as_published(golden.weights)
    both = {name: value for name, value in published.items() if not name.startswith("target")}
    averaged = {name: value for name, value in published.items() if name.startswith("target")}
    for weights in (golden.weights, published):
        assert_same(written(model, from_state_dict(model, weights, strict=True), "original"), both)
        assert_same(written(encoder, from_state_dict(encoder, weights, strict=True), "original"), averaged)
    alone = {name: value for name, value in both.items() if name.startswith("encoder")}  # without a moving average
    loaded = written(encoder, from_state_dict(encoder, alone, strict=True), "original")
    assert_same(loaded, {f"target_{name}": value for name, value in alone.items()})


def test_names_and_values_are_those_of_transformers():
    golden = recipe.load("vjepa2")
    _, model = models(golden)
    assert_same(written(model, from_state_dict(model, golden.weights, strict=True), "transformers"), golden.weights)
    golden = recipe.load("vjepa2_classify")
    encoder, _ = models(golden)
    classifier = encoder.clone(num_classes=golden.config["classes"], pooler_depth=golden.config["A"])
    exported = written(classifier, from_state_dict(classifier, golden.weights, strict=True), "transformers")
    predictor = "vjepa2.predictor."  # classification does not use it: it is written without blocks
    assert_same(
        *({k: v for k, v in each.items() if not k.startswith(predictor)} for each in (exported, golden.weights))
    )
    assert {name for name in exported if name.startswith(predictor)} == {
        name for name in golden.weights if name.startswith(predictor) and ".layer." not in name
    }


def test_a_lost_block_is_an_error():
    golden = recipe.load("vjepa2_train")
    for model, part in zip(models(golden), ("target_encoder.blocks.1.", "predictor.predictor_blocks.1."), strict=True):
        weights = {name: value for name, value in golden.weights.items() if not name.startswith(part)}
        with pytest.raises(UserError, match=r"do not fit: not in the weights: .*transformer/block_1/"):
            from_state_dict(model, weights)


def test_the_first_vjepa_is_refused():
    """Its entries have the same names, but its position table is needed; V-JEPA 2's files may have an unused one."""
    golden = recipe.load("vjepa2_train")
    encoder, _ = models(golden)
    table = {"encoder.pos_embed": np.zeros((1, 8, 48), np.float32)}
    table |= {"target_encoder.pos_embed": table["encoder.pos_embed"]}
    from_state_dict(encoder, golden.weights | table, strict=True)
    two = {name: value for name, value in golden.weights.items() if not name.endswith("mask_tokens.2")}
    with pytest.raises(UserError, match="the weights are of the first V-JEPA, without rotary positions: give"):
        from_state_dict(encoder, two | table)


def test_files_of_an_encoder_and_a_probe_are_joined(tmp_path):
    torch = pytest.importorskip("torch")
    model, variables = MODELS["vjepa"], variables_of("vjepa")
    path = export_pretrained(model, variables, tmp_path / "out", layout="original")
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"target_encoder", "classifiers"} and len(content["classifiers"]) == 1
    assert "module.pooler.query_tokens" in content["classifiers"][0]
    torch.save({"target_encoder": content["target_encoder"], "epoch": 3}, tmp_path / "encoder.pt")
    torch.save({"classifiers": content["classifiers"] * 2, "opt": [{}]}, tmp_path / "probe.pt")
    notes = []
    joined = files.read(tmp_path / "encoder.pt") | files.read(tmp_path / "probe.pt", notes.append)
    assert notes == ["the weights are read from the first of the file's 2 classifiers"]
    loaded = from_state_dict(model, joined, strict=True)
    assert_same(flatten_dict(loaded, sep="/"), flatten_dict(variables, sep="/"))
    with pytest.raises(UserError, match="no known layout of VJEPA fits"):
        load_pretrained(tmp_path / "probe.pt", "vjepa2_tiny", num_classes=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooler_heads": 4}, "pooler_heads is 4, but in transformers it is that of the encoder, 3: use original"),
        ({"pooled_blocks": (0,)}, "pooled_blocks is set, but transformers' pooler sees only the last block: use orig"),
    ],
)
def test_poolers_that_transformers_does_not_have_are_not_exported(fields, message, tmp_path):
    model = MODELS["vjepa"].clone(**fields)
    with pytest.raises(UserError, match=message):
        export_pretrained(model, variables_of("vjepa"), tmp_path / "out", layout="transformers")


def test_a_configuration_with_default_values_left_out_describes_vit_large(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vjepa2", "architectures": ["VJEPA2Model"]}))
    from vidjax.convert import CONFIGS, hub

    model = hub.build(hub.read_config(tmp_path), CONFIGS, tmp_path)
    large = {"width": 1024, "depth": 24, "heads": 16, "predictor_width": 384, "mask_tokens": 10, "num_frames": 64}
    assert isinstance(model, Pretraining) and {field: getattr(model, field) for field in large} == large
