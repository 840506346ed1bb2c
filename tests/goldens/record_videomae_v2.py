"""Records videomae_v2_step from a training step of the original VideoMAE V2.

    pip install torch einops && python tests/goldens/record_videomae_v2.py VIDEOMAEV2

VIDEOMAEV2 is a checkout of OpenGVLab/VideoMAEv2. Model, parameters and masks are those of videomae_v2_pretrain; the
clips are uint8, dark and bright, so that scaling and normalisation matter. Stored: the loss and the norm of the
gradient.
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
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Meter(dict):
    """A stand-in for the original's logger, whose module needs packages for launching on a cluster."""

    def __init__(self, **_):
        super().__init__()
        self.meters = {}

    def log_every(self, batches, *_):
        return batches

    def update(self, **values):
        super().update(values)

    def __getattr__(self, name):
        return lambda *_, **__: None


def stand_in(**modules: dict) -> None:
    """Replaces modules by namespaces; of timm, the model needs nothing that computes."""
    for name, content in modules.items():
        sys.modules[name.replace("__", ".")] = types.SimpleNamespace(**content)


def clips() -> np.ndarray:
    """Two clips, dark and bright."""
    draw = np.random.default_rng(5)
    video = draw.integers(0, 256, (2, 8, 32, 32, 3)) * draw.uniform(0.2, 1, (2, 1, 1, 1, 3))
    return video.astype(np.uint8)


def main() -> None:
    """Writes the golden next to this file."""
    logged = []

    def make_logger(**_):
        logged.append(Meter())
        return logged[-1]

    stand_in(
        utils={"MetricLogger": make_logger, "SmoothedValue": Meter},
        timm={}, timm__data={}, timm__models={},
        timm__data__constants={"IMAGENET_DEFAULT_MEAN": MEAN.tolist(), "IMAGENET_DEFAULT_STD": STD.tolist()},
        timm__models__layers={
            "drop_path": None, "to_2tuple": lambda n: (n, n), "trunc_normal_": torch.nn.init.trunc_normal_
        },
        timm__models__registry={"register_model": lambda make: make},
    )  # fmt: skip
    torch.cuda.synchronize = lambda: None
    import engine_for_pretraining
    from models.modeling_pretrain import PretrainVisionTransformer

    golden = recipe.load("videomae_v2_pretrain")
    c = golden.config
    model = PretrainVisionTransformer(
        img_size=c["S"], patch_size=c["P"], encoder_embed_dim=c["D"], encoder_depth=c["L"], encoder_num_heads=c["H"],
        decoder_num_classes=6 * c["P"] ** 2, decoder_embed_dim=c["dD"], decoder_depth=c["dL"],
        decoder_num_heads=c["dH"], qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), all_frames=c["T"],
    )  # fmt: skip
    model.load_state_dict({name: torch.from_numpy(value) for name, value in golden.weights.items()})
    video = clips()
    pixels = torch.from_numpy(((video / 255 - MEAN) / STD).astype(np.float32)).permute(0, 4, 1, 2, 3)
    masks = [torch.from_numpy(mask) for mask in golden.inputs[1:]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine_for_pretraining.train_one_epoch(
        model, [(pixels, *masks)], optimizer, torch.device("cpu"), 0, None, max_norm=1e9, patch_size=c["P"],
        start_steps=0,
    )  # fmt: skip
    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
    description = {
        "config": c,
        "inputs": [{"kind": "stored", "name": name} for name in ("video", "encoder_mask", "decoder_mask")],
        "state_dict": {name: value.shape for name, value in golden.weights.items()},
    }
    stem = Path(__file__).with_name("videomae_v2_step")
    stem.with_suffix(".json").write_text(json.dumps(description, indent=0) + "\n")
    np.savez_compressed(
        stem.with_suffix(".npz"), video=video, encoder_mask=golden.inputs[1], decoder_mask=golden.inputs[2],
        loss=logged[-1]["loss"], gradient_norm=norm.numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
