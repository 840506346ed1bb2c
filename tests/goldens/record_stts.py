"""Records STTS on a Video Swin from its released code: `python record_stts.py CLONE`, a clone of wangjk666/STTS.

Of timm and mmaction only a few parts are needed, which stand in here, so that no version of them has to be found.
"""

import json
import sys
from types import ModuleType

import numpy as np
import recipe
import torch
from torch import nn

SIZE = {
    "patch_size": [2, 4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": [2, 3, 3],
    "num_frames": 16, "image_size": 64, "patch_norm": True, "time_pruning_loc": [0], "time_left_ratio": [0.75],
    "time_score": "tpool", "space_pruning_loc": [1], "space_left_ratio": [0.6], "space_score": "spatch",
}  # fmt: skip
INPUT, FEATURES, CLASSES = [2, 3, 16, 64, 64], 32, 5


def stand_in(name: str, **parts: object) -> None:
    """A module with these parts."""
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__dict__.update(parts)


class Registry:
    """That of backbones, which are not looked up here."""

    def register_module(self):
        return lambda module: module


def main(clone: str) -> None:
    """Writes stts_video_swin.json and stts_video_swin.npz beside this file."""
    for name in ("timm", "timm.models", "mmaction", "mmaction.models", "mmaction.models.backbones"):
        stand_in(name)
    stand_in("timm.models.layers", DropPath=nn.Identity, trunc_normal_=nn.init.trunc_normal_)
    stand_in("mmaction.utils", get_root_logger=None)
    stand_in("mmaction.models.builder", BACKBONES=Registry())
    stand_in("mmaction.models.backbones.checkpoint", load_checkpoint=None)
    sys.modules["mmaction.models.backbones"].__path__ = [f"{clone}/VideoSwin/mmaction/models/backbones"]
    torch.Tensor.cuda = lambda self: self  # the original's indicators are on a GPU from the start
    from mmaction.models.backbones.swin_transformer import SwinTransformer3D

    model = SwinTransformer3D(**SIZE)
    model.train(False)  # returns nothing there
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    weights = {name: torch.tensor(recipe.parameter(f"backbone.{name}", tuple(s))) for name, s in shapes.items()}
    model.load_state_dict(weights, strict=False)
    shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
    head = {"cls_head.fc_cls.weight": [CLASSES, FEATURES], "cls_head.fc_cls.bias": [CLASSES]}
    weight, bias = (torch.tensor(recipe.parameter(name, tuple(shape))) for name, shape in head.items())
    with torch.no_grad():
        features = model(torch.tensor(recipe.floats("input0", tuple(INPUT)))).mean(dim=(2, 3, 4))
        logits = features @ weight.T + bias  # as mmaction's head
    inputs = [{"kind": "floats", "name": "input0", "shape": INPUT}]
    description = {"model": "wangjk666/STTS", "config": SIZE, "inputs": inputs, "state_dict": shapes | head}
    here = recipe.HERE / "stts_video_swin"
    here.with_suffix(".json").write_text(json.dumps(description))
    np.savez_compressed(here.with_suffix(".npz"), logits=logits.numpy(), features=features.numpy())


if __name__ == "__main__":
    main(sys.argv[1])
