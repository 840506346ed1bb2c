import argparse
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from vidjax.convert import files

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(2, np.float32)}


def assert_same(found: dict, expected: dict = WEIGHTS) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_safetensors_file(tmp_path):
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    assert_same(files.read(tmp_path / "x.safetensors"))
    assert_same(files.read(str(tmp_path / "x.safetensors")))


def test_directory_of_one_file(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert_same(files.read(tmp_path))


def test_directory_of_shards(tmp_path):
    shards = {"a.weight": "model-00001-of-00002.safetensors", "b.bias": "model-00002-of-00002.safetensors"}
    for name, shard in shards.items():
        save_file({name: WEIGHTS[name]}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_same(files.read(tmp_path))


def test_an_index_leads_nowhere_else(tmp_path):
    (tmp_path / "inside").mkdir()
    save_file(WEIGHTS, tmp_path / "outside.safetensors")
    index = {"weight_map": {"a.weight": "../outside.safetensors"}}
    (tmp_path / "inside" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="outside"):
        files.read(tmp_path / "inside")


@pytest.mark.parametrize("containers", [(), ("model",), ("state_dict",), ("module",), ("state_dict", "model")])
def test_torch_file_in_any_container(tmp_path, torch, containers):
    content = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
    for container in containers:
        content = {container: content, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "x.pth")
    assert_same(files.read(tmp_path / "x.pth"))


def test_torch_directory_of_half_precision(tmp_path, torch):
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "pytorch_model.bin")
    found = files.read(tmp_path)["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -2.0])


class Untrusted:
    """Would make a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_objects_are_never_unpickled(tmp_path, torch):
    torch.save({"model": {"a": torch.ones(2)}, "hook": Untrusted(tmp_path / "made")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="cannot be read as plain weights, and objects are not unpickled"):
        files.read(tmp_path / "x.pth")
    assert not (tmp_path / "made").exists()


def test_torch_that_is_missing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(ImportError, match=r"needs PyTorch: pip install 'vidjax\[convert\]'"):
        files.read(tmp_path / "x.pth")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no weights at .*gone\.pth"):
        files.read(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match="holds no weights: expected one of model"):
        files.read(tmp_path)


@pytest.mark.parametrize("name", ["x.txt", "x.safetensors", "x.pth", "model.safetensors.index.json"])
def test_files_of_something_else(tmp_path, name):
    if name.endswith("pth"):
        pytest.importorskip("torch")
    (tmp_path / name).write_text("no weights at all")
    with pytest.raises(ValueError) as refused:
        files.read(tmp_path / name)
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_a_torch_file_without_tensors(tmp_path, torch):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        files.read(tmp_path / "x.pt")


def test_numpy_file(tmp_path):
    np.savez(tmp_path / "x.npz", **WEIGHTS)
    assert_same(files.read(tmp_path / "x.npz"))
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"x\.npz cannot be read as NumPy arrays: it is damaged, or holds objects"):
        files.read(tmp_path / "x.npz")
