"""Records bevt_shifted from the original BEVT: both streams, with two blocks in the last stage.

    pip install torch einops && python tests/goldens/record_bevt.py BEVT

BEVT is a checkout of xyzforever/BEVT. At the last stage's size, one window covers the map: the second block shifts it
in the image stream and not in the video stream. `bevt` comes from elsewhere, and has no such block.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import recipe
import torch

CONFIG = {"T": 4, "S": 64, "D": 8, "depths": [1, 1, 1, 2], "heads": [1, 2, 2, 4], "window": [2, 2, 2], "V": 24}


def original() -> types.ModuleType:
    """The original's module of the backbone, without timm, mmcv and mmaction."""
    registry = types.SimpleNamespace(register_module=lambda: lambda kind: kind)
    layers = {"DropPath": torch.nn.Identity, "to_2tuple": None, "trunc_normal_": torch.nn.init.trunc_normal_}
    loading = dict.fromkeys(("load_checkpoint", "_load_checkpoint", "load_state_dict"))
    stand_ins = {
        "timm": {}, "timm.models": {}, "timm.models.layers": layers, "mmcv": {}, "mmcv.runner": loading, "mmaction": {},
        "mmaction.utils": {"get_root_logger": None}, "mmaction.models": {},
        "mmaction.models.builder": {"BACKBONES": registry}, "mmaction.models.backbones": {},
    }  # fmt: skip
    for name, content in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
        vars(sys.modules[name]).update(content)
    name = "mmaction.models.backbones.swin_transformer_bevt"
    spec = importlib.util.spec_from_file_location(name, Path(sys.argv[1]) / f"{name.replace('.', '/')}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Both(torch.nn.Module):
    """The backbone and the layer to the tokens, with the names of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        c = CONFIG
        self.backbone = original().SwinTransformerBEVT(
            patch_size=(2, 4, 4), embed_dim=c["D"], depths=c["depths"], num_heads=c["heads"], window_size=c["window"],
            drop_path_rate=0.0, patch_norm=True,
        )  # fmt: skip
        self.cls_head = torch.nn.Module()
        self.cls_head.lm_head = torch.nn.Linear(8 * c["D"], c["V"])


def main() -> None:
    """Writes the golden next to this file."""
    c, model = CONFIG, Both().eval()
    shapes = {
        name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith("position_index")
    }
    weights = {name: torch.from_numpy(recipe.parameter(name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(weights, strict=False)
    cells = c["S"] // 16
    masks = {"video_mask": (2, c["T"] // 2, cells, cells), "image_mask": (2, cells, cells)}
    masks = {name: recipe.floats(name, shape) > 0 for name, shape in masks.items()}
    shape = (2, 3, c["T"], c["S"], c["S"])
    video, images = (
        torch.from_numpy(recipe.floats(*pair)) for pair in (("video", shape), ("image", (2, 3, *shape[3:])))
    )
    with torch.no_grad():
        outputs = [
            model.cls_head.lm_head(model.backbone(pixels, torch.from_numpy(mask), is_img=is_image)).numpy()
            for pixels, mask, is_image in zip((video, images), masks.values(), (False, True), strict=True)
        ]
    description = {
        "config": c,
        "inputs": [
            {"kind": "floats", "name": "video", "shape": shape},
            {"kind": "floats", "name": "image", "shape": images.shape},
            *({"kind": "stored", "name": name} for name in masks),
        ],
        "state_dict": shapes,
    }
    stem = Path(__file__).with_name("bevt_shifted")
    stem.with_suffix(".json").write_text(json.dumps(description, indent=0) + "\n")
    np.savez_compressed(stem.with_suffix(".npz"), **masks, output0=outputs[0], output1=outputs[1])


if __name__ == "__main__":
    main()
