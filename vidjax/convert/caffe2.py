"""Caffe2's checkpoints in SlowFast's model zoo: reads their pickles, and translates their names to SlowFast's.

A file is a pickled dictionary of arrays under the key "blobs", mostly written by Python 2. No function or class that
the file names is called: NumPy's are replaced by the inert ones of `convert.numpy_pickles`, all others are an error.
"""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.convert import numpy_pickles
from vidjax.errors import UserError

BLOBS = "blobs"


def encode(text: str, *_: Any) -> bytes:
    """Substitute for `_codecs.encode`, by which Python 3 writes bytes into pickles that Python 2 can read."""
    return text.encode("latin1")


KNOWN = {name: substitute for substitute, name in numpy_pickles.SUBSTITUTES} | {
    "_codecs.encode": encode,
    "collections.OrderedDict": OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in KNOWN:
            raise UserError(f"it contains {module}.{name}, and objects are not unpickled, save only its arrays")
        return KNOWN[f"{module}.{name}"]


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a Caffe2 checkpoint, under their names there.

    Raises:
      UserError: the file is damaged, has no blobs, or contains objects other than arrays.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()  # text of Python 2, which includes the arrays' bytes
    except UserError as error:
        raise UserError(f"{path} cannot be read as plain weights: {error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = "it is damaged or truncated, download it again"
        raise UserError(f"{path} cannot be read as plain weights: {reason}") from error
    blobs = content.get(BLOBS) if isinstance(content, dict) else None
    if not isinstance(blobs, dict):
        raise UserError(f"{path} contains no weights: a pickle must be Caffe2's, with arrays under the key {BLOBS}")
    arrays = {str(name): value.value for name, value in blobs.items() if isinstance(value, numpy_pickles.Array)}
    return {name: value for name, value in arrays.items() if value is not None and value.dtype.kind in "biuf"}


STATE = ("momentum", "lr", "model_iter")  # parts of the names of the optimiser's state
PARTS = {
    "w": "weight", "b": "bias", "bn_s": "weight", "bn_b": "bias", "bn_rm": "running_mean", "bn_riv": "running_var",
}  # fmt: skip
# Layers of Caffe2, of which the fast pathway's begin with t_, and SlowFast's names: the layer, and what follows for a
# convolution and for its norm.
LAYERS = (
    (r"(t_)?(?:res_)?conv1", "s1.pathway{0}_stem", ".conv", ".bn"),
    (r"t_pool(1)_subsample", "s{0}_fuse", ".conv_f2s", ".bn"),
    (r"t_res(\d)_\d+_branch2c_bn_subsample", "s{0}_fuse", ".conv_f2s", ".bn"),
    (r"(t_)?res(\d)_(\d+)_branch1", "s{1}.pathway{0}_res{2}.branch1", "", "_bn"),
    (r"(t_)?res(\d)_(\d+)_branch2([abc])", "s{1}.pathway{0}_res{2}.branch2.{3}", "", "_bn"),
    (r"nonlocal_conv(\d)_(\d+)_(theta|phi|g|out)", "s{0}.pathway0_nonlocal{1}.conv_{2}", "", ""),
    (r"nonlocal_conv(\d)_(\d+)", "s{0}.pathway0_nonlocal{1}", "", ".bn"),
    (r"pred", "head.projection", "", ""),
)


def slowfast_names(blobs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The entries with SlowFast's names, without the optimiser's state; other entries keep their names.

    Kernels of 1x1x1 that are stored as matrices get the missing axes.
    """
    weights = {}
    for name, value in blobs.items():
        if not any(part in name for part in STATE):
            axes = 5 - value.ndim if name.endswith("_w") and not name.startswith("pred") else 0
            weights[slowfast_name(name)] = value.reshape((*value.shape, *(1,) * axes))
    return weights


def slowfast_name(name: str) -> str:
    """SlowFast's name of one entry: `t_res2_0_branch2a_bn_s` is `s2.pathway1_res0.branch2.a_bn.weight`."""
    split = re.fullmatch(r"(.+?)_(w|b|bn_(?:s|b|rm|riv))", name)
    for layer, slowfast, conv, norm in LAYERS if split else ():
        if match := re.fullmatch(layer, split[1]):
            numbers = ("1" if group == "t_" else group or "0" for group in match.groups())
            return f"{slowfast.format(*numbers)}{norm if split[2].startswith('bn') else conv}.{PARTS[split[2]]}"
    return name
