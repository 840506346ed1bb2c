"""Records vidtr, vidtr_positions and vidtr_compact from the authors' code.

    pip install torch && python tests/goldens/record_vidtr.py GLUONMM

The argument is a checkout of amazon-science/gluonmm (29d63b3). Its positions are those of 14 x 14 patches; a narrow
model with patches of 2 x 2 pixels keeps the goldens small. Positions are added in every block only with 16 frames.
Stored: logits.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import recipe
import torch

GLUONMM = Path(sys.argv[1])
sys.path.append(str(GLUONMM))
# Packages that import modules VidTr does not need.
for package in ("src", "src.transformers", "src.transformers.models", "src.transformers.models.vidtr"):
    module = ModuleType(package)
    module.__path__ = [str(GLUONMM / package.replace(".", "/"))]
    sys.modules[package] = module

split = importlib.import_module("src.transformers.models.vidtr.vidtr_split")
compact = importlib.import_module("src.transformers.models.vidtr.vidtr_compact")

HERE = Path(__file__).resolve().parent
SIZE = {"D": 24, "L": 2, "H": 3, "S": 28, "P": 2, "classes": 5}
CONFIGS = {
    "vidtr": SIZE | {"T": 4},
    "vidtr_positions": SIZE | {"T": 16},
    "vidtr_compact": SIZE | {"T": 8, "L": 5, "pools": [1, 3], "drops": [3, 2]},
}


def build(c: dict) -> torch.nn.Module:
    """The model of a golden's configuration."""
    fields = {
        "d_model": c["D"], "nhead": c["H"], "num_encoder_layers": c["L"], "dim_feedforward": 4 * c["D"],
        "normalize_before": True, "patch_size": (1, c["P"], c["P"]), "activity_num": c["classes"],
        "temporal_size": c["T"],
    }  # fmt: skip
    if "pools" in c:
        return compact.CompactVidTr(**fields, layer_pool=c["pools"], number_of_keys=c["drops"])
    return split.VidTr(**fields)


def main() -> None:
    """Writes the goldens next to this file."""
    for name, config in CONFIGS.items():
        model = build(config).eval()
        shapes = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
        model.load_state_dict({entry: torch.from_numpy(recipe.parameter(entry, shapes[entry])) for entry in shapes})
        shape = (2, 3, config["T"], config["S"], config["S"])
        with torch.no_grad():
            logits = model(torch.from_numpy(recipe.floats("input0", shape))).numpy()
        description = {
            "config": config,
            "inputs": [{"kind": "floats", "name": "input0", "shape": shape}],
            "source": "amazon-science/gluonmm 29d63b3",
            "state_dict": {entry: list(of) for entry, of in shapes.items()},
        }
        (HERE / f"{name}.json").write_text(json.dumps(description) + "\n")
        np.savez_compressed(HERE / f"{name}.npz", output0=logits)


if __name__ == "__main__":
    main()
