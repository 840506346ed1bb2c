"""Layouts of C3D: mmaction2, and the PyTorch ports of the Caffe release."""

import numpy as np

from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout, Rule, Transform, dense, kernel, prefix, strip
from vidjax.models.c3d import C3D, LAYERS


def recognizer(weights: Weights) -> Weights:
    """Adds the prefixes of mmaction2's recognizer."""
    return prefix(weights, "backbone.", "cls_head.")


def layout(model: C3D, name: str, key: str, marker: str, conv: dict[str, str], head: str) -> Layout:
    """One layout.

    Args:
      model: the model, whose clip size determines the order of features in `fc6`.
      name: see `Layout`, as `key` and `marker`.
      conv: published names of the convolutions, by our names.
      head: published name of the head.
    """
    frames, size = model.num_frames // 16, (model.image_size // 16 + 2) // 2

    def channels_last(value: np.ndarray) -> np.ndarray:
        """Converts `(out, c t h w)` to `(t h w c, out)`."""
        if value.shape[1] % (frames * size * size):
            return kernel(value)
        maps = value.reshape(len(value), -1, frames, size, size)
        return np.ascontiguousarray(np.moveaxis(maps, (0, 1), (-1, -2))).reshape(-1, len(value))

    def channels_first(value: np.ndarray) -> np.ndarray:
        """The inverse of `channels_last`."""
        if value.shape[0] % (frames * size * size):
            return kernel.inverse(value)
        maps = value.reshape(frames, size, size, -1, value.shape[-1])
        return np.moveaxis(maps, (-1, -2), (0, 1)).reshape(value.shape[-1], -1)

    return Layout(
        name=name,
        key=key,
        marker=marker,
        prepare=lambda weights: strip(weights, "module.", "backbone."),
        **({"restore": recognizer, "wrap": lambda content: {"state_dict": content}} if key == "mmaction2" else {}),
        rules=(
            *(rule for target, source in conv.items() for rule in dense(source, target)),
            Rule("fc6.weight", "fc6/kernel", Transform(channels_last, channels_first)),
            Rule("fc6.bias", "fc6/bias"),
            *dense("fc7", "fc7"),
            *dense(head, "head"),
        ),
    )


def layouts(model: C3D) -> tuple[Layout, ...]:
    """The layouts of the model's weights."""
    mmaction2 = {name: f"{name}.conv" for name in LAYERS}
    port = {name: name.removesuffix("a") if name in ("conv1a", "conv2a") else name for name in LAYERS}
    return (
        layout(model, "mmaction2", "mmaction2", "conv1a.conv.weight", mmaction2, "cls_head.fc_cls"),
        layout(model, "PyTorch ports", "pytorch_ports", "conv1.weight", port, "fc8"),
    )


LAYOUTS = {C3D: layouts}
