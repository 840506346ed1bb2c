"""Records p3d.{json,npz} from the plain PyTorch network of torch_p3d.py.

    pip install torch && python tests/goldens/record_p3d.py

One clip of 16 frames of 40x64 pixels, a narrow network with every kind of block, all parameters perturbed. Stored:
the logits.
"""

import json
import sys
from pathlib import Path

import numpy as np
import recipe
import torch
import torch_p3d

sys.path.append(str(Path(__file__).resolve().parents[1]))
import peers

CONFIG = {"depths": [1, 2, 1, 1], "width": 4, "num_classes": 5}
SHAPE = (1, 3, 16, 40, 64)

if __name__ == "__main__":
    peer = torch_p3d.P3D(**CONFIG).eval()
    weights = peers.perturb(peer)
    with torch.no_grad():
        logits = peer(torch.from_numpy(recipe.floats("input0", SHAPE))).numpy()
    description = {
        "config": CONFIG,
        "inputs": [{"kind": "floats", "name": "input0", "shape": SHAPE}],
        "state_dict": {name: list(value.shape) for name, value in weights.items()},
    }
    here = Path(__file__).resolve().parent
    (here / "p3d.json").write_text(json.dumps(description) + "\n")
    np.savez_compressed(here / "p3d.npz", output0=logits)
