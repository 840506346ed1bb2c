import argparse
import json
import pickle
import sys
import zipfile

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

from vidjax.convert import files, numpy_pickles, torchscript
from vidjax.errors import UserError

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(2, np.float32)}


def assert_same(actual: dict, expected: dict = WEIGHTS) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)


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


def test_an_index_cannot_refer_to_other_directories(tmp_path):
    (tmp_path / "inside").mkdir()
    save_file(WEIGHTS, tmp_path / "outside.safetensors")
    index = {"weight_map": {"a.weight": "../outside.safetensors"}}
    (tmp_path / "inside" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        files.read(tmp_path / "inside")


CONTAINERS = [(), *((name,) for name in files.CONTAINERS), ("state_dict", "model"), ("model_ema", "module")]


@pytest.mark.parametrize("containers", CONTAINERS, ids=".".join)
def test_torch_file_in_any_container(tmp_path, torch, containers):
    """Next to the other content of training checkpoints, such as an optimiser state with tensors."""
    content = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
    for container in reversed(containers):
        optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
        content = {"epoch": 3, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1), container: content}
    torch.save(content, tmp_path / "x.pth")
    assert_same(files.read(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("taken", "left"), [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model_state_dict", "ema")]
)
def test_trained_weights_come_before_their_average_and_are_reported(tmp_path, torch, taken, left):
    """As MCG-NJU/VideoMAE and mmengine read their own files; dictionaries without tensors are ignored."""
    trained = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
    average = {name: value + 1 for name, value in trained.items()}
    torch.save({left: average, "params": {"lr": 0.1}, taken: trained}, tmp_path / "x.pth")
    lines = []
    assert_same(files.read(tmp_path / "x.pth", lines.append))
    assert lines == [f"the weights are read from the file's {taken}, not from {left}"]


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_are_arrays(tmp_path, torch, zipped):
    """Tensors that require gradients, as from `named_parameters()` and `state_dict(keep_vars=True)`."""
    content = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in WEIGHTS.items()}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_same(files.read(tmp_path / "x.pth"))


def test_a_tensor_without_values_is_an_error(tmp_path, torch):
    torch.save({"a": torch.ones(2, device="meta")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"a in .*x\.pth is not a plain tensor \(.*\): save it as one"):
        files.read(tmp_path / "x.pth")


EXTRA = {
    "best_acc": np.float64(81.5), "half": np.float16(0.5), "epoch": np.int64(3), "early": np.bool_(True),
    "name": np.str_("k400"), "none": np.str_(""), "when": np.datetime64("2024-05-01"), "type": np.dtype("float32"),
    "kind": np.float32, "lengths": np.arange(6, dtype=">i2").reshape(2, 3), "empty": np.zeros((0, 2)),
    "random": np.random.RandomState(0).get_state(),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("extra", EXTRA)
def test_numpy_values_next_to_the_weights_are_allowed(tmp_path, torch, extra, zipped):
    content = {"model": {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}, extra: EXTRA[extra]}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    allowed = torch.serialization.get_safe_globals()
    assert_same(files.read(tmp_path / "x.pth"))
    assert set(torch.serialization.get_safe_globals()) == set(allowed)  # the global list is unchanged


def test_numpy_arrays_can_be_weights(tmp_path, torch):
    weights = WEIGHTS | {"c": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3))}
    torch.save({"model": weights | {"d": torch.ones(1)}}, tmp_path / "x.pth")
    assert_same(files.read(tmp_path / "x.pth"), weights | {"d": np.ones(1)})


@pytest.mark.parametrize("extra", [np.array([None]), np.zeros(2, "i4,f8"), np.array([{}])[:0]])
def test_numpy_objects_are_rejected(tmp_path, torch, extra):
    """Arrays of objects contain pickles."""
    torch.save({"model": {"a": torch.ones(2)}, "x": extra}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"contains an array of NumPy's type '(O8|V12)', and objects are not unpickled"
    ):
        files.read(tmp_path / "x.pth")


@pytest.mark.parametrize("shape", [(4,), (2**62, 4), (-1,)])
def test_an_array_reads_only_its_own_bytes(shape):
    """Memory outside of them is never read, whatever shape the file gives."""
    with pytest.raises(
        (ValueError, TypeError), match=r"too small|too big|it contains an array of shape .*, which must not"
    ):
        numpy_pickles.Array().__setstate__((1, shape, numpy_pickles.DType("f8"), False, b"8 bytes."))


def test_a_scalar_cannot_be_an_object():
    with pytest.raises(ValueError, match="it contains an array of NumPy's type 'O', which must be one of plain values"):
        numpy_pickles.scalar(numpy_pickles.DType("O"), b"8 bytes.")


def test_torch_directory_of_half_precision(tmp_path, torch):
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "pytorch_model.bin")
    actual = files.read(tmp_path)["a"]
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, [1.5, -2.0])


class Untrusted:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_objects_are_never_unpickled(tmp_path, torch):
    torch.save({"model": {"a": torch.ones(2)}, "hook": Untrusted(tmp_path / "made")}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"cannot be read as plain weights: it contains io\.open, and objects are not unpickled"
    ):
        files.read(tmp_path / "x.pth")
    assert not (tmp_path / "made").exists()


def test_torchscript_is_read_without_torch(tmp_path, torch, monkeypatch):
    whole = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval().half()
    whole.register_parameter("turned", torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t()[1:]))
    whole.register_buffer("brief", torch.tensor(1.5, dtype=torch.bfloat16))
    whole.names = ["a", "b"]
    torch.jit.save(torch.jit.script(whole), tmp_path / "x.pt")
    expected = {name: value.float().numpy() for name, value in whole.state_dict().items()}
    monkeypatch.setitem(sys.modules, "torch", None)
    actual = files.read(tmp_path / "x.pt")
    assert_same(actual, expected)
    assert actual["0.weight"].dtype == actual["brief"].dtype == np.float32 and actual["brief"].shape == ()


def write_torchscript(file, content: object) -> None:
    """An archive with this pickle as the module's attributes, and one storage of four bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/constants.pkl", pickle.dumps(()))
        archive.writestr("x/data.pkl", pickle.dumps(content))
        archive.writestr("x/data/0", b"abcd")


def test_torchscript_code_is_not_run(tmp_path):
    write_torchscript(tmp_path / "x.pt", Untrusted(tmp_path / "made"))
    with pytest.raises(ValueError, match=r"x\.pt contains no weights: there is no array in it, give another"):
        files.read(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(1, (4,), (1,)), (0, (2, 2), (3, 1)), (3, (2,), (-1,)), (-1, (2,), (1,))]
)
def test_a_tensor_of_torchscript_stays_in_its_storage(offset, shape, strides):
    with pytest.raises(ValueError, match="a tensor reaches beyond its storage"):
        torchscript._tensor(np.arange(4), offset, shape, strides)


def test_damaged_torchscript_is_an_error(tmp_path):
    write_torchscript(tmp_path / "x.pt", [1])
    with pytest.raises(ValueError, match=r"x\.pt cannot be read as TorchScript \(ValueError") as error:
        files.read(tmp_path / "x.pt")
    assert "it contains no module" in str(error.value)


def test_missing_packages_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"needs PyTorch: pip install torch"):
        files.read(tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"reading .* needs safetensors: pip install safetensors"):
        files.read_safetensors(tmp_path / "x.safetensors")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"there are no weights at .*absent\.pth"):
        files.read(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="contains no weights: it must have one of model"):
        files.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x.txt", "is not a weight file: give a safetensors"),
        ("x.safetensors", "is not a readable safetensors file"),
        ("x.pth", "cannot be read as plain weights"),
        ("model.safetensors.index.json", "is not an index of weight files: it must have a map"),
    ],
)
def test_other_files_are_an_error(tmp_path, name, sentence):
    if name.endswith("pth"):
        pytest.importorskip("torch")
    (tmp_path / name).write_text("no weights at all")
    with pytest.raises(ValueError, match=sentence) as error:
        files.read(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "there"),
    [
        ({"epoch": 3, "my_net": {"encoder": {"a": 1}}}, "its keys are epoch, my_net, save only the weights"),
        ([1, 2], "it is a list, save only the weights"),
    ],
)
def test_the_error_for_a_torch_file_without_tensors_describes_its_content(tmp_path, torch, content, there):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match="contains no weights: it must be a dictionary of tensors, or have one"
    ) as error:
        files.read(tmp_path / "x.pt")
    message = str(error.value)
    assert message.endswith(there) and "\n" not in message and "model_state_dict, " in message


def test_weights_under_an_unknown_key_are_not_guessed(tmp_path, torch):
    torch.save({"epoch": 3, "generator": {"a": torch.ones(2)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="its keys are epoch, generator, save only the weights"):
        files.read(tmp_path / "x.pt")


def test_numpy_file(tmp_path):
    np.savez(tmp_path / "x.npz", **WEIGHTS)
    assert_same(files.read(tmp_path / "x.npz"))
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"x\.npz cannot be read as NumPy arrays: it is damaged, or contains objects"):
        files.read(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.npz cannot be read as NumPy arrays"):
        files.read(tmp_path / "x.npz")


# Published file names that do not show the format


@pytest.mark.parametrize("name", ["p3d_rgb_199.checkpoint.pth.tar", "CoCLR-k400-rgb-128-s3d.pth.tar", "last.ckpt", "w"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_recognised_by_their_content(tmp_path, torch, name, zipped):
    content = {"epoch": 3, "state_dict": {key: torch.from_numpy(value) for key, value in WEIGHTS.items()}}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_same(files.read(tmp_path / name))


def test_scenics_file_and_directory_are_recognised_by_their_content(tmp_path):
    (tmp_path / "checkpoint").write_bytes(msgpack_serialize({"optimizer": {"target": WEIGHTS}, "global_step": 30}))
    expected = {f"optimizer/target/{name}": value for name, value in WEIGHTS.items()}
    assert_same(files.read(tmp_path / "checkpoint"), expected)
    assert_same(files.read(tmp_path), expected)


def test_safetensors_without_a_suffix_is_recognised_by_its_header(tmp_path):
    save_file(WEIGHTS, tmp_path / "4f5c9e")  # like the file names in Hugging Face's cache
    assert_same(files.read(tmp_path / "4f5c9e"))


# Damage


def assert_one_line_error(path) -> None:
    with pytest.raises(ValueError) as error:
        files.read(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 160
    assert "objects" not in message or "damaged" in message


def archive(path) -> None:
    """Writes an archive with the size and structure of a PyTorch file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", b"x" * 500)
        made.writestr("archive/data/0", np.arange(25_000, dtype=np.float32).tobytes())


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("kind", ["x.pth", "old.pth", "x.npz", "x.safetensors", "x.msgpack", "checkpoint_30"])
def test_a_truncated_file_is_an_error(tmp_path, kind, fraction):
    path, weights = tmp_path / kind, {"a": np.arange(25_000, dtype=np.float32)}
    if kind.endswith("pth"):
        torch = pytest.importorskip("torch")
        torch.save({"a": torch.arange(25_000.0)}, path, _use_new_zipfile_serialization=kind == "x.pth")
    elif kind == "x.npz":
        np.savez(path, **weights)
    elif kind == "x.safetensors":
        save_file(weights, path)
    else:
        path.write_bytes(msgpack_serialize(weights))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    assert_one_line_error(path)


@pytest.mark.parametrize("fraction", [0.1, 0.7])
def test_a_truncated_archive_is_an_error_without_pytorch(tmp_path, fraction):
    archive(tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(ValueError, match=r"x\.pth is damaged or truncated"):
        files.read(tmp_path / "x.pth")


def test_flipped_bytes_are_detected_by_the_checksum(tmp_path):
    archive(tmp_path / "x.pth")
    content = bytearray((tmp_path / "x.pth").read_bytes())
    content[50_000] ^= 255
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth is damaged: the checksum of its part archive/data/0 is wrong"):
        files.read(tmp_path / "x.pth")


def test_a_file_without_arrays_is_an_error(tmp_path):
    (tmp_path / "checkpoint").write_bytes(msgpack_serialize({"global_step": 30}))
    with pytest.raises(ValueError, match="checkpoint contains no weights"):
        files.read(tmp_path / "checkpoint")
