"""Records actionclip_heads.{json,npz} from the plain PyTorch heads of torch_actionclip.py.

    pip install torch && python tests/goldens/record_actionclip.py

Three clips of five frames' features, all parameters perturbed. Stored: the output of each head, under its name.
The other goldens with these names were recorded with the released code (sallymmx/ActionCLIP).
"""

import json
import sys
from pathlib import Path

import numpy as np
import recipe
import torch
import torch_actionclip

sys.path.append(str(Path(__file__).resolve().parents[1]))
import peers

CONFIG = {"width": 16, "context": 9, "frames": 5}
SHAPE = (3, 5, 16)

if __name__ == "__main__":
    peer = torch_actionclip.heads(**CONFIG)
    weights = peers.perturb(peer)
    frames = torch.from_numpy(recipe.floats("frames", SHAPE))
    with torch.no_grad():  # and not eval(), whose fused kernels round otherwise
        features = {name: head(frames).numpy() for name, head in peer.items()}
    description = {
        "config": CONFIG,
        "inputs": [{"kind": "floats", "name": "frames", "shape": SHAPE}],
        "state_dict": {name: list(value.shape) for name, value in weights.items()},
    }
    here = Path(__file__).resolve().parent
    (here / "actionclip_heads.json").write_text(json.dumps(description) + "\n")
    np.savez_compressed(here / "actionclip_heads.npz", **features)
