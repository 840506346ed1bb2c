"""Records mobileformer from the code of the image model that Video Mobile-Former extends.

    pip install torch && python tests/goldens/record_mobileformer.py MOBILEFORMER

The argument is a checkout of AAboys/MobileFormer (f447310). A narrow model of images of 32 x 32 pixels, with blocks of
each kind. Stored: the input of the classifier.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import recipe
import torch

MOBILEFORMER = Path(sys.argv[1])


def stub(name: str, **content: object) -> None:
    """A module of timm that the code imports and this narrow model does not need."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(content)


constants = ("IMAGENET_DEFAULT_MEAN", "IMAGENET_DEFAULT_STD", "IMAGENET_INCEPTION_MEAN", "IMAGENET_INCEPTION_STD")
stub("timm", data=None)
stub("timm.data", **dict.fromkeys(constants))
stub("mobileformer", __path__=[str(MOBILEFORMER)])
stub("mobileformer.helpers", build_model_with_cfg=None, default_cfg_for_features=None)
stub("mobileformer.registry", register_model=lambda make: make)
stub("mobileformer.layers", DropPath=lambda rate: torch.nn.Identity())
code = importlib.import_module("mobileformer.mobile_former")

CONFIG = {"stem": 8, "first": [8, 2, 1], "blocks": [[12, 3, 2], [12, 2], [16, 3, 2], [24, 3]], "features": 32}
CONFIG |= {"tokens": 3, "token_width": 16}


def build(c: dict) -> torch.nn.Module:
    """The model of a configuration, without its classifier."""
    width, expand, stride = c["first"]
    blocks = [["DnaBlock3", expand, width, 1, stride, 0]]
    for width, *expands in c["blocks"]:
        kind = "DnaBlock3" if len(expands) == 2 else "DnaBlock"
        blocks.append([kind, expands[0], width, 1, len(expands), expands[-1]])
    model = code.MobileFormer(
        blocks, num_classes=5, stem_chs=c["stem"], num_features=c["features"], token_num=c["tokens"],
        token_dim=c["token_width"], gbr_type="attn", gbr_dynamic=[True, False, False], gbr_ffn=True, cnn_exp=(6, 4),
    )  # fmt: skip
    model.classifier.classifier = torch.nn.Identity()
    return model.eval()


def main() -> None:
    """Writes the golden next to this file."""
    model = build(CONFIG)
    shapes = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
    filled = {entry: torch.from_numpy(np.asarray(recipe.parameter(entry, shapes[entry]))) for entry in shapes}
    model.load_state_dict(filled)
    shape = (2, 3, 32, 32)
    with torch.no_grad():
        features = model(torch.from_numpy(recipe.floats("input0", shape))).numpy()
    description = SimpleNamespace(
        config=CONFIG, inputs=[{"kind": "floats", "name": "input0", "shape": shape}],
        source="AAboys/MobileFormer f447310", state_dict={entry: list(of) for entry, of in shapes.items()},
    )  # fmt: skip
    stem = Path(__file__).with_name("mobileformer")
    stem.with_suffix(".json").write_text(json.dumps(vars(description)) + "\n")
    np.savez_compressed(stem.with_suffix(".npz"), output0=features)


if __name__ == "__main__":
    main()
