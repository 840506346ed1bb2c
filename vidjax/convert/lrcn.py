"""Layout of LRCN: the blobs of a Caffe network by layer and index, as pycaffe gives them.

`{f"{layer}.{i}": blob.data for layer, blobs in net.params.items() for i, blob in enumerate(blobs)}` are the entries. Of
the LSTM these are the input's weight, the bias and the state's weight. Caffe's order of gates is input, forget, output,
cell; its pixels are BGR; it flattens maps channels first.
"""

from functools import partial

import numpy as np

from vidjax.convert.fits import inflate
from vidjax.convert.rules import Layout, Rule, Transform, image_kernel, kernel
from vidjax.models.lrcn import LAYERS, LRCN, final_side


def reordered(value: np.ndarray) -> np.ndarray:
    """Exchanges the third and the fourth quarter of the rows."""
    quarter = len(value) // 4
    return np.concatenate([value[: 2 * quarter], value[3 * quarter :], value[2 * quarter : 3 * quarter]])


def channels_last(side: int, value: np.ndarray) -> np.ndarray:
    """Converts `(out, c h w)` to `(h w c, out)`."""
    if value.shape[1] % side**2:
        return kernel(value)
    return np.moveaxis(value.reshape(len(value), -1, side, side), (0, 1), (-1, -2)).reshape(-1, len(value))


def channels_first(side: int, value: np.ndarray) -> np.ndarray:
    """The inverse of `channels_last`."""
    maps = value.reshape(side, side, -1, value.shape[-1])
    return np.moveaxis(maps, (-1, -2), (0, 1)).reshape(value.shape[-1], -1)


GATES = Transform(lambda value: kernel(reordered(value)), lambda value: reordered(kernel.inverse(value)))
PIXELS = Transform(lambda value: image_kernel(value[:, ::-1]), lambda value: image_kernel.inverse(value)[:, ::-1])


def layouts(model: LRCN) -> tuple[Layout, ...]:
    """The layout of the model's weights."""
    side = final_side(model.network, model.image_size)
    flattened = Transform(partial(channels_last, side), partial(channels_first, side))
    kernels = dict.fromkeys(LAYERS[model.network], image_kernel) | {"conv1": PIXELS}
    caffe = Layout(
        name="Caffe's LRCN",
        key="caffe",
        marker="lstm1.2",
        rules=(
            *(Rule(f"{name}.0", f"{name}/kernel", transform, inflate) for name, transform in kernels.items()),
            *(Rule(f"{name}.1", f"{name}/bias") for name in (*kernels, "fc6")),
            Rule("fc6.0", "fc6/kernel", flattened),
            Rule("lstm1.0", "lstm7/input_kernel", GATES),
            Rule("lstm1.1", "lstm7/input_bias", GATES),
            Rule("lstm1.2", "lstm7/state_kernel", GATES),
            Rule("fc8-final.0", "head/kernel", kernel),
            Rule("fc8-final.1", "head/bias"),
        ),
    )
    return (caffe,)


LAYOUTS = {LRCN: layouts}
