"""Records inception3d_s3d.{json,npz} from torchvision and inception3d_i3d.{json,npz} from the plain I3D below.

    pip install torch torchvision && PYTHONPATH=tests python tests/goldens/record_inception3d.py

The sizes are odd, so that TensorFlow's padding and symmetric padding differ, and three frames are left at the end, so
that frames have different weights in the windows before the classifier. torchvision's network has its published widths,
I3D an eighth of them. The code of I3D requires TensorFlow 1, so the network below follows its description, with the
names of the PyTorch port (piergiaj/pytorch-i3d).
"""

import json
from pathlib import Path

import numpy as np
import peers
import recipe
import torch
import torch.nn.functional as F
from torch import Tensor

S3D_VIDEO = (2, 24, 49, 81, 3)  # leaves 3x2x3
I3D_VIDEO = (2, 17, 36, 230, 3)  # leaves 3x2x8, one more than the window is wide
CLASSES = 5
GAIN = 1.4  # of all kernels, so that the last layers still depend on the clip

# Branch 0; branches 1 and 2, reduction and 3x3x3; branch 3.
MODULES = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def i3d_shapes(divisor: int, classes: int, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """The port's state dict with all widths divided."""
    shapes = {}

    def unit(name: str, wide: int, narrow: int, size: int) -> int:
        shapes[f"{name}.conv3d.weight"] = (narrow, wide, size, size, size)
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{entry}"] = (narrow,)
        return narrow

    width = unit("Conv3d_1a_7x7", channels, 64 // divisor, 7)
    width = unit("Conv3d_2b_1x1", width, 64 // divisor, 1)
    width = unit("Conv3d_2c_3x3", width, 192 // divisor, 3)
    for name, widths in MODULES.items():
        b0, b1a, b1b, b2a, b2b, b3b = (each // divisor for each in widths)
        unit(f"{name}.b0", width, b0, 1)
        unit(f"{name}.b1b", unit(f"{name}.b1a", width, b1a, 1), b1b, 3)
        unit(f"{name}.b2b", unit(f"{name}.b2a", width, b2a, 1), b2b, 3)
        unit(f"{name}.b3b", width, b3b, 1)
        width = b0 + b1b + b2b + b3b
    return shapes | {"logits.conv3d.weight": (classes, width, 1, 1, 1), "logits.conv3d.bias": (classes,)}


def pad_same(x: Tensor, size: tuple[int, ...], strides: tuple[int, ...], value: float) -> Tensor:
    """TensorFlow's SAME: as many outputs as strides fit in, rounded up; the odd cell at the end."""
    sides = []
    for length, kernel, stride in zip(x.shape[2:], size, strides, strict=True):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        sides = [total // 2, total - total // 2, *sides]  # PyTorch counts axes from the last
    return F.pad(x, sides, value=value)


def i3d(weights: dict[str, Tensor], video: Tensor) -> Tensor:
    """Logits of videos `b c t h w`."""

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.conv3d.weight"]
        x = F.conv3d(pad_same(x, kernel.shape[2:], (stride,) * 3, 0.0), kernel, stride=stride)
        scale, offset, mean, var = (
            weights[f"{name}.bn.{entry}"][:, None, None, None]
            for entry in ("weight", "bias", "running_mean", "running_var")
        )
        return F.relu((x - mean) / torch.sqrt(var + 1e-3) * scale + offset)

    def pool(x: Tensor, size: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(pad_same(x, size, strides, -torch.inf), size, strides)

    x = pool(unit("Conv3d_1a_7x7", video, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for name in MODULES:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        branches = (
            unit(f"{name}.b0", x),
            unit(f"{name}.b1b", unit(f"{name}.b1a", x)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", x)),
            unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
        )
        x = torch.cat(branches, 1)
    x = F.avg_pool3d(x, [min(most, side) for most, side in zip((2, 7, 7), x.shape[2:], strict=True)], stride=1)
    x = F.conv3d(x, weights["logits.conv3d.weight"], weights["logits.conv3d.bias"])
    return x.mean((2, 3, 4))


def gained(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The recipe's weights with `GAIN`."""
    return {name: GAIN * value if value.ndim == 5 else value for name, value in weights.items()}


def perturb_s3d(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Gives every parameter and statistic a value; returns them."""
    weights = gained(peers.perturb(model))
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return weights


def build_s3d(map_size: tuple[int, int] = (7, 7)) -> torch.nn.Module:
    """torchvision's, whose pooling before the classifier takes a map of this size."""
    peers.torchvision()
    from torchvision.models.video.s3d import S3D

    model = S3D(num_classes=CLASSES).eval()
    model.avgpool = torch.nn.AvgPool3d((2, *map_size), stride=1)
    return model


def write(name: str, config: dict, video: tuple[int, ...], shapes: dict, logits: Tensor) -> None:
    """A golden next to this file."""
    inputs = [{"kind": "floats", "name": "video", "shape": video}]
    description = {"config": config, "inputs": inputs, "state_dict": shapes}
    stem = Path(__file__).with_name(name)
    stem.with_suffix(".json").write_text(json.dumps(description, separators=(",", ":")) + "\n")
    np.savez_compressed(stem.with_suffix(".npz"), logits=logits.numpy())


@torch.no_grad()
def main() -> None:
    """Writes both goldens."""
    model = build_s3d((2, 3))
    shapes = {name: value.shape for name, value in perturb_s3d(model).items() if value.ndim}
    video = torch.from_numpy(recipe.floats("video", S3D_VIDEO)).permute(0, 4, 1, 2, 3)
    write("inception3d_s3d", {"classes": CLASSES, "gain": GAIN}, S3D_VIDEO, shapes, model(video))

    shapes = i3d_shapes(8, CLASSES)
    weights = gained({name: recipe.parameter(name, shape) for name, shape in shapes.items()})
    weights = {name: torch.from_numpy(value) for name, value in weights.items()}
    video = torch.from_numpy(recipe.floats("video", I3D_VIDEO)).permute(0, 4, 1, 2, 3)
    write("inception3d_i3d", {"classes": CLASSES, "gain": GAIN, "divisor": 8}, I3D_VIDEO, shapes, i3d(weights, video))


if __name__ == "__main__":
    main()
