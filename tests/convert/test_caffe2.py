"""Caffe2's checkpoints in SlowFast's model zoo, in stand-ins as Python 2 has written them."""

import io
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_models import MODELS, variables_of

import vidjax
from vidjax.convert import caffe2, files
from vidjax.convert.export import entries
from vidjax.convert.slow import SLOWFAST as SLOW_LAYOUT
from vidjax.convert.slowfast import SLOWFAST as SLOWFAST_LAYOUT
from vidjax.errors import UserError


class Python2(pickle._Pickler):
    """Writes bytes as Python 2's strings, which Python 3 reads as text."""

    def save_bytes(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_bytes}


def write(path, content, pickler=Python2) -> None:
    buffer = io.BytesIO()
    pickler(buffer, 2).dump(content)
    path.write_bytes(buffer.getvalue())


# Names of SlowFast, of which the left ones begin an entry's name, and the right ones end it.
BEGINNINGS = (
    ("s1.pathway0_stem.conv", "conv1"), ("s1.pathway0_stem.bn", "res_conv1_bn"),
    ("s1.pathway1_stem.conv", "t_conv1"), ("s1.pathway1_stem.bn", "t_res_conv1_bn"),
    ("s1_fuse.conv_f2s", "t_pool1_subsample"), ("s1_fuse.bn", "t_pool1_subsample_bn"),
    ("head.projection", "pred"),
)  # fmt: skip
ENDINGS = {"weight": "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def caffe2_name(name: str) -> str:
    """Caffe2's name of SlowFast's entry, for stages of at most ten blocks."""
    layer, ending = name.rsplit(".", 1)
    code = "s" if ending == "weight" and layer.endswith("bn") else ENDINGS[ending]
    for slowfast, ours in BEGINNINGS:
        if layer == slowfast:
            return f"{ours}_{code}"
    stage, rest = layer[1], layer[2:]
    if rest.startswith("_fuse"):
        bn = "_bn" if rest.endswith("bn") else ""
        return f"t_res{stage}_0_branch2c_bn_subsample{bn}_{code}"
    pathway, kind = rest[len(".pathway")], rest[len(".pathway0_") :]
    if kind.startswith("nonlocal"):
        number, part = kind.removeprefix("nonlocal").split(".")
        return f"nonlocal_conv{stage}_{number}_{part.removeprefix('conv_')}_{code}"
    number, branch = kind.removeprefix("res").split(".", 1)
    return f"{'t_' if pathway == '1' else ''}res{stage}_{number}_{branch.replace('.', '')}_{code}"


CASES = {"slow_tiny_nonlocal": SLOW_LAYOUT, "slowfast_tiny": SLOWFAST_LAYOUT}


@pytest.mark.parametrize("name", CASES)
def test_every_entry_is_loaded_by_its_name_in_caffe2(name, tmp_path):
    model, variables = MODELS[name], variables_of(name)
    published = entries(CASES[name], model, variables)
    blobs = {caffe2_name(entry): value for entry, value in published.items() if not entry.endswith("tracked")}
    blobs = {k: v.reshape(v.shape[:2]) if v.shape[2:] == (1, 1, 1) else v for k, v in blobs.items()}
    state = {"conv1_w_momentum": np.ones(3, np.float32), "lr": np.ones(1), "model_iter": np.int64(7)}
    write(tmp_path / "model.pkl", {"blobs": blobs | state, "cfg": "text"})
    again, loaded = vidjax.load_pretrained(tmp_path / "model.pkl", name, strict=True, verbose=False)
    assert again == model
    for path, leaf in flatten_dict(variables).items():
        np.testing.assert_array_equal(flatten_dict(loaded)[path], leaf, err_msg=str(path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv1_w", "s1.pathway0_stem.conv.weight"),
        ("t_res_conv1_bn_riv", "s1.pathway1_stem.bn.running_var"),
        ("res2_0_branch1_bn_s", "s2.pathway0_res0.branch1_bn.weight"),
        ("t_res4_12_branch2b_bn_rm", "s4.pathway1_res12.branch2.b_bn.running_mean"),
        ("t_res4_5_branch2c_bn_subsample_w", "s4_fuse.conv_f2s.weight"),
        ("t_res4_5_branch2c_bn_subsample_bn_b", "s4_fuse.bn.bias"),
        ("nonlocal_conv4_5_g_b", "s4.pathway0_nonlocal5.conv_g.bias"),
        ("nonlocal_conv3_1_bn_s", "s3.pathway0_nonlocal1.bn.weight"),
        ("pred_b", "head.projection.bias"),
        ("other_w", "other_w"),
    ],
)
def test_names_are_translated_as_by_slowfast(name, expected):
    """As in the comments of slowfast/utils/c2_model_loading.py."""
    assert caffe2.slowfast_name(name) == expected


def test_arrays_of_python_2_and_3_are_read(tmp_path):
    array = recipe.floats("array", (2, 3))
    for pickler in (Python2, pickle.Pickler):
        write(tmp_path / "x.pkl", {"blobs": {"a": array, "b": array.astype("i4"), "text": "none"}}, pickler)
        read = files.read(tmp_path / "x.pkl")
        assert read.keys() == {"a", "b"} and read["b"].dtype == np.int32
        np.testing.assert_array_equal(read["a"], array)


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_code_in_a_pickle_is_not_run(tmp_path):
    write(tmp_path / "x.pkl", {"blobs": {"a": Harmful()}})
    with pytest.raises(UserError, match=r"x\.pkl cannot be read as plain weights: it contains __builtin__\.exec"):
        files.read(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 1}, "must be Caffe2's, with arrays under the key blobs"),
        ({"blobs": {"a": np.array([None])}}, "it contains an array of NumPy's type 'O8'"),
        ({"blobs": {}}, "there is no array in it"),
        (None, "it is damaged or truncated"),
    ],
)
def test_other_files_are_errors(content, message, tmp_path):
    write(tmp_path / "x.pkl", content)
    if content is None:
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02}")
    with pytest.raises(UserError, match=message):
        files.read(tmp_path / "x.pkl")


def test_pytorch_files_may_have_this_suffix(tmp_path):
    """As SlowFast's multigrid zoo."""
    torch = pytest.importorskip("torch")
    for is_zip in (True, False):
        torch.save({"model_state": {"a": torch.ones(2)}}, tmp_path / "x.pkl", _use_new_zipfile_serialization=is_zip)
        np.testing.assert_array_equal(files.read(tmp_path / "x.pkl")["a"], np.ones(2, np.float32))
