"""Hugging Face directories: their configuration, and downloading them by id."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from vidjax.convert import CONFIGS, hub, load_pretrained
from vidjax.errors import UserError
from vidjax.models import timesformer, videomae, vit, vivit

CONFIG = {
    "model_type": "videomae", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
    "intermediate_size": 96, "patch_size": 2, "tubelet_size": 2, "image_size": 4, "num_frames": 4,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def test_an_unknown_model_type_is_an_error(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    with pytest.raises(ValueError, match=r"is a model of type 'gpt_neox': give one of .*videomae"):
        load_pretrained(folder)


def test_an_incomplete_configuration_is_an_error(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": ["gpt_neox"]}))
    with pytest.raises(ValueError, match=r"is a model of type '\['gpt_neox'\]': give one of"):
        load_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "videomae"}))
    with pytest.raises(ValueError, match=r"the config\.json of .* lacks 'hidden_size'"):
        load_pretrained(folder)


def test_a_damaged_configuration_is_an_error(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_pretrained(folder)


def test_weights_without_a_description_need_a_name(folder):
    with pytest.raises(ValueError, match="does not describe its model: give name="):
        load_pretrained(folder / "model.safetensors")


def test_class_names_are_read_in_order_and_placeholders_are_ignored(tmp_path):
    names = {"10": "k", "2": "c", "0": "a"}
    assert hub.read_card({"id2label": names}, tmp_path) == {"class_names": ("a", "c", "k")}
    assert hub.read_card({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, tmp_path) == {}


def test_invalid_class_names_are_an_error(tmp_path):
    for names in ({"a": "b"}, ["a"], 3):
        with pytest.raises(ValueError, match=r"the id2label of .*config\.json is invalid \(.*\): download"):
            hub.read_card({"id2label": names}, tmp_path)


# Fields of configurations that change what the model computes

FIELDS = {
    "vit": {},
    "vivit": {"tubelet_size": [2, 2, 2]},
    "timesformer": {"attention_type": "divided_space_time"},
    "videomae": {"architectures": ["VideoMAEForVideoClassification"]},
}


def build(kind: str, **fields):
    return hub.build(CONFIG | FIELDS[kind] | {"model_type": kind} | fields, CONFIGS, "dir")


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("field", [{"hidden_act": "relu"}, {"qkv_bias": False}, {"layer_norm_eps": 0.01}])
def test_unsupported_fields_are_an_error(kind, field):
    if (kind, *field) == ("vit", "layer_norm_eps"):
        assert build(kind, **field).epsilon == 0.01  # our model supports it
        return
    with pytest.raises(ValueError) as error:
        build(kind, **field)
    [(name, value)] = field.items()
    assert str(error.value).startswith(f"the config.json of dir is not supported: {name} is {value!r}, but this")


@pytest.mark.parametrize(
    ("kind", "activation"), [("vit", "gelu"), ("timesformer", "gelu"), ("videomae", "gelu"), ("vivit", "gelu_fast")]
)
def test_the_two_gelus_are_distinguished(kind, activation):
    build(kind, hidden_act=activation)
    with pytest.raises(ValueError, match="hidden_act is"):
        build(kind, hidden_act="gelu" if activation == "gelu_fast" else "gelu_fast")


def test_classifying_the_first_token_is_not_supported():
    with pytest.raises(ValueError, match="use_mean_pooling is False"):
        build("videomae", use_mean_pooling=False)
    encoder = build("videomae", use_mean_pooling=False, architectures=["VideoMAEModel"])  # ends in a norm instead
    assert encoder.final_norm and not build("videomae").final_norm


def test_cards_are_those_of_the_published_models():
    assert build("vivit").card == vivit.kinetics()
    assert build("vivit").card.mean == (0.5,) * 3 and build("vivit").card.stride == 2
    assert build("vivit").card.crop_ratio == 224 / 256
    assert build("timesformer", num_frames=96).card == timesformer.kinetics(4)
    assert build("videomae").card == videomae.CARD
    assert build("vit").card.mean == vit.AUGREG.mean and build("vit").card.std == vit.AUGREG.std


def test_an_id_is_downloaded_without_pickles(monkeypatch, folder):
    requested = []

    def snapshot_download(name, allow_patterns):
        requested.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(ValueError, match="MCG-NJU/videomae-base: no known layout of VideoMAE fits the weights"):
        load_pretrained("MCG-NJU/videomae-base")
    [(name, patterns)] = requested
    assert name == "MCG-NJU/videomae-base" and not any("bin" in pattern for pattern in patterns)


def test_an_id_that_cannot_be_downloaded_is_one_line(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(UserError) as error:
        load_pretrained("no/such")
    message = "no/such does not exist, and cannot be downloaded from Hugging Face (no route to host): correct the name"
    assert str(error.value) == message


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        load_pretrained("MCG-NJU/videomae-base")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.npz", "x.msgpack", "x.pth.tar", "x.bin", "x.ckpt"])
def test_a_mistyped_file_name_is_not_an_id(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=rf"there are no weights at weights/{name}"):
        load_pretrained(f"weights/{name}", "videomae_tiny")


def test_a_missing_path_is_not_an_id(tmp_path):
    with pytest.raises(UserError, match=r"there are no weights at .*x\.pth"):
        load_pretrained(tmp_path / "x.pth", "videomae_tiny")


def test_an_unsupported_activation_is_an_error():
    with pytest.raises(ValueError, match="hidden_act is 'relu', but this model supports only 'gelu': choose"):
        hub.expect({"hidden_act": "relu"}, "hidden_act", "gelu")
