"""Records hiera_video_mae from the original Hiera's masked autoencoder of videos.

    pip install torch && python tests/goldens/record_hiera.py HIERA

HIERA is a checkout of facebookresearch/hiera. Stored: the kept units, the predicted patches of the hidden ones (every
eighth value), their targets (likewise) and the loss. `hiera`, `hiera_pretrain` and `hiera_video` come from elsewhere.
"""

import json
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import recipe
import torch

sys.path.insert(0, sys.argv[1])
CONFIG = {
    "T": 4, "S": 64, "D": 16, "stages": [1, 1, 2, 1], "q_pool": 2, "dD": 32, "dL": 2, "dH": 4, "kept": 3,
}  # fmt: skip


class Mlp(torch.nn.Module):
    """timm's."""

    def __init__(self, width: int, hidden: int, act_layer: type) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = torch.nn.Linear(width, hidden), act_layer(), torch.nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


def original() -> types.ModuleType:
    """The original's package, without timm and the hub."""
    layers = {"DropPath": torch.nn.Identity, "Mlp": Mlp}
    for name, content in (("timm", {}), ("timm.models", {}), ("timm.models.layers", layers)):
        sys.modules[name] = types.SimpleNamespace(**content)
    sys.modules["hiera.hfhub"] = types.SimpleNamespace(has_config=lambda init: init, PyTorchModelHubMixin=object)
    import hiera.hiera_mae

    return hiera.hiera_mae


def main() -> None:
    """Writes the golden next to this file."""
    c = CONFIG
    model = original().MaskedAutoencoderHiera(
        input_size=(c["T"], c["S"], c["S"]), embed_dim=c["D"], num_heads=1, stages=tuple(c["stages"]),
        q_pool=c["q_pool"],
        q_stride=(1, 2, 2), mask_unit_size=(1, 8, 8), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3), sep_pos_embed=True, decoder_embed_dim=c["dD"], decoder_depth=c["dL"],
        decoder_num_heads=c["dH"], norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(recipe.parameter(name, shape)) for name, shape in shapes.items()})
    shape = (2, 3, c["T"], c["S"], c["S"])
    kept = np.sort(recipe.floats("kept", (2, 8)).argsort(axis=1)[:, : c["kept"]], axis=1)
    mask = np.zeros((2, 8), bool)
    np.put_along_axis(mask, kept, True, axis=1)
    with torch.no_grad():
        video = torch.from_numpy(recipe.floats("video", shape))
        loss, predicted, target, _ = model(video, mask=torch.from_numpy(mask))
    description = {
        "config": c,
        "inputs": [{"kind": "floats", "name": "video", "shape": shape}, {"kind": "stored", "name": "kept"}],
        "state_dict": shapes,
    }
    stem = Path(__file__).with_name("hiera_video_mae")
    stem.with_suffix(".json").write_text(json.dumps(description, indent=0) + "\n")
    np.savez_compressed(
        stem.with_suffix(".npz"), kept=kept, loss=loss.numpy(), predicted=predicted.numpy()[:, ::8],
        target=target.numpy()[:, ::8],
    )  # fmt: skip


if __name__ == "__main__":
    main()
