"""Records uniformer_overlap.{json,npz} and uniformer_split.{json,npz} from experiments/benchmark/torch_uniformer.py.

    pip install torch && python tests/goldens/record_uniformer.py

Two clips of 4 frames of 64x64 pixels, a few kilobytes, for tests on machines without PyTorch and without the goldens of
the original implementation. Stored: the logits.
"""

import json
import sys
from pathlib import Path

import numpy as np
import recipe
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "experiments"))
from benchmark.torch_uniformer import UniFormer

SIZES = {"T": 4, "S": 64, "D": [8, 16, 24, 32], "L": [1, 2, 1, 1], "hd": 8, "classes": 5}
CONFIGS = {
    "uniformer_overlap": SIZES | {"split": False, "std": True},
    "uniformer_split": SIZES | {"split": True, "std": False},
}


def build(config: dict, **fields) -> UniFormer:
    """The model of a golden's configuration."""
    return UniFormer(
        config["D"], config["L"], config["hd"], split=config["split"], temporal_overlap=config["std"],
        num_classes=config["classes"], **fields,
    )  # fmt: skip


def main() -> None:
    """Writes the goldens next to this file."""
    for name, config in CONFIGS.items():
        model = build(config).eval()
        shapes = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
        weights = {entry: torch.from_numpy(np.asarray(recipe.parameter(entry, shapes[entry]))) for entry in shapes}
        model.load_state_dict(weights)
        shape = (2, 3, config["T"], config["S"], config["S"])
        with torch.no_grad():
            logits = model(torch.from_numpy(recipe.floats("input0", shape))).numpy()
        inputs = [{"kind": "floats", "name": "input0", "shape": shape}]
        description = {"config": config, "inputs": inputs, "state_dict": shapes}
        stem = Path(__file__).with_name(name)
        stem.with_suffix(".json").write_text(json.dumps(description, indent=0) + "\n")
        np.savez_compressed(stem.with_suffix(".npz"), output0=logits)


if __name__ == "__main__":
    main()
