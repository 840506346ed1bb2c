"""Weights that the study of families starts from, where those of a new model would not leave chance within minutes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import vidjax
from vidjax.convert import save_pretrained
from vidjax.data.moving_shapes import render
from vidjax.models import example_inputs


def write_start(workdir: str, name: str, seed: int, change: Callable[[dict, jax.Array], dict], **fields: Any) -> str:
    """Writes a checkpoint of a new model whose parameters `change(params, key)` has changed; returns its path.

    Args:
      **fields: of the model, if they change the shapes of its parameters.
    """
    out = Path(workdir) / f"{name}_start_{seed}"
    if not out.exists():
        unfinished = out.with_name(f"{out.name}_unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # left by an interrupted call
        model, key = vidjax.create_model(name, num_classes=8, **fields), jax.random.key(seed)
        variables = model.init(key, jnp.zeros(example_inputs(model)[0].shape))
        save_pretrained(unfinished, model, {**variables, "params": change(variables["params"], key)})
        unfinished.rename(out)
    return str(out)


def spread_times(workdir: str, name: str, seed: int) -> str:
    """A start whose time embeddings lie on a line, with the scale of the tokens.

    TimeSformer's time embeddings are initialised with zeros, which suits pre-trained image weights and many epochs.
    Trained from scratch for a few minutes, such a model learns the axis of the motion but not its direction, because
    frames with equal embeddings have no order.
    """

    def spread(params: dict, key: jax.Array) -> dict:
        frames, width = params["time"]["table"].shape
        line = jnp.linspace(-1, 1, frames)[:, None] * jax.random.normal(key, (width,))
        return {**params, "time": {"table": line}}

    return write_start(workdir, name, seed, spread)


def scale_kernels(workdir: str, name: str, seed: int) -> str:
    """A start whose convolutions and hidden layers preserve the scale of their inputs (He et al. 2015).

    AlexNets start with a standard deviation of 0.01, which suits thousands of inputs and pixels of 0 to 255. At the
    tiny models' width each layer would shrink its input tenfold, and training would not leave chance within minutes.
    The first kernels are for C3D's pixels of 0 to 255; DeepVideo's tiny rows take normalised ones, and train with them.
    """

    def scale(params: dict, _: jax.Array) -> dict:
        scaled = dict(params)
        for layer in params:
            if layer.startswith(("conv", "fc")):
                kernel = params[layer]["kernel"]
                std = jnp.sqrt(2 / np.prod(kernel.shape[:-1])) / (64 if layer == "conv1" else 1)  # of pixels
                scaled[layer] = {**params[layer], "kernel": kernel / kernel.std() * std}
        return scaled

    return write_start(workdir, name, seed, scale)


def standardize_units(workdir: str, name: str, seed: int, **fields: Any) -> str:
    """A start whose units have mean 0 and variance 1 over 32 rendered clips (Krähenbühl et al. 2016, arXiv:1511.06856).

    Frames are dark and much alike. Where kernels only preserve the scale, what all frames have in common is most of
    each layer's output, and what the layers after it see of the shape's place is small. An LSTM, if there is one, gets
    orthogonal recurrent kernels (Saxe et al. 2014), and input kernels that preserve the scale.
    """

    def standardize(params: dict, key: jax.Array) -> dict:
        model = vidjax.create_model(name, num_classes=8, **fields)
        frames = np.arange(model.num_frames)
        clips = model.card.preprocess(np.stack([render(index, frames, model.image_size) for index in range(32)]))
        for layer in sorted(layer for layer in params if layer.startswith(("conv", "fc"))):
            _, seen = model.apply(
                {"params": params}, clips, mutable=["intermediates"],
                capture_intermediates=lambda module, _, layer=layer: module.name == layer,
            )  # fmt: skip
            outputs = seen["intermediates"][layer]["__call__"][0]
            mean, std = (measure(outputs, axis=tuple(range(outputs.ndim - 1))) for measure in (jnp.mean, jnp.std))
            kernel, bias = params[layer]["kernel"], params[layer]["bias"]
            params = {**params, layer: {"kernel": kernel / std, "bias": (bias - mean) / std}}
        for layer in (layer for layer in params if layer.startswith("lstm")):
            inputs, states = params[layer]["input_kernel"], params[layer]["state_kernel"]
            gates = [nn.initializers.orthogonal()(gate, (len(states),) * 2) for gate in jax.random.split(key, 4)]
            inputs = inputs / inputs.std() * np.sqrt(2 / len(inputs))
            changed = {"input_kernel": inputs, "state_kernel": jnp.concatenate(gates, axis=1)}
            params = {**params, layer: {**params[layer], **changed}}
        return params

    return write_start(workdir, name, seed, standardize, **fields)
