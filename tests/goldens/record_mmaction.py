"""Records mm_timesformer_*, mm_videomae and mm_actionclip from the code of mmaction2.

    pip install torch einops mmengine==0.10.7 mmcv-lite==2.1.0
    python tests/goldens/record_mmaction.py MMACTION2 CLIP

The arguments are checkouts of open-mmlab/mmaction2 (4d6c934, version 1.2.0) and of openai/CLIP (d05afc4), which its
ActionCLIP imports. Tiny models, every parameter perturbed; the state dicts' names are those of the published files.
Stored: the logits of recognizers, and the video features of ActionCLIP before normalisation, which mmaction2 returns in
its mode `tensor`. VideoMAE's position table is a buffer, which is computed rather than perturbed, and is not stored.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import recipe
import torch
from mmengine.registry import DefaultScope

MMACTION2, CLIP = map(Path, sys.argv[1:3])
sys.path += [str(MMACTION2), str(CLIP)]
# Packages that import detectors and decoders, which the backbones do not need.
for package in (
    "mmaction.models",
    "mmaction.models.backbones",
    "mmaction.models.common",
    "mmaction.models.heads",
    "clip",
):
    module = ModuleType(package)
    module.__path__ = [str((CLIP if package == "clip" else MMACTION2) / package.replace(".", "/"))]
    sys.modules[package] = module

DefaultScope.get_instance("mmaction", scope_name="mmaction")  # where its layers are looked up by their names
importlib.import_module("mmaction.models.common.transformer")
timesformer = importlib.import_module("mmaction.models.backbones.timesformer")
vit_mae = importlib.import_module("mmaction.models.backbones.vit_mae")
clip_model = importlib.import_module("clip.model")

HERE = Path(__file__).resolve().parent
KINDS = {"divided": "divided_space_time", "joint": "joint_space_time", "space": "space_only"}
CONFIG = {"T": 4, "S": 16, "P": 4, "D": 24, "L": 2, "H": 3, "classes": 5}
PAIR = {
    "T": 4, "S": 32, "P": 8, "D": 128, "L": 2, "H": 2, "V": 60, "ctx": 12, "tD": 128, "tL": 2, "tH": 2, "E": 64,
    "layers": 2,
}  # fmt: skip


class Recognizer(torch.nn.Module):
    """A backbone and the linear map of mmaction2's TimeSformerHead, under their names in a recognizer."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.cls_head = backbone, torch.nn.Module()
        self.cls_head.fc_cls = torch.nn.Linear(CONFIG["D"], CONFIG["classes"])

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return self.cls_head.fc_cls(self.backbone(video))


def record(name: str, module: torch.nn.Module, config: dict, shape: tuple[int, ...]) -> None:
    """Fills the module's parameters, calls it on noise of this shape, and writes the golden."""
    module.eval()
    shapes = {entry: tuple(value.shape) for entry, value in module.named_parameters()}
    filled = {entry: torch.from_numpy(recipe.parameter(entry, of)) for entry, of in shapes.items()}
    module.load_state_dict(filled, strict=False)
    with torch.no_grad():
        output = module(torch.from_numpy(recipe.floats("input0", shape))).numpy()
    description = {
        "config": config,
        "inputs": [{"kind": "floats", "name": "input0", "shape": shape}],
        "source": "open-mmlab/mmaction2 4d6c934, mmcv-lite 2.1.0",
        "state_dict": {entry: list(of) for entry, of in shapes.items()},
    }
    (HERE / f"{name}.json").write_text(json.dumps(description) + "\n")
    np.savez_compressed(HERE / f"{name}.npz", output0=output)


def action_clip() -> torch.nn.Module:
    """The project's ActionClip without the recognizer around it: a CLIP and the adapter over the frames' features."""
    sys.path.append(str(MMACTION2 / "projects" / "actionclip" / "models"))
    adapter = importlib.import_module("adapter")
    c = PAIR

    class ActionClip(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip_model.CLIP(
                c["E"], c["S"], c["L"], c["D"], c["P"], c["ctx"], c["V"], c["tD"], c["tH"], c["tL"]
            ).float()
            self.adapter = adapter.TransformerAdapter(self.clip, c["T"], c["layers"])

        def forward(self, video: torch.Tensor) -> torch.Tensor:  # b n c h w, as encode_video has it
            frames = self.clip.encode_image(video.flatten(0, 1))
            return self.adapter(frames.unflatten(0, video.shape[:2]))

    return ActionClip()


if __name__ == "__main__":
    c = CONFIG
    size = {"img_size": c["S"], "patch_size": c["P"], "embed_dims": c["D"], "num_heads": c["H"]}
    for kind, attention_type in KINDS.items():
        backbone = timesformer.TimeSformer(c["T"], num_transformer_layers=c["L"], attention_type=attention_type, **size)
        record(f"mm_timesformer_{kind}", Recognizer(backbone), c, (2, 3, c["T"], c["S"], c["S"]))
    backbone = vit_mae.VisionTransformer(depth=c["L"], num_frames=c["T"], init_values=0.1, **size)
    record("mm_videomae", Recognizer(backbone), c, (2, 3, c["T"], c["S"], c["S"]))
    record("mm_actionclip", action_clip(), PAIR, (2, PAIR["T"], 3, PAIR["S"], PAIR["S"]))
