"""Records resnet3d_r2plus1d.{json,npz} from torchvision's R(2+1)D with one block a group.

    pip install torch && pip install --no-deps torchvision && python tests/goldens/record_resnet3d.py

One clip of 5 frames of 36x28 pixels, every parameter and running statistic perturbed. Stored: the logits.
"""

import json
import sys
from pathlib import Path

import numpy as np
import recipe

sys.path.append(str(Path(__file__).resolve().parents[1]))
import peers

SHAPE = (1, 3, 5, 36, 28)


def build(name: str, layers: tuple[int, ...] = (1, 1, 1, 1), classes: int = 5):
    """torchvision's network of this name, of any depth; `vmz` is its R(2+1)D as VMZ changes it."""
    resnet = peers.torchvision().models.video.resnet

    class PerConvolution(resnet.Conv2Plus1D):
        """With its own planes, whatever the block's are."""

        def __init__(self, inputs, outputs, midplanes, stride=1, padding=1):
            midplanes = 27 * inputs * outputs // (9 * inputs + 3 * outputs)
            super().__init__(inputs, outputs, midplanes, stride, padding)

    conv, stem = {
        "r3d": ([resnet.Conv3DSimple] * 4, resnet.BasicStem),
        "mc3": ([resnet.Conv3DSimple] + [resnet.Conv3DNoTemporal] * 3, resnet.BasicStem),
        "r2plus1d": ([resnet.Conv2Plus1D] * 4, resnet.R2Plus1dStem),
        "vmz": ([PerConvolution] * 4, resnet.R2Plus1dStem),
    }[name]
    network = resnet.VideoResNet(resnet.BasicBlock, conv, list(layers), stem, num_classes=classes)
    for module in network.modules():
        if name == "vmz" and hasattr(module, "running_var"):
            module.eps = 1e-3
    return network


def main() -> None:
    """Writes the golden next to this file."""
    import torch

    peer = build("r2plus1d").eval()
    weights = peers.perturb(peer)
    with torch.no_grad():
        logits = peer(torch.from_numpy(recipe.floats("input0", SHAPE))).numpy()
    description = {
        "config": {"classes": 5},
        "inputs": [{"kind": "floats", "name": "input0", "shape": SHAPE}],
        "state_dict": {name: list(value.shape) for name, value in weights.items()},
    }
    here = Path(__file__).resolve().parent
    (here / "resnet3d_r2plus1d.json").write_text(json.dumps(description) + "\n")
    np.savez_compressed(here / "resnet3d_r2plus1d.npz", output0=logits)


if __name__ == "__main__":
    main()
