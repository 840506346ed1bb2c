"""Hugging Face's directories: what they tell of the model, and ids that are fetched."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from vidjax.convert import hub, load_pretrained

CONFIG = {
    "model_type": "videomae", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
    "intermediate_size": 96, "patch_size": 2, "tubelet_size": 2, "image_size": 4, "num_frames": 4,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def test_an_unknown_kind_of_model_is_told(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"is a model of type 'bert': those that can be read are .*videomae"):
        load_pretrained(folder)


def test_a_configuration_that_lacks_something_is_told(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "videomae"}))
    with pytest.raises(ValueError, match=r"the config\.json of .* lacks 'hidden_size'"):
        load_pretrained(folder)


def test_a_damaged_configuration_is_told(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_pretrained(folder)


def test_weights_without_a_name_ask_for_one(folder):
    with pytest.raises(ValueError, match="does not say what model it is: give name="):
        load_pretrained(folder / "model.safetensors")


def test_names_of_classes_are_read_in_order_and_placeholders_are_none(tmp_path):
    names = {"10": "k", "2": "c", "0": "a"}
    assert hub.read_card({"id2label": names}, tmp_path) == {"class_names": ("a", "c", "k")}
    assert hub.read_card({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, tmp_path) == {}


def test_an_id_is_fetched_without_pickles(monkeypatch, folder):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(ValueError, match="MCG-NJU/videomae-base: these are no weights of VideoMAE"):
        load_pretrained("MCG-NJU/videomae-base")
    [(name, patterns)] = asked
    assert name == "MCG-NJU/videomae-base" and not any("bin" in pattern for pattern in patterns)


def test_an_id_that_cannot_be_fetched_is_one_line(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(FileNotFoundError) as refused:
        load_pretrained("no/such")
    assert str(refused.value) == "nothing is at no/such, and Hugging Face does not give it: no route to host"


def test_without_huggingface_hub_an_id_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        load_pretrained("MCG-NJU/videomae-base")


def test_a_path_that_is_not_there_is_no_id(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no weights at .*x\.pth"):
        load_pretrained(tmp_path / "x.pth", "videomae_tiny")
