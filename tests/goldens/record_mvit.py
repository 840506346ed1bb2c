"""Records mvit_pytorchvideo and mm_mvit from the code of PyTorchVideo and mmaction2.

    pip install torch torchvision fvcore iopath einops mmengine==0.10.7 mmcv-lite==2.1.0
    python tests/goldens/record_mvit.py PYTORCHVIDEO MMACTION2

The arguments are checkouts of facebookresearch/pytorchvideo (4deb450) and of open-mmlab/mmaction2 (fd52bd2). Four
blocks of three scales, every parameter perturbed; 40 pixels are 10, 5 and 3 tokens a side, while mmaction2's tables of
relative positions are for 10, 5 and 2. Stored: logits.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import recipe
import torch

PYTORCHVIDEO, MMACTION2 = map(Path, sys.argv[1:3])
sys.path += [str(PYTORCHVIDEO), str(MMACTION2)]
# Packages that import detectors and decoders, which the backbones do not need.
for package in ("mmaction.models", "mmaction.models.backbones", "mmaction.models.utils", "mmaction.utils"):
    module = ModuleType(package)
    module.__path__ = [str(MMACTION2 / package.replace(".", "/"))]
    sys.modules[package] = module
sys.modules["mmaction.utils"].get_str_type = lambda kind: kind if isinstance(kind, str) else kind.__name__

HERE = Path(__file__).resolve().parent
CONFIG = {"T": 6, "S": 40, "D": 16, "depths": [1, 2, 1], "classes": 7}


def pytorchvideo() -> torch.nn.Module:
    """MViTv1."""
    build = importlib.import_module("pytorchvideo.models.vision_transformers").create_multiscale_vision_transformers
    doublings = [[1, 2.0], [3, 2.0]]
    return build(
        spatial_size=CONFIG["S"], temporal_size=CONFIG["T"], depth=4, patch_embed_dim=CONFIG["D"],
        embed_dim_mul=doublings, atten_head_mul=doublings, pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 4, 4], pool_kvq_kernel=[3, 3, 3], head_num_classes=CONFIG["classes"],
    )  # fmt: skip


class Recognizer(torch.nn.Module):
    """MViTv2 and the linear map of mmaction2's MViTHead, under their names in a recognizer."""

    def __init__(self) -> None:
        super().__init__()
        mvit = importlib.import_module("mmaction.models.backbones.mvit")
        arch = {"embed_dims": CONFIG["D"], "num_layers": 4, "num_heads": 1, "downscale_indices": [1, 3]}
        self.backbone = mvit.MViT(
            arch, spatial_size=CONFIG["S"], temporal_size=CONFIG["T"], adaptive_kv_stride=(1, 4, 4)
        )
        self.cls_head = torch.nn.Module()
        self.cls_head.fc_cls = torch.nn.Linear(4 * CONFIG["D"], CONFIG["classes"])

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        ((_, class_token),) = self.backbone(video)
        return self.cls_head.fc_cls(class_token)


def record(name: str, module: torch.nn.Module, source: str) -> None:
    """Fills the module's parameters, calls it on noise, and writes the golden."""
    shapes = {entry: tuple(value.shape) for entry, value in module.state_dict().items()}
    filled = {entry: torch.from_numpy(np.asarray(recipe.parameter(entry, of))) for entry, of in shapes.items()}
    module.eval().load_state_dict(filled)
    shape = (2, 3, CONFIG["T"], CONFIG["S"], CONFIG["S"])
    with torch.no_grad():
        output = module(torch.from_numpy(recipe.floats("input0", shape))).numpy()
    description = {
        "config": CONFIG,
        "inputs": [{"kind": "floats", "name": "input0", "shape": shape}],
        "source": source,
        "state_dict": {entry: list(of) for entry, of in shapes.items()},
    }
    (HERE / f"{name}.json").write_text(json.dumps(description) + "\n")
    np.savez_compressed(HERE / f"{name}.npz", output0=output)


if __name__ == "__main__":
    record("mvit_pytorchvideo", pytorchvideo(), "facebookresearch/pytorchvideo 4deb450")
    record("mm_mvit", Recognizer(), "open-mmlab/mmaction2 fd52bd2, mmcv-lite 2.1.0")
